"""The failover campaign: a primary dies under load, its synchronous standby is promoted, again and again.

    python tests/failover/failover.py [--promotions 5] [--rate 250]

Clients and workers know both servers by one URL and are never restarted; clients write down, outside of the database,
which runs were acknowledged to them. In every second promotion the link to the standby is cut first, so that commits
hang; and whoever waits there is told by an administrator to wait no longer, which must not be taken for a commit.
With the primary dies a worker that holds runs. Then the old primary is copied anew and becomes the next standby.

Prints a line for each promotion and a verdict; the exit code is 1 if anything that was promised did not hold.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from failover_pair import Pair, a_pair, until
from failover_processes import LEASE, POLLING

from holdfast import Holdfast
from servers import ServerTrouble

#: Seconds after the promotion, by the goals.
FIRST_WRITE = 5.0
TAKEN_OVER = LEASE + POLLING + 2.0
#: Of load before a primary dies, and of a link that is cut before that.
LOAD, CUT = 3.0, 2.0
HELD = 3


class Note(NamedTuple):
    """A line of somebody's book."""

    at: float
    word: str
    rest: tuple[str, ...]


class Process:
    """A client or a worker, and its book."""

    def __init__(self, what: str, url: str, folder: Path, number: int, rate: float = 0.0) -> None:
        self.name = f"{what} {number}"
        self._book = folder / f"{what}-{number}.txt"
        self._errors = folder / f"{what}-{number}.err"
        program = str(Path(__file__).with_name("failover_processes.py"))
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, program, what, url, str(self._book), str(number), str(rate)],
                stdin=subprocess.PIPE,
                stderr=errors,
            )
        until(lambda: self.notes("ready") or self._process.poll() is not None, f"{self.name}")
        assert self.is_alive, self.errors

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def errors(self) -> str:
        return self._errors.read_text(errors="replace")

    def notes(self, word: str) -> list[Note]:
        """All lines with this word so far."""
        if not self._book.exists():
            return []
        text = self._book.read_text()
        lines = [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]
        return [Note(float(at), what, tuple(rest)) for at, what, *rest in lines if what == word]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """In order."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(b"end\n")
            self._process.stdin.close()
        self._process.wait(60)

    def clean_up(self) -> None:
        if self.is_alive:
            self.kill()
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # type: ignore[union-attr]


class Promotion(NamedTuple):
    """What one failover came to, in seconds and counts."""

    form: str
    rate: float
    out: float
    """From the death of the primary until the standby takes writes."""
    first_write: float
    held: int
    taken_over: float
    """Until the last run of the dead worker began elsewhere, from the promotion."""
    cancelled: int
    acknowledged_while_cut: int

    def __str__(self) -> str:
        text = (
            f"{self.form:<9} {self.rate:>4.0f} triggers/s  promoted after {self.out:.2f} s  first write "
            f"{self.first_write:.2f} s later  {self.held} orphans taken over after {self.taken_over:.2f} s"
        )
        if self.form == "cut first":
            text += f"  {self.cancelled} waits cancelled, {self.acknowledged_while_cut} acknowledged while cut"
        return text


class Campaign:
    """Everything of one run of the campaign."""

    def __init__(self, pair: Pair, folder: Path, rate: float) -> None:
        self.pair = pair
        self.folder = folder
        self.rate = rate
        pair.primary.execute("create database house")
        self.url = pair.url("house")
        self.app = Holdfast(self.url, worker=False, lease=LEASE, polling_interval=POLLING)

        @self.app.job
        def hold(key: str) -> str: ...

        self.hold = hold
        self.clients: list[Process] = []
        self.workers: list[Process] = []
        self.promotions: list[Promotion] = []
        self.notes: list[Note] = []
        """What was acknowledged, at the end."""
        self.held: list[str] = []
        self.troubles: list[str] = []

    def start(self, stack: ExitStack) -> None:
        self.app.init().wait(60)
        stack.callback(lambda: self.app.stop().wait(60))
        for number in range(2):
            self.workers.append(self._process(stack, "worker", number))
        for number in range(2):
            self.clients.append(self._process(stack, "client", number, self.rate / 2))

    def _process(self, stack: ExitStack, what: str, number: int, rate: float = 0.0) -> Process:
        process = Process(what, self.url, self.folder, number, rate)
        stack.callback(process.clean_up)
        return process

    def acknowledged(self) -> list[Note]:
        return [note for one in self.clients for note in one.notes("acknowledged")]

    def fail_over(self, stack: ExitStack, *, cut: bool) -> Promotion:
        """The primary dies with a worker; both are replaced by who is there."""
        number = len(self.promotions)
        victim = self._process(stack, "victim", number)
        runs: list[str] = []
        while len(victim.notes("began")) < HELD:
            runs += [self.hold.trigger(f"{number}-{n}").wait(60).id for n in range(2 * HELD)]
            with suppress(Exception):
                until(lambda: len(victim.notes("began")) >= HELD, "runs of the victim", 0.5)
        self.held += runs
        began = time.monotonic()
        time.sleep(LOAD)
        busy = [note for note in self.acknowledged() if note.at >= began]
        rate = len(busy) / (time.monotonic() - began)
        cancelled = while_cut = 0
        if cut:
            assert self.pair.link is not None
            self.pair.link.break_("half-open")
            cut_at = time.monotonic()
            while time.monotonic() < cut_at + CUT:
                time.sleep(0.2)  # a commit that was under way is through
                cancelled += self.pair.cancel_waits()
            while_cut = sum(note.at > cut_at + 0.2 for note in self.acknowledged())
        self.pair.lose_primary()
        lost = time.monotonic()
        victim.kill()
        orphans = {note.rest[0] for note in victim.notes("began")}
        self.pair.promote()
        promoted = time.monotonic()

        def taken_over() -> dict[str, float]:
            return {note.rest[0]: note.at for one in self.workers for note in one.notes("began")}

        until(lambda: any(note.at > promoted for note in self.acknowledged()), "a trigger that is acknowledged")
        until(lambda: orphans <= taken_over().keys(), "the runs of the victim")
        first = min(note.at for note in self.acknowledged() if note.at > promoted)
        last = max(taken_over()[run_id] for run_id in orphans)
        promotion = Promotion(
            "cut first" if cut else "killed",
            rate,
            promoted - lost,
            first - promoted,
            len(orphans),
            last - promoted,
            cancelled,
            while_cut,
        )
        self.promotions.append(promotion)
        return promotion

    def judge(self) -> None:
        """Stop the load, let everything come to its end, and compare."""
        for one in self.clients:
            one.end()
        notes = self.notes = self.acknowledged()
        until(lambda: not self._count("completed_at is null"), "the end of all runs", 180)
        for one in self.workers:
            self._expect(one.is_alive and len(one.notes("ready")) == 1, f"{one.name} was restarted or died")
            one.end()
        rows = self.pair.primary.execute("select id, status, idempotency_key, output from holdfast_runs", "house")
        there = {row[0]: row for row in rows}
        lost = [note for note in notes if note.rest[1] not in there]
        self._expect(not lost, f"{len(lost)} acknowledged runs are lost")
        other = [row for row in rows if row[1] != "completed"]
        self._expect(not other, f"{len(other)} runs did not complete: {other[:3]}")
        keys = Counter(note.rest[0] for note in notes)
        mine = {row[2]: row[0] for row in rows if row[2] is not None}
        wrong = [note for note in notes if mine.get(note.rest[0]) != note.rest[1] or keys[note.rest[0]] > 1]
        self._expect(not wrong, f"{len(wrong)} keys were answered with another run than the one that is there")
        steps = self.pair.primary.execute(
            "select run_id, count(*) from holdfast_steps group by run_id having count(*) > 1", "house"
        )
        self._expect(not steps, f"{len(steps)} runs have a step twice")
        missing_runs = [run_id for run_id in self.held if run_id not in there]
        self._expect(not missing_runs, f"{len(missing_runs)} acknowledged runs of the campaign itself are lost")
        for promotion in self.promotions:
            self._expect(promotion.first_write <= FIRST_WRITE, f"first write after {promotion.first_write:.2f} s")
            self._expect(promotion.taken_over <= TAKEN_OVER, f"orphans waited {promotion.taken_over:.2f} s")
        notices = sum(one.errors.count("canceling wait for synchronous replication") for one in self.processes)
        if any(promotion.cancelled for promotion in self.promotions):
            self._expect(notices > 0, "no process says that it was told to wait no longer")
        refused = sum(len(one.notes("refused")) for one in self.clients)
        print(
            f"{len(notes)} acknowledged, {refused} refused and asked again, {len(lost)} lost; {len(rows)} runs, "
            f"{len(rows) - len(other)} completed; {notices} commits not taken for one because of the notice"
        )

    @property
    def processes(self) -> list[Process]:
        return [*self.clients, *self.workers]

    def _count(self, condition: str) -> int:
        found = self.pair.primary.execute(f"select count(*) from holdfast_runs where {condition}", "house")
        return int(found[0][0])

    def _expect(self, holds: bool, trouble: str) -> None:
        if not holds:
            self.troubles.append(trouble)


@contextmanager
def campaign(rate: float) -> Iterator[tuple[Campaign, ExitStack]]:
    """A pair of servers with clients and workers on it."""
    with tempfile.TemporaryDirectory(prefix="holdfast-failover-") as folder, a_pair() as pair, ExitStack() as stack:
        one = Campaign(pair, Path(folder), rate)
        one.start(stack)
        yield one, stack


def run(forms: list[bool], rate: float) -> Campaign:
    """Fail over once for each of these forms (True: with the link cut first), and judge."""
    with campaign(rate) as (one, stack):
        for number, cut in enumerate(forms):
            if number:
                one.pair.make_standby()
            try:
                print(f"{number + 1}. {one.fail_over(stack, cut=cut)}", flush=True)
            except ServerTrouble:
                for process in one.processes:
                    print(f"{process.name} said at last:\n{process.errors[-1500:]}", flush=True)
                raise
        one.judge()
    for trouble in one.troubles:
        print(f"WRONG: {trouble}")
    return one


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill primaries under load, promote their standbys.")
    parser.add_argument("--promotions", type=int, default=5)
    parser.add_argument("--rate", type=float, default=250.0, help="triggers per second")
    options = parser.parse_args()
    print(f"lease {LEASE:g} s, polling {POLLING:g} s, {os.cpu_count()} cores", flush=True)
    one = run([number % 2 == 1 for number in range(options.promotions)], options.rate)
    slow = min(promotion.rate for promotion in one.promotions)
    print(f"at least {slow:.0f} triggers/s before each death; {len(one.troubles)} violations")
    return 1 if one.troubles else 0


if __name__ == "__main__":
    raise SystemExit(main())
