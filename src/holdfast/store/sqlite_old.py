"""The question for what is old, in SQLite's words: which table or index it begins with depends on what is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .base import Old

#: A tree is as old as the last of its ends.
_WHOLE = """not exists (select 1 from holdfast_runs as m
  where m.root_id = r.id and (m.completed_at is null or m.completed_at >= :before))"""


def question(old: Old, rows: Callable[[Sequence[Any]], str]) -> tuple[str, dict[str, Any]]:
    """The statement and its values: it gives ids, the oldest end first, each with how much there is of the run.

    `rows` makes the JSON of a list.
    """
    where = f"r.completed_at < :before and r.parent_id is null and {_WHOLE}"
    values: dict[str, Any] = {"before": old.before, "limit": old.limit}
    for name, wanted in (("job_name", old.jobs), ("status", old.statuses)):
        if wanted:
            where += f" and r.{name} in (select value from json_each(:{name}))"
            values[name] = rows(wanted)
    for number, (key, value) in enumerate(old.labels):
        values |= {f"k{number}": key, f"v{number}": value}
        if number:
            where += f"""
              and exists (select 1 from holdfast_labels
                where key = :k{number} and value = :v{number} and run_id = r.id)"""
    if old.labels:
        table = """holdfast_labels as l
          cross join holdfast_runs as r on r.id = l.run_id and l.key = :k0 and l.value = :v0"""
        parts = [(table, "r.outputs_kept = 1" if old.outputs else "true")]
    else:
        # Two ranges of one index, each in the order of the ends.
        table = "holdfast_runs as r indexed by holdfast_runs_ended"
        parts = [(table, f"r.outputs_kept = {kept}") for kept in ((1,) if old.outputs else (0, 1))]
    found = " union all ".join(
        f"""select * from (
          select r.id, r.completed_at from {table} where {kept} and {where} order by r.completed_at limit :limit)"""
        for table, kept in parts
    )
    text = f"""select old.id,
      (select count(*) from holdfast_steps where run_id = old.id)
      + (select count(*) from holdfast_step_attempts where run_id = old.id)
      + (select count(*) from holdfast_logs where run_id = old.id)
      from ({found}) as old order by old.completed_at limit :limit"""
    return text, values
