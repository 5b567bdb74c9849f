"""Throw-away database servers: on loopback, in a temporary folder, gone when the one who started them is.

    with servers.postgres(fsync=True) as server:
        url = server.url(server.create_database())
        server.stop("immediate")
        server.start()

A server of its own is for a test that restarts it. Everybody else takes the fixtures `postgres_url` and `mariadb_url`
of `databases`, which share one server of each kind.

As a program:

    python tests/servers.py missing     names the servers whose programs are not on this machine, one on a line
    python tests/servers.py serve       starts those that are, prints where as one line of JSON, and stops them
                                        when its standard input ends (--only NAME: this one; --fsync: with fsync)

Each folder of servers has a keeper: a process that waits for a file lock of the owner. However the owner ends, its
lock ends with it, and the keeper stops the servers and removes the folder. As root everything runs as `nobody`,
because PostgreSQL refuses root. The folder's name has a space in it, so that nobody forgets the quotes.

Long because the keeper must do its work with this file alone: it can import nothing of ours.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple
from urllib.parse import urlsplit, urlunsplit

Kind = Literal["postgres", "mariadb"]
KINDS: tuple[Kind, ...] = ("postgres", "mariadb")
NAMES: dict[Kind, str] = {"postgres": "PostgreSQL", "mariadb": "MariaDB"}
VARIABLES: dict[Kind, str] = {"postgres": "HOLDFAST_TEST_POSTGRES", "mariadb": "HOLDFAST_TEST_MYSQL"}

#: Seconds until a server has to be there, or gone. A machine of two busy cores needs three.
PATIENCE = 120.0
USER = "holdfast"
MEMORY = "/dev/shm"
ROOM = 4 << 30
"""Bytes that have to be free in memory: ten times what a run of all tests takes."""
READY = re.compile("ready (to accept( read-only)?|for) connections")
IN_USE = re.compile("still in use|is in use|Address already in use|Unable to lock")


class ServerTrouble(Exception):
    """A server could not be made, started or reached; the message has the end of its log."""


class Databases:
    """A database server that is there, whoever started it."""

    def __init__(self, kind: Kind, address: str) -> None:
        self.kind: Kind = kind
        self.address = address
        """A URL with which databases can be created."""

    def url(self, database: str) -> str:
        """The URL of one of its databases, as `Holdfast(…)` takes it."""
        return urlunsplit(urlsplit(self.address)._replace(path=f"/{database}"))

    def create_database(self, name: str | None = None) -> str:
        """A new, empty database; gives its name."""
        name = name or f"holdfast_{secrets.token_hex(6)}"
        self.execute(f"create database {name}")
        return name

    def drop_database(self, name: str) -> None:
        """Away with it, also while somebody is still connected."""
        self.execute(f"drop database if exists {name}" + (" with (force)" if self.kind == "postgres" else ""))

    def execute(self, sql: str, database: str | None = None, values: Any = ()) -> list[Any]:
        """The rows of one statement (none: an empty list), over a connection of its own, committed at once."""
        return execute(self.address if database is None else self.url(database), sql, values)

    def version(self) -> str:
        return str(self.execute("select version()")[0][0])


def execute(url: str, sql: str, values: Any = ()) -> list[Any]:
    """The rows of one statement on a PostgreSQL or MariaDB URL, over a connection of its own, committed at once."""
    with closing(connect(url)) as connection:
        cursor = connection.cursor()
        cursor.execute(sql, values or None)
        return list(cursor.fetchall()) if cursor.description else []


def connect(url: str, *, autocommit: bool = True) -> Any:
    """A connection of psycopg or PyMySQL to where the URL says; of its query only `schema` counts."""
    parts = urlsplit(url)
    if parts.scheme.startswith("postgres"):
        import psycopg  # only those who ask a server need a driver

        schema = re.search(r"(?:^|&)schema=(\w+)", parts.query)
        options = f"-c search_path={schema[1]}" if schema else None
        plain = urlunsplit(parts._replace(query=""))
        return psycopg.connect(plain, autocommit=autocommit, connect_timeout=30, options=options)
    import pymysql

    return pymysql.connect(
        host=parts.hostname or "127.0.0.1",
        port=parts.port or 3306,
        user=parts.username or "root",
        password=parts.password or "",
        database=parts.path.strip("/") or None,
        charset="utf8mb4",
        autocommit=autocommit,
        connect_timeout=30,
        ssl_disabled=True,  # the driver would read all authorities of the system each time: 30 ms
    )


class Programs(NamedTuple):
    """What is needed to make a server of one kind, and to run it."""

    server: str
    maker: str


def programs(kind: Kind) -> Programs | None:
    """Where the programs of a server are: the highest version found, on PATH or where packages put them."""
    name, maker = {"postgres": ("postgres", "initdb"), "mariadb": ("mariadbd", "mariadb-install-db")}[kind]
    elsewhere = {
        "postgres": ["/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin"],
        "mariadb": ["/usr/sbin", "/usr/bin", "/usr/libexec", "/opt/homebrew/opt/mariadb*/bin"],
    }[kind]
    folders = [Path(folder) for folder in os.get_exec_path()]
    for pattern in elsewhere:
        found = Path("/").glob(pattern.strip("/"))
        folders += sorted(found, key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))], reverse=True)
    for folder in folders:
        server = folder / name
        if os.access(server, os.X_OK):
            # The maker lies beside it, or (Debian's MariaDB: sbin and bin) on PATH. A link leads to both. MariaDB's
            # is a script, which calls a program that Debian has packed with the clients.
            beside = Path(os.path.realpath(server)).with_name(maker)
            made_by = str(beside) if os.access(beside, os.X_OK) else shutil.which(maker)
            if made_by is not None and (kind == "postgres" or shutil.which("my_print_defaults")):
                return Programs(str(server), made_by)
    return None


class Home:
    """A temporary folder of servers, and the keeper that clears it away when the owner's lock ends.

    What need not be synced is kept in memory where there is room: making and dropping tables is five times as fast.
    """

    def __init__(self, *, synced: bool = False) -> None:
        # The system's own folder rather than a private one: another user has to reach it when we are root.
        place = "/tmp" if os.getuid() == 0 else None
        if not synced and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM:
            place = MEMORY
        self.path = Path(tempfile.mkdtemp(prefix="holdfast servers ", dir=place))
        if os.getuid() == 0:
            shutil.chown(self.path, "nobody")
        self._alive: IO[str] | None = (self.path / "alive").open("w")
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        # Without site-packages and our environment: coverage must not follow it, and it needs nothing of ours.
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, "keep", str(self.path)],
            env={"PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        (self.path / "keeper").write_text(str(self._keeper.pid))

    def close(self) -> None:
        """Stop what runs here and remove the folder; waits until that is done."""
        if self._alive is not None:
            self._alive.close()
            self._alive = None
            self._keeper.wait(PATIENCE)


class Server(Databases):
    """A server in a folder of its own, which can be stopped and started again on the same port."""

    def __init__(self, kind: Kind, home: Path, settings: dict[str, str]) -> None:
        found = programs(kind)
        if found is None:
            raise ServerTrouble(
                f"there is no {NAMES[kind]} server on this machine. Install it (Debian, as root: `make servers` does; "
                f"elsewhere your package manager: the programs only, nothing has to run), or set {VARIABLES[kind]} to "
                f"the URL of a server where databases may be created and dropped."
            )
        self._programs = found
        self._home = home
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._password = secrets.token_hex(8)
        self.data = home / kind
        """The data directory."""
        self.port = _free_port()
        scheme = "postgresql" if kind == "postgres" else "mysql"
        database = "postgres" if kind == "postgres" else "mysql"
        super().__init__(kind, f"{scheme}://{USER}:{self._password}@127.0.0.1:{self.port}/{database}")

    @property
    def pid(self) -> int:
        """The process that was started; PostgreSQL has children beside it."""
        if self._process is None:
            raise ServerTrouble(f"{NAMES[self.kind]} is stopped")
        return self._process.pid

    @property
    def log(self) -> str:
        """All that it has written since it was made."""
        path = self._home / f"{self.kind}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def make(self) -> None:
        """Write the data directory. Only once."""
        secret = self._home / f"{self.kind}.secret"
        secret.touch(mode=0o600)
        if os.getuid() == 0:
            shutil.chown(secret, "nobody")
        if self.kind == "postgres":
            secret.write_text(self._password)
            order = [self._programs.maker, "-D", str(self.data), "-U", USER, "--pwfile", str(secret), "--auth=md5"]
            order += ["--encoding=UTF8", "--no-sync"]
            # Sorted as people sort, like most servers out there: a comparison that forgot its collation shows.
            human = ["--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US"]
            if self._run([*order, *human]).returncode != 0:
                shutil.rmtree(self.data, ignore_errors=True)
                self._must([*order, "--locale=C"])
            lines = [f"{name} = '{value}'\n" for name, value in self._settings.items()]
            with (self.data / "postgresql.conf").open("a") as conf:
                conf.writelines(["\n", *lines])
        else:
            order = [self._programs.maker, "--no-defaults", f"--datadir={self.data}", "--skip-test-db"]
            self._must([*order, "--auth-root-authentication-method=normal", "--skip-name-resolve"])
            # Read by the first start, which is the first to know accounts.
            secret.write_text(
                f"alter user root@localhost identified by '{self._password}';\n"
                f"create user {USER}@'%' identified by '{self._password}';\n"
                f"grant all on *.* to {USER}@'%' with grant option;\n"
            )

    def start(self) -> None:
        """Start it and wait until it takes connections. On the port that it had before."""
        deadline = time.monotonic() + PATIENCE
        while self._process is None and not self._came_up(deadline):
            time.sleep(0.1)

    def _came_up(self, deadline: float) -> bool:
        """Whether it takes connections; False where children of the one before still hold its memory or its port."""
        before = len(self.log)
        process = self._start()
        (self._home / f"{self.kind}.pid").write_text(str(process.pid))
        while READY.search(told := self.log[before:]) is None:
            if process.poll() is not None:
                if IN_USE.search(told) and time.monotonic() < deadline:
                    return False
                raise ServerTrouble(f"{NAMES[self.kind]} did not start:\n{told[-3000:]}")
            if time.monotonic() > deadline:
                process.kill()
            time.sleep(0.01)
        self._process = process
        (self._home / "mariadb.secret").unlink(missing_ok=True)
        return True

    def _start(self) -> subprocess.Popen[bytes]:
        if self.kind == "postgres":
            order = [self._programs.server, "-D", str(self.data), "-p", str(self.port)]
        else:
            order = [self._programs.server, "--no-defaults", f"--datadir={self.data}", f"--port={self.port}"]
            order += [f"--socket={self._home / 'mariadb.sock'}", f"--pid-file={self.data / 'pid'}"]
            # A server that starts removes temporary tables from there, also those of another one.
            order += [f"--tmpdir={self._home}"]
            order += [f"--{name}={value}" for name, value in self._settings.items()]
            secret = self._home / "mariadb.secret"
            order += [f"--init-file={secret}"] if secret.exists() else []
        with (self._home / f"{self.kind}.log").open("ab") as log:
            return subprocess.Popen(
                order,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._home,
                start_new_session=True,  # Control-C is for us; we stop it in order
                **_as_nobody(),
            )

    def stop(self, how: Literal["fast", "immediate"] | signal.Signals = "fast") -> None:
        """Stop it and wait until it is gone: connections closed in order, at once without a last word, or killed."""
        if self._process is None:
            return
        if how == "fast":
            number = signal.SIGINT if self.kind == "postgres" else signal.SIGTERM
        elif how == "immediate":  # MariaDB has no such thing between in order and killed
            number = signal.SIGQUIT if self.kind == "postgres" else signal.SIGKILL
        else:
            number = how
        self._process.send_signal(number)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise ServerTrouble(f"{NAMES[self.kind]} did not stop:\n{self.log[-3000:]}") from None
        self._process = None
        (self._home / f"{self.kind}.pid").unlink(missing_ok=True)

    def let_go(self) -> None:
        """Leave it running when this object is gone: only the keeper stops it."""
        assert self._process is not None
        self._process.returncode = 0  # or it would warn, when collected, that it was not waited for
        self._process = None

    def _run(self, order: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            order, capture_output=True, text=True, cwd=self._home, stdin=subprocess.DEVNULL, check=False, **_as_nobody()
        )

    def _must(self, order: list[str]) -> None:
        done = self._run(order)
        if done.returncode != 0:
            raise ServerTrouble(f"{order[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


@contextmanager
def postgres(*, fsync: bool = False, **settings: str) -> Iterator[Server]:
    """A PostgreSQL of one's own. `settings` go into postgresql.conf.

    Without `fsync` only a crash of the machine loses commits: what our tests see is the same, and faster.
    """
    yield from _own("postgres", fsync, settings)


@contextmanager
def mariadb(*, fsync: bool = False, **settings: str) -> Iterator[Server]:
    """A MariaDB of one's own. `settings` are options of mariadbd."""
    yield from _own("mariadb", fsync, settings)


def _own(kind: Kind, fsync: bool, settings: dict[str, str]) -> Iterator[Server]:
    home = Home(synced=fsync)
    try:
        server = started(kind, home.path, fsync=fsync, **settings)
        try:
            yield server
        finally:
            server.stop("immediate")
    finally:
        home.close()


def started(kind: Kind, home: Path, *, fsync: bool = False, **settings: str) -> Server:
    """A new server in the folder of a `Home`."""
    server = Server(kind, home, {**_settings(kind, fsync), **settings})
    server.make()
    server.start()
    return server


def _settings(kind: Kind, fsync: bool) -> dict[str, str]:
    if kind == "postgres":
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "300",
            "log_line_prefix": "%m [%p] %d ",
            "lc_messages": "C",
            "max_wal_size": "1GB",  # no checkpoints in between
            "checkpoint_timeout": "1h",
        }
        return settings if fsync else {**settings, "fsync": "off", "full_page_writes": "off"}
    settings = {
        "bind-address": "127.0.0.1",
        "skip-name-resolve": "1",
        "max-connections": "300",
        "lc-messages": "en_US",
    }
    # 2: written at each commit but not synced. A killed server has lost nothing.
    fast = {"innodb-flush-log-at-trx-commit": "2", "innodb-doublewrite": "0", "sync-binlog": "0"}
    return settings if fsync else {**settings, **fast}


def _as_nobody() -> dict[str, Any]:
    if os.getuid() != 0:
        return {}
    import pwd

    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ── One server of each kind for all processes of a test run ─────────────────────────────────────────────────────────

HOME_VARIABLE = "HOLDFAST_TEST_SERVERS"


def shared(kind: Kind) -> Databases:
    """The server that the variable names; else the one of this test run, started by whoever needs it first.

    Raises ServerTrouble, each time alike, where there is none.
    """
    address = os.environ.get(VARIABLES[kind])
    if address:
        return Databases(kind, address)
    place = os.environ.get(HOME_VARIABLE)
    if place is None:
        raise ServerTrouble(f"{VARIABLES[kind]} is not set")
    home = Path(place)
    told = home / f"{kind}.told"
    with (home / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not told.exists():
            try:
                server = started(kind, home)
                server.let_go()
                answer = {"address": server.address}
            except ServerTrouble as trouble:
                answer = {"trouble": str(trouble)}
            told.write_text(json.dumps(answer))
    answer = json.loads(told.read_text())
    if "trouble" in answer:
        raise ServerTrouble(answer["trouble"])
    return Databases(kind, answer["address"])


# ── As a program ────────────────────────────────────────────────────────────────────────────────────────────────────


def keep(home: Path) -> None:
    """Wait until the owner of the folder is gone; stop the servers, and remove it."""
    with (home / "alive").open("a") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
    for path in home.glob("*.pid"):
        pid = int(path.read_text() or 0)
        # PostgreSQL in order, at once: killed, it would leave its shared memory behind.
        for number in (signal.SIGQUIT if path.stem == "postgres" else signal.SIGKILL, signal.SIGCONT):
            _signal(pid, number)
        for _ in range(500):
            if not _signal(pid, 0):
                break
            time.sleep(0.01)
        _signal(pid, signal.SIGKILL)
    for _ in range(50):
        shutil.rmtree(home, ignore_errors=True)
        if not home.exists():
            return
        time.sleep(0.1)


def _signal(pid: int, number: int) -> bool:
    """Whether there is still such a process; pid 0 is nobody (and not our whole group)."""
    try:
        if pid > 0:
            os.kill(pid, number)
    except ProcessLookupError:
        return False
    return pid > 0


def serve(kinds: list[Kind], fsync: bool) -> None:
    """Start these, print where (or why not), and stop them when standard input ends."""
    home = Home(synced=fsync)
    try:
        told: dict[str, dict[str, str]] = {}
        for kind in kinds:
            try:
                server = started(kind, home.path, fsync=fsync)
                told[kind] = {"address": server.address}
                told[kind]["version"] = server.version()
            except ServerTrouble as trouble:
                told[kind] = {"trouble": str(trouble)}
        print(json.dumps(told), flush=True)
        sys.stdin.read()
    except KeyboardInterrupt:
        pass
    finally:
        home.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Throw-away database servers for tests.")
    parser.add_argument("what", choices=["missing", "serve", "keep"])
    parser.add_argument("home", nargs="?", type=Path)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--fsync", action="store_true")
    options = parser.parse_args()
    if options.what == "keep":
        keep(options.home)
    elif options.what == "missing":
        print("\n".join(kind for kind in KINDS if programs(kind) is None))
    else:
        serve([options.only] if options.only else list(KINDS), options.fsync)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
