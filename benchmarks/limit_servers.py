"""What the bare loop says to PostgreSQL and to MariaDB: each transaction in as few messages as their drivers can.

PostgreSQL: binary arrays, prepared statements, and a pipeline, so that a whole transaction is one round trip. MariaDB:
rows as one JSON text, several statements in one message.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import places
import psycopg
import pymysql
from limit import End, Loop, Save
from pymysql.constants import CLIENT

from holdfast.basis.clock import SystemClock
from holdfast.store.mysql_place import address
from holdfast.store.opening import open_store

_PG_INSERT = """
insert into holdfast_runs (id, job_name, status, run_at, due, created_at, updated_at, input)
select id, 'noop', 'pending', at, 1, at, at, input
from unnest(%b::text[], %b::int8[], %b::text[]) as e (id, at, input)"""
_PG_FINISH = """
update holdfast_runs as r set status = 'completed', lease_owner = null, lease_expires_at = null, completed_at = e.at,
  updated_at = e.at, output = e.output
from unnest(%b::text[], %b::int8[], %b::text[]) as e (id, at, output)
where r.id = e.id and r.generation = 1 and r.lease_owner = 'w'"""
_PG_CLAIM = """
update holdfast_runs as r set status = 'leased', lease_owner = 'w', lease_expires_at = %b + 30000000,
  generation = r.generation + 1, started_at = coalesce(r.started_at, %b), updated_at = %b
from (
  select id from holdfast_runs
  where status = 'pending' and due = 1 and turn <> 1 and crashes >= 0 and queue = 'default' and job_name = 'noop'
  order by priority desc, run_at, id limit %b for no key update skip locked) as c
where r.id = c.id
returning r.id, r.input"""
_PG_STEP = """
insert into holdfast_steps (run_id, name, occurrence, position, status, attempt, generation, output, started_at,
  completed_at)
select run, name, 0, position, 'completed', 0, 1, output, at, at
from unnest(%b::text[], %b::text[], %b::int8[], %b::text[], %b::int8[]) as e (run, name, position, output, at)"""


class PostgresLoop:
    """On PostgreSQL."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(
            url, autocommit=True, prepare_threshold=0, options="-c jit=off -c enable_seqscan=off"
        )
        self.close = self._connection.close

    def _columns(self, rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
        return [list(column) for column in zip(*rows, strict=True)]

    def insert(self, runs: Sequence[tuple[str, int, str]]) -> None:
        if runs:
            self._connection.execute(_PG_INSERT, self._columns(runs))

    def save(self, saves: Sequence[Save]) -> None:
        self._connection.execute(_PG_STEP, self._columns(saves))

    def turn(self, ended: Sequence[End], now: int, many: int) -> list[tuple[str, str]]:
        if not many:
            self._connection.execute(_PG_FINISH, self._columns(ended))
            return []
        if not ended:
            return self._connection.execute(_PG_CLAIM, (now, now, now, many)).fetchall()
        with self._connection.pipeline(), self._connection.transaction():
            self._connection.execute(_PG_FINISH, self._columns(ended))
            claimed = self._connection.execute(_PG_CLAIM, (now, now, now, many))
        return claimed.fetchall()


_TEXT = "longtext character set utf8mb4 collate utf8mb4_nopad_bin"
_MY_INSERT = f"""
insert into holdfast_runs (id, job_name, status, run_at, due, created_at, updated_at, input)
select id, 'noop', 'pending', at, 1, at, at, input
from json_table(%s, '$[*]' columns (id {_TEXT} path '$[0]', at bigint path '$[1]', input {_TEXT} path '$[2]')) as e"""
_MY_FINISH = f"""
update json_table(%s, '$[*]' columns (id {_TEXT} path '$[0]', at bigint path '$[1]', output {_TEXT} path '$[2]')) as e
straight_join holdfast_runs as r force index (primary) on r.id = e.id
set r.status = 'completed', r.lease_owner = null, r.lease_expires_at = null, r.completed_at = e.at,
  r.updated_at = e.at, r.output = e.output
where r.generation = 1 and r.lease_owner = 'w'"""
_MY_LOOK = """
select id, input from holdfast_runs force index (holdfast_runs_claimable)
where claimable = 1 and queue = 'default' and job_name = 'noop'
order by priority desc, run_at, id limit %s for update skip locked"""
_MY_CLAIM = """
update holdfast_runs force index (primary) set status = 'leased', lease_owner = 'w', lease_expires_at = %s + 30000000,
  generation = generation + 1, started_at = coalesce(started_at, %s), updated_at = %s
where id in %s"""
_MY_STEP = f"""
insert into holdfast_steps (run_id, name, occurrence, position, status, attempt, generation, output, started_at,
  completed_at)
select run, name, 0, position, 'completed', 0, 1, output, at, at
from json_table(%s, '$[*]' columns (run {_TEXT} path '$[0]', name {_TEXT} path '$[1]', position bigint path '$[2]',
  output {_TEXT} path '$[3]', at bigint path '$[4]')) as e"""


class MariadbLoop:
    """On MariaDB."""

    def __init__(self, url: str) -> None:
        to = address(url)
        host, port = to.hosts[0]
        self._connection: Any = pymysql.connect(
            host=host, port=port, user=to.user, password=to.password, database=to.database, charset="utf8mb4",
            autocommit=True, client_flag=CLIENT.MULTI_STATEMENTS,
        )  # fmt: skip
        self._cursor = self._connection.cursor()
        self._cursor.execute("set session transaction isolation level read committed")
        self.close = self._connection.close

    def _say(self, text: str, *values: Any) -> list[Any]:
        self._cursor.execute(text, values)
        found = list(self._cursor.fetchall())
        while self._cursor.nextset():
            found += self._cursor.fetchall()
        return found

    def insert(self, runs: Sequence[tuple[str, int, str]]) -> None:
        if runs:
            self._say(_MY_INSERT, json.dumps(runs))

    def save(self, saves: Sequence[Save]) -> None:
        self._say(_MY_STEP, json.dumps(saves))

    def turn(self, ended: Sequence[End], now: int, many: int) -> list[tuple[str, str]]:
        if not many:
            self._say(_MY_FINISH, json.dumps(ended))
            return []
        first = f"start transaction; {_MY_FINISH};" if ended else "start transaction;"
        found = self._say(f"{first} {_MY_LOOK}", *([json.dumps(ended)] if ended else []), many)
        claim = f"{_MY_CLAIM}; commit" if found else "commit"
        self._say(claim, *((now, now, now, [run_id for run_id, _ in found]) if found else ()))
        return found


def open_loop(url: str) -> Loop:
    """For a URL of a server. The tables are there afterwards."""
    store = open_store(url, clock=SystemClock())
    store.migrate()
    store.close()
    return PostgresLoop(url) if places.kind_of(url) == "postgres" else MariadbLoop(url)
