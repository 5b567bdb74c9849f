"""Which store a URL means. What a database needs is imported only when such a URL is opened."""

from __future__ import annotations

from ..basis.clock import Clock
from ..basis.errors import ValidationError
from .base import Store
from .sqlite import SqliteStore

_POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")
_MYSQL = ("mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql")


def open_store(url: str, *, clock: Clock, lease: float = 30.0) -> Store:
    """The store of a database. `lease` is the length of the leases that this app takes, in seconds.

    `ValidationError` for a URL of none, or where a driver is not installed.
    """
    if url.partition("://")[0].lower() in _POSTGRES:
        try:
            from .postgres import PostgresStore
        except ImportError as error:
            raise ValidationError(
                f"PostgreSQL needs psycopg, which can't be imported ({error}). Run: pip install 'holdfast[postgres]'"
            ) from error
        return PostgresStore(url, clock=clock, lease=lease)
    if url.partition("://")[0].lower() in _MYSQL:
        try:
            from .mysql import MysqlStore
        except ImportError as error:
            raise ValidationError(
                f"MariaDB needs PyMySQL, which can't be imported ({error}). Run: pip install 'holdfast[mysql]'"
            ) from error
        return MysqlStore(url, clock=clock, lease=lease)
    return SqliteStore(url, clock=clock)
