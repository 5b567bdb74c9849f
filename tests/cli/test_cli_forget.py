"""`holdfast runs delete` and `runs purge`: what they delete, what they leave, and that they ask."""

from __future__ import annotations

import os
import select
import subprocess
import time

import pytest
from console_script import LONG, SCRIPT, Cli, Shop, environment, parsed

from holdfast import Holdfast, Step
from holdfast.testing.clock import HandClock

pytestmark = pytest.mark.sampled("commands: what they print is the same on every Python", every=8)


def left(shop: Shop) -> list[str]:
    return [run.id for run in shop.app.get_runs(limit=None).wait()][::-1]


def old(shop: Shop, count: int, **options: str) -> list[str]:
    """Runs that were cancelled at the beginning of 2026, one a day."""
    clock = HandClock(1_767_225_600_000_000)
    app = Holdfast(shop.url, clock=clock, worker=False)

    @app.job
    def never() -> None: ...

    ids = []
    for _ in range(count):
        run = never.options(labels=options).trigger().wait()
        run.cancel().wait()
        ids.append(run.id)
        clock.advance(86400)
    app.stop().wait()
    return ids


# -- delete ------------------------------------------------------------------------------------------------------


def test_delete_removes_ended_runs_for_good(cli: Cli, shop: Shop) -> None:
    first, second, third = [shop.greet.trigger(name).wait().id for name in ("Ada", "Bob", "Cy")]
    shop.work()
    done = cli("runs", "delete", first, third, "-u", shop.url, "--yes")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"Deleted greet {first}", f"Deleted greet {third}"]
    assert left(shop) == [second]
    assert cli("runs", "show", first, "-u", shop.url).returncode == 4


def test_what_has_not_ended_is_refused_and_the_others_go(cli: Cli, shop: Shop) -> None:
    ended = shop.greet.trigger("Ada").wait().id
    shop.work()
    waits = shop.never.trigger().wait().id
    done = cli("runs", "delete", waits, ended, ended, "-u", shop.url, "--yes", "--json")
    assert done.returncode == 6
    document = parsed(done)
    assert document["runs"] == [{"id": ended}]
    assert [(error["id"], error["error"]) for error in document["errors"]] == [
        (waits, f"Cannot delete pending run: {waits}")
    ]
    assert left(shop) == [waits]


def test_without_somebody_to_ask_nothing_is_deleted(cli: Cli, shop: Shop) -> None:
    (run_id,) = old(shop, 1)
    for command in (["delete", run_id], ["purge", "--older-than", "1d"]):
        for more in ([], ["--json"]):
            done = cli("runs", *command, "-u", shop.url, *more)
            assert (done.returncode, done.stdout) == (2, "")
            assert "--yes" in done.stderr
    assert left(shop) == [run_id]


# -- purge -------------------------------------------------------------------------------------------------------


def test_purge_deletes_what_ended_before(cli: Cli, shop: Shop) -> None:
    ids = old(shop, 4)
    waits = shop.never.trigger().wait().id
    done = cli("runs", "purge", "--older-than", "2026-01-03T00:00Z", "-u", shop.url, "--yes")
    assert (done.returncode, done.stdout) == (0, "Deleted 2 runs and whatever was below them.\n")
    assert left(shop) == [*ids[2:], waits]
    assert parsed(cli("runs", "purge", "--older-than", "1h", "-u", shop.url, "--yes", "--json")) == {
        "purged": 2,
        "found": 2,
    }
    assert left(shop) == [waits]


def test_a_dry_run_says_how_many_and_deletes_none(cli: Cli, shop: Shop) -> None:
    ids = old(shop, 3)
    done = cli("runs", "purge", "--older-than", "1d", "-u", shop.url, "--dry-run")
    assert done.returncode == 0
    assert done.stdout.startswith("3 runs that ended before ")
    assert done.stdout.endswith(", and whatever is below them. Nothing was deleted.\n")
    document = parsed(cli("runs", "purge", "--older-than", "1d", "-u", shop.url, "--dry-run", "--json"))
    assert document == {"purged": 0, "found": 3}
    assert left(shop) == ids


def test_runs_below_go_with_the_one_above_and_are_said_to(cli: Cli, shop: Shop) -> None:
    @shop.app.job
    async def top(step: Step) -> None:
        await step.gather(*[shop.greet.bind(name) for name in ("Ada", "Bob")])

    for _ in range(2):
        top.trigger().wait()
    shop.work()
    assert len(left(shop)) == 6
    done = cli("runs", "purge", "--older-than", "0s", "--limit", "1", "-u", shop.url, "--yes")
    assert (done.returncode, done.stdout) == (0, "Deleted 1 run and whatever was below it.\n")
    assert len(left(shop)) == 3


def test_purge_goes_by_job_status_label_and_limit(cli: Cli, shop: Shop) -> None:
    plain, red = old(shop, 3), old(shop, 2, team="red")

    def purged(*arguments: str) -> int:
        asked = cli("runs", "purge", "--older-than", "1d", "-u", shop.url, "--yes", "--json", *arguments)
        assert asked.returncode == 0
        return int(parsed(asked)["purged"])

    assert purged("--job", "greet") == 0
    assert purged("--status", "completed") == 0
    assert purged("--label", "team=red", "--limit", "1") == 1
    assert left(shop) == [plain[0], *sorted([*plain[1:], red[1]])]
    assert purged("--status", "errored", "--job", "never", "--label", "team=red") == 1
    assert purged("--status", "terminal") == 3


def test_nothing_to_purge_is_no_error(cli: Cli, shop: Shop) -> None:
    done = cli("runs", "purge", "--older-than", "1d", "-u", shop.url, "--yes")
    assert done.returncode == 0
    assert done.stdout.startswith("No runs that ended before ")


# -- at a terminal -----------------------------------------------------------------------------------------------


def at_a_terminal(answer: str, *arguments: str) -> tuple[int, str]:
    """Exit code and screen of the command, asked at a terminal and answered so."""
    pty = pytest.importorskip("pty", reason="no pseudo terminals here")
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [str(SCRIPT), *arguments],
        stdin=terminal, stdout=terminal, stderr=terminal, env=environment(TERM="xterm", COLUMNS="100"), close_fds=True,
    )  # fmt: skip
    os.close(terminal)
    seen, answered, giving_up = "", False, time.monotonic() + LONG
    while time.monotonic() < giving_up:
        ready, _, _ = select.select([controller], [], [], 1)
        if not ready:
            continue
        try:
            part = os.read(controller, 65536)
        except OSError:  # Linux says so at the end
            break
        if not part:
            break
        seen += part.decode()
        if "[y/N]" in seen and not answered:
            answered = True
            os.write(controller, f"{answer}\n".encode())
    os.close(controller)
    return process.wait(LONG), seen


@pytest.mark.skipif(os.name == "nt", reason="no pseudo terminals on Windows")
@pytest.mark.parametrize("answer", ["n", "", "y"])
def test_at_a_terminal_it_asks_and_does_as_it_is_told(shop: Shop, answer: str) -> None:
    ids = old(shop, 12)
    code, seen = at_a_terminal(answer, "runs", "delete", *ids[:11], "-u", shop.url)
    assert code == 0
    assert "Delete 11 runs with steps and logs, for good?" in seen
    assert ids[10] in seen, "what is asked about is shown, the newest first"
    assert "and 1 more" in seen
    assert left(shop) == (ids[11:] if answer == "y" else ids)
    code, seen = at_a_terminal(answer, "runs", "purge", "--older-than", "1d", "-u", shop.url)
    assert code == 0
    assert f"Delete {1 if answer == 'y' else 12} run" in seen
    assert left(shop) == ([] if answer == "y" else ids)
    assert ("Nothing was deleted" in seen) == (answer != "y")
