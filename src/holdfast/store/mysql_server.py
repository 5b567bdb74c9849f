"""The server behind the MariaDB store: transactions, what its errors mean, its tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pymysql
from pymysql.constants import ER

from ..basis.clock import Clock, SystemClock
from ..basis.errors import SchemaError, StoreError, StoreUnavailable, ValidationError
from .base import LentTransaction, PlayAgain, SharedTransaction, Store, Tx
from .lent_mysql import MysqlLent
from .mysql_place import AGAIN, REFUSED, Address, Limits, Link, address, code_of, meaning
from .mysql_words import NOW, SQL, filled, quoted, rows_of
from .schema import AWAY, Schema, away, not_the_owner, statements

_IDENTITY = "(select concat(value, ' in ', database()) from holdfast_meta where `key` = 'database_id')"

#: Keys that one look for unused ones may forget.
_KEYS_AT_ONCE = 1000

#: Of this database: the name is the server's.
_LOCK = "concat('holdfast migrate ', md5(database()))"

#: What a user who may not make or change tables is answered.
_NOT_ALLOWED = (ER.DBACCESS_DENIED_ERROR, ER.TABLEACCESS_DENIED_ERROR)


class MysqlServer(Store):
    """Everything about a MariaDB database but the verbs."""

    def __init__(
        self,
        url: str,
        *,
        clock: Clock | None = None,
        lease: float = 30.0,
        lock_timeout: float = 10.0,
        schema: Schema | None = None,
    ) -> None:
        self.address: Address = address(url)
        self.name: str = self.address.name
        self.clock: Clock = clock or SystemClock()
        self.schema: Schema = schema or Schema.load("mysql")
        self.limits: Limits = Limits.of(lease, lock_timeout)
        # A clock that is turned by hand must be everybody's.
        self._turned = not isinstance(self.clock, SystemClock)
        self.tells_time: bool = not self._turned
        self._known: str | None = None
        self._identity: str | None = None
        self._keys_after = ""

    # -- connections -------------------------------------------------------------------------------------------

    def connect(self, *, read_only: bool = False) -> Link:
        try:
            return Link(self.address, self.limits, read_only=read_only)
        except pymysql.Error as error:
            raise self.translate(error) from error

    def disconnect(self, connection: Link) -> None:
        connection.close()

    def confirm(self, connection: Link) -> None:
        if connection.is_lost:
            raise StoreUnavailable(f"{self.name}: the connection to the database was lost.")

    def begin(self, connection: Link) -> Tx:
        asked = self.clock.steady()
        try:
            version, now = self._begin(connection)
        except pymysql.Error as error:
            # What was lost while nobody looked at it (the server was restarted, a firewall forgot it) is no reason to
            # refuse anybody: nothing has been asked yet.
            if not connection.is_lost:
                self._roll_back(connection)
                raise
            try:
                connection.reopen()
                self.check_schema(connection)
                version, now = self._begin(connection)
            except pymysql.Error as second:
                raise second from error
        # Somebody may have migrated it since it was opened.
        if version > self.schema.newest:
            self._roll_back(connection)
            self._refuse_newer(connection, version)
        return Tx(connection, self.clock.now() if self._turned else now, self.clock.steady() - asked)

    def _begin(self, link: Link) -> tuple[int, int]:
        sql = f"start transaction; select coalesce(max(number), 0), {NOW} from holdfast_migrations"
        ((version, now),) = link.ask(sql)
        return version, now

    def commit(self, tx: Tx) -> None:
        tx.connection.do("commit")

    def rollback(self, tx: Tx) -> None:
        self._roll_back(tx.connection)

    def _roll_back(self, link: Link) -> None:
        if not link.is_lost:
            try:
                link.do("rollback")
            except pymysql.Error:
                link.close()

    @contextmanager
    def moment(self, connection: Link) -> Iterator[None]:
        connection.ask(
            "set transaction isolation level repeatable read; start transaction with consistent snapshot, read only"
        )
        try:
            yield
        finally:
            self._roll_back(connection)

    def close(self) -> None:
        return

    def translate(self, error: BaseException) -> BaseException:
        if not isinstance(error, pymysql.Error):
            return error
        code = code_of(error)
        text = self.address.hide(" ".join(str(part) for part in error.args[-1:]))
        meant = meaning(error)
        translated: BaseException
        if code in AGAIN:
            translated = PlayAgain(f"{self.name}: the transaction was undone by the database ({code}: {text}).")
        elif code == ER.NO_SUCH_TABLE:
            translated = self._no_tables()
        elif meant is not None:
            translated = StoreUnavailable(f"{self.name}: the database {meant} ({code}: {text}).")
        elif code in REFUSED:
            translated = ValidationError(f"{self.name}: {text}.")
        else:
            translated = StoreError(f"{self.name}: {code}: {text}.")
        translated.__cause__ = error
        return translated

    # -- schema ------------------------------------------------------------------------------------------------

    def migrate(self) -> list[str]:
        link = self.connect()
        try:
            # However long it takes: an index of millions is not made in the time of a statement.
            link.do("set session max_statement_time = 0, lock_wait_timeout = 86400")
            # Each change of a table is committed at once: no transaction could hold a migration together, nor keep the
            # others away. Where this lock is not everybody's (a cluster), or somebody dies in the middle, the same is
            # done again: every statement of a migration may be repeated, and the numbers are written last.
            link.ask(f"select get_lock({_LOCK}, 86400)")
            applied = self._migrate(link)
            link.ask(f"select release_lock({_LOCK})")
            return applied
        except pymysql.Error as error:
            told = self.translate(error)
            raise (not_the_owner(told) if code_of(error) in _NOT_ALLOWED else told) from error
        finally:
            self.disconnect(link)

    def _migrate(self, link: Link) -> list[str]:
        version = self.version(link)
        self._refuse_newer(link, version)
        lacking = self.schema.since(version)
        for text in [self.schema.fresh] if version == 0 else [migration.text for migration in lacking]:
            for statement in statements(text):
                link.do(statement)
        now = self.clock.now() if self._turned else link.ask(filled(SQL["now"], ()))[0][0]
        link.do("start transaction")
        for migration in lacking:
            values = ", ".join(map(quoted, (migration.number, migration.name, now)))
            link.do(f"insert ignore into holdfast_migrations values ({values})")
        link.do("insert ignore into holdfast_meta values ('database_id', lower(hex(random_bytes(16))))")
        link.do("commit")
        self._known = self.database_id(link)
        return [migration.name for migration in lacking]

    def check_schema(self, connection: Link) -> None:
        try:
            version, newest = self.version(connection), self.schema.newest
            self._refuse_newer(connection, version)
            if version == 0:
                raise self._no_tables()
            if version < newest:
                raise SchemaError(
                    f"{self.name}: the tables have version {version}, this code needs {newest}. "
                    f"Call app.migrate(), or run `holdfast migrate {self.name}`."
                )
            identity = self.database_id(connection)
        except pymysql.Error as error:
            raise self.translate(error) from error
        if self._known not in (None, identity):
            raise StoreUnavailable(
                f"{self.name}: this is another database than the one that this app has used so far (its id is "
                f"{identity}, not {self._known}). Bring back the right one, or restart this process."
            )
        self._known = identity

    def _no_tables(self) -> SchemaError:
        return SchemaError(
            f"{self.name}: there are no Holdfast tables yet. Use the app inside of `with app:` or `async with app:`, "
            f"or call app.init() first, or run `holdfast migrate {self.name}`."
        )

    def _refuse_newer(self, connection: Link, version: int) -> None:
        newest = self.schema.newest
        if version == AWAY:
            raise away(self.name, dict(connection.ask("select `key`, value from holdfast_meta")))
        if version > newest:
            raise SchemaError(
                f"{self.name}: the tables have version {version}, this code knows {newest} at most. "
                "A newer Holdfast has used this database: upgrade the package."
            )

    def version(self, connection: Link) -> int:
        """The number of the last migration; 0 if there are no tables."""
        try:
            return int(connection.ask("select coalesce(max(number), 0) from holdfast_migrations")[0][0])
        except pymysql.ProgrammingError as error:
            if code_of(error) != ER.NO_SUCH_TABLE:
                raise
            return 0

    def database_id(self, connection: Link) -> str:
        found = connection.ask("select value from holdfast_meta where `key` = 'database_id'")
        if not found:
            raise self._no_tables()
        return str(found[0][0])

    # -- the caller's own transaction --------------------------------------------------------------------------

    def identity(self) -> str:
        """The name of the database, too: a copy beside it has the same id."""
        if self._identity is None:
            link = self.open(read_only=True)
            try:
                self._identity = str(link.ask(f"select {_IDENTITY}")[0][0])
            except pymysql.Error as error:
                raise self.translate(error) from error
            finally:
                self.disconnect(link)
        return self._identity

    def adopt(self, connection: LentTransaction, identity: str) -> Tx:
        if not isinstance(connection, MysqlLent):
            raise ValidationError(f"connection: it is not of MariaDB, and this app ({self.name}) is.")
        other = f"connection: it is open on another database than this app ({self.name})"
        try:
            ((found, connection.largest, now, sees),) = connection.ask(
                f"select {_IDENTITY}, @@max_allowed_packet, {NOW}, @@tx_isolation"
            )
        except pymysql.Error as error:
            if code_of(error) in (ER.NO_SUCH_TABLE, ER.NO_DB_ERROR):
                raise ValidationError(f"{other}: there are no Holdfast tables.") from error
            raise
        if found != identity:
            raise ValidationError(f"{other}.")
        tx = Tx(connection, self.clock.now() if self._turned else now, lent=True)
        tx.seen["isolation"] = sees
        return tx

    def share(self) -> SharedTransaction:
        from .mysql_shared import share  # as rare as it is

        return share(self)

    # -- upkeep ------------------------------------------------------------------------------------------------

    def upkeep(self, connection: Link, *, idle: bool = False) -> bool:
        """When idle, forget keys of no run that is under way, a thousand at a time."""
        if not idle:
            return True
        tx = self.begin(connection)
        try:
            # Two statements: what locked one of them before the first began is seen by the second.
            unused = [key for (key,) in connection.ask(filled(SQL["unused_keys"], (self._keys_after, _KEYS_AT_ONCE)))]
            if unused:
                connection.do(filled(SQL["forget_keys"], (rows_of(unused),)))
            self._keys_after = unused[-1] if len(unused) == _KEYS_AT_ONCE else ""
            self.commit(tx)
        except BaseException:
            self.rollback(tx)
            raise
        return not self._keys_after
