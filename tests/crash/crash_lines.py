"""What goes between this process and a database server: as `crash_wire`, with the statements of the servers' stores.

A statement is what a driver sends and answers at once; MariaDB's may be two. `unanswered` closes the connection as
well, as a network does that loses an answer.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import threading
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from crash_wire import FENCED, Wire
from crash_world import SESSIONS, World

T = TypeVar("T")

#: A statement that was prepared to be said with others.
_PREPARED = re.compile(r"prepare (holdfast_\d+)(?: \([a-z, ]+\))? as ")
_EXECUTED = re.compile(r"(?:^|; )execute (holdfast_\d+)")

#: What every child needs is imported once, before they are forked.
_NEEDED = {
    "postgres": (
        "psycopg",
        "holdfast.store.postgres",
        "holdfast.store.postgres_shared",
        "holdfast.store.postgres_watch",
    ),
    "mariadb": ("pymysql", "holdfast.store.mysql", "holdfast.store.mysql_shared"),
}
for _name in _NEEDED.get(os.environ.get("HOLDFAST_TEST_ON", ""), ()):
    importlib.import_module(_name)

#: How statements begin that open a connection, find out about the tables, or make them.
_OPENING = (
    "select current_setting", "set session characteristics", "select set_config('synchronous_commit'",
    "select to_regclass", "select coalesce(max(number)", "select value from", "select version()", "set session",
    "select pg_backend_pid()", "listen ",
)  # fmt: skip


class Line(Wire):
    """The way to a server. What is asked over it without a name is told as unknown."""

    def __init__(self, world: World, operation: str, fault: tuple[str, str] | None, url: str) -> None:
        super().__init__(world, operation, fault, None)
        self.schema = urlsplit(url).query.partition("=")[2]
        self._sessions = os.open(world.path.with_name(SESSIONS), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def has_session(self, number: int) -> None:
        """Write down that this process has it, for who waits until it is gone."""
        os.write(self._sessions, f"{os.getpid()} {number}\n".encode())

    def asked(self, connection: Any, sql: str, ask: Callable[[], T]) -> T:
        """Let a message pass, or not: each of its statements is a point."""
        for name in reversed(self.names(connection, sql)):
            ask = functools.partial(self.one_asked, connection, name, ask)
        return ask()

    def names(self, connection: Any, sql: str) -> list[str]:
        """What the statements of a message are called here."""
        return [self.named(" ".join(sql.split()), sql)]

    def one_asked(self, connection: Any, name: str, ask: Callable[[], T]) -> T:
        """Let a statement of this name pass, or not."""
        point = self.point(name)
        self.strike(point, "before")
        self.strike(point, "paused")
        looked_at = self.was_paused and name in FENCED
        before = self.changes(connection) if looked_at else 0
        answer = ask()
        if looked_at:
            self.world.tell("stale", verb=name, changed=self.changes(connection) - before)
        self.strike(point, "after")
        if self.strike(point, "unanswered"):
            self.lose(connection)
        return answer

    def named(self, words: str, sql: str) -> str:
        """What a statement is called here; the words without line ends."""
        if (name := self.known(sql)) is not None:
            return name
        if words.startswith(("begin isolation", "start transaction")) or "select coalesce(max(number), 0), " in words:
            return "begin"
        if words in ("commit", "rollback"):
            return words
        if words.endswith("; commit"):
            return "commit"
        if words.startswith(("select old.id", "(select old.id")):
            return "find_old"
        if "charges" in words:
            return f"rows of the user's: {words.split()[0]}"
        if words.startswith("select r.id, r.job_name") and "holdfast_runs as r" in words:
            return "find_runs"
        if words.startswith(_OPENING):
            return "open: " + " ".join(words.split()[:2])
        return f"unknown: {words[:60]}"

    def known(self, sql: str) -> str | None:
        raise NotImplementedError

    def changes(self, connection: Any) -> int:
        """How many changes the audit knows of this session."""
        raise NotImplementedError

    def lose(self, connection: Any) -> None:
        """Be told that there was no answer."""
        raise NotImplementedError


class PostgresLine(Line):
    def __init__(self, world: World, operation: str, fault: tuple[str, str] | None, url: str) -> None:
        from holdfast.store.postgres_statements import statements

        super().__init__(world, operation, fault, url)
        self._names = {text: name for name, text in statements(self.schema).items()}
        self._prepared: dict[tuple[int, str], str | None] = {}

    def names(self, connection: Any, sql: str) -> list[str]:
        executed = _EXECUTED.findall(sql)
        if not executed:
            return super().names(connection, sql)
        if connection.closed:  # nobody hears it, and nobody knows of which session it was
            return []
        begins = ["begin"] if sql.startswith("begin isolation") else []
        # What is asked with it when it begins has no name.
        ends = ["commit"] if sql.endswith("; commit") else []
        names = [name for one in executed if (name := self._prepared[connection.info.backend_pid, one])]
        return [*begins, *names, *ends]

    def attach(self) -> None:
        import psycopg

        some: Any = psycopg
        self._execute = execute = some.Cursor.execute
        connect = some.Connection.connect.__func__

        def executed(cursor: Any, query: Any, params: Any = None, **more: Any) -> Any:
            # Said before whatever statement happens to be the 64th, or the first of a second.
            if query == "discard plans" or str(query).startswith("select not pg_is_in_recovery()"):
                return execute(cursor, query, params, **more)
            if (prepared := _PREPARED.match(str(query))) is not None:
                text = str(query)[prepared.end() :]
                self._prepared[cursor.connection.info.backend_pid, prepared[1]] = self.known(text)
                return execute(cursor, query, params, **more)
            return self.asked(cursor.connection, str(query), lambda: execute(cursor, query, params, **more))

        def connected(kind: Any, *args: Any, **more: Any) -> Any:
            connection = connect(kind, *args, **more)
            self.has_session(connection.info.backend_pid)
            return connection

        some.Cursor.execute = executed
        some.Connection.connect = classmethod(connected)

    def known(self, sql: str) -> str | None:
        if (name := self._names.get(sql)) is not None:
            return name
        if "holdfast_meta set value = value" in sql:
            return "wait for the standby"
        if "pg_current_xact_id()" in sql or sql.startswith("set constraints"):
            return "whose transaction it is"
        return None

    def changes(self, connection: Any) -> int:
        cursor = connection.cursor()
        self._execute(
            cursor, f'select count(*) from "{self.schema}".audit where session = pg_backend_pid()', prepare=False
        )
        return int(cursor.fetchone()[0])

    def lose(self, connection: Any) -> None:
        import psycopg

        connection.pgconn.finish()
        raise psycopg.OperationalError("the answer was lost")


class MariadbLine(Line):
    def __init__(self, world: World, operation: str, fault: tuple[str, str] | None, url: str) -> None:
        from holdfast.store import mysql_words as words

        super().__init__(world, operation, fault, url)
        _ = words.SQL["now"]  # the first one that is asked for reads them all
        texts = {name: list(parts[::2]) for name, parts in words.SQL.items()}
        for name in ("renew_leases", "finish", "cancel"):
            told, done = texts[f"told_{name}"], texts[name]
            texts[name] = [*told[:-1], f"{told[-1]};\n{done[0]}", *done[1:]]
        texts["claim"] = ["(select p.id, ", "holdfast_runs_claimable", ""]
        texts["claim, locked"] = list(words.LOCKED_FRONT[::2])
        # The longest first: one may begin as another does.
        self._texts = sorted(texts.items(), key=lambda one: -sum(map(len, one[1])))
        self._within = threading.local()

    def attach(self) -> None:
        import pymysql

        from holdfast.store.mysql_place import Link

        some: Any = pymysql
        execute, connect = some.cursors.Cursor.execute, some.connections.Connection.connect

        def through(name: str) -> None:
            ask = getattr(Link, name)

            def asked(link: Any, sql: str) -> Any:
                def inside() -> Any:
                    self._within.link = True
                    try:
                        return ask(link, sql)
                    finally:
                        self._within.link = False

                return self.asked(link.raw, sql, inside)

            setattr(Link, name, asked)

        for name in ("ask", "first", "do"):
            through(name)

        def executed(cursor: Any, query: Any, args: Any = None) -> Any:
            if getattr(self._within, "link", False):
                return execute(cursor, query, args)
            return self.asked(cursor.connection, str(query), lambda: execute(cursor, query, args))

        def connected(connection: Any, *args: Any, **more: Any) -> None:
            connect(connection, *args, **more)
            self.has_session(connection.thread_id())

        self._execute = execute
        some.cursors.Cursor.execute = executed
        some.connections.Connection.connect = connected

    def known(self, sql: str) -> str | None:
        for name, parts in self._texts:
            if sql.startswith(parts[0]) and _follow(sql, parts):
                return name
        if sql.startswith(("release savepoint", "savepoint", "select database()")):
            return "whose transaction it is"
        return None

    def changes(self, connection: Any) -> int:
        cursor = connection.cursor()
        self._execute(cursor, "select count(*) from audit where session = connection_id()")
        return int(cursor.fetchone()[0])

    def lose(self, connection: Any) -> None:
        import pymysql

        connection._force_close()
        raise pymysql.OperationalError(2013, "the answer was lost")


def _follow(sql: str, parts: list[str]) -> bool:
    at = 0
    for part in parts:
        at = sql.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return parts[-1] == "" or sql.endswith(parts[-1])
