"""Where the database of a storm is: a file in its folder, or on a server, where the folder says which.

Every question has a connection of its own, closed at once: whoever forks must not have one.
"""

from __future__ import annotations

import importlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from crash_world import ADDRESS

_connect = sqlite3.connect

#: A program that reads and writes for a moment only.
_MOMENT = 0.2


class File:
    """A file of SQLite."""

    kind = "sqlite"
    away: tuple[type[Exception], ...] = (sqlite3.OperationalError,)
    """What is raised by a database that can't be asked now."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "holdfast.db"
        self.url = f"sqlite:///{self.path}"

    def exists(self) -> bool:
        return self.path.exists()

    def watch_over(self, audit: str) -> None:
        """Make the audit, beside the tables that are there."""
        with closing(_connect(self.path)) as database:
            database.executescript(audit)

    def rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        """Nothing is waited for: who holds the file may be stopped, and it is for us to let it go on."""
        with closing(_connect(self.path, timeout=_MOMENT)) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute(sql, values)]

    def ask(self, sql: str, *values: Any) -> Any:
        """The first column of the first row; None if that can't be read now."""
        with suppress(*self.away):
            return next(iter(self.rows(sql, *values)[0].values()))
        return None

    def insert(self, sql: str, rows: Iterable[Sequence[Any]]) -> bool:
        """All of them, in one transaction; False if somebody else writes now."""
        with suppress(*self.away), closing(_connect(self.path, timeout=_MOMENT)) as database, database:
            database.executemany(sql, rows)
            return True
        return False

    def looker(self) -> Callable[[str, str], bool | None]:
        """Tells whether others see that a step is saved, asked past the wire; None if nobody can be asked now."""

        def saved(run: str, step: str) -> bool:
            with closing(_connect(f"{self.path.as_uri()}?mode=ro", uri=True, timeout=10)) as database:
                return bool(database.execute(_SAVED, (run, step)).fetchone()[0])

        return saved

    def findings(self) -> Iterable[Any]:
        """Of the doctor."""
        from holdfast.store.sqlite import SqliteStore
        from holdfast.store.sqlite_doctor import examine

        return examine(SqliteStore(self.url))

    def version(self) -> str:
        return f"SQLite {sqlite3.sqlite_version}"

    def leave(self, folder: Path) -> None:
        """Let the folder have what is needed to understand this story later."""

    def forget(self) -> None:
        """Away with what is not in the folder."""


_SAVED = "select exists (select 1 from holdfast_steps where run_id = ? and name = ?)"


class OnServer(File):
    """A database of PostgreSQL or MariaDB. Statements have `?` for their values here, too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = (folder / ADDRESS).read_text()
        self.kind = "mariadb" if self.url.startswith("mysql") else "postgres"
        driver = importlib.import_module({"postgres": "psycopg", "mariadb": "pymysql"}[self.kind])
        self.away = (driver.OperationalError, driver.InterfaceError)

    def exists(self) -> bool:
        here = {"postgres": "current_schema()", "mariadb": "database()"}[self.kind]
        asked = f"select count(*) from information_schema.tables where table_name = 'audit' and table_schema = {here}"
        return bool(self.ask(asked))

    def watch_over(self, audit: str) -> None:
        import crash_places

        with closing(crash_places.Place(self.url)) as place:
            place.watch_over(audit)

    def connect(self) -> Any:
        import servers

        return servers.connect(self.url, autocommit=False)

    def rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        with closing(self.connect()) as connection:
            cursor = connection.cursor()
            if self.kind == "mariadb":
                cursor.execute("set session sql_mode = 'ANSI_QUOTES,PIPES_AS_CONCAT,STRICT_ALL_TABLES'")
            cursor.execute(sql.replace("?", "%s"), values or None)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def insert(self, sql: str, rows: Iterable[Sequence[Any]]) -> bool:
        with suppress(*self.away), closing(self.connect()) as connection:
            connection.cursor().executemany(sql.replace("?", "%s"), list(rows))
            connection.commit()
            return True
        return False

    def looker(self) -> Callable[[str, str], bool | None]:
        import storm_lines

        return storm_lines.looker(self.url, _SAVED, self.away)

    def findings(self) -> Iterable[Any]:
        if self.kind == "postgres":
            from holdfast.store import postgres, postgres_doctor

            return postgres_doctor.examine(postgres.PostgresStore(self.url))
        from holdfast.store import mysql, mysql_doctor

        return mysql_doctor.examine(mysql.MysqlStore(self.url))

    def version(self) -> str:
        words = {"postgres": "PostgreSQL {}", "mariadb": "MariaDB {}"}[self.kind]
        asked = {"postgres": "select current_setting('server_version')", "mariadb": "select version()"}[self.kind]
        return words.format(str(self.rows(asked)[0].popitem()[1]).split()[0])

    def leave(self, folder: Path) -> None:
        with suppress(*self.away):
            for table in ("audit", "holdfast_runs", "holdfast_steps", "holdfast_logs", "holdfast_keys"):
                lines = [json.dumps(row, default=str) for row in self.rows(f"select * from {table}")]
                (folder / f"{table}.jsonl").write_text("\n".join(lines))

    def forget(self) -> None:
        import crash_places

        crash_places.close()


def of(folder: Path) -> File:
    """The database of the storm in this folder."""
    return OnServer(folder) if (folder / ADDRESS).exists() else File(folder)
