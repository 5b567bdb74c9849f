"""The runs that `crash_at_every_step` makes of a job, and how they are judged.

Two runs without a crash come first: what is different between them, no crash can be blamed for. Then every commit of
the tree is struck, before and after: checkpoints, waits with the runs below that are written with them, suspensions,
retries, ends. The facts that both processes told are held against those of the first runs, and those of the second
process against those of the victim.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..engine.parents import CHILDREN, FINALIZE, RETURN
from ..job import Job
from . import effects
from .points import END, Point, Strike, at
from .report import CrashProblem, CrashReport, Kind
from .victim import execute

#: Seconds until a process that does not come to its end is ended. Real ones; no healthy job gets there.
_LIMIT = 60
_OUTSIDE = "(outside of steps)"
#: What a parent does by itself, and no code asks for.
_ITS_OWN = frozenset({RETURN, CHILDREN, FINALIZE})


class Vain(Exception):
    """Nothing can be told of this job by crashing it."""


class _Execution(NamedTuple):
    """One execution of one run."""

    attempt: int
    steps: list[str]


class _Case(NamedTuple):
    """One run, by one process, or by a victim and the one that went on."""

    killed: str
    facts: list[list[Any]]
    end: dict[str, Any]
    effects: list[effects.Effect]
    failure: str | None = None
    missed: str | None = None
    """The checkpoint that it should have been killed at, and never came to."""

    def told(self, what: str, process: int | None = None, run: str | None = None) -> Iterator[list[Any]]:
        """The facts of this kind, of one process or all, of one run or all: what, process, run, and more."""
        return (
            fact for fact in self.facts if fact[0] == what and process in (None, fact[1]) and run in (None, fact[2])
        )

    def executions(self, process: int, run: str) -> list[_Execution]:
        """What the run's own branch asked for in each execution, in order, without the steps inside steps."""
        executions: list[_Execution] = []
        for what, by, *facts in self.facts:
            if by == process and what == "starts" and facts[0] == run:
                executions.append(_Execution(facts[1], []))
            elif by == process and what == "asked" and facts[0] == run and facts[2] and " > " not in facts[1]:
                executions[-1].steps.append(facts[1])
        return executions

    @property
    def runs(self) -> list[str]:
        """The names of all that were executed."""
        return list(dict.fromkeys(fact[2] for fact in self.told("starts")))

    @property
    def below(self) -> dict[str, dict[str, Any]]:
        """How the runs below have ended."""
        below: dict[str, dict[str, Any]] = self.end.get("below", {})
        return below

    @property
    def steps(self) -> dict[str, list[Any]]:
        steps: dict[str, list[Any]] = self.end.get("steps", {})
        return steps


class Campaign:
    """The runs of one job: two without a crash, then one for each kill."""

    def __init__(self, job: Job[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], folder: Path) -> None:
        self._job = job
        self._input = args, kwargs
        self._folder = folder
        self._count = 0
        self._problems: dict[tuple[str, Kind, str], CrashProblem] = {}

    def report(self) -> CrashReport:
        """All of it: runs, kills, judges."""
        base = self._base = self._to_its_end()
        self._again = self._to_its_end()
        kills: Counter[str] = Counter()
        reruns: Counter[str] = Counter()
        usual = Counter(_step(fact) for fact in base.told("begins"))
        for strike in _plan(base):
            case = self._case(strike)
            kills[strike.point.name] += any(fact[0] == "struck" for fact in case.facts)
            begun = Counter(_step(fact) for fact in case.told("begins"))
            reruns.update({step: more for step, times in begun.items() if (more := times - max(1, usual[step])) > 0})
            self._judge(case)
        return CrashReport(
            self._job.name,
            list(dict.fromkeys(_step(fact) for fact in base.told("saved"))),
            kills=kills.total(),
            reruns=reruns.total(),
            problems=list(self._problems.values()),
            notes=list(self._notes()),
            kills_of=dict(kills),
            reruns_of=dict(reruns),
        )

    def _to_its_end(self) -> _Case:
        case = self._case(None)
        if case.failure is not None or case.end["end"] is None:
            raise Vain(f"{self._job.name} does not end without a crash: {case.failure or _stuck(case.end)}.")
        return case

    def _case(self, strike: Strike | None) -> _Case:
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        killed = "not killed" if strike is None else strike.point.killed(strike.moment)
        failure, missed = self._process(folder, 0, strike), None
        if strike is not None and failure == "SIGKILL":
            failure = self._process(folder, 1, None)
        elif strike is not None and failure is None and strike.point.kind in ("checkpoint", "end"):
            missed = strike.point.name
        log = folder / "world.log"
        facts = [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.exists() else []
        ends = sorted(folder.glob("end-*"))
        end = json.loads(ends[-1].read_text("utf-8")) if ends else {}
        case = _Case(killed, facts, end, effects.read(str(folder / "effects.log")), failure, missed)
        shutil.rmtree(folder, ignore_errors=True)
        return case

    def _process(self, folder: Path, number: int, strike: Strike | None) -> str | None:
        """Run one; None if it came to its end, else how it ended."""
        pid = os.fork()
        if pid == 0:
            self._execute(folder, number, strike)
        _, status = os.waitpid(pid, 0)
        if status == 0:
            return None
        if os.WIFSIGNALED(status):
            if os.WTERMSIG(status) == signal.SIGALRM:
                return f"a process did not come to its end within {_LIMIT} seconds"
            return signal.Signals(os.WTERMSIG(status)).name
        said = (folder / "said").read_text("utf-8", "replace").strip().splitlines()
        return f"a process failed: {said[-1] if said else 'it left with exit code ' + str(status >> 8)}"

    def _execute(self, folder: Path, number: int, strike: Strike | None) -> None:
        code = 1
        try:
            said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            nothing = os.open(os.devnull, os.O_RDWR)
            for theirs, mine in ((nothing, 0), (said, 1), (said, 2)):
                os.dup2(theirs, mine)
            sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_LIMIT)
            os.environ[effects.VARIABLE] = str(folder / "effects.log")
            execute(self._job, *self._input, folder, number, strike)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    # -- judging -----------------------------------------------------------------------------------------------

    @property
    def _named_alike(self) -> bool:
        return self._base.steps.keys() == self._again.steps.keys()

    def _judge(self, case: _Case) -> None:
        def add(kind: Kind, step: str | None, text: str, effect: str = "") -> None:
            one = CrashProblem(step or _OUTSIDE, kind, text, case.killed)
            self._problems.setdefault((one.step, kind, effect), one)

        for step in _started_again(case):
            add("started-again", step, "its body began again after its checkpoint was committed")
        for key, where, times, usual in self._too_many(case):
            advice = "its receiver needs an idempotency_key that stays the same" if where else "it belongs into a step"
            add("effect-twice", where, f"effect {key!r} was applied {times} times instead of {usual}: {advice}", key)
        if case.missed is not None:
            if self._named_alike:
                add("differs", case.missed, "the run ended without saving this step")
            return
        if case.failure is not None or case.end["end"] is None:
            add("differs", END, f"the run came to no end: {case.failure or _stuck(case.end)}")
            return
        for where, text in [
            *(found for run in case.runs for found in self._asked(case, run)), *self._names(case), *self._values(case),
            *self._end(case), *self._below(case), *self._missing(case),
        ]:  # fmt: skip
            add("differs", where, text)

    def _too_many(self, case: _Case) -> Iterator[tuple[str, str | None, int, int]]:
        usual = [Counter(effect.key for effect in one.effects) for one in (self._base, self._again)]
        for key, times in Counter(effect.key for effect in case.effects).items():
            most = max(counts[key] for counts in usual)
            # One that never happens without a crash, and once with it, is another kind of difference.
            if times > max(most, 1):
                yield key, next(effect.step for effect in case.effects if effect.key == key), times, most

    def _missing(self, case: _Case) -> Iterator[tuple[str | None, str]]:
        usual = [{effect.key: effect.step for effect in one.effects} for one in (self._base, self._again)]
        now = {effect.key: effect.step for effect in case.effects}
        for key in usual[0].keys() & usual[1].keys() - now.keys():
            yield usual[0][key], f"effect {key!r} is missing"
        for key in now.keys() - usual[0].keys() - usual[1].keys():
            yield now[key], f"effect {key!r} happens only after a crash"

    def _asked(self, case: _Case, run: str) -> Iterator[tuple[str | None, str]]:
        """Whether this run asked for the same, in the same order, after the crash."""
        before, after = case.executions(0, run), case.executions(1, run)
        saved = [fact for fact in case.told("saved", 0, run) if fact[3] not in _ITS_OWN and " > " not in fact[3]]
        if not after or any(fact[3] == RETURN for fact in case.told("saved", 0, run)):
            return  # it had ended, or its function had returned: nothing of it is called again
        usual = self._base.executions(0, run)
        if before and before[-1].attempt == after[0].attempt:
            now = [*after[0].steps, *[None] * len(before[-1].steps)]
            for i, (was, is_now) in enumerate(zip(before[-1].steps, now, strict=False)):
                if was != is_now:
                    instead = repr(is_now) if is_now else "nothing"
                    text = f"{was!r} was asked for before the crash, and {instead} in its place after it"
                    yield at(run, usual[-1].steps[i] if usual and i < len(usual[-1].steps) else was), text
                    return
        asked = {fact[3] for fact in case.told("asked", 1, run)}
        for _, _, _, step, _, attempt in saved:
            if step not in asked and attempt == after[0].attempt:
                yield at(run, step), "the step was saved before the crash, and never asked for after it"
        again = self._again.executions(0, run)
        if self._named_alike and usual and again and usual[-1] == again[-1] != after[-1]:
            moved = (one for one, other in zip(usual[-1].steps, after[-1].steps, strict=False) if one != other)
            if set(usual[-1].steps) == set(after[-1].steps):
                yield at(run, next(moved, END)), "the order of the steps is another one after a crash"

    def _names(self, case: _Case) -> Iterator[tuple[str | None, str]]:
        if not self._named_alike:
            return
        names = self._base.steps.keys()
        for step in sorted(names - case.steps.keys()):
            yield step, "the step is missing after a crash"
        for step in sorted(case.steps.keys() - names):
            yield step, "the step is only there after a crash"

    def _values(self, case: _Case) -> Iterator[tuple[str | None, str]]:
        for step, usual in self._base.steps.items():
            now = case.steps.get(step)
            if now is not None and now != usual == self._again.steps.get(step):
                yield step, f"the step came to {_shown(now)}, without a crash to {_shown(usual)}"

    def _end(self, case: _Case) -> Iterator[tuple[str | None, str]]:
        usual, again, now = (_ended(one.end) for one in (self._base, self._again, case))
        if now != usual == again:
            yield END, f"the run {now}, without a crash it {usual}"
        elif (now := case.end["output"]) != (usual := self._base.end["output"]) == self._again.end["output"]:
            yield END, f"output: {_short(now)}, without a crash {_short(usual)}"

    def _below(self, case: _Case) -> Iterator[tuple[str | None, str]]:
        """Whether there are the same runs below it, with the same ends."""
        base, again, now = self._base.below, self._again.below, case.below
        if base.keys() != again.keys():
            return
        for run in sorted(base.keys() - now.keys()):
            yield at(run, END), "the run is missing after a crash"
        for run in sorted(now.keys() - base.keys()):
            yield at(run, END), "the run is only there after a crash"
        for run in sorted(base.keys() & now.keys()):
            if now[run] != base[run] == again[run]:
                was, is_now = _ended(base[run]), _ended(now[run])
                if was == is_now:
                    was, is_now = f"gave {_short(base[run]['output'])}", f"gave {_short(now[run]['output'])}"
                yield at(run, END), f"the run {is_now}, without a crash it {was}"

    def _notes(self) -> Iterator[str]:
        base, again = self._base, self._again
        if not self._named_alike:
            yield "the names of the steps change from run to run: they are compared within each run only."
        for step in base.steps.keys() & again.steps.keys():
            if base.steps[step] != again.steps[step]:
                yield f"the value of step {step!r} changes from run to run: it is not compared."
        if base.end["output"] != again.end["output"]:
            yield "the output changes from run to run: it is not compared."


def _plan(base: _Case) -> Iterator[Strike]:
    """Every commit of the first run, before and after. What would come after the end of it all is no crash."""
    points = [Point(*fact[2:]) for fact in base.told("came")]
    known, last = frozenset(points), [point for point in points if (point.kind, point.run) == ("end", "")]
    # In the order of the table; the end of the run itself comes last.
    order = [(ordinal, point) for ordinal, point in enumerate(points) if point not in last]
    for ordinal, point in order:
        yield Strike(point, ordinal, "before", known)
        yield Strike(point, ordinal, "after", known)
    for point in last:
        yield Strike(point, -1, "before", known)


def _step(fact: list[Any]) -> str:
    """How the step of a fact is called: what, process, run, step, and more."""
    return at(fact[2], fact[3])


def _started_again(case: _Case) -> Iterator[str]:
    saved: dict[str, tuple[str, int]] = {}
    for fact in case.facts:
        if fact[0] == "saved":
            saved[_step(fact)] = (fact[4], fact[5])
        elif fact[0] == "begins" and _step(fact) in saved:
            status, attempt = saved[_step(fact)]
            # A failure counts within its attempt: a retry of the run is there to try it again.
            if status == "completed" or attempt == fact[4]:
                yield _step(fact)


def _stuck(end: dict[str, Any]) -> str:
    if end["waiting_for"] != "signal":
        return str(end["status"])
    return "it waits for a signal. Have one ready: `with answering(name, value):`"


def _ended(end: dict[str, Any]) -> str:
    return f"ended as {end['end']}" + ("" if end["error"] is None else f" by {_short(end['error'])}")


def _shown(step: list[Any]) -> str:
    status, output, error = step
    return _short(output) if status == "completed" else f"{status}: {_short(error)}"


def _short(text: object) -> str:
    text = str(text)
    return text if len(text) <= 80 else text[:79] + "…"
