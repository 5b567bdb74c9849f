"""`holdfast runs watch` of many runs: one board, lines, or JSON lines; it ends when all have ended."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from console_script import LONG, Cli, Shop, Spawn

from holdfast import Holdfast, Run, SyncStep

pytestmark = pytest.mark.sampled("commands: what they print is the same on every Python", every=8)


class Busy:
    """Runs that are under way until they are let go, in this process."""

    def __init__(self, url: str) -> None:
        self.gate = threading.Event()
        self.app = Holdfast(url, worker="thread", polling_interval=0.1)

        @self.app.job
        def count(step: SyncStep, n: int) -> int:
            step.progress(1, 2, "things")
            step.run("wait", lambda: self.gate.wait(LONG))
            if n < 0:
                raise ValueError("less than nothing")
            step.progress(2, 2, "things")
            return n

        self.count = count


@pytest.fixture
def busy(shop: Shop) -> Iterator[Busy]:
    busy = Busy(shop.url)
    with busy.app:
        yield busy
        busy.gate.set()


def read_until(process: Any, *parts: str) -> str:
    seen = ""
    while not all(part in seen for part in parts):  # ends with the process, if not by this
        line = process.stdout.readline()
        assert line, seen
        seen += line
    return seen


def test_many_runs_are_followed_until_all_have_ended(shop: Shop, busy: Busy, spawn: Spawn) -> None:
    runs: list[Run[int]] = [busy.count.trigger(n).wait() for n in range(3)]
    watching = spawn("runs", "watch", *[run.id for run in runs], "-u", shop.url)
    seen = read_until(watching, *[f"{run.id}  count leased" for run in runs])
    busy.gate.set()
    rest = watching.stdout.read()  # type: ignore[union-attr]
    assert watching.wait(LONG) == 0
    for run in runs:
        assert f"{run.id}  count completed" in seen + rest
    assert "\x1b" not in seen + rest


@pytest.mark.parametrize(
    ("kinds", "code"), [(["good"], 0), (["good", "cancelled"], 3), (["cancelled", "bad", "good"], 1)]
)
def test_the_exit_code_tells_the_worst_of_all_ends(cli: Cli, shop: Shop, kinds: list[str], code: int) -> None:
    ids = [shop.greet.trigger("first").wait().id]
    for kind in kinds:
        run: Run[Any] = (shop.refuse if kind == "bad" else shop.greet).trigger("x").wait()
        if kind == "cancelled":
            run.cancel().wait()
        ids.append(run.id)
    shop.work()
    done = cli("runs", "watch", *ids, "-u", shop.url)
    assert done.returncode == code
    assert len(done.stdout.splitlines()) == len(ids)
    assert ("ValueError: x" in done.stdout) == ("bad" in kinds)


def test_the_active_runs_of_a_job_and_label_are_followed(shop: Shop, busy: Busy, spawn: Spawn) -> None:
    mine = busy.count.options(labels={"team": "red"}).trigger(1).wait()
    other = busy.count.trigger(-1).wait()
    watching = spawn("runs", "watch", "--job", "count", "--label", "team=red", "-u", shop.url)
    read_until(watching, mine.id)
    every = spawn("runs", "watch", "--all-active", "-u", shop.url)
    read_until(every, mine.id, other.id)
    busy.gate.set()
    rest = watching.stdout.read()  # type: ignore[union-attr]
    assert watching.wait(LONG) == 0
    assert other.id not in rest
    assert "ValueError: less than nothing" in every.stdout.read()  # type: ignore[union-attr]
    assert every.wait(LONG) == 1


def test_as_json_there_is_a_line_whenever_a_run_has_changed(shop: Shop, busy: Busy, spawn: Spawn) -> None:
    runs = [busy.count.trigger(n).wait() for n in range(2)]
    watching = spawn("runs", "watch", *[run.id for run in runs], "-u", shop.url, "--json")
    seen = read_until(watching, *[f'"id": "{run.id}"' for run in runs])
    busy.gate.set()
    rest = watching.stdout.read()  # type: ignore[union-attr]
    assert watching.wait(LONG) == 0
    documents = [json.loads(line)["run"] for line in (seen + rest).splitlines()]
    for number, run in enumerate(runs):
        statuses = [document["status"] for document in documents if document["id"] == run.id]
        assert statuses[-1] == "completed"
        assert statuses.count("completed") == 1
        (last,) = [one for one in documents if one["id"] == run.id and one["status"] == "completed"]
        assert (last["output"], last["progress"]["current"]) == (number, 2)


def test_runs_that_are_deleted_meanwhile_do_not_keep_it_waiting(shop: Shop, busy: Busy, spawn: Spawn) -> None:
    runs = [busy.count.trigger(n).wait() for n in range(2)]
    watching = spawn("runs", "watch", *[run.id for run in runs], "-u", shop.url)
    read_until(watching, *[f"{run.id}  count leased" for run in runs])
    for run in runs:
        run.cancel().wait()
        run.delete().wait()
    assert watching.wait(LONG) in (3, 4), "cancelled, or gone before anybody looked"


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for one process on Windows")
def test_ctrl_c_stops_watching_and_the_runs_go_on(shop: Shop, busy: Busy, spawn: Spawn) -> None:
    runs = [busy.count.trigger(n).wait() for n in range(2)]
    watching = spawn("runs", "watch", *[run.id for run in runs], "-u", shop.url)
    read_until(watching, *[f"{run.id}  count leased" for run in runs])
    watching.send_signal(signal.SIGINT)
    assert "the runs go on" in watching.stdout.read()  # type: ignore[union-attr]
    assert watching.wait(LONG) == 130
    busy.gate.set()
    assert [run.result().wait(LONG) for run in runs] == [0, 1]


def test_without_active_runs_there_is_nothing_to_watch(cli: Cli, shop: Shop) -> None:
    shop.greet.trigger("Ada").wait()
    shop.work()
    done = cli("runs", "watch", "--all-active", "-u", shop.url)
    assert (done.returncode, done.stdout) == (0, "No active runs.\n")
    done = cli("runs", "watch", "--job", "greet", "-u", shop.url)
    assert (done.returncode, done.stdout) == (0, "No active runs that fit.\n")


def test_a_terminal_shows_one_line_and_one_bar_per_run(cli: Cli, shop: Shop) -> None:
    ids = [shop.greet.trigger("Ada").wait().id for _ in range(3)]
    ids.append(shop.refuse.trigger("\x1b[2Jno [bold]more[/bold]").wait().id)
    shop.work()
    done = cli("runs", "watch", *ids, "-u", shop.url, FORCE_COLOR="1", TERM="xterm", COLUMNS="110", LINES="30")
    assert done.returncode == 1
    assert "4 of 4 runs ended" in done.stdout
    assert all(run_id in done.stdout for run_id in ids)
    assert "━" * 20 in done.stdout
    assert "ValueError: no [bold]more" in done.stdout
    assert "\x1b[2J" not in done.stdout
