"""Where a PostgreSQL database is, and connections to it that notice when nobody answers any more.

The URL is libpq's (several hosts, `sslmode`, `passfile`, …), with options of ours taken out of its query. Nothing is
kept in the session but settings that only make it faster or safer, so that a pooler may give every transaction another
one: names are written with their schema, and behind a pooler statements are not prepared and limits are set per
transaction.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

import psycopg
from psycopg import pq, waiting
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.numeric import Int8BinaryDumper

from ..basis.clock import SystemClock
from ..basis.errors import StoreError, ValidationError
from ..basis.text import masked
from .postgres_together import Together

SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")

#: `materialized`, `skip locked`, `gen_random_uuid()`.
OLDEST = 130000

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}")

#: What libpq is asked for, unless the URL says something else. A peer that is gone is noticed within 15 to 25 seconds.
_CONNECTION = {
    "application_name": "holdfast",
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
    "target_session_attrs": "read-write",
    "client_encoding": "utf8",
}

#: Every statement finds its rows by an index. Of tables that are new or have just grown the planner knows nothing, and
#: what it plans then is kept.
_SETTINGS = {"jit": "off", "enable_seqscan": "off"}

#: Who writes says the same few statements again and again, and none of them is better off for knowing its values.
#: Planning a claim anew, which is what the server would do, takes a third as long as claiming a hundred runs.
_WRITING = {"plan_cache_mode": "force_generic_plan"}

#: Seconds for which a server that could be written to is believed to be that still.
_CURRENT_FOR = 1.0

#: That a commit is only here, and not on the standby that it should have waited for.
_NOT_REPLICATED = "canceling wait for synchronous replication"

_steady = SystemClock().steady


class Address(NamedTuple):
    """A URL, taken apart."""

    conninfo: str
    """For libpq."""
    name: str
    """The URL without its secrets."""
    schema: str
    pooled: bool | None
    """Whether there is a pooler in between; None: find out."""
    secrets: tuple[str, ...]

    def hide(self, text: str) -> str:
        """The text without the password."""
        for secret in self.secrets:
            text = masked(text, secret, self.name)
        return text


def address(url: str) -> Address:
    """What a URL says; `ValidationError` where it says nothing that can be understood."""
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in SCHEMES or not rest:
        # Without the rest: there may be a password in it.
        raise ValidationError(
            f"{scheme!r} is no scheme of a PostgreSQL URL. Write 'postgresql://user:password@host/database'."
        )
    parts = urlsplit(f"postgresql://{rest}")
    hidden: list[str] = []
    ours: dict[str, str] = {}
    query: list[tuple[str, str]] = []
    shown: list[tuple[str, str]] = []
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key in ("schema", "pooler"):
            ours[key] = value
        else:
            query.append((key, value))
        if key in ("password", "sslpassword"):
            hidden.append(value)
        else:
            shown.append((key, value))
    login, at, hosts = parts.netloc.rpartition("@")
    user, colon, password = login.partition(":")
    if colon:
        hidden += [unquote(password), password]
    schema = ours.get("schema", "public")
    if not _NAME.fullmatch(schema):
        raise ValidationError(f"schema: {schema[:100]!r} is no name of a schema: letters, digits and _, at most 63.")
    pooler = ours.get("pooler")
    if pooler not in (None, "transaction", "none"):
        raise ValidationError(f"pooler: {pooler[:100]!r} must be 'transaction' or 'none'.")
    name = urlunsplit(parts._replace(netloc=user + at + hosts, query=urlencode(shown, quote_via=quote)))
    conninfo = urlunsplit(parts._replace(query=urlencode(query, quote_via=quote)))
    found = Address(
        conninfo, name, schema, None if pooler is None else pooler == "transaction", tuple(filter(None, hidden))
    )
    try:
        conninfo_to_dict(conninfo)
    except psycopg.Error as error:
        text = str(error).strip()
        for secret in found.secrets:  # wherever it is: what libpq can't read it repeats, in pieces
            text = text.replace(secret, "***")
        raise ValidationError(f"{name}: {text}.") from None
    return found


class Unanswered(psycopg.OperationalError):
    """The server took too long; the connection is closed, what became of the statement is not known."""


class _Connection(psycopg.Connection[Any]):
    """A connection that doesn't wait for ever, and never sends a cancel: around a COMMIT that would be a lie."""

    patience: float = 45.0

    def wait(self, gen: Any, interval: float = 0.5) -> Any:  # type: ignore[override]  # its own type is private
        try:
            return waiting.wait(_bounded(gen, self.patience), self.pgconn.socket, interval)
        except (Unanswered, KeyboardInterrupt, SystemExit):
            self.pgconn.finish()
            raise


def _bounded(gen: Generator[Any, Any, Any], patience: float) -> Generator[Any, Any, Any]:
    """The conversation, given up once nothing has come for too long."""
    try:
        wanted = next(gen)
        since = _steady()
        while True:
            ready = yield wanted
            if ready:
                wanted = gen.send(ready)
                since = _steady()
            elif _steady() - since > patience:
                raise Unanswered(f"the server did not answer within {patience:g} seconds")
            else:
                wanted = gen.send(ready)
    except StopIteration as end:
        return end.value


class Limits(NamedTuple):
    """How long the server waits, in seconds."""

    lock: float
    """For a lock."""
    statement: float
    idle: float
    """For a client that has a transaction open and says nothing: below the lease, or what it has locked would be locked
    for longer than its lease lasts."""
    connect: float = 10.0
    """Nobody on the server: we, for each of its hosts."""

    @classmethod
    def of(cls, lease: float, lock: float) -> Limits:
        """For a process that takes leases of so many seconds: what it waits for must not outlast them by much."""
        # Not below five: a server that is slow for a moment is better waited for than asked twice.
        return cls(lock, min(30.0, max(5.0, lease)), min(10.0, lease / 2), min(10.0, max(2.0, lease / 3)))

    @property
    def patience(self) -> float:
        """As long nothing may come from the server. It ends by itself what takes longer than `statement`, but no COMMIT
        that waits for a standby, and nothing that has never reached it."""
        return self.statement * 1.5

    def asked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What libpq is asked for, with what a URL has given."""
        # Where there are others to try, a host that says nothing is not waited for as long.
        seconds = min(self.connect, 3.0) if "," in str(given.get("host", "")) else self.connect
        return {**_CONNECTION, "connect_timeout": str(max(2, round(seconds))), **given}


class Link(Together):
    """A connection for one thread, with the one cursor over which everything goes. `reopen` when it was lost."""

    def __init__(self, to: Address, limits: Limits, *, read_only: bool) -> None:
        super().__init__()
        self._to = to
        self._limits = limits
        self.read_only = read_only
        self.pooled: bool = bool(to.pooled)
        self.unreplicated: str | None = None
        """What the server warned of at the last commit, if that may be lost with it."""
        self.pg: psycopg.Connection[Any]
        self._wants: str = self._limits.asked(conninfo_to_dict(to.conninfo))["target_session_attrs"]
        self._current_until = 0.0
        self.reopen()

    def reopen(self) -> None:
        """Connect (again)."""
        self.close()
        self.prepared_is_gone()
        try:
            self.pg = self._connect(self.pooled)
        except psycopg.OperationalError as error:
            if self._to.pooled is not None or "startup parameter" not in str(error):
                raise
            # A pooler has no use for what is set in a session.
            self.pooled = True
            self.pg = self._connect(True)
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _connect(self, pooled: bool) -> _Connection:
        given = conninfo_to_dict(self._to.conninfo)
        values = self._limits.asked(given)
        if pooled:
            values.pop("client_encoding") if "client_encoding" not in given else None
        else:
            settings = {**_SETTINGS, **{key: f"{value}ms" for key, value in self._timeouts().items()}}
            if not self.read_only:
                settings |= _WRITING
            ours = " ".join(f"-c {key}={value}" for key, value in settings.items())
            # What comes later counts: an option in the URL.
            values["options"] = f"{ours} {given.get('options', '')}".strip()
        try:
            pg = _Connection.connect(
                **values,
                autocommit=True,
                prepare_threshold=None if pooled else 0,
                cursor_factory=psycopg.RawCursor,
            )
        except OSError as error:  # such as no more open files
            raise psycopg.OperationalError(str(error)) from error
        pg.patience = self._limits.patience
        pg.prepared_max = 500
        pg.adapters.register_dumper(int, Int8BinaryDumper)
        pg.add_notice_handler(self._noticed)
        return pg

    def _timeouts(self) -> dict[str, int]:
        return {
            "lock_timeout": round(self._limits.lock * 1000),
            "statement_timeout": round(self._limits.statement * 1000),
            "idle_in_transaction_session_timeout": round(self._limits.idle * 1000),
        }

    def _prepare(self) -> None:
        pg = self.pg
        self.cursor: psycopg.Cursor[Any] = pg.cursor()
        self._execute: Any = self.cursor.execute  # which would rather have literal texts
        if pg.info.server_version < OLDEST:
            raise StoreError(f"{self._to.name}: PostgreSQL 13 or newer is needed, this is {pg.info.server_version}.")
        if not self.pooled and self._to.pooled is None:
            # A pooler may also take the settings and drop them.
            found = self.execute("select current_setting('jit'), current_setting('enable_seqscan')").fetchone()
            if found != ("off", "off"):
                self.pooled = True
                pg.prepare_threshold = None
        encoding = pg.info.parameter_status("server_encoding")
        if encoding not in ("UTF8", None):
            raise StoreError(f"{self._to.name}: the database has the encoding {encoding}; UTF8 is needed.")
        if self.read_only and not self.pooled:
            self.execute("set session characteristics as transaction read only")
        elif not self.pooled:
            # Whoever has turned it off for others wants speed; what we have acknowledged must be there.
            self.execute(
                "select set_config('synchronous_commit', 'on', false) "
                "where current_setting('synchronous_commit') = 'off'"
            )

    @property
    def begin(self) -> str:
        """The words that open a transaction."""
        text = "begin isolation level read committed"
        if self.pooled:
            # Set here, it ends with the transaction, whoever is given the session next.
            for key, value in {**_SETTINGS, **{key: f"{value}ms" for key, value in self._timeouts().items()}}.items():
                text += f"; set local {key} = '{value}'"
        return text

    def _noticed(self, notice: Any) -> None:
        if _NOT_REPLICATED in (notice.message_primary or ""):
            self.unreplicated = str(notice.message_primary)

    def execute(self, sql: str, values: Any = None) -> Any:
        """One statement; what it gives is to be read before the next."""
        assert not self.over, "after the commit nothing belongs to the transaction"
        self._said += 1
        if not self._put_off:  # before that nobody may know that the link was lost
            for part in self.planned_anew():
                self._execute(part.sql, prepare=False)
        answer = self.along(sql, values) if self._put_off else self._execute(sql, values)
        if answer.statusmessage == "ROLLBACK":  # to a savepoint
            self.prepared_is_gone()
        return answer

    def say(self, sql: str) -> Any:
        """Several statements at once, without values: the first row of the last one; None without any."""
        self.settle()
        cursor = self._execute(sql, prepare=False)
        while cursor.nextset():
            pass
        return cursor.fetchone() if cursor.description else None

    def roll_back(self) -> None:
        """Undo the transaction, if the server knows of one."""
        self.drop()
        if self.in_transaction:
            self._execute("rollback", prepare=False)
            self.prepared_is_gone()

    def is_current(self) -> bool:
        """Whether its server may still be written to; found out once a second. What is read from another one is old.

        Not asked where the URL is content with any server.
        """
        if self._wants not in ("read-write", "primary") or _steady() < self._current_until:
            return True
        # A session that is read-only by its own wish is told nothing by `transaction_read_only`.
        (writable,) = self.execute(
            "select not pg_is_in_recovery() and not exists (select 1 from pg_settings "
            "where name = 'default_transaction_read_only' and reset_val = 'on')"
        ).fetchone()
        self._current_until = _steady() + _CURRENT_FOR
        return bool(writable)

    def take_its_time(self) -> None:
        """Until it is reopened an answer may take for ever. Whether the server is still there, TCP knows."""
        assert isinstance(self.pg, _Connection)
        self.pg.patience = float("inf")

    @property
    def is_lost(self) -> bool:
        return self.pg.closed

    @property
    def in_transaction(self) -> bool:
        return self.pg.info.transaction_status not in (pq.TransactionStatus.IDLE, pq.TransactionStatus.UNKNOWN)

    def close(self) -> None:
        """Never raises."""
        pg = getattr(self, "pg", None)
        if pg is not None:
            try:
                pg.close()
            except psycopg.Error:
                pass


def meaning(error: psycopg.Error) -> str | None:
    """What an error says about the database as a whole; None if it is about what was asked."""
    if isinstance(error, Unanswered):
        return "doesn't answer"
    state = error.sqlstate
    if state is None:
        return "can't be reached" if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) else None
    for begin, text in _MEANINGS.items():
        if state.startswith(begin):
            return text
    return None


#: The state of an error of who wanted to write where that is not possible: another server takes writes now.
READ_ONLY = "25006"

_MEANINGS = {
    "08": "can't be reached",
    READ_ONLY: "is read-only (a standby?)",
    "25P0": "has ended our transaction, which was idle for too long",
    "28": "refuses the login",
    "3D000": "does not exist",
    "42501": "refuses access",
    "53": "has no room left",
    "54000": "is at a limit of its own",
    "55P03": "has something locked for too long",
    "57014": "took too long",
    "57": "is shutting down or starting",
    "58": "can't be read or written",
    "XX": "may be damaged",
}

#: The transaction was undone for somebody else's sake: it may simply be played again. The last ones: a row that another
#: transaction has just written, where a guard of last resort forbids a second one.
AGAIN = frozenset({"40001", "40P01", "23505"})
