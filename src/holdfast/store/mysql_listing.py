"""The questions whose words depend on what is asked, in MariaDB's: which runs to list, and which are old."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..model.run import RunFilter, RunStatus
from .base import Old
from .relational import COLUMNS

#: What a reader sees beside the columns of the run: progress, how many steps are saved, the next position.
_READ_COLUMNS = f"""{COLUMNS},
  (select p.progress from holdfast_progress as p where p.run_id = r.id),
  (select count(*) from holdfast_steps as s where s.run_id = r.id and s.status = 'completed'),
  coalesce((select max(s.position) + 1 from holdfast_steps as s where s.run_id = r.id), 0)"""

#: Limits can't be left out where there is an offset.
_ALL = 2**62

#: A tree is as old as the last of its ends.
_WHOLE = """not exists (select 1 from holdfast_runs as m
  where m.root_id = r.id and (m.completed_at is null or m.completed_at >= $1))"""


class _Values(list[Any]):
    """The values of a statement, and how they are called in it."""

    def is_(self, value: Any) -> str:
        self.append(value)
        return f"${len(self)}"

    def among(self, wanted: Sequence[str]) -> str:
        return f"in ({', '.join(map(self.is_, wanted))})"


def listing(filter: RunFilter) -> tuple[str, list[Any]]:
    """The statement for a page of runs, newest first, and its values."""
    # Newest first is the order of the ids: the walk starts where it meets the fewest runs that are not wanted.
    values = _Values()
    text, walked, labels = f"select {_READ_COLUMNS} from holdfast_runs as r where true", "r.id", filter.labels
    status = "status"
    if labels:
        key, value = labels[0]
        labels = labels[1:]
        text = f"""select {_READ_COLUMNS} from holdfast_labels as l straight_join holdfast_runs as r on r.id = l.run_id
          where l.`key` = {values.is_(key)} and l.value = {values.is_(value)}"""
        walked = "l.run_id"
    elif filter.statuses and not filter.ids and RunStatus.errored().issuperset(filter.statuses):
        status = "errored"
    for column, wanted in (("id", filter.ids), ("job_name", filter.jobs), (status, filter.statuses)):
        if wanted:
            text += f" and r.{column} {values.among(wanted)}"
    for key, value in labels:
        text += f""" and exists (
          select 1 from holdfast_labels as m
          where m.`key` = {values.is_(key)} and m.value = {values.is_(value)} and m.run_id = r.id)"""
    for column, above in (
        ("parent_id", filter.parent),
        ("awaited_as", filter.awaited_as),
        ("root_id", filter.root),
    ):
        if above is not None:
            text += f" and r.{column} = {values.is_(above)}"
    if filter.before is not None:
        text += f" and {walked} < {values.is_(filter.before)}"
    limit = _ALL if filter.limit is None else filter.limit
    return f"{text} order by {walked} desc limit {values.is_(limit)} offset {values.is_(filter.offset)}", values


def question(old: Old) -> tuple[str, list[Any]]:
    """The statement for what may be forgotten, and its values: ids, the oldest end first, each with its weight."""
    values = _Values()
    before, limit = values.is_(old.before), values.is_(old.limit)
    where = f"r.root_ended_at < {before} and {_WHOLE}"
    for name, wanted in (("job_name", old.jobs), ("status", old.statuses)):
        if wanted:
            where += f" and r.{name} {values.among(wanted)}"
    labels = [(values.is_(key), values.is_(value)) for key, value in old.labels]
    for key, value in labels[1:]:
        where += f"""
          and exists (
            select 1 from holdfast_labels as m where m.`key` = {key} and m.value = {value} and m.run_id = r.id)"""
    if labels:
        table = f"""holdfast_labels as l
          straight_join holdfast_runs as r
            on r.id = l.run_id and l.`key` = {labels[0][0]} and l.value = {labels[0][1]}"""
        parts = [(table, "r.outputs_kept = 1" if old.outputs else "true")]
    else:
        # Two ranges of one index, each in the order of the ends.
        table = "holdfast_runs as r force index (holdfast_runs_ended)"
        parts = [(table, f"r.outputs_kept = {kept}") for kept in ((1,) if old.outputs else (0, 1))]
    found = " union all ".join(
        f"(select r.id, r.root_ended_at from {table} where {kept} and {where} order by r.root_ended_at limit {limit})"
        for table, kept in parts
    )
    text = f"""select old.id,
      (select count(*) from holdfast_steps as s where s.run_id = old.id)
      + (select count(*) from holdfast_step_attempts as a where a.run_id = old.id)
      + (select count(*) from holdfast_logs as g where g.run_id = old.id)
      from ({found}) as old order by old.root_ended_at limit {limit}"""
    return text, values
