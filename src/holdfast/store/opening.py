"""Which store a URL means. What a database needs is imported only when such a URL is opened."""

from __future__ import annotations

from ..basis.clock import Clock
from ..basis.errors import ValidationError
from ..basis.text import shown
from .base import Store
from .sqlite import SqliteStore

_POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")
_MYSQL = ("mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql")
_SQLITE = ("sqlite", "libsql")


def open_store(url: str, *, clock: Clock, lease: float = 30.0) -> Store:
    """The store of a database. `lease` is the length of the leases that this app takes, in seconds.

    `ValidationError` for a URL of none, or where a driver is not installed.
    """
    scheme, separator, _ = url.partition("://")
    if scheme.lower() in _POSTGRES:
        try:
            from .postgres import PostgresStore
        except ImportError as error:
            raise ValidationError(
                f"PostgreSQL needs psycopg, which can't be imported ({error}). Run: pip install 'holdfast[postgres]'"
            ) from error
        return PostgresStore(url, clock=clock, lease=lease)
    if scheme.lower() in _MYSQL:
        try:
            from .mysql import MysqlStore
        except ImportError as error:
            raise ValidationError(
                f"MariaDB needs PyMySQL, which can't be imported ({error}). Run: pip install 'holdfast[mysql]'"
            ) from error
        return MysqlStore(url, clock=clock, lease=lease)
    if separator and scheme.lower() not in _SQLITE:
        raise _unknown(scheme)
    return SqliteStore(url, clock=clock)


def _unknown(scheme: str) -> ValidationError:
    # Without the rest of the URL: there may be a password in it.
    what = f"{shown(f'{scheme}://…')} is the URL of no database that can be used here."
    if scheme.lower() in ("http", "https"):
        return ValidationError(f"{what} For a server that has the app: holdfast.client.Client(url).")
    return ValidationError(
        f"{what} Write 'sqlite:///path/to/file.db', 'postgresql://user:password@host/database' or "
        "'mysql://user:password@host/database' (MariaDB)."
    )
