"""A job whose body is a run elsewhere: once, through crashes, with the mapping of errors of the ancestor's RPC."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from far import PATIENCE, Served, approval_of, asks, fails, holds, import_rows, pair, until

from faulty_link import FaultyLink
from holdfast import (
    DefinitionError,
    Holdfast,
    Retry,
    RunCancelled,
    RunFailed,
    RunTimedOut,
    Step,
    ValidationError,
)
from holdfast.client import Client, ServerUnavailable, remote_job
from house import House

pytestmark = [
    pytest.mark.sampled("the client: the same on every Python", every=8),
    pytest.mark.elsewhere("the client: it knows the wire only", every=8),
]


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Holdfast]:
    """An app beside the server's, on a database of its own."""
    app = Holdfast(f"sqlite:///{tmp_path}/here.db", cancel_grace=0.5)
    with app:
        yield app


def test_a_run_here_is_a_run_there_with_its_input_progress_and_output(here: Holdfast, served: Served) -> None:
    far = here.register(remote_job(served.url, import_rows, name="far"))
    run = far.trigger_and_wait(3, name="b").wait(PATIENCE)
    assert run.output == {"rows": 3, "name": "b"}
    (there,) = served.app.get_runs().wait(PATIENCE)
    assert (there.job_name, there.input) == ("import-rows", {"rows": 3, "name": "b"})
    assert [step.name for step in here.get_steps(run.id).wait(PATIENCE)] == ["start", "follow"]
    with pytest.raises(ValidationError, match="Invalid input: rows"):
        far.trigger("many")  # type: ignore[arg-type]


def test_types_are_those_of_the_job_there(here: Holdfast, served: Served) -> None:
    at = datetime(2026, 1, 31, 8, 30, 0, 123456, UTC)
    assert here.register(remote_job(served.client, pair)).run(at).wait(PATIENCE) == (at, {1, 2})


def test_a_job_known_by_its_name_takes_one_object(here: Holdfast, served: Served) -> None:
    far = here.register(remote_job(served.client, "import-rows"))
    assert (far.name, here.jobs.import_rows.name) == ("import-rows", "import-rows")
    assert far.run({"rows": 2}).wait(PATIENCE) == {"rows": 2, "name": "a"}
    with pytest.raises(RunFailed, match="Field required") as failed:
        far.run({}).wait(PATIENCE)
    assert failed.value.error_type == "ValidationError"
    nobody = here.register(remote_job(served.client, "nobody"))
    with pytest.raises(RunFailed, match="Job not found: nobody") as failed:
        nobody.run({}).wait(PATIENCE)
    assert failed.value.error_type == "NotFoundError"


def test_a_sleeping_run_there_is_woken_there(here: Holdfast, served: Served) -> None:
    far = here.register(remote_job(served.client, approval_of(served.app), name="far"))
    run = far.trigger("k").wait(PATIENCE)
    until(lambda: served.app.get_runs().wait(PATIENCE))
    served.client.wake("approval", "k", output=5).wait(PATIENCE)
    assert run.result().wait(PATIENCE) == 5


def test_options_are_those_of_a_job_and_of_the_trigger_there(here: Holdfast, served: Served) -> None:
    far = here.register(remote_job(served.client, import_rows.options(labels={"from": "here"}, priority=3), name="far"))
    far.run(1).wait(PATIENCE)
    (there,) = served.app.get_runs().wait(PATIENCE)
    assert (there.labels, there.priority) == ({"from": "here"}, 3)
    with pytest.raises(DefinitionError, match="no option 'retries'"):
        remote_job(served.url, import_rows, retries=3)  # type: ignore[call-overload]
    with pytest.raises(DefinitionError, match="headers of its own"):
        remote_job(served.client, import_rows, headers={"a": "b"})
    with pytest.raises(DefinitionError, match="neither a job"):
        remote_job(served.url, 5)  # type: ignore[call-overload]


# -- how it ends ---------------------------------------------------------------------------------------------


def test_a_run_that_fails_there_fails_here_with_its_error(here: Holdfast, served: Served) -> None:
    far = here.register(remote_job(served.client, fails))
    with pytest.raises(RunFailed, match="no such file") as failed:
        far.run().wait(PATIENCE)
    assert failed.value.error_type == "RunFailed"
    assert len(served.app.get_runs().wait(PATIENCE)) == 1


def test_each_retry_here_is_one_fresh_run_there(here: Holdfast, served: Served) -> None:
    far = here.register(remote_job(served.client, fails, retry=Retry(2)))
    run = far.trigger_and_wait("again").wait(PATIENCE)
    assert (run.status, run.attempt) == ("failed", 2)
    there = served.app.get_runs().wait(PATIENCE)
    assert [one.status for one in there] == ["failed"] * 3
    assert {one.idempotency_key for one in there} == {f"{run.id}:{number}" for number in range(3)}


def test_a_run_that_times_out_there_times_out_here_or_is_tried_again(here: Holdfast, served: Served) -> None:
    far = here.register(remote_job(served.client, holds.options(timeout=0.2), name="far", retry=Retry(1)))
    with pytest.raises(RunFailed, match="longer than 0") as failed:
        far.run().wait(PATIENCE)
    assert failed.value.error_type == "RunTimedOut"
    assert [one.status for one in served.app.get_runs().wait(PATIENCE)] == ["timed_out"] * 2


def test_a_run_that_is_cancelled_there_is_not_tried_again(here: Holdfast, served: Served) -> None:
    far = here.register(remote_job(served.client, holds, retry=Retry(5)))
    run = far.trigger().wait(PATIENCE)
    until(lambda: served.app.get_runs().wait(PATIENCE))
    (there,) = served.app.get_runs().wait(PATIENCE)
    there.cancel().wait(PATIENCE)
    ended = run.wait().wait(PATIENCE)
    assert (ended.status, ended.error_type, ended.attempt) == ("failed", "RunCancelled", 0)


def test_a_run_that_is_cancelled_here_is_cancelled_there(here: Holdfast, served: Served) -> None:
    far = here.register(remote_job(served.client, holds))
    run = far.trigger().wait(PATIENCE)
    until(lambda: served.app.get_runs(status="leased").wait(PATIENCE))
    run.cancel().wait(PATIENCE)
    with pytest.raises(RunCancelled):
        run.result().wait(PATIENCE)
    until(lambda: served.app.get_runs(status="cancelled").wait(PATIENCE))


def test_a_run_that_is_cancelled_while_the_server_is_away_ends_here_and_there_once_it_is_back(
    here: Holdfast, idle: Served
) -> None:
    with FaultyLink(idle.url) as link, Client(link.url, timeout=0.5, patience=Retry(100, delay=0.05)) as client:
        link.break_("mute")
        run = here.register(remote_job(client, asks)).trigger().wait(PATIENCE)
        until(lambda: idle.app.get_runs().wait(PATIENCE))
        run.cancel().wait(PATIENCE)
        with pytest.raises(RunCancelled):
            run.result().wait(PATIENCE)
        until(lambda: not here.stats().running)
        link.heal()
        until(lambda: idle.app.get_runs(status="cancelled").wait(PATIENCE))


def test_a_run_whose_time_is_over_here_is_cancelled_there(here: Holdfast, served: Served) -> None:
    far = here.register(remote_job(served.client, holds, timeout=0.5))
    with pytest.raises(RunTimedOut):
        far.run().wait(PATIENCE)
    until(lambda: served.app.get_runs(status="cancelled").wait(PATIENCE))


def test_whether_it_is_tried_again_is_said_by_the_retry_of_the_run_not_by_that_of_the_job(
    here: Holdfast, served: Served
) -> None:
    once = here.register(remote_job(served.client, asks, name="once", timeout=0.5))
    run = once.options(retry=Retry(20)).trigger().wait(PATIENCE)
    until(lambda: run.refresh().wait(PATIENCE).attempt)
    (there,) = served.app.get_runs().wait(PATIENCE)
    assert not there.is_terminal, "the next attempt follows it"
    served.app.send_signal(there.id, "answer", 7).wait(PATIENCE)
    assert run.result().wait(PATIENCE) == 7
    assert len(served.app.get_runs().wait(PATIENCE)) == 1

    often = here.register(remote_job(served.client, holds, name="often", timeout=0.5, retry=Retry(2)))
    with pytest.raises(RunTimedOut):
        often.options(retry=Retry(0)).run().wait(PATIENCE)
    until(lambda: served.app.get_runs(job=holds, status="cancelled").wait(PATIENCE))


def test_no_attempt_comes_after_the_deadline_so_the_run_there_is_cancelled(here: Holdfast, served: Served) -> None:
    far = here.register(remote_job(served.client, holds, deadline=0.5, retry=Retry(5)))
    with pytest.raises(RunTimedOut, match="deadline"):
        far.run().wait(PATIENCE)
    until(lambda: served.app.get_runs(status="cancelled").wait(PATIENCE))


def test_nor_after_a_timeout_whose_retry_would_come_after_it(here: Holdfast, served: Served) -> None:
    retry = Retry(5, delay=60)
    far = here.register(remote_job(served.client, holds, timeout=0.5, deadline=30, retry=retry))
    with pytest.raises(RunTimedOut, match="longer than 0"):
        far.run().wait(PATIENCE)
    until(lambda: served.app.get_runs(status="cancelled").wait(PATIENCE))


def test_also_when_somebody_else_saw_that_the_deadline_is_over(tmp_path: Path, served: Served) -> None:
    app = Holdfast(f"sqlite:///{tmp_path}/here.db", lease=2)
    with app:
        far = app.register(remote_job(served.client, holds, deadline=60, retry=Retry(5)))
        run = far.trigger().wait(PATIENCE)
        until(lambda: served.app.get_runs(status="leased").wait(PATIENCE))
        with contextlib.closing(sqlite3.connect(tmp_path / "here.db")) as connection, connection:
            connection.execute("update holdfast_runs set deadline_at = 1 where id = ?", (run.id,))
        with pytest.raises(RunTimedOut):
            run.result().wait(PATIENCE)
        until(lambda: served.app.get_runs(status="cancelled").wait(PATIENCE))


def test_a_worker_that_stops_leaves_the_run_there_alone_and_the_next_one_finds_it(
    tmp_path: Path, served: Served
) -> None:
    url = f"sqlite:///{tmp_path}/here.db"
    first = Holdfast(url)
    with first:
        run = first.register(remote_job(served.client, asks)).trigger().wait(PATIENCE)
        until(lambda: served.app.get_runs().wait(PATIENCE))
        first.stop(timeout=0).wait(PATIENCE)
    (there,) = served.app.get_runs().wait(PATIENCE)
    assert not there.is_terminal
    second = Holdfast(url)
    second.register(remote_job(served.client, asks))
    with second:
        served.client.send_signal(there.id, "answer", 7).wait(PATIENCE)
        assert second.wait_for_run(run.id, timeout=PATIENCE).wait().output == 7
    assert len(served.app.get_runs().wait(PATIENCE)) == 1


def test_a_link_that_is_cut_on_the_way_makes_no_second_run(here: Holdfast, served: Served) -> None:
    with FaultyLink(served.url) as link:
        client = Client(link.url, timeout=0.5, retry=Retry(0), patience=Retry(100, delay=0.05))
        far = here.register(remote_job(client, asks))
        link.break_("mute")
        run = far.trigger().wait(PATIENCE)
        until(lambda: served.app.get_runs().wait(PATIENCE))
        link.break_("cut")
        link.heal()
        until(lambda: here.get_steps(run.id).wait(PATIENCE)[1:])
        link.break_("cut")
        (there,) = served.app.get_runs().wait(PATIENCE)
        served.app.send_signal(there.id, "answer", "yes").wait(PATIENCE)
        link.heal()
        assert run.result().wait(PATIENCE) == "yes"
        client.close().wait(PATIENCE)


# -- inside a run --------------------------------------------------------------------------------------------


def test_a_trigger_in_a_runs_own_code_is_numbered_so_that_a_replay_does_not_repeat_it(
    here: Holdfast, served: Served, house: House
) -> None:
    client, tries = served.client, []

    @here.job(retry=Retry(1))
    async def orders(step: Step) -> list[str]:
        made = [(await client.job(import_rows).trigger(1)).id for _ in range(2)]
        tries.append(made)
        if len(tries) == 1:
            raise OSError("once more")
        return made

    assert orders.run().wait(PATIENCE) == tries[0]
    assert len(served.app.get_runs().wait(PATIENCE)) == 2


# -- errors of the ancestor's RPC ----------------------------------------------------------------------------

#: Of each status: the kind of the error that the run here fails with, and whether a retry may help.
MAPPED = [
    (400, "ValidationError", False),
    (401, "Refused", False),
    (403, "Refused", False),
    (404, "NotFoundError", False),
    (408, "ServerUnavailable", True),
    (409, "ConflictError", False),
    (422, "ServerError", False),
    (429, "ServerUnavailable", True),
    (500, "ServerError", True),
    (501, "ServerError", False),
    (502, "ServerUnavailable", True),
    (503, "ServerUnavailable", True),
    (504, "ServerUnavailable", True),
    (505, "ServerError", False),
]


@pytest.mark.parametrize(("status", "kind", "retried"), MAPPED, ids=[str(status) for status, _, _ in MAPPED])
def test_a_server_is_asked_again_or_not_by_the_status_of_its_answer(
    status: int, kind: str, retried: bool, here: Holdfast
) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(status, json={"error": "the words of the server"})

    client = Client("http://far", transport=httpx.MockTransport(answer), patience=Retry(0))
    run = here.register(remote_job(client, import_rows, retry=Retry(2))).trigger_and_wait(1).wait(PATIENCE)
    assert (run.status, run.error_type) == ("failed", kind)
    assert "the words of the server" in (run.error or "")
    assert (run.attempt, len(asked)) == ((2, 3) if retried else (0, 1))
    assert len({request.content for request in asked}) == 1, "with the same key each time"
    client.close().wait(PATIENCE)


def test_no_answer_at_all_may_pass(here: Holdfast) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("cut")

    client = Client("http://far", transport=httpx.MockTransport(answer), patience=Retry(0))
    run = here.register(remote_job(client, import_rows, retry=Retry(1))).trigger_and_wait(1).wait(PATIENCE)
    assert (run.attempt, run.error_type) == (1, "ServerUnavailable")
    client.close().wait(PATIENCE)


def test_the_headers_of_the_client_go_along(here: Holdfast) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["authorization"])
        return httpx.Response(400, json={"error": "no"})

    client = Client("http://far", headers={"Authorization": "Bearer a"}, transport=httpx.MockTransport(answer))
    here.register(remote_job(client, import_rows)).trigger_and_wait(1).wait(PATIENCE)
    assert asked == ["Bearer a"]
    client.close().wait(PATIENCE)


@pytest.mark.parametrize("failure", ["refused", "retry-after"])
def test_a_step_without_an_answer_raises_what_the_client_raises_now_and_at_each_replay(
    failure: str, here: Holdfast
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if failure == "refused":
            raise httpx.ConnectError("nobody listens")
        return httpx.Response(503, json={"error": "not now"}, headers={"retry-after": "7"})

    client = Client("http://far", transport=httpx.MockTransport(answer), retry=Retry(0))
    caught: list[ServerUnavailable] = []

    async def ask() -> None:
        await client.get_runs()

    @here.job(retry=Retry(1))
    async def asking(step: Step) -> None:
        try:
            await step.run("ask", ask)
        except ServerUnavailable as error:
            caught.append(error)
            raise

    run = asking.trigger_and_wait().wait(PATIENCE)
    assert (run.error_type, len(caught)) == ("ServerUnavailable", 2)
    told = [(error.answered, error.is_unsent, error.retry_after) for error in caught]
    assert told == [(None, True, 0.0) if failure == "refused" else (503, False, 7.0)] * 2
    client.close().wait(PATIENCE)


def test_an_answer_that_is_none_of_a_server_fails_as_that(here: Holdfast) -> None:
    client = Client("http://far", transport=httpx.MockTransport(lambda _: httpx.Response(200, json={"a": 1})))
    run = here.register(remote_job(client, import_rows)).trigger_and_wait(1).wait(PATIENCE)
    assert (run.error_type, "Is it the URL of a Holdfast server" in str(run.error)) == ("ServerError", True)
    client.close().wait(PATIENCE)
