"""The questions whose words depend on what is asked, in PostgreSQL's: which runs to list, and which are old."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..model.run import RunFilter, RunStatus
from .base import Old
from .relational import COLUMNS

#: What a reader sees beside the columns of the run: progress, how many steps are saved, the next position.
_READ_COLUMNS = f"""{COLUMNS},
  (select progress from holdfast_progress where run_id = r.id),
  (select count(*) from holdfast_steps where run_id = r.id and status = 'completed'),
  coalesce((select max(position) + 1 from holdfast_steps where run_id = r.id), 0)"""

#: The condition of the index `holdfast_runs_errored`.
_ERRORED = "r.status in ('failed', 'timed_out', 'finalize_failed', 'cancelled')"

#: A tree is as old as the last of its ends.
_WHOLE = """not exists (select 1 from holdfast_runs as m
  where m.root_id = r.id and m.attempt >= 0 and (m.completed_at is null or m.completed_at >= $1))"""


def _among(values: list[Any], wanted: str) -> str:
    values.append(wanted)
    return f"= any (array(select jsonb_array_elements_text(${len(values)}::jsonb)))"


def _is(values: list[Any], wanted: Any) -> str:
    values.append(wanted)
    return f"${len(values)}"


def listing(filter: RunFilter, rows: Callable[[Sequence[Any]], str]) -> tuple[str, list[Any]]:
    """The statement for a page of runs, newest first, and its values. `rows` makes the JSON of a list."""
    # Newest first is the order of the ids: the walk starts where it meets the fewest runs that are not wanted.
    values: list[Any] = []
    text, walked, labels = f"select {_READ_COLUMNS} from holdfast_runs as r where true", "r.id", filter.labels
    if labels:
        (key, value), labels = labels[0], labels[1:]
        text = f"""select {_READ_COLUMNS} from holdfast_labels as l join holdfast_runs as r on r.id = l.run_id
          where l.key = {_is(values, key)} and l.value = {_is(values, value)}"""
        walked = "l.run_id"
    elif filter.statuses and not filter.ids and RunStatus.errored().issuperset(filter.statuses):
        text += f" and {_ERRORED}"
    for column, wanted in (("id", filter.ids), ("job_name", filter.jobs), ("status", filter.statuses)):
        if wanted:
            text += f" and r.{column} {_among(values, rows(wanted))}"
    if filter.jobs or filter.parent is not None or filter.root is not None:
        text += " and r.attempt >= 0"  # says that the index by it may be used
    for key, value in labels:
        text += f""" and exists (
          select 1 from holdfast_labels
          where key = {_is(values, key)} and value = {_is(values, value)} and run_id = r.id)"""
    for column, above in (
        ("parent_id", filter.parent),
        ("awaited_as", filter.awaited_as),
        ("root_id", filter.root),
    ):
        if above is not None:
            text += f" and r.{column} = {_is(values, above)}"
    if filter.before is not None:
        text += f" and {walked} < {_is(values, filter.before)}"
    text += f" order by {walked} desc limit {_is(values, filter.limit)} offset {_is(values, filter.offset)}"
    return text, values


def question(old: Old, rows: Callable[[Sequence[Any]], str]) -> tuple[str, list[Any]]:
    """The statement for what may be forgotten, and its values: ids, the oldest end first, each with its weight."""
    values: list[Any] = [old.before, old.limit]
    where = f"r.completed_at < $1 and r.completed_at is not null and r.parent_id is null and {_WHOLE}"
    for name, wanted in (("job_name", old.jobs), ("status", old.statuses)):
        if wanted:
            where += f" and r.{name} {_among(values, rows(wanted))}"
    labels = [(_is(values, key), _is(values, value)) for key, value in old.labels]
    for key, value in labels[1:]:
        where += f"""
          and exists (select 1 from holdfast_labels where key = {key} and value = {value} and run_id = r.id)"""
    if labels:
        table = f"""holdfast_labels as l
          join holdfast_runs as r on r.id = l.run_id and l.key = {labels[0][0]} and l.value = {labels[0][1]}"""
        parts = [(table, "r.outputs_kept = 1" if old.outputs else "true")]
    else:
        # Two ranges of one index, each in the order of the ends.
        parts = [("holdfast_runs as r", f"r.outputs_kept = {kept}") for kept in ((1,) if old.outputs else (0, 1))]
    found = " union all ".join(
        f"""(select r.id, r.completed_at from {table} where {kept} and {where} order by r.completed_at limit $2)"""
        for table, kept in parts
    )
    text = f"""select old.id,
      (select count(*) from holdfast_steps where run_id = old.id)
      + (select count(*) from holdfast_step_attempts where run_id = old.id)
      + (select count(*) from holdfast_logs where run_id = old.id)
      from ({found}) as old order by old.completed_at limit $2"""
    return text, values
