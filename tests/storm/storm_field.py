"""One storm on one database: processes that come and go, faults by plan, then healing, quiet, and what is left.

All processes are forked from this one, which runs no threads, holds no connection and is told by the kernel what became
of each. Nothing here waits for a length of time: it waits for what must happen, and gives up where nothing does.

Long because it is one story: how processes begin, are struck, heal and end, told by whoever started them.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import storm_places
import storm_processes
from crash_checker import AUDIT, Findings
from crash_world import ADDRESS
from storm_checker import UNKNOWN_JOB, StormChecker
from storm_plan import UP, Life, life_of_client, life_of_worker, restarts
from storm_processes import LEASE
from storm_world import serve

WORKERS = 3
CLIENTS = 2
#: Seconds without an end and without a checkpoint, once no faults come any more: at least three leases.
PATIENCE = max(3 * LEASE, 10.0)
#: Seconds between two looks whether others have taken what a stopped process held.
_LOOK = 0.1
#: Seconds for a process that nobody disturbs: the migration, the reader.
ALONE = 90.0
#: Runs that the reader looks at over every way there is.
CLOSELY = 250
_NOTHING_ENDS = ("pending", "leased", "waiting")

#: Rows that nobody can execute, beside all the others. What must become of each.
BAD_ROWS = {
    "bad-input": ("order", "this is no JSON", None, "failed"),
    "bad-retry": ("again", '{"n": 1}', "this is no retry", "failed"),
    "bad-job": (UNKNOWN_JOB, '{"n": 1}', None, "pending"),
}


class StormError(Exception):
    """The storm itself can't go on: a process ended by itself, or nothing moves any more."""


@dataclass
class Goals:
    """When it is enough: the storm goes on until all of these are reached, and for `seconds`; `most` at the longest."""

    seconds: float
    most: float
    runs: int = 0
    kills: int = 0
    stops: int = 0
    restarts: int = 0
    """Of the server, where there is one."""
    up: tuple[int, int] = UP
    """Events in the world between two of them, at least and at most."""


@dataclass
class Process:
    """One life of a worker or a client."""

    pid: int
    role: str
    number: int
    number_of_life: int
    life: Life
    from_event: int
    """How many events the world had when it began."""
    stopped_at: float | None = None
    inside: bool = False
    """It was stopped with the right to write, or perhaps."""
    in_transaction: bool = False
    """It was stopped between two statements of a transaction."""
    looked_at: float = 0.0
    owner: str = ""
    asked_to_end: bool = False


@dataclass
class Outcome:
    """What one storm came to."""

    seed: int
    found: Findings
    counts: Counter[str]
    folder: Path
    seconds: float
    healing: float
    """Seconds from the last fault to the end of all runs, with the last operations of the clients."""
    error: str = ""


class Storm:
    """One database, from its first migration to the last reading."""

    def __init__(
        self,
        seed: int,
        goals: Goals,
        *,
        mutant: str | None = None,
        server: Any = None,
        say: Callable[[str], None],
    ) -> None:
        """`server` is one of our own, of `servers`: the database is made there, and it is restarted now and then."""
        self.seed = seed
        self.goals = goals
        self.mutant = mutant
        self.say = say
        self.folder = Path(tempfile.mkdtemp(prefix="storm-"))
        self.server = server
        self._restarts = restarts(seed, goals.up)
        self._next, self._restarted_at = next(self._restarts), 0
        self._up_at: float | None = None
        """When the server is to be started again, if it is stopped."""
        self._database = ""
        if server is not None:
            self._database = server.create_database()
            (self.folder / ADDRESS).write_text(
                server.url(self._database) + "?schema=public" * (server.kind == "postgres")
            )
        self.place = storm_places.of(self.folder)
        self.counts: Counter[str] = Counter()
        self.processes: dict[int, Process] = {}
        self.lives: Counter[tuple[str, int]] = Counter()
        self.healing = False
        self.events = 0
        self.at_rest: set[int] = set()
        self.healed_in = 0.0
        self._offset = 0
        self._began = time.monotonic()
        self._world = 0
        self._bell, self._ring = os.pipe()
        for end in (self._bell, self._ring):
            os.set_blocking(end, False)
        self._said_at = 0.0
        self._bad_rows = False

    # -- processes ---------------------------------------------------------------------------------------------

    def fork(self, name: str, work: Callable[[], object]) -> int:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            self._child(name, work)
        return pid

    def _child(self, name: str, work: Callable[[], object]) -> NoReturn:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # who is asked to end is the field
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # with the field, whatever becomes of it
            errors = os.open(self.folder / f"{name}.stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            nothing = os.open(os.devnull, os.O_RDWR)
            for mine, theirs in ((0, nothing), (1, nothing), (2, errors)):
                os.dup2(theirs, mine)
            for end in (self._bell, self._ring, errors, nothing):
                os.close(end)
            sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 - for the rest of its life
            faulthandler.enable(2)
            faulthandler.register(signal.SIGUSR2, 2, all_threads=True)
            if self.mutant is not None and name != "world":
                from mutants import plant

                plant(self.mutant)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def start(self, role: str, number: int) -> None:
        life_number = self.lives[role, number]
        self.lives[role, number] += 1
        planned = life_of_worker if role == "worker" else life_of_client
        life = planned(self.seed, number, life_number, server=self.server is not None)
        work = storm_processes.run_worker if role == "worker" else storm_processes.run_client
        faults = [] if self.healing else life.faults
        pid = self.fork(
            f"{role}-{number}",
            lambda: work(self.folder, number, life_number, self.seed, faults, self.healing),
        )
        self.processes[pid] = Process(pid, role, number, life_number, life, self.events)

    def alone(self, name: str, work: Callable[[], object]) -> None:
        """A process that must come to its end in order."""
        pid = self.fork(name, work)
        until = time.monotonic() + ALONE
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended and status == 0:
                return
            if ended:
                raise StormError(f"{name} ended with {status}:\n{self.last_words(name)}")
            if time.monotonic() > until:
                os.kill(pid, signal.SIGUSR2)
                select.select([], [], [], 2)  # until it has written what its threads are doing
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise StormError(f"stuck: {name} does not come to its end:\n{self.last_words(name)}")
            select.select([self._bell], [], [], 0.05)
            with contextlib.suppress(BlockingIOError):
                os.read(self._bell, 4096)

    def last_words(self, name: str) -> str:
        path = self.folder / f"{name}.stderr"
        return path.read_text(errors="replace")[-6000:] if path.exists() else ""

    # -- the course of it --------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        error, found = "", Findings()
        listening = socket.socket(socket.AF_UNIX)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        before = signal.set_wakeup_fd(self._ring, warn_on_full_buffer=False)
        try:
            listening.bind(str(self.folder / "world"))
            listening.listen(64)
            self._world = self.fork("world", lambda: serve(listening, self.folder / "world.log"))
            listening.close()
            self.alone("migration", lambda: storm_processes.run_migration(self.folder, AUDIT))
            for number in range(WORKERS):
                self.start("worker", number)
            for number in range(CLIENTS):
                self.start("client", number)
            while not self.enough():
                self.step()
            healed = time.monotonic()
            self.heal()
            self.until_quiet()
            self.healed_in = time.monotonic() - healed
            self.ask_for_holdings()
            self.stop_workers()
            self.read_back()
        except StormError as broken:
            error = str(broken)
        finally:
            self.end_all()
            self.bring_up()
            listening.close()
            signal.set_wakeup_fd(before)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for end in (self._bell, self._ring):
                os.close(end)
        if self.place.exists() and (self.folder / "world.log").exists():
            checker = StormChecker(self.folder, bad_rows={id: row[-1] for id, row in BAD_ROWS.items()})
            checker.whole = not error
            found = checker.check()
            found.counts.update(self.counts)
        self.place.forget()
        return Outcome(
            self.seed, found, found.counts, self.folder, time.monotonic() - self._began, self.healed_in, error
        )

    def forget(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.server is not None:
            self.server.drop_database(self._database)

    def enough(self) -> bool:
        lasted, goals = time.monotonic() - self._began, self.goals
        if lasted >= goals.most:
            return True
        reached = (
            self.counts["kills"] >= goals.kills
            and self.counts["stops past the lease"] >= goals.stops
            and self.counts["triggered"] >= goals.runs
            and (self.server is None or self.counts["server restarts"] >= goals.restarts)
        )
        return lasted >= goals.seconds and reached

    def step(self) -> None:
        """Look at what has happened, and do what is due."""
        select.select([self._bell], [], [], 0.02)
        with contextlib.suppress(BlockingIOError):
            os.read(self._bell, 4096)
        self.hear()
        for process in list(self.processes.values()):
            self.look_at(process)
        if self.server is not None:
            self.shake()
        if not self._bad_rows and self.events > 500:
            self.insert_bad_rows()
        self.say_how_it_goes()

    def shake(self) -> None:
        """Stop the server where the plan says so, and start it again when it has been away for long enough."""
        if self._up_at is not None:
            if time.monotonic() >= self._up_at:
                self.bring_up()
        elif not self.healing and self.events - self._restarted_at >= self._next.after:
            self.server.stop(self._next.how)
            self._up_at = time.monotonic() + LEASE * self._next.down
            self.counts[f"restarts, {self._next.how}"] += 1
            self.counts["server restarts"] += 1

    def bring_up(self) -> None:
        if self._up_at is not None:
            self.server.start()
            self._next, self._restarted_at, self._up_at = next(self._restarts), self.events, None

    def hear(self) -> None:
        """What the world was told since the last time."""
        if not (self.folder / "world.log").exists():
            return
        events, self._offset = storm_processes.told(self.folder, self._offset)
        self.events += len(events)
        for event in events:
            process = self.processes.get(event["pid"])
            if event["ev"] == "fault":
                self.counts["ambiguous answers"] += event["phase"] == "unanswered"
                if process is not None and event["phase"] == "paused":
                    process.inside = process.in_transaction = not event["point"].startswith("begin")
            elif event["ev"] == "struck by a job":
                self.counts["kills by a job"] += 1
            elif event["ev"] == "working" and process is not None:
                process.owner = event["owner"]
            elif event["ev"] == "holdings" and event["when"] == "quiet":
                if event["executing"] == event["held"] == event["backlog"] == 0:
                    self.at_rest.add(event["pid"])
            elif event["ev"] == "ok" and event.get("was") == "created":
                self.counts["triggered"] += 1

    def look_at(self, process: Process) -> None:
        pid, status = os.waitpid(process.pid, os.WNOHANG | os.WUNTRACED)
        if pid == 0:
            self.act_on(process)
        elif os.WIFSTOPPED(status):
            self.hear()  # what it said of the point comes before the stop
            process.stopped_at = time.monotonic()
            self.counts["stops"] += 1
        else:
            del self.processes[process.pid]
            self.ended(process, status)

    def ended(self, process: Process, status: int) -> None:
        name = f"{process.role}-{process.number}"
        if os.WIFSIGNALED(status):
            killed = os.WTERMSIG(status) == signal.SIGKILL
            self.counts["kills"] += killed
            self.counts[f"kills of {process.role}s"] += killed
            if not killed and not (self.healing and os.WTERMSIG(status) == signal.SIGHUP):
                raise StormError(f"{name} ended by signal {os.WTERMSIG(status)}:\n{self.last_words(name)}")
        elif os.WEXITSTATUS(status) != 0:
            raise StormError(f"{name} ended by itself ({process.life}):\n{self.last_words(name)}")
        elif process.role == "client" and self.healing:
            return
        elif not process.asked_to_end:
            raise StormError(f"{name} came to its end, and nobody asked for that:\n{self.last_words(name)}")
        else:
            self.counts["stopped in order"] += 1
        self.start(process.role, process.number)

    def act_on(self, process: Process) -> None:
        """What comes from outside: a stop, its end, and going on."""
        life, lasted = process.life, self.events - process.from_event
        if process.stopped_at is not None:
            self.go_on(process)
        elif self.healing:
            return
        elif lasted >= life.end_after and not process.asked_to_end:
            process.asked_to_end = True
            if life.in_order and process.owner:
                os.kill(process.pid, signal.SIGTERM)
            else:
                os.kill(process.pid, signal.SIGKILL)
        elif life.stop_after is not None and lasted >= life.stop_after:
            life.stop_after, process.inside = None, True
            os.kill(process.pid, signal.SIGSTOP)

    def go_on(self, process: Process) -> None:
        """After its lease, once others have taken what it held. If they can't (only it may write now), soon after."""
        assert process.stopped_at is not None
        lasted = time.monotonic() - process.stopped_at
        if lasted < LEASE * (process.life.stopped_for if process.inside else 1.0) and not self.healing:
            return
        held = "select count(*) from holdfast_runs where status = 'leased' and lease_owner = ?"
        # A server ends the session of who says nothing within a transaction: so what it has locked is free again.
        for_certain = (process.inside and self.server is None) or self.healing or lasted > 6 * LEASE
        if not for_certain and time.monotonic() - process.looked_at < _LOOK * (self.server is not None):
            return
        process.looked_at = time.monotonic()
        if for_certain or self.place.ask(held, process.owner) == 0:
            self.counts["stops past the lease"] += lasted >= LEASE
            self.counts["stops with the right to write"] += process.inside
            self.counts["stops within a transaction"] += process.in_transaction and lasted >= LEASE
            process.stopped_at, process.inside, process.in_transaction = None, False, False
            os.kill(process.pid, signal.SIGCONT)

    # -- the database, from outside ----------------------------------------------------------------------------

    def insert_bad_rows(self) -> None:
        now = time.time_ns() // 1000
        insert = (
            "insert into holdfast_runs (id, job_name, input, retry, status, run_at, due, created_at, updated_at)"
            " values (?, ?, ?, ?, 'pending', ?, 1, ?, ?)"
        )
        rows = [(id, job, text, retry, now, now, now) for id, (job, text, retry, _) in BAD_ROWS.items()]
        # If somebody else writes now, then at the next look.
        self._bad_rows = self.place.insert(insert, rows)

    def unfinished(self) -> int | None:
        marks = ", ".join("?" * len(_NOTHING_ENDS))
        found: int | None = self.place.ask(
            f"select count(*) from holdfast_runs where status in ({marks}) and id <> 'bad-job'", *_NOTHING_ENDS
        )
        return found

    def say_how_it_goes(self) -> None:
        now = time.monotonic()
        if now - self._said_at < 5:
            return
        self._said_at = now
        done = self.place.ask("select count(*) from holdfast_runs where completed_at is not null")
        taken = self.place.ask(
            "select count(*) from audit where kind = 'change' and \"before\" = 'leased'"
            " and after in ('pending', 'failed') and generation <> generation_before"
        )
        counts = self.counts
        self.say(
            f"seed {self.seed}: {now - self._began:4.0f} s{', healing' if self.healing else ''}, {done} runs done, "
            f"{counts['kills']} kills, {counts['stops']} stops, {taken} takeovers"
            + (f", {counts['server restarts']} restarts" if self.server is not None else "")
        )

    # -- after the faults --------------------------------------------------------------------------------------

    def heal(self) -> None:
        """No more faults; the clients come to their end."""
        self.bring_up()
        self.healing = True
        for process in self.processes.values():
            os.kill(process.pid, signal.SIGHUP)
        for process in self.processes.values():
            if process.asked_to_end and process.role == "worker":
                continue
            process.asked_to_end = False
        self.wait_until(lambda: not any(one.role == "client" for one in self.processes.values()), "the clients' end")

    def wait_until(self, reached: Callable[[], bool], what: str) -> None:
        """The stuck detector: as long as runs end or steps are saved, it goes on; if nothing does, it fails."""
        fewest, most, moved = sys.maxsize, 0, time.monotonic()
        looked = 0.0
        while not reached():
            self.step()
            if time.monotonic() - looked < 0.2:
                continue
            looked = time.monotonic()
            unfinished = self.unfinished()
            saved = self.place.ask("select count(*) from holdfast_steps")
            if unfinished is None or saved is None:
                continue
            if unfinished < fewest or saved > most:
                fewest, most, moved = min(fewest, unfinished), max(most, saved), time.monotonic()
            elif time.monotonic() - moved > PATIENCE and not any(p.stopped_at for p in self.processes.values()):
                raise StormError(f"stuck: waited for {what}\n{self.dump()}")

    def until_quiet(self) -> None:
        self.wait_until(lambda: self.unfinished() == 0 and self.all_working(), "the end of all runs")

    def all_working(self) -> bool:
        workers = [one for one in self.processes.values() if one.role == "worker"]
        return len(workers) == WORKERS and all(one.owner and one.stopped_at is None for one in workers)

    def dump(self) -> str:
        """What the rows say, and what all threads are doing."""
        for process in self.processes.values():
            os.kill(process.pid, signal.SIGUSR2)
        rows: list[dict[str, Any]] = []
        with contextlib.suppress(*self.place.away):
            marks = ", ".join("?" * len(_NOTHING_ENDS))
            rows = self.place.rows(
                f"select * from holdfast_runs where status in ({marks}) order by id limit 20", *_NOTHING_ENDS
            )
        shown = [" ".join(f"{key}={value}" for key, value in row.items() if value is not None) for row in rows]
        until = time.monotonic() + 2
        while time.monotonic() < until:
            select.select([self._bell], [], [], 0.1)
        words = [f"-- {p.role}-{p.number}:\n{self.last_words(f'{p.role}-{p.number}')}" for p in self.processes.values()]
        return "\n".join([f"now {time.time_ns() // 1000}", *shown, *words])

    def ask_for_holdings(self) -> None:
        """All is quiet: what does each worker still hold? Once it has nothing in hand any more.

        That is between two of its looks for something to do, which is not often where the machine is busy.
        """
        until = time.monotonic() + ALONE
        while busy := [process for process in self.processes.values() if process.pid not in self.at_rest]:
            if time.monotonic() > until:
                raise StormError(f"stuck: some workers are never at rest\n{self.dump()}")
            for process in busy:
                os.kill(process.pid, signal.SIGUSR1)
            select.select([self._bell], [], [], 0.2)
            self.step()

    def stop_workers(self) -> None:
        """In order. They must be gone within their own time for it, and leave nothing behind."""
        until = time.monotonic() + 10 * LEASE + PATIENCE
        for process in self.processes.values():
            os.kill(process.pid, signal.SIGTERM)
        for process in list(self.processes.values()):
            while True:
                pid, status = os.waitpid(process.pid, os.WNOHANG)
                if pid:
                    break
                if time.monotonic() > until:
                    raise StormError(f"stuck: a worker does not stop\n{self.dump()}")
                select.select([self._bell], [], [], 0.05)
            del self.processes[process.pid]
            if status:
                name = f"{process.role}-{process.number}"
                raise StormError(f"{name} did not stop in order ({status}):\n{self.last_words(name)}")

    def read_back(self) -> None:
        """Those that were struck most, over all ways; all others at a glance."""
        asked = "select id from holdfast_runs where completed_at is not null order by generation desc, id limit ?"
        closely = [row["id"] for row in self.place.rows(asked, CLOSELY)]
        self.alone("reader", lambda: storm_processes.run_reader(self.folder, closely))

    def end_all(self) -> None:
        """Whatever still is there. The world last: nobody may be left who could tell it something."""
        for pid in [*self.processes, *([self._world] if self._world else [])]:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        self.processes.clear()
