"""Where the cases happen: real child processes, one database each, killed where the case says."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import crash_places
from crash_below_checker import BelowChecker
from crash_checker import AUDIT, Findings
from crash_world import ADDRESS, read

from sampling import unmeasured

HERE = Path(__file__).parent
ALL = os.environ.get("HOLDFAST_CRASH") == "all"
EVERY = 1 if ALL else 3 if crash_places.ON == "sqlite" else 7
"""Of the cases that are not about a commit one in so many is tried; the others are counted. Odd: most come in pairs."""
TRIES = 3
"""How often a fault may not come about: which rounds share a commit depends on who is faster, on a busy machine."""
SOME = 25
_COMMITS = 8
"""The same of operations with runs below others, which are long, and of the commits there one of eight."""
SUCCESSORS = ("finished", "running", "cancelled", "purged")
"""What has become of the run when a paused process goes on."""


class Before(NamedTuple):
    """Something that happened before the operation; with a fault, it ended there."""

    program: str
    operation: str = ""
    fault: tuple[str, str] | None = None


@dataclass(frozen=True)
class Operation:
    """A part of a run's life whose every statement is a point."""

    name: str
    program: str
    before: tuple[Before, ...] = ()
    phase: str = ""
    """The program is that far; by default it is the name."""
    when: int = 0
    inline: bool = False
    """The commit line is in the caller's thread."""
    prepare: str = ""
    """SQL that ages the database."""
    fenced: bool = False
    """A lease is held while it happens: it is also tried with a process that sleeps past its lease."""
    is_below: bool = False
    """Runs wait here, or are below others: see `SOME`."""
    some: int = SOME

    @property
    def looked_at(self) -> str:
        return self.phase or self.name


_LAST_CHANCE = "update holdfast_runs set crashes = 4 where job_name = 'batch'"
_HALF = (Before("trigger_urgent_long"), Before("release"))
_CRASHED = (
    Before("trigger_order"),
    Before("work", "step", ("after the effect of charge#1", "before")),
    Before("trigger_batch"),
    Before("work", "", ("job#1", "before")),
)
_ORDER = (Before("trigger_order"),)
_HELD = (Before("trigger_keyed"), Before("work", "", ("job#1", "before")))
_HALF_AND_ENDED = (Before("trigger_doomed"), Before("work"), Before("trigger_order"), Before("work"), *_HALF)

THREADED = (
    Operation("open", "open"),
    Operation("trigger", "trigger"),
    Operation("trigger many", "trigger_many"),
    Operation("claim", "claim", (*_ORDER, Before("trigger_late"), *_HALF), when=1),
    Operation("step", "work", _ORDER, fenced=True),
    Operation("step, sync job", "work", (Before("trigger_batch"),), phase="step", fenced=True),
    Operation("finish", "work", _ORDER, fenced=True),
    Operation("fail", "work", (Before("trigger_doomed"),), fenced=True),
    Operation("cancel", "cancel", (*_ORDER, Before("trigger_urgent_long")), fenced=True),
    Operation("transaction", "work", (Before("trigger_pay"),), fenced=True),
    Operation("transaction, sync job", "work", (Before("trigger_pay_blocking"),), phase="transaction", fenced=True),
    Operation("retry", "work", (Before("trigger_flaky"),), fenced=True),
    Operation("run retry", "work", (Before("trigger_again"),), fenced=True),
    Operation("renew", "renew", _HALF[:1], fenced=True),
    Operation("renew, line stuck", "renew_alone", _HALF[:1], phase="renew", fenced=True),
    Operation("takeover", "takeover", _CRASHED, when=1, prepare=_LAST_CHANCE),
    Operation("retrigger", "retrigger", (Before("trigger_doomed"), Before("work"))),
    Operation("release", "release", _HALF[:1], fenced=True),
    Operation("keys", "line", _HELD),
    Operation("keys, takeover", "takeover", (*_HELD, Before("trigger_keyed")), phase="takeover", when=1),
    Operation("delete", "delete", _HALF_AND_ENDED),
    Operation("purge", "purge", _HALF_AND_ENDED, when=1),
    Operation("drop", "drop_outputs", _HALF_AND_ENDED, when=1),
)


def _below(
    name: str,
    program: str,
    *before: str,
    phase: str = "",
    when: int = 0,
    fault: bool = False,
    fenced: bool = False,
    some: int = SOME,
) -> Operation:
    """An operation that comes after these programs; with `fault` the last of them dies at the first line of a job."""
    steps = [Before(one) for one in before]
    if fault:
        steps[-1] = Before(before[-1], "", ("job#1", "before"))
    return Operation(name, program, tuple(steps), phase, when, fenced=fenced, is_below=True, some=some)


_ASKS, _CALLS, _FAMILY, _GRAND = "trigger_asks", "trigger_calls", "trigger_family", "trigger_grand"
#: As far as the third of the runs that are waited for together: the run above waits, two of them have ended.
_TWO_OF_THREE = (_CALLS, *["work"] * 5)
BELOW = (
    _below("sleep", "work", "trigger_nap", fenced=True),
    _below("sleep, over", "work", "trigger_nap", "work", phase="sleep", when=1, fenced=True),
    _below("sleep, takeover", "takeover", "trigger_nap", "work", phase="takeover", when=1),
    _below("signal, waited for", "work", _ASKS, phase="signal", fenced=True),
    _below("send", "send", _ASKS, "work"),
    _below("signal, taken", "work", _ASKS, "work", "send", phase="signal", fenced=True),
    _below("signal, early", "work", _ASKS, "send", phase="signal", fenced=True),
    _below("signal, late", "work", _ASKS, "work", "send", "work", phase="signal", when=1, fenced=True),
    _below("call", "work", _CALLS, fenced=True),
    _below("gather", "work", _CALLS, "work", "work", fenced=True),
    _below("last end", "work", *_TWO_OF_THREE, fenced=True),
    _below("spawn", "work", *_TWO_OF_THREE, "work", fenced=True),
    _below("return", "work", _FAMILY, fenced=True),
    _below("finalize", "takeover", _FAMILY, "work", "work", "work", phase="takeover", when=1),
    _below("sequence", "takeover", "trigger_in_a_row", phase="takeover", when=1),
    _below("loop", "takeover", "trigger_again_and_again", phase="takeover", when=1),
    _below("tree", "takeover", _GRAND, "work", "work", phase="takeover", when=1),
    _below("cancel tree", "cancel_tree", _GRAND, "work", "work", "work", fault=True),
    # One below it has completed, and left another one going.
    _below("cancel tree, gone on", "cancel_tree", _GRAND, *["work"] * 9, phase="cancel tree"),
    _below("wake", "wake", "trigger_asleep", "work"),
    _below("wake first", "wake_first"),
    _below("word kept", "wake_first", some=5),
)
INLINE = tuple(
    Operation(f"{one.name}, inline", one.program, one.before, one.looked_at, one.when, True, one.prepare, one.fenced)
    for one in THREADED
    if one.name in ("trigger", "claim", "step", "finish", "fail", "transaction", "takeover", "retrigger")
)
OPERATIONS = {one.name: one for one in THREADED + INLINE + BELOW}


class Zygote:
    """Gives children. A fresh interpreter that was asked to import everything once."""

    def __init__(self) -> None:
        command = [sys.executable, "-W", "error", str(HERE / "crash_zygote.py")]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=unmeasured())

    def ask(self, act: str, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"act": act, **order}, default=str) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        assert self._process.wait(timeout=30) == 0
        self._process.stdout.close()


@dataclass
class Tally:
    """What a campaign came to; nothing counts that did not really happen."""

    points: int = 0
    cases: int = 0
    kills: int = 0
    unanswered: int = 0
    paused: int = 0
    left_out: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    broken: Counter[str] = field(default_factory=Counter)
    """Cases, by invariant."""
    witness: dict[str, str] = field(default_factory=dict)
    """The shortest story of how each was broken."""


class Field:
    """Runs the cases of one test."""

    def __init__(self, zygote: Zygote, folder: Path) -> None:
        self.zygote = zygote
        self.folder = folder
        self._number = itertools.count(1)

    def healthy(self, folder: Path, program: str, **options: Any) -> None:
        """Run a program; it must come to its end."""
        answer = self.zygote.ask("run", folder=folder, program=program, **options)
        self._expect(folder, answer, {"code": 0}, program)

    def _expect(self, folder: Path, answer: dict[str, Any], wanted: dict[str, Any], what: str) -> int:
        pid: int = answer.pop("pid")
        errors = (folder / "stderr.txt").read_text()[-4000:]
        if "stopped" not in answer and (place := crash_places.of(folder)) is not None:
            # The server rolls back what it was doing, and lets go what it had locked.
            place.wait_until_gone(folder, pid)
        assert answer == wanted, f"{what} in {folder}: {answer}, not {wanted}\n{errors}"
        return pid

    def template(self, operation: Operation, mutant: str | None = None) -> Path:
        """A database in which everything has happened that comes before the operation."""
        folder = self.folder / f"template-{next(self._number)}"
        folder.mkdir()
        place = crash_places.made(folder) if crash_places.ON != "sqlite" else None
        self.healthy(folder, "migrate", mutant=mutant)
        if place is not None:
            place.watch_over(AUDIT)
        else:
            database = sqlite3.connect(folder / "holdfast.db")
            database.executescript(AUDIT)
            database.close()
        for one in operation.before:
            options: dict[str, Any] = {"operation": one.operation, "fault": one.fault}
            answer = self.zygote.ask("run", folder=folder, program=one.program, **options)
            wanted = {"code": 0} if one.fault is None else {"signal": int(signal.SIGKILL)}
            self._expect(folder, answer, wanted, f"{one.program} before {operation.name}")
        if place is not None:
            assert not operation.prepare or place.change(operation.prepare) == 1
            place.keep()
        elif operation.prepare:
            with sqlite3.connect(folder / "holdfast.db") as database:
                assert database.execute(operation.prepare).rowcount == 1
            database.close()
        return folder

    def copy(self, template: Path) -> Path:
        folder = self.folder / f"case-{next(self._number)}"
        folder.mkdir()
        for name in ("holdfast.db", "holdfast.db-wal", "world.log", ADDRESS):
            if (template / name).exists():
                shutil.copyfile(template / name, folder / name)
        if (place := crash_places.of(folder)) is not None:
            place.fill()
        return folder

    def points(self, operation: Operation, template: Path, mutant: str | None = None) -> list[str]:
        """What the operation tells the database when nothing goes wrong; and then nothing may be wrong."""
        folder = self.copy(template)
        options: dict[str, Any] = {"operation": operation.looked_at, "inline": operation.inline, "mutant": mutant}
        self.healthy(folder, operation.program, when=operation.when, dry=True, **options)
        listed: list[str] = json.loads((folder / "points.json").read_text())
        if mutant is not None:
            return listed
        self.healthy(folder, "recover", when=operation.when + 2)
        found = BelowChecker(folder, faultless=not any(one.fault for one in operation.before)).check()
        if "release" in [operation.program, *(one.program for one in operation.before)]:
            # What is handed back is executed again: the body under way had not been saved.
            found.broken = [one for one in found.broken if "step hold" not in one[1]]
        assert not found.broken, f"without any fault: {found}"
        unknown = [point for point in listed if point.startswith("unknown")]
        assert not unknown, f"statements without a name: {unknown}"
        shutil.rmtree(folder)
        return listed

    def case(
        self,
        operation: Operation,
        template: Path,
        fault: tuple[str, str],
        successor: str | None = None,
        mutant: str | None = None,
    ) -> tuple[Findings, Path]:
        """Let the operation meet its fault, let others recover, and look at what is left."""
        what = f"{operation.name}, {fault[1]} {fault[0]}" + (f", successor {successor}" if successor else "")
        when = operation.when
        common: dict[str, Any] = {"mutant": mutant}
        for _ in range(TRIES):
            folder = self.copy(template)
            answer = self.zygote.ask(
                "run", folder=folder, program=operation.program, when=when, operation=operation.looked_at,
                fault=fault, inline=operation.inline, **common,
            )  # fmt: skip
            if answer.get("code") != 0 or fault in _struck(folder, template):
                break
            # It came to its end, because this time two rounds were one: there was no such commit.
            self._expect(folder, dict(answer), {"code": 0}, what)
        else:
            if mutant is not None:
                raise DidNotHappen(what)
        if fault[1] == "paused":
            pid = self._expect(folder, answer, {"stopped": True}, what)
            self._succeed(folder, successor, when + 1, common)
            answer = self.zygote.ask("continue", pid=pid)
        wanted = {"signal": int(signal.SIGKILL)} if fault[1] in ("before", "after") else {"code": 0}
        self._expect(folder, answer, wanted, what)
        self.healthy(folder, "recover", when=when + 2, **common)
        assert fault in _struck(folder, template), f"{what} did not happen"
        return BelowChecker(folder).check(), folder

    def _succeed(self, folder: Path, successor: str | None, when: int, common: dict[str, Any]) -> None:
        if successor == "running":
            options: dict[str, Any] = {"operation": "takeover", "fault": ("job#1", "before"), **common}
            answer = self.zygote.ask("run", folder=folder, program="die_holding", when=when, **options)
            self._expect(folder, answer, {"signal": int(signal.SIGKILL)}, "the successor that dies")
        else:
            programs = {"finished": ["recover"], "cancelled": ["cancel_all"], "purged": ["recover", "purge_all"]}
            for later, program in enumerate(programs[successor or ""]):
                self.healthy(folder, program, when=when + later, **common)

    def campaign(self, operation: Operation, mutant: str | None = None, phases: tuple[str, ...] = ()) -> Tally:
        """Every point of the operation in every phase."""
        tally = Tally()
        template = self.template(operation, mutant)
        listed = self.points(operation, template, mutant)
        tally.points = len(listed)
        turns: Counter[str] = Counter()
        for point, phase, successor in _faults(listed, operation):
            if phases and phase not in phases:
                continue
            if mutant is None and _is_left_out(operation, turns, point, phase):
                tally.left_out += 1
                continue
            try:
                found, folder = self.case(operation, template, (point, phase), successor, mutant)
            except DidNotHappen:  # there are others by which a planted fault is found
                continue
            tally.cases += 1
            tally.kills += phase in ("before", "after")
            tally.unanswered += phase == "unanswered"
            tally.paused += phase == "paused"
            tally.counts.update(found.counts)
            tally.broken.update(found.invariants)
            for invariant, words, lines in found.broken:
                shown = "\n    ".join([f"{operation.name}, {phase} {point}: {invariant} {words}", *lines])
                tally.witness[invariant] = min(tally.witness.get(invariant, shown), shown, key=len)
            if found.broken:
                tally.violations.append(f"{operation.name}: {phase} {point} {successor or ''}\n{found}")
            else:
                shutil.rmtree(folder)
        return tally


class DidNotHappen(Exception):
    """A planted fault makes rounds that come together now and then: the moment never came."""


def _struck(folder: Path, template: Path) -> list[tuple[str, str]]:
    """The faults that came about since the template."""
    happened = read(folder / "world.log")[len(read(template / "world.log")) :]
    return [(event["point"], event["phase"]) for event in happened if event["ev"] == "fault"]


def _is_left_out(operation: Operation, turns: Counter[str], point: str, phase: str) -> bool:
    """Whether a sample does without it. Every way in which a commit may end is in each sample."""
    is_commit = point.startswith("commit#")
    # Of those with runs below others each way has its own turn, so that the few that are tried have all of them.
    way = f"{phase}, {'commit' if is_commit else 'other'}" if operation.is_below else "all"
    # Each operation begins with another one.
    turn = turns[way] + zlib.crc32(operation.name.encode()) * (not is_commit)
    turns[way] += 1
    if operation.is_below and not ALL:
        return turn % (_COMMITS if is_commit else operation.some) != 0
    return not is_commit and turn % EVERY != 0


def _faults(points: list[str], operation: Operation) -> Iterator[tuple[str, str, str | None]]:
    for point in points:
        yield point, "before", None
        name = point.split("#")[0]
        if name == "job" or name.startswith("after the effect"):
            continue  # a place in the program: there is nothing to be after
        yield point, "after", None
        if name == "commit":
            yield point, "unanswered", None
        if name == "begin" and operation.fenced:
            for successor in SUCCESSORS:
                yield point, "paused", successor
