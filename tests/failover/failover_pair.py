"""Two PostgreSQL servers, one the synchronous standby of the other, with a link between them that can be broken."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import servers
from faulty_link import FaultyLink
from servers import Home, Server, ServerTrouble

_STANDBY = "holdfast_standby"
#: With whole pages in the log, as a standby needs them. Replication that is cut shall not be ended by the servers.
_SETTINGS = {"full_page_writes": "on", "wal_sender_timeout": "0", "wal_receiver_timeout": "0"}


class Pair:
    """The servers. `primary` takes writes; a commit there waits for the standby, while that `is_synchronous`."""

    def __init__(self, homes: tuple[Home, Home]) -> None:
        settings = {**servers._settings("postgres", False), **_SETTINGS}
        self.primary = Server("postgres", homes[0].path, settings)
        self.standby = Server("postgres", homes[1].path, settings)
        # What is copied has the password of the first.
        self.standby._password = self.primary._password
        self.standby.address = self.primary.address.replace(f":{self.primary.port}/", f":{self.standby.port}/")
        self._ports = (self.primary.port, self.standby.port)
        self.link: FaultyLink | None = None

    def url(self, database: str) -> str:
        """With both hosts, always in the same order."""
        login = self.primary.url(database).rpartition("@")[0]
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        return f"{login}@{hosts}/{database}?target_session_attrs=read-write&sslmode=disable&gssencmode=disable"

    def make(self) -> None:
        self.primary.make()
        self.primary.start()
        self.make_standby()

    def make_standby(self) -> None:
        """Copy the primary anew, follow it, and wait until commits wait for the copy."""
        self._drop_link()
        self.link = FaultyLink(self.primary.address)
        through = f"host=127.0.0.1 port={self.link.port} user={servers.USER} password={self.primary._password}"
        data = self.standby.data
        _forget_memory(data)
        shutil.rmtree(data, ignore_errors=True)
        order = [str(Path(os.path.realpath(self.primary._programs.server)).with_name("pg_basebackup"))]
        order += ["-d", through, "-D", str(data), "--checkpoint=fast", "--wal-method=stream", "--no-sync"]
        self.standby._must(order)
        # Over what `alter system` has written on the primary: a standby that is promoted waits for nobody.
        (data / "postgresql.auto.conf").write_text(
            f"primary_conninfo = '{through} application_name={_STANDBY}'\nsynchronous_standby_names = ''\n"
        )
        (data / "standby.signal").touch()
        self.standby.start()
        self.primary.execute(f"alter system set synchronous_standby_names = '{_STANDBY}'")
        self.primary.execute("select pg_reload_conf()")
        until(self.is_synchronous, "a standby that commits wait for")

    def is_synchronous(self) -> bool:
        """Whether all that was written until now is on both."""
        # What was written before is there when what is written now is.
        return bool(
            self.primary.execute(
                "select 1 from pg_stat_replication "
                "where sync_state = 'sync' and state = 'streaming' and flush_lsn >= pg_current_wal_insert_lsn()"
            )
        )

    def cancel_waits(self) -> int:
        """Ask whoever waits for the standby to wait no longer, as an impatient administrator would; how many."""
        return len(
            self.primary.execute("select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'")
        )

    def lose_primary(self) -> None:
        """As if its machine were switched off: no process of it says another word."""
        postmaster = self.primary.pid
        os.kill(postmaster, signal.SIGSTOP)  # it would start new ones
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        for pid in map(int, children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.primary.stop(signal.SIGKILL)

    def promote(self) -> None:
        """The standby takes writes from when this returns; what was the primary can be made anew."""
        self.standby.execute("select pg_promote(true, 60)")
        self.primary, self.standby = self.standby, self.primary

    def _drop_link(self) -> None:
        if self.link is not None:
            self.link.__exit__(None, None, None)
            self.link = None

    def close(self) -> None:
        for server in (self.standby, self.primary):
            server.stop("immediate")
        self._drop_link()


def _forget_memory(data: Path) -> None:
    """A server that was killed leaves a piece of shared memory, which its next start would remove."""
    with contextlib.suppress(OSError, IndexError):
        piece = (data / "postmaster.pid").read_text().splitlines()[6].split()[1]
        subprocess.run(["ipcrm", "-m", piece], capture_output=True, check=False)


def until(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Look again and again."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise ServerTrouble(f"in vain waited for {what}, {seconds:g} s")
        time.sleep(0.02)


@contextmanager
def a_pair() -> Iterator[Pair]:
    """Both servers, running and in step; gone afterwards."""
    homes = (Home(), Home())
    try:
        pair = Pair(homes)
        try:
            pair.make()
            yield pair
        finally:
            pair.close()
    finally:
        for home in homes:
            home.close()
