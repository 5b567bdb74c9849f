"""A pytest plugin that runs tests with a guard taken out: `pytest -p planted`, with this folder on PYTHONPATH.

* `HOLDFAST_MUTANT=name`: the whole session runs with it.
* `HOLDFAST_PLANTED=file`: the file names pairs of a mutant (or none) and a test below tests/, and gets what came of
  each: nothing if the test has passed, else why not. Each pair has a forked process of its own, so that neither a
  mutant nor what a failed test leaves behind reaches the next one; one that does not end is killed and has failed.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

from mutants import plant

#: Seconds that a test has, and that it waits in vain for something before it fails, with a mutant.
LIMIT = 25.0
PATIENCE = 3.0
#: Most of those that take long do nothing but wait.
AT_ONCE = 4


def pytest_configure(config: pytest.Config) -> None:
    if (name := os.environ.get("HOLDFAST_MUTANT")) is not None:
        plant(name)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    if (asked := os.environ.get("HOLDFAST_PLANTED")) is None:
        return None
    file = Path(asked)
    session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # made once, before the forks
    items = {item.nodeid.removeprefix("tests/"): item for item in session.items}
    pairs: list[tuple[str | None, str]] = json.loads(file.read_text())
    if unknown := {test for _, test in pairs} - items.keys():
        raise pytest.UsageError(f"there are no such tests: {', '.join(sorted(unknown))}")
    waiting = [_Try(name, test, items[test]) for name, test in pairs]
    told, running = [], list[_Try]()
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            running.append(waiting.pop(0))
            running[-1].begin()
        select.select([one.ours for one in running], [], [], 0.1)
        for one in [one for one in running if one.is_over()]:
            running.remove(one)
            told.append(one.told())
    file.write_text(json.dumps(told))
    return True


class _Try:
    """One test in a forked process of its own."""

    def __init__(self, mutant: str | None, test: str, item: pytest.Item) -> None:
        self.mutant = mutant
        self.test = test
        self.item = item

    def begin(self) -> None:
        self.began = time.monotonic()
        self.ours, theirs = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.write(theirs, (_words(self.item, self.mutant) or "").encode()[:4000])
            finally:
                os._exit(0)
        os.close(theirs)

    def is_over(self) -> bool:
        return bool(select.select([self.ours], [], [], 0)[0]) or time.monotonic() - self.began > LIMIT

    def told(self) -> list[object]:
        words: str | None = f"it did not come to its end within {LIMIT:g} s"
        if select.select([self.ours], [], [], 0)[0]:
            words = os.read(self.ours, 4000).decode(errors="replace") or None
        os.close(self.ours)
        os.kill(self.pid, signal.SIGKILL)  # it may be at its end, or stuck
        os.waitpid(self.pid, 0)
        return [self.mutant, self.test, words, round(time.monotonic() - self.began, 3)]


def _words(item: pytest.Item, name: str | None) -> str | None:
    try:
        folders = item.config._tmp_path_factory  # type: ignore[attr-defined]
        folders._basetemp = folders.getbasetemp() / str(os.getpid())
        folders._basetemp.mkdir()
        if name is not None:
            plant(name)
            for module in list(sys.modules.values()):
                if "tests" in (getattr(module, "__file__", None) or ""):
                    for word in {"LONG", "PATIENCE"} & vars(module).keys():
                        setattr(module, word, min(getattr(module, word), PATIENCE))
        failed = [report for report in runtestprotocol(item, log=False, nextitem=None) if not report.passed]
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    for report in failed:
        if report.skipped:
            return f"skipped: {report.longreprtext}"
        crash = getattr(report.longrepr, "reprcrash", None)
        text = crash.message if crash is not None else report.longreprtext
        return " ".join(text.split())[:300]
    return None
