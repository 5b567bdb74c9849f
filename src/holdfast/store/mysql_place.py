"""Where a MariaDB database is, and connections to it that notice when nobody answers any more.

Nothing is left to how the server is set up: what a session needs (isolation, strictness, UTC, bounds on waiting) is set
when it begins.
"""

from __future__ import annotations

import contextlib
import functools
import re
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import pymysql
from pymysql.constants import CLIENT, CR, ER

from ..basis.clock import SystemClock
from ..basis.errors import PayloadTooLarge, StoreError, ValidationError
from ..basis.text import masked, shown

SCHEMES = ("mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql")

#: `skip locked` and `json_table` came with 10.6, indexes that run backwards with 10.8.
OLDEST = (10, 11)

_EXAMPLE = "Write 'mysql://user:password@host/database'."
_OPTIONS = ("unix_socket", "ssl", "ssl_ca", "ssl_cert", "ssl_key", "connect_timeout")
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)-MariaDB", re.IGNORECASE)

#: Of assignments each sees the row as it was; a text that does not fit is refused, not cut.
_SQL_MODE = "STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION,SIMULTANEOUS_ASSIGNMENT"

#: No limit to the rows of a SELECT.
_ALL = 2**64 - 1

_steady = SystemClock().steady

if TYPE_CHECKING:
    _Driver = pymysql.Connection[Any]
else:
    _Driver = pymysql.Connection


class Address(NamedTuple):
    """A URL, taken apart."""

    hosts: tuple[tuple[str, int], ...]
    """Tried one after the other."""
    user: str | None
    password: str
    database: str
    options: Mapping[str, str]
    name: str
    """The URL without its secrets."""

    def hide(self, text: str) -> str:
        """The text without the password."""
        return masked(text, self.password, self.name)


class Limits(NamedTuple):
    """How long somebody waits, in seconds."""

    lock: float
    """The server for a lock."""
    statement: float
    """The server for a statement to end."""
    idle: float
    """The server for a client that has a transaction open and says nothing: below the lease, or what it has locked is
    locked longer than its lease lasts."""
    connect: float = 10.0
    """We, for each host."""

    @classmethod
    def of(cls, lease: float, lock: float) -> Limits:
        """For a process that takes leases of so many seconds: what it waits for must not outlast them by much."""
        # Not below five: a server that is slow for a moment is better waited for than asked twice.
        return cls(lock, min(30.0, max(5.0, lease)), min(10.0, lease / 2), min(10.0, max(2.0, lease / 3)))

    @property
    def patience(self) -> float:
        """We, for an answer: longer than the server needs to give up a statement by itself."""
        return self.statement * 1.5


def address(url: str) -> Address:
    """What a URL says; `ValidationError` where it says nothing that can be understood."""
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in SCHEMES or not rest:
        # Without the rest: there may be a password in it.
        raise ValidationError(f"{scheme!r} is no scheme of a MariaDB URL. {_EXAMPLE}")
    parts = urlsplit(f"mysql://{rest}")
    login, at, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    path = unquote(parts.path.removeprefix("/"))
    query = parse_qsl(parts.query, keep_blank_values=True)
    # Neither here: a password that was not quoted may have ended up in any part.
    if not path or "/" in path or parts.fragment:
        raise ValidationError(f"{scheme}://…: the URL names no database. {_EXAMPLE}")
    for key, _ in query:
        if key not in _OPTIONS:
            raise ValidationError(f"{scheme}://…: unknown option {shown(key)}. There are: {', '.join(_OPTIONS)}.")
    name = f"{scheme}://{user}{at}{hosts}/{quote(path)}" + (f"?{urlencode(query)}" if query else "")
    found = [_host(one, name) for one in hosts.split(",")]
    return Address(tuple(found), unquote(user) or None, unquote(password), path, dict(query), name)


def _host(text: str, name: str) -> tuple[str, int]:
    matched = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]*)(?::(\d{1,5}))?", text)
    if matched is None:
        raise ValidationError(f"{name}: {shown(text)} is no host, or host:port.")
    return matched[1].strip("[]") or "127.0.0.1", int(matched[2] or 3306)


class _Connection(_Driver):
    """A connection that is given up, with all that was asked, once the whole answer takes too long."""

    patience: float = 45.0
    _until: float = float("inf")

    def _create_ssl_ctx(self, sslp: Any) -> ssl.SSLContext:
        return sslp if isinstance(sslp, ssl.SSLContext) else _unchecked()

    def be_patient(self) -> None:
        """The time for one answer begins."""
        self._until = _steady() + self.patience

    def _read_bytes(self, num_bytes: int) -> bytes:
        # The driver's own limit is about the silence between two bytes: one byte a second would go on for ever.
        some: Any = self
        data = b""
        try:
            while len(data) < num_bytes:
                left = self._until - _steady()
                if left <= 0:
                    raise TimeoutError("timed out")
                if left < self.patience:
                    some._sock.settimeout(left)
                more = some._rfile.read1(num_bytes - len(data))
                if not more:
                    raise ConnectionError("the server has closed the connection")
                data = data + more if data else more
        except OSError as error:
            some._force_close()
            raise pymysql.OperationalError(CR.CR_SERVER_LOST, f"no answer: {error}") from error
        except BaseException:
            some._force_close()
            raise
        return data


class Link:
    """A connection for one thread. `reopen` when it was lost."""

    def __init__(self, to: Address, limits: Limits, *, read_only: bool = False) -> None:
        self._to = to
        self._limits = limits
        self._read_only = read_only
        self.raw: _Connection
        self.largest: int = 0
        """Bytes of a statement that the server takes."""
        self.reopen()

    def reopen(self) -> None:
        """Connect (again), to the first host that answers and may be written to."""
        self.close()
        for host, port in self._to.hosts:
            try:
                self.raw = self._connect(host, port)
                self._prepare()
                return
            except (pymysql.Error, StoreError) as error:
                self.close()
                if (host, port) == self._to.hosts[-1]:
                    raise error from None

    def _connect(self, host: str, port: int) -> _Connection:
        to, options = self._to, self._to.options
        patience = self._limits.patience
        raw = _Connection(
            host=host,
            port=port,
            user=to.user,
            password=to.password,
            database=to.database,
            unix_socket=options.get("unix_socket"),
            ssl=_context(options),
            charset="utf8mb4",
            autocommit=True,
            # Matched rows are counted, not changed ones; and `begin` asks two things at once.
            client_flag=CLIENT.FOUND_ROWS | CLIENT.MULTI_STATEMENTS,
            connect_timeout=float(options.get("connect_timeout", self._limits.connect)),
            read_timeout=patience,
            write_timeout=patience,
            defer_connect=True,
        )
        raw.patience = patience
        raw.be_patient()
        raw.connect()
        return raw

    def _prepare(self) -> None:
        self._look()
        self.ask(
            # Gaps between rows must not be locked: others insert there.
            f"set session transaction isolation level read committed, read {'only' if self._read_only else 'write'}; "
            f"set session {self._settings()}"
        )

    def _look(self) -> None:
        """Whether this server can be used, and what it takes."""
        name = self._to.name
        ((text, largest, read_only),) = self.ask("select version(), @@max_allowed_packet, @@read_only")
        matched = _VERSION.search(text)
        if matched is None or (int(matched[1]), int(matched[2])) < OLDEST:
            raise StoreError(f"{name}: MariaDB {OLDEST[0]}.{OLDEST[1]} or newer is needed, this server is {text}.")
        if read_only and not self._read_only and len(self._to.hosts) > 1:
            raise StoreError(f"{name}: this server is read-only.")
        self.largest = largest

    def _settings(self) -> str:
        limits = self._limits
        lock, idle = max(1, round(limits.lock)), max(1, round(limits.idle))
        return (
            # Rows are to be found by their index: read all together, as small tables are, all would be locked.
            f"sql_mode = '{_SQL_MODE}', time_zone = '+00:00', innodb_lock_wait_timeout = {lock}, "
            f"lock_wait_timeout = {lock}, max_statement_time = {limits.statement}, idle_transaction_timeout = {idle}, "
            "join_cache_level = 0, optimizer_switch = 'exists_to_in=off,materialization=off', "
            # What an administrator has set for people who make mistakes. The first of these and the last leave out rows
            # without a word.
            f"sql_select_limit = {_ALL}, sql_safe_updates = 0, sql_big_selects = 1, "
            "sort_buffer_size = greatest(@@sort_buffer_size, 262144), "
            "max_sort_length = greatest(@@max_sort_length, 1024), max_recursive_iterations = 4294967295"
        )

    def ask(self, sql: str) -> list[Any]:
        """The rows of a statement; of the last one, if there are several."""
        cursor = self._say(sql)
        found: Any = cursor.fetchall()
        while cursor.nextset():
            found = cursor.fetchall()
        return list(found)

    def first(self, sql: str) -> list[Any]:
        """The rows of the first of several statements. Where one fails, the others are not tried."""
        cursor = self._say(sql)
        found: Any = cursor.fetchall()
        while cursor.nextset():
            pass
        return list(found)

    def do(self, sql: str) -> int:
        """How many rows one statement matched."""
        matched: int = self._say(sql).rowcount
        return matched

    def _say(self, sql: str) -> Any:
        raw = self.raw
        if len(sql) * 4 > self.largest > 0 and (size := len(sql.encode()) + 1) > self.largest:
            # The server would close the connection, and nobody would know why.
            raise PayloadTooLarge(
                f"{self._to.name}: a statement of {size} bytes is more than max_allowed_packet of the server, which is "
                f"{self.largest}; nothing was written. Raise it there, or keep large values elsewhere."
            )
        raw.be_patient()
        cursor = raw.cursor()
        cursor.execute(sql)
        return cursor

    @property
    def is_lost(self) -> bool:
        return not self.raw.open

    def close(self) -> None:
        """Never raises."""
        raw = getattr(self, "raw", None)
        if raw is not None and raw.open:
            with contextlib.suppress(pymysql.Error, OSError):
                raw.close()


def _context(options: Mapping[str, str]) -> Any:
    """How the line is encrypted, if the URL says so: `ssl=true`, or the file of an authority."""
    if not ({"ssl", "ssl_ca", "ssl_cert", "ssl_key"} & options.keys()) or options.get("ssl") == "false":
        return None
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca"))
        if options.get("ssl_cert"):
            context.load_cert_chain(options["ssl_cert"], options.get("ssl_key"))
    except OSError as error:
        raise ValidationError(f"ssl: {error.strerror or error}: look at ssl_ca, ssl_cert and ssl_key.") from None
    return context


@functools.cache
def _unchecked() -> ssl.SSLContext:
    """How the line is encrypted when the URL says nothing: if the server likes to, and whoever it is.

    The driver would read the system's authorities for each connection, 30 ms each, and then ask none of them.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def code_of(error: pymysql.Error) -> int:
    """The number of an error; 0 without one."""
    first = error.args[0] if error.args else 0
    return first if isinstance(first, int) else 0


def meaning(error: pymysql.Error) -> str | None:
    """What an error says about the database as a whole; None if it is about what was asked."""
    code = code_of(error)
    if code == 0 and isinstance(error, pymysql.InterfaceError | pymysql.OperationalError):
        return "can't be reached"
    for codes, text in _MEANINGS:
        if code in codes:
            return text
    return None


_MEANINGS: tuple[tuple[frozenset[int], str], ...] = (
    (frozenset({2002, 2003, 2005, 2026}), "can't be reached"),
    (frozenset({2006, 2013, 2014, 2027, 2055, 1158, 1159, 1160, 1161}), "doesn't answer"),
    (frozenset({1040, 1203, 1226, 1129, 1130, 1135}), "takes no more connections"),
    (frozenset({1044, 1045, 1142, 1143, 1227, 1698, 1251}), "refuses access"),
    (frozenset({1049}), "does not exist"),
    (frozenset({1053, 1077, 1078, 1079, 1317, 1927, 1047, 1020}), "is shutting down or has ended our connection"),
    (frozenset({1021, 1114, 1041, 1037, 1038}), "has no room left"),
    (frozenset({1290, 1792, 1836, 1223}), "is read-only (a replica?)"),
    (frozenset({1969, 3024}), "took too long"),
    (frozenset({1015, 1016, 1023, 1026, 1030, 1034, 1035, 1194, 1195}), "can't be read or written"),
)

#: The transaction was undone for somebody else's sake, or waited too long for a lock, or the tables have just changed:
#: it may simply be played again. The last one: a row that another transaction has just written, where a guard of last
#: resort forbids a second one.
AGAIN = frozenset({ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT, 1412, ER.DUP_ENTRY})

#: The value can't be kept: too long, out of range, no UTF-8.
REFUSED = frozenset({ER.DATA_TOO_LONG, 1264, 1366, 1300, 1118})
