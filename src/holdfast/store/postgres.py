"""PostgreSQL: many writers at a time, on many machines.

The rows of a round are one JSON array: the first parameter of their statement, and a text, which any driver can bind.
Transactions are READ COMMITTED: what a statement has waited for, the next one sees. `several_writers` says what is
locked when.

Long because connections, the schema and the verbs that PostgreSQL says otherwise are one class.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

from ..basis.clock import Clock, SystemClock
from ..basis.errors import SchemaError, StoreError, StoreUnavailable, ValidationError
from ..model.run import NewRun, RunFilter, RunRow
from .base import Claimed, ClaimOrder, LentTransaction, Old, PlayAgain, SharedTransaction, Tx, Undone
from .lending import Lent
from .postgres_listing import listing, question
from .postgres_moving import PostgresMovable
from .postgres_place import AGAIN, READ_ONLY, Address, Limits, Link, address, meaning
from .postgres_postponed import FOUND, PostgresPostponed
from .postgres_statements import NOW, as_json, qualified, statements
from .postgres_together import TIME, Opening, PutOff
from .relational import insertable
from .schema import AWAY, Schema, away, not_the_owner

_IDENTITY = "select value || ' in ' || current_database() from holdfast_meta where key = 'database_id'"

#: A commit that wrote nothing doesn't wait for a standby. This makes it wait: for what an earlier commit wrote, too.
_MARK = (
    "update holdfast_meta set value = value "
    "where key = 'database_id' and current_setting('synchronous_standby_names') <> ''"
)

#: With it what begins a transaction fails on tables of a newer version than this. What is said in the same message must
#: not happen there, and COMMIT may be among it.
_OR_FAIL = " having 1 / (coalesce(max(number), 0) <= {})::int = 1"

#: Keys that one look for unused ones may forget.
_KEYS_AT_ONCE = 1000

#: A time that was before anything is due.
_NEVER = -1

#: A concurrent first migration is met by the same names appearing.
_MIGRATIONS_TRIED = 20

#: So long a migration waits for a lock. All who come after it wait behind it, so it gives up, and tries again after so
#: many seconds.
_FOR_A_LOCK, _OTHERS_GO = "500ms", 2.0
_LOCKED = "55P03"


class PostgresStore(PostgresPostponed, PostgresMovable):
    """The store of `postgresql://user:password@host/database`.

    In the query of the URL `schema=name` says where the tables are (default: public), and `pooler=transaction` that
    there is a pooler in between that gives every transaction another session. `lease` is the shortest lease in seconds
    that anybody takes here; `clock` replaces the database's own time, for tests.
    """

    _driver_error = psycopg.Error

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
        self.schema: Schema = schema or Schema.load("postgres")
        self.limits: Limits = Limits.of(lease, lock_timeout)
        # A clock that is turned by hand must be everybody's.
        self._turned = not isinstance(self.clock, SystemClock)
        self.tells_time: bool = not self._turned
        self._sql = statements(self.address.schema)
        self._begin = self._q(
            f"select coalesce(max(number), 0), set_config('{TIME}', ({NOW})::text, true)::bigint, "
            "current_setting('transaction_read_only') from holdfast_migrations"
        )
        self._begin_or_fail = self._begin + _OR_FAIL.format(self.schema.newest)
        self._mark = self._q(_MARK)
        self._known: str | None = None
        self._identity: str | None = None
        self._keys_after = ""
        self._pauses = {}

    def _q(self, text: str) -> str:
        return qualified(text, self.address.schema)

    # -- how to say it -----------------------------------------------------------------------------------------

    def _ask(self, connection: Any, name: str, rows: Sequence[Any], *values: Any) -> list[Any]:
        found: list[Any] = connection.execute(self._sql[name], (as_json(rows), *values)).fetchall()
        return found

    def _do(self, connection: Any, name: str, rows: Sequence[Any], *values: Any) -> int:
        changed: int = connection.execute(self._sql[name], (as_json(rows), *values)).rowcount
        return changed

    def _find(self, connection: Any, name: str, *values: Any) -> list[Any]:
        cursor = connection.execute(self._sql[name], values)
        return cursor.fetchall() if cursor.description else []

    def _read_now(self) -> int | None:
        return self.clock.now() if self._turned else None

    def _time(self, now: int) -> int:
        return self.clock.now() if self._turned else now

    # -- connections -------------------------------------------------------------------------------------------

    def connect(self, *, read_only: bool = False) -> Link:
        try:
            return Link(self.address, self.limits, read_only=read_only)
        except psycopg.Error as error:
            raise self.translate(error) from error

    def disconnect(self, connection: Link) -> None:
        connection.close()

    def confirm(self, connection: Link) -> None:
        if connection.is_lost:
            raise StoreUnavailable(f"{self.name}: the connection to the database was lost.")
        if connection.read_only and not connection.is_current():
            connection.close()
            raise StoreUnavailable(f"{self.name}: the database is read-only (a standby?).")

    def begin(self, connection: Link) -> Tx:
        asked = self.clock.steady()
        try:
            version, now = self._opened(connection)
        except psycopg.Error as error:
            # What was lost while nobody looked at it (the server was restarted, a firewall forgot it) is no reason to
            # refuse anybody: nothing has been asked yet.
            if not connection.is_lost:
                self._roll_back(connection)
                raise
            try:
                connection.reopen()
                self.check_schema(connection)
                version, now = self._opened(connection)
            except psycopg.Error as second:
                raise second from error
        # Somebody may have migrated it since it was opened.
        if version > self.schema.newest:
            self._roll_back(connection)
            self._refuse_newer(connection, version)
        return Tx(connection, self._time(now), self.clock.steady() - asked)

    def _opened(self, connection: Link) -> tuple[int, int]:
        return self._may_write(connection, connection.say(f"{connection.begin}; {self._begin}"))

    def _may_write(self, connection: Link, answer: Any) -> tuple[int, int]:
        version, now, read_only = answer
        if read_only == "on":
            # Another server takes writes now. This session would never notice by itself.
            connection.close()
            raise psycopg.errors.ReadOnlySqlTransaction("the transaction could not write")
        return version, now

    def begin_round(self, connection: Link, batches: Mapping[str, Sequence[Any]], *, replay: bool = False) -> Tx:
        # Who judges others has to know how long it took to begin, before; and a pooler keeps no prepared statements.
        if connection.pooled or replay or batches.get("expire"):
            return super().begin_round(connection, batches, replay=replay)
        asked = self.clock.steady()
        tx = Opening(connection, by_hand=self._turned)

        def begun(answer: list[Any]) -> None:
            version, now = self._may_write(connection, answer[0])
            if version > self.schema.newest:
                self._roll_back(connection)
                self._refuse_newer(connection, version)
            tx.now, tx.waited, tx.begun = self._time(now), self.clock.steady() - asked, True

        connection.put_off(
            PutOff(connection.begin, None, None, lambda error: self._begins_again(connection, error)),
            *connection.planned_anew(),
            PutOff(self._begin_or_fail, (), begun),
        )
        tx.seen["round"] = batches
        try:
            self.lock(tx, batches)
        except BaseException:
            self.rollback(tx)
            raise
        return tx

    def _begins_again(self, connection: Link, error: psycopg.Error) -> bool:
        """Whether to say once more what has begun a transaction and failed."""
        if error.sqlstate == READ_ONLY:
            connection.close()  # another server takes writes now
        if connection.is_lost:
            connection.reopen()
            self.check_schema(connection)
            return True
        self._roll_back(connection)
        if error.sqlstate == "26000":
            connection.prepared_is_gone()
            return True
        if error.sqlstate not in AGAIN and meaning(error) is None:
            # Perhaps somebody has migrated it since it was opened.
            self.check_schema(connection)
        return False

    def _hold_runs(self, tx: Tx, run_ids: Sequence[str]) -> int | None:
        if not isinstance(tx, Opening) or "locked" in tx.seen:
            return super()._hold_runs(tx, run_ids)

        def held(answer: list[Any]) -> None:
            tx.now = self._time(answer[0][1])

        tx.connection.put_off(PutOff(self._sql["lock_runs"], (as_json(run_ids),), held))
        # What the time was before that doesn't count.
        tx.now = None
        return None

    def commit(self, tx: Tx) -> None:
        connection: Link = tx.connection
        if not connection.asks and connection.drop():
            return  # nothing was asked
        connection.unreplicated = None
        try:
            if connection.is_unknown and not connection.is_quiet():
                # That the connection was lost is better found out about by something else than a commit.
                connection.settle()
            if tx.seen.get("met"):
                # The last lock of all: whoever has it waits for nobody but the standby.
                connection.say(self._mark)
        except psycopg.Error as error:
            raise Undone from error
        status = self._end(tx)
        if connection.unreplicated is not None:
            # It is here, and may be lost with this server. Read back, it must be waited for once more.
            raise StoreUnavailable(f"{self.name}: {connection.unreplicated}.")
        if status != "COMMIT":
            raise StoreError(f"{self.name}: the transaction had failed, it was rolled back ({status}).")

    def rollback(self, tx: Tx) -> None:
        self._roll_back(tx.connection)

    def _roll_back(self, connection: Link) -> None:
        try:
            connection.roll_back()
        except psycopg.Error:
            connection.close()

    def lock(self, tx: Tx, batches: Mapping[str, Sequence[Any]]) -> None:
        if tx.replay:
            self._find(tx.connection, "leave_a_mark")
        super().lock(tx, batches)

    @contextmanager
    def moment(self, connection: Link) -> Iterator[None]:
        connection.say("begin isolation level repeatable read, read only")
        try:
            yield
        finally:
            self._roll_back(connection)

    def close(self) -> None:
        return

    def translate(self, error: BaseException) -> BaseException:
        if not isinstance(error, psycopg.Error):
            return error
        state = error.sqlstate
        text = self.address.hide(" ".join(str(error).split()))
        meant = meaning(error)
        translated: BaseException
        if state in AGAIN:
            translated = PlayAgain(f"{self.name}: the transaction was undone by the database ({text}).")
        elif state in ("42P01", "3F000"):
            translated = self._no_tables()
        elif meant is not None:
            translated = StoreUnavailable(f"{self.name}: the database {meant} ({text}).")
        elif isinstance(error, psycopg.DataError):
            translated = ValidationError(f"{self.name}: {text}.")
        else:
            translated = StoreError(f"{self.name}: {text}.")
        translated.__cause__ = error
        return translated

    # -- schema ------------------------------------------------------------------------------------------------

    def migrate(self) -> list[str]:
        connection = self.connect()
        try:
            if self._is_up_to_date(connection):
                return []
            met = 0
            while True:
                try:
                    return self._migrate(connection)
                except psycopg.Error as error:
                    self._roll_back(connection)
                    if error.sqlstate == _LOCKED:
                        self.say_once(
                            "waiting to migrate: another session (a backup, a long transaction) has a table in use"
                        )
                        SystemClock().wait(threading.Event(), _OTHERS_GO)
                    elif error.sqlstate in _MADE_BY_OTHERS and met < _MIGRATIONS_TRIED:
                        met += 1  # somebody else has just made what we were making: now it can be seen
                    else:
                        raise
        except psycopg.errors.InsufficientPrivilege as error:
            raise not_the_owner(self.translate(error)) from error
        except psycopg.Error as error:
            raise self.translate(error) from error
        finally:
            self.disconnect(connection)

    def _is_up_to_date(self, connection: Link) -> bool:
        """Whether there is nothing to do. Asked first: every process does that when it starts, and locks nothing."""
        version = self.version(connection)
        self._refuse_newer(connection, version)
        if version < self.schema.newest:
            return False
        found = self._find_id(connection)
        self._known = found or self._known
        return found is not None

    def _migrate(self, connection: Link) -> list[str]:
        schema = self.address.schema
        # However long it takes: an index of millions is not made in the time of a statement.
        connection.take_its_time()
        # But not for a lock: while we wait for ours, nobody gets theirs.
        connection.say(f"{connection.begin}; set local statement_timeout = 0; set local lock_timeout = '{_FOR_A_LOCK}'")
        try:
            if connection.execute("select to_regnamespace($1)", (f'"{schema}"',)).fetchone() == (None,):
                connection.say(f'create schema "{schema}"')
            if self._is_there(connection):
                # Whoever gets this lock first does it; the others find it done. Rounds read this table first: none that
                # knows the older tables goes on beside it.
                connection.say(self._q("lock table holdfast_migrations in access exclusive mode"))
            version = self.version(connection)
            self._refuse_newer(connection, version)
            lacking = self.schema.since(version)
            now = self.clock.now() if self._turned else self._find(connection, "now")[0][0]
            for text in [self.schema.fresh] if version == 0 else [migration.text for migration in lacking]:
                connection.say(self._q(text))
            for migration in lacking:
                connection.execute(
                    self._q("insert into holdfast_migrations values ($1, $2, $3)"),
                    (migration.number, migration.name, now),
                )
            connection.say(
                self._q(
                    "insert into holdfast_meta values ('database_id', replace(gen_random_uuid()::text, '-', '')) "
                    "on conflict do nothing"
                )
            )
            self._known = self.database_id(connection)
            self.commit(Tx(connection, now))
        except BaseException:
            self._roll_back(connection)
            raise
        return [migration.name for migration in lacking]

    def check_schema(self, connection: Link) -> None:
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
        if self._known not in (None, identity):
            raise StoreUnavailable(
                f"{self.name}: this is another database than the one that this app has used so far (its id is "
                f"{identity}, not {self._known}). Bring back the right one, or restart this process."
            )
        self._known = identity

    def _no_tables(self) -> SchemaError:
        return SchemaError(
            f"{self.name}: there are no Holdfast tables yet in the schema {self.address.schema}. "
            "Use the app inside of `with app:` or `async with app:`, or call app.init() first, "
            f"or run `holdfast migrate {self.name}`."
        )

    def _refuse_newer(self, connection: Link, version: int) -> None:
        newest = self.schema.newest
        if version == AWAY:
            raise away(self.name, dict(connection.execute(self._q("select key, value from holdfast_meta"))))
        if version > newest:
            raise SchemaError(
                f"{self.name}: the tables have version {version}, this code knows {newest} at most. "
                "A newer Holdfast has used this database: upgrade the package."
            )

    def _is_there(self, connection: Link) -> bool:
        name = self._q("holdfast_migrations")
        return bool(connection.execute("select to_regclass($1) is not null", (name,)).fetchone() == (True,))

    def version(self, connection: Link) -> int:
        """The number of the last migration; 0 if there are no tables."""
        if not self._is_there(connection):
            return 0
        found = connection.execute(self._q("select coalesce(max(number), 0) from holdfast_migrations")).fetchone()
        return int(found[0]) if found else 0

    def database_id(self, connection: Link) -> str:
        found = self._find_id(connection)
        if found is None:
            raise self._no_tables()
        return found

    def _find_id(self, connection: Link) -> str | None:
        text = self._q("select value from holdfast_meta where key = 'database_id'")
        found = connection.execute(text).fetchone()
        return None if found is None else str(found[0])

    # -- the caller's own transaction --------------------------------------------------------------------------

    def identity(self) -> str:
        """The name of the database, too: a copy beside it has the same id."""
        if self._identity is None:
            connection = self.open(read_only=True)
            try:
                self._identity = str(connection.execute(self._q(_IDENTITY)).fetchone()[0])
            except psycopg.Error as error:
                raise self.translate(error) from error
            finally:
                self.disconnect(connection)
        return self._identity

    def adopt(self, connection: LentTransaction, identity: str) -> Tx:
        if not isinstance(connection, Lent) or connection.dialect != "postgres":
            raise ValidationError(f"connection: it is not of PostgreSQL, and this app ({self.name}) is.")
        other = f"connection: it is open on another database than this app ({self.name})"
        try:
            found, now = connection.execute(self._q(f"select ({_IDENTITY}), {NOW}")).fetchone()
        except psycopg.Error as error:
            if error.sqlstate in ("42P01", "3F000"):  # no such table, no such schema
                raise ValidationError(f"{other}: there are no Holdfast tables.") from error
            raise
        if found != identity:
            raise ValidationError(f"{other}.")
        return Tx(connection, self.clock.now() if self._turned else now, lent=True)

    def share(self) -> SharedTransaction:
        from .postgres_shared import share  # as rare as it is

        return share(self)

    # -- upkeep ------------------------------------------------------------------------------------------------

    def upkeep(self, connection: Link, *, idle: bool = False) -> bool:
        """When idle, forget keys of no run that is under way, a thousand at a time."""
        if not idle:
            return True
        tx = self.begin(connection)
        try:
            # Two statements: what locked one of them before the first began is seen by the second.
            unused = [key for (key,) in self._find(connection, "unused_keys", self._keys_after, _KEYS_AT_ONCE)]
            if unused:
                self._do(connection, "forget_keys", unused)
            self._keys_after = unused[-1] if len(unused) == _KEYS_AT_ONCE else ""
            self.commit(tx)
        except BaseException:
            self.rollback(tx)
            raise
        return not self._keys_after

    # -- verbs -------------------------------------------------------------------------------------------------

    def _let_go(self, tx: Tx, rows: Sequence[Any]) -> list[Any]:
        return self._ask(tx.connection, "finish", rows, tx.instant, 0)

    def _ripen(self, tx: Tx) -> int | None:  # noqa: ARG002 - the claim itself looks whether there is anything, first
        return None

    def _ripens(self, tx: Tx, due: int | None, wake: int | None) -> bool:
        """Whether any of these times has come: then what waited for them is in its line now."""
        came = [at is not None and at <= tx.now for at in (due, wake)]
        if came[0]:
            self._make_due(tx)
        if came[1]:
            self._wake_sleepers(tx)
        return any(came)

    def _due_beside(self, tx: Tx, claimed: Claimed) -> int | None:  # noqa: ARG002 - it has said so
        due: int | None = tx.seen.pop("due", None)
        return due

    def _take(self, tx: Tx, verb: str, wanted: Sequence[Any], many: int, order: ClaimOrder) -> list[Any]:
        rows: list[Any] = []
        while True:
            keyed: list[str] = []
            due = wake = None
            first = "due" not in tx.seen
            values = (many - len(rows), order.owner, tx.instant, order.lease, tx.instant if first else _NEVER, 0)
            found = tx.seen.pop(FOUND, None)
            for row in self._ask(tx.connection, verb, wanted, *values) if found is None else found:
                if row[2] is not None:
                    rows.append(row)
                elif row[0] is not None:
                    keyed.append(row[0])
                elif row[5] is not None or row[17] is not None:
                    due, wake = row[5], row[17]
                else:
                    tx.seen["more"] = True
            tx.seen["due"] = min((at for at in (due, wake) if at is not None), default=None)
            if first and self._ripens(tx, due, wake):
                continue
            if not keyed:
                return rows
            taken = self._ask(tx.connection, "claim_keyed", keyed, as_json(wanted), order.owner, tx.now, order.lease)
            rows += taken
            refused = set(keyed).difference([row[0] for row in taken])
            if not (refused and self._do(tx.connection, "settle", sorted(refused))):
                return rows
            # They stood before others that may go.
            if verb != "claim" or len(rows) >= many:
                tx.seen["more"] = True
                return rows

    def _rows(self, tx: Tx, runs: Sequence[NewRun]) -> list[Any]:  # noqa: ARG002 - it need not be known
        # Times that are counted from now on are for the statement, which knows what is now.
        return [(*insertable(run, run.run_at, run.deadline), run.delay) for run in runs]

    def find_runs(self, connection: Any, filter: RunFilter) -> list[RunRow]:
        text, values = listing(filter, as_json)
        return [RunRow(*row) for row in connection.execute(self._q(text), values).fetchall()]

    def _old(self, connection: Any, old: Old) -> Iterable[tuple[str, int]]:
        text, values = question(old, as_json)
        found: list[tuple[str, int]] = connection.execute(self._q(text), values).fetchall()
        return found

    def change_mark(self, connection: Any) -> int | None:  # noqa: ARG002 - there is none
        return None


#: Names that have just appeared: unique_violation (of a catalog), duplicate_table, _schema, _object.
_MADE_BY_OTHERS = frozenset({"23505", "42P07", "42P06", "42710"})
