"""The statements of PostgreSQL, as they are sent: with the parts that several share, and the name of the schema."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pydantic_core import to_json

from ..basis.errors import ValidationError
from . import queries
from .relational import COLUMNS, STORED

#: Microseconds since 1970, by the database, at this very moment.
NOW = "(extract(epoch from clock_timestamp()) * 1000000)::bigint"

#: Of a run that has a concurrency key: nobody goes before it whom this claim could take, and nobody holds the key.
_FIRST_OF_KEY = """(
    not exists (
      select 1 from holdfast_runs as o
      where o.concurrency_key = {run}.concurrency_key and o.turn = 0 and o.status = 'pending' and o.due = 1
        and o.concurrency_key is not null and (-o.priority, o.run_at, o.id) < (-{run}.priority, {run}.run_at, {run}.id)
        and (o.queue, o.job_name) in (
          select w.value ->> 0, w.value ->> 1 from jsonb_array_elements({wanted}::jsonb) as w (value))
      offset 0)
    and not exists (
      select 1 from holdfast_runs as h
      where h.concurrency_key = {run}.concurrency_key and h.turn = 2 and h.status in ('pending', 'leased', 'waiting')
        and h.concurrency_key is not null and h.id <> {run}.id
      offset 0))"""

#: Where the last row of a claim has the two times of `_DUE_BESIDE`.
_NEXT = {"run_at": "d.due", "deadline_at": "d.wake"}

#: Of a run: there is nothing to be asked or written about it when it is claimed, but this.
_PLAIN = "(r.concurrency_key is null and r.parent_id is null and r.generation = 0) as plain"

#: What a claim does with the runs that it has found (`p`), in the words that both kinds of claims share.
_LEASE_FIRST = f"""k as materialized (
  select key from holdfast_keys
  where kind = 'key' and key = any (array(select concurrency_key from p))
  order by key for update skip locked),
c as materialized (
  select * from p where concurrency_key is null or concurrency_key in (select key from k)
  order by priority desc, run_at, id limit $2),
n as materialized (select $7 = 1 and not coalesce(bool_and(plain), true) as needs_more from c),
u as (
  update holdfast_runs as r set
    status = 'leased', lease_owner = $3, lease_expires_at = $4::bigint + $5, generation = r.generation + 1, turn = 0,
    started_at = coalesce(r.started_at, $4), updated_at = $4
  from c where r.id = c.id and c.concurrency_key is null and not (select needs_more from n)
  returning {COLUMNS})
select * from u
union all
select c.id{", null" * COLUMNS.count(",")} from c
where c.concurrency_key is not null or (select needs_more from n)
union all
select null{", null" * COLUMNS.count(",")}
where case when (select count(*) from c) < (select many from d) then
  exists (select 1 from p where concurrency_key is not null and concurrency_key not in (select key from k))
  or exists (
    select 1 from job
    cross join lateral (
      select 1 from holdfast_runs as r
      where r.status = 'pending' and r.due = 1 and r.turn <> 1 and r.crashes >= 0
        and r.queue = job.queue and r.job_name = job.name and r.id <> all (array(select id from p))
        and (r.concurrency_key is null or {_FIRST_OF_KEY.format(run="r", wanted="$1")})
      limit 1) as r
    where job.room is null)
  end
union all
select {", ".join(_NEXT.get(name, "null") for name in STORED)} from d where d.due is not null or d.wake is not null"""

#: When the next run is due, and the next sleeper; how many are taken: none as long as the time ($6) of one has come.
_DUE_BESIDE = """d as materialized (
  select due, wake, case when least(due, wake) <= $6 then 0 else $2 end as many
  from (
    select
      (select run_at from holdfast_runs
       where status = 'pending' and due = 0 and attempt >= 0 order by run_at limit 1) as due,
      (select wake_at from holdfast_runs
       where status = 'waiting' and wake_at is not null and attempt >= 0 order by wake_at limit 1) as wake) as one)"""

#: Of runs that may end (`c`): those above them, and the keys of both, as far as they can be locked now.
_THOSE_ABOVE = """p as materialized (
  select c.id, p.id as above, p.concurrency_key
  from c
  cross join lateral (select * from holdfast_runs where id = c.parent_id and completed_at is null offset 0) as p),
k as materialized (
  select key from holdfast_keys
  where kind = 'key'
    and key = any (array(select concurrency_key from c union all select concurrency_key from p))
  order by key for update skip locked),
a as materialized (
  select id from holdfast_runs where id = any (array(select above from p)) order by id for no key update skip locked)"""

#: And of these runs those with which nothing is missing.
_LOCKABLE = """
    select id from c
    where (concurrency_key is null or concurrency_key in (select key from k))
      and id not in (
        select id from p
        where above not in (select id from a)
          or (concurrency_key is not null and concurrency_key not in (select key from k)))"""

_PARTS = {
    "those_above": _THOSE_ABOVE,
    "lockable": _LOCKABLE,
    "lease_first": _LEASE_FIRST,
    "due_beside": _DUE_BESIDE,
    "plain": _PLAIN,
    "first_of_key": _FIRST_OF_KEY.format(run="r", wanted="$1"),
    "first_of_key_again": _FIRST_OF_KEY.format(run="c", wanted="$2"),
    "columns": COLUMNS,
    "now": NOW,
}

_TABLE = re.compile(
    r"(?<![\w.\"])(holdfast_(?:meta|migrations|runs|labels|progress|steps|step_attempts|logs|waits|signals|keys|workers))"
    r"(?!\w)"
)


def qualified(text: str, schema: str) -> str:
    """With the schema before each name of a table."""
    return _TABLE.sub(rf'"{schema}".\1', text)


@lru_cache(maxsize=16)
def statements(schema: str) -> dict[str, str]:
    """All of them by name, for tables in this schema."""
    texts = queries.load("postgres", **_PARTS)
    return {name: qualified(text, schema) for name, text in texts.items()}


#: A NUL itself, not the six characters of its JSON escape inside a payload that is JSON too.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def as_json(rows: Sequence[Any]) -> str:
    """Rows, as every statement takes them."""
    text = to_json(rows).decode()
    if "\\u0000" in text and _NUL.search(text):
        raise ValidationError("a text with a NUL character can't be kept; nothing was written.")
    return text
