"""The client has the verbs of the app, in both forms, with the same results and the same errors."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from far import (
    PATIENCE,
    Served,
    Table,
    anything,
    app_on,
    asks,
    fails,
    holds,
    import_rows,
    measure,
    pair,
    parent,
    take_table,
    told,
    until,
)

from asking import serving
from holdfast import (
    ChildResult,
    ConflictError,
    Holdfast,
    Job,
    NotFoundError,
    NotKept,
    PayloadTooLarge,
    Retry,
    Run,
    RunCancelled,
    RunFailed,
    RunStatus,
    StoreClosed,
    ValidationError,
    WouldDeadlock,
)
from holdfast.client import Client, NamedJob
from holdfast.http import Auth
from house import House

pytestmark = [
    pytest.mark.sampled("the client: the same on every Python", every=8),
    pytest.mark.elsewhere("the client: it knows the wire only", every=8),
]

forms = pytest.mark.parametrize("form", ["async", "sync"])

#: Verbs of an app that are about its own process, or its own database.
OF_THE_PROCESS = {
    "asgi", "emit", "get_job", "handler", "init", "jobs", "lifespan", "loop", "migrate", "on", "on_error",
    "process_one", "process_until_idle", "purge_runs", "register", "sequence", "sleeping", "start", "step", "stop",
    "use", "wsgi",
}  # fmt: skip


def test_the_client_has_the_verbs_of_the_app_with_their_parameters() -> None:
    theirs = {name for name in dir(Holdfast) if not name.startswith("_")} - OF_THE_PROCESS
    assert theirs <= {name for name in dir(Client) if not name.startswith("_")}
    for name in sorted(theirs - {"job"}):
        wanted = inspect.signature(getattr(Holdfast, name)).parameters
        given = inspect.signature(getattr(Client, name)).parameters
        # A transaction of the caller's is not the server's.
        assert [one for one in wanted if one != "connection"] == list(given), name
        assert all(given[one].kind is wanted[one].kind for one in given), name


def test_a_job_by_name_has_the_verbs_of_a_job() -> None:
    theirs = {name for name in dir(Job) if not name.startswith("_")}
    mine = {name for name in dir(NamedJob(Client("http://unused"), "x")) if not name.startswith("_")}
    assert theirs - mine == {"finalize", "finalize_with", "fn", "input_schema", "output_schema"}
    wanted, given = (list(inspect.signature(kind.options).parameters) for kind in (Job, NamedJob))
    assert [one for one in wanted if one not in ("tenant", "connection")] == given


async def gathered(output: int, children: list[ChildResult]) -> int:
    return output


# -- triggering ----------------------------------------------------------------------------------------------


@forms
def test_a_run_is_triggered_by_its_definition_and_comes_to_its_output(form: str, served: Served) -> None:
    run = told(form, lambda: served.client.job(import_rows).trigger(3, name="b"))
    assert (run.job_name, run.disposition, run.input) == ("import-rows", "created", {"rows": 3, "name": "b"})
    assert told(form, run.result) == {"rows": 3, "name": "b"}
    ended = told(form, run.wait)
    assert (ended.status, ended.progress) == (RunStatus.COMPLETED, {"current": 3, "total": 3})
    assert told(form, run.refresh).output == {"rows": 3, "name": "b"}


@forms
def test_a_run_is_triggered_by_the_name_of_its_job_or_function(form: str, served: Served) -> None:
    for name in ("import-rows", "import_rows"):
        assert told(form, lambda name=name: served.client.job(name).run(2)) == {"rows": 2, "name": "a"}
        run = told(form, lambda name=name: served.client.job(name).trigger_and_wait(rows=1, name="c"))
        assert run.output == {"rows": 1, "name": "c"}
        assert told(form, lambda name=name, id=run.id: served.client.job(name).get_run(id)).id == run.id
    info = told(form, served.client.job("import-rows").get_info)
    assert (info.parameters, info.is_sleeping) == (("rows", "name"), False)
    assert info.input_schema["properties"]["rows"]["type"] == "integer"


def test_values_come_over_as_the_types_of_the_job_say(served: Served) -> None:
    client = served.client
    at = datetime(2026, 1, 31, 8, 30, 0, 123456, UTC)
    assert client.job(measure).run(Table(4, at), Decimal("2.5")).wait(PATIENCE) == Table(10, at)
    moment, numbers = client.job(pair).run(at).wait(PATIENCE)
    assert (moment, numbers, type(numbers)) == (at, {1, 2}, set)
    assert client.job(take_table).run(Table(5)).wait(PATIENCE) == 5
    assert client.job("take_table").run(Table(6)).wait(PATIENCE) == 6
    assert client.job("take_table").run(rows=7).wait(PATIENCE) == 7
    run = client.get_runs(job=pair).wait(PATIENCE)[0]
    assert run.output == (at, {1, 2})


@pytest.mark.parametrize("value", [(1, 2), {1: "a"}, b"\x00", {1, 2}], ids=["tuple", "int key", "bytes", "set"])
def test_what_would_arrive_as_something_else_is_refused(value: Any, idle: Served) -> None:
    with pytest.raises(ValidationError, match="would not arrive as it is"):
        idle.client.job(anything).trigger(value)
    with pytest.raises(NotKept, match="JSON can't tell it"):
        idle.client.send_signal("x", "answer", value)
    assert idle.client.get_runs().wait(PATIENCE) == []


def test_a_zone_that_json_can_not_tell_is_told_by_its_moment(served: Served) -> None:
    at = datetime(2026, 1, 31, 8, 30, tzinfo=ZoneInfo("Europe/Vienna"))
    assert served.client.job(pair).run(at).wait(PATIENCE)[0] == at


def test_whose_a_run_is_the_server_says(idle: Served) -> None:
    with pytest.raises(ValidationError, match="tenant: the server says"):
        idle.client.job(anything).options(tenant={"user": "ada"}).trigger(1).wait()


def test_what_does_not_fit_the_definition_is_refused_before_anything_is_sent(idle: Served) -> None:
    with pytest.raises(ValidationError, match="Invalid input: rows"):
        idle.client.job(import_rows).trigger("many")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="transaction"):
        idle.client.job(import_rows).options(connection=object()).trigger(1)
    with pytest.raises(ValidationError, match="defined where they run"):
        idle.client.job(parent).finalize(gathered)


@pytest.mark.parametrize(
    ("args", "kwargs", "error"),
    [
        ((1, "a", 3), {}, "takes 2 arguments, but 3"),
        ((), {"row": 1}, "row: there is no such parameter. There are: rows, name"),
        ((1,), {"rows": 2}, "rows: given twice"),
        (("many",), {}, "rows: Input should be a valid integer"),
        ((), {}, "rows: Field required"),
        ((float,), {}, "can't be sent as JSON"),
    ],
    ids=["too many", "unknown", "twice", "wrong type", "missing", "no JSON"],
)
def test_what_does_not_fit_a_job_by_name_is_refused(args: Any, kwargs: Any, error: str, idle: Served) -> None:
    with pytest.raises(ValidationError, match=error):
        idle.client.job("import-rows").trigger(*args, **kwargs).wait(PATIENCE)
    assert idle.client.get_runs().wait(PATIENCE) == []


@pytest.mark.parametrize(
    ("value", "path", "kind"),
    [
        ([b"x"], r"value\[0\]", "bytes"),
        ({"a": [1.5, float("nan")]}, r"value\.a\[1\]", "float"),
        ({1: 2}, r"value\[1\]", "int"),
        ((1, 2), "value", "tuple"),
        ({1, 2}, "value", "set"),
        (datetime(2026, 1, 1, tzinfo=UTC), "value", "datetime"),
        ([Decimal("1.10")], r"value\[0\]", "Decimal"),
        ([UUID(int=1)], r"value\[0\]", "UUID"),
        ([Table(1)], r"value\[0\]", "Table"),
    ],
    ids=["bytes", "nan", "int key", "tuple", "set", "datetime", "decimal", "uuid", "dataclass"],
)
def test_by_its_name_a_job_gets_nothing_that_would_arrive_as_something_else(
    value: Any, path: str, kind: str, idle: Served
) -> None:
    with pytest.raises(ValidationError, match=f"^Invalid input: {path}: {kind} comes back as .*by its definition"):
        idle.client.job("anything").trigger(value).wait(PATIENCE)
    with pytest.raises(NotKept, match=f"{path.removeprefix('value')}: {kind} comes back as"):
        idle.client.wake("approval", "k", output=value)
    assert idle.client.get_runs().wait(PATIENCE) == []


def test_a_number_that_is_none_is_refused_with_the_word_for_those_that_are(idle: Served) -> None:
    for number in (float("nan"), float("inf")):
        with pytest.raises(
            ValidationError, match=r"^Invalid input: value: .* Give texts, finite numbers, lists and dicts"
        ):
            idle.client.job("anything").trigger(number).wait(PATIENCE)


def test_by_its_name_a_job_gets_what_json_tells_as_it_is(served: Served) -> None:
    value = {"a": [None, True, 2**60, -0.0, 1e300, "\u00e4", {"": []}], "b": {}}
    assert served.client.job("anything").run(value).wait(PATIENCE) == value
    at = datetime(2026, 1, 31, tzinfo=UTC)
    with pytest.raises(ValidationError, match=r"^Invalid input: at: datetime comes back as str"):
        served.client.job("take_table").run(Table(6, at)).wait(PATIENCE)
    assert served.client.job("take_table").run({"rows": 6, "at": at.isoformat()}).wait(PATIENCE) == 6


@forms
def test_every_option_of_a_trigger_arrives(form: str, idle: Served) -> None:
    at = datetime(2036, 1, 31, 8, 30, tzinfo=UTC)
    for handle in (idle.client.job(import_rows), idle.client.job("import-rows")):
        timed = handle.options(
            idempotency_key=f"k{type(handle)}"[:20], concurrency_key="c", coalesce="skip", labels={"a": "b"},
            priority=5, run_at=at, queue="slow", retry=Retry(3, delay=2.0), timeout="1m", deadline="2m",
        )  # fmt: skip
        run = told(form, lambda timed=timed: timed.trigger(1))
        assert (run.labels, run.priority, run.run_at, run.queue) == ({"a": "b"}, 5, at, "slow")
        row = idle.app.get_run(run.id).wait(PATIENCE)._row
        assert (row.timeout, row.deadline_at - row.created_at) == (60_000_000, 120_000_000)
        assert Retry.from_json(row.retry) == Retry(3, delay=2.0)
        told(form, run.cancel)
    later = told(form, lambda: idle.client.job(import_rows).options(delay="1h").trigger(1))
    assert timedelta(minutes=59) < later.run_at - later.created_at < timedelta(minutes=61)


@forms
def test_keys_lead_to_the_run_that_is_there(form: str, idle: Served) -> None:
    handle = idle.client.job(import_rows).options(idempotency_key="k")
    first, second = told(form, lambda: handle.trigger(1)), told(form, lambda: handle.trigger(2))
    assert (second.id, first.disposition, second.disposition) == (first.id, "created", "idempotent")
    keyed = idle.client.job("import-rows").options(concurrency_key="c")
    waits = told(form, lambda: keyed.trigger(1))
    assert told(form, lambda: keyed.options(coalesce="skip").trigger(1)).disposition == "coalesced"
    with pytest.raises(ConflictError, match='concurrency key "c"'):
        told(form, lambda: keyed.trigger(1))
    assert told(form, lambda: idle.client.get_run(waits.id)).concurrency_key == "c"


@forms
def test_many_are_triggered_in_one_transaction_or_not_at_all(form: str, idle: Served) -> None:
    client = idle.client
    runs = told(form, lambda: client.trigger_many([import_rows.bind(1), client.job("asks").bind(), fails.bind()]))
    assert [run.job_name for run in runs] == ["import-rows", "asks", "fails"]
    with pytest.raises(ValidationError, match=r"calls\[1\]: Invalid input"):
        told(form, lambda: client.trigger_many([import_rows.bind(1), client.job("import-rows").bind("x")]))
    assert len(told(form, client.get_runs)) == 3
    assert told(form, lambda: client.trigger_many([])) == []


# -- errors --------------------------------------------------------------------------------------------------


@forms
def test_errors_are_those_of_the_library(form: str, served: Served) -> None:
    client = served.client
    with pytest.raises(RunFailed, match="no such file") as failed:
        told(form, lambda: client.job(fails).run())
    assert failed.value.error_type == "LookupError"
    run = told(form, lambda: client.get_run(failed.value.run_id))
    with pytest.raises(ConflictError):
        told(form, run.cancel)
    with pytest.raises(NotFoundError, match="Run not found: nothing"):
        told(form, lambda: client.cancel("nothing"))
    with pytest.raises(NotFoundError, match="Run not found: nothing"):
        told(form, lambda: client.wait_for_run("nothing"))
    with pytest.raises(NotFoundError, match="Job not found: nothing"):
        told(form, lambda: client.job("nothing").run())
    with pytest.raises(PayloadTooLarge):
        told(form, lambda: client.job(fails).trigger("x" * (1 << 21)))
    assert told(form, lambda: client.get_run("nothing")) is None
    held = told(form, lambda: client.job(holds).trigger())
    told(form, held.cancel)
    with pytest.raises(RunCancelled):
        told(form, held.result)
    told(form, run.delete)
    with pytest.raises(NotFoundError):
        told(form, run.refresh)


@forms
def test_a_wait_has_an_end_and_the_run_goes_on(form: str, idle: Served) -> None:
    run = told(form, lambda: idle.client.job(import_rows).trigger(1))
    with pytest.raises(TimeoutError):
        told(form, lambda: run.wait(timeout=0.05))
    with pytest.raises(TimeoutError):
        told(form, lambda: run.wait(timeout=0.05, on_progress=print))
    assert told(form, run.refresh).status is RunStatus.PENDING


def test_who_gave_up_waiting_leaves_no_stream_and_may_come_again(served: Served) -> None:
    run = served.client.job(asks).trigger().wait(PATIENCE)
    reply = run.result()
    handler = served.app.asgi  # noqa: F841 - the streams are counted by the handler that serves
    with pytest.raises(TimeoutError):
        reply.wait(0.2)
    until(lambda: not served.client._engine._tasks)
    served.client.send_signal(run.id, "answer", 5).wait(PATIENCE)
    assert reply.wait(PATIENCE) == 5


# -- managing ------------------------------------------------------------------------------------------------


@forms
def test_signals_and_wakes_arrive(form: str, served: Served) -> None:
    client = served.client
    run = told(form, lambda: client.job(asks).trigger())
    told(form, lambda: client.send_signal(run.id, "answer", {"yes": [1, None]}))
    assert told(form, run.result) == {"yes": [1, None]}
    approval: Any = served.app.get_job("approval")
    for job, key in ((approval, "a"), ("approval", "b"), (client.job("approval"), "c")):
        sleeper = told(form, lambda key=key: client.job("approval").trigger(key))
        told(form, lambda job=job, key=key: client.wake(job, key, output=7))
        assert told(form, sleeper.result) == 7
    first = told(form, lambda: client.job(approval).trigger("d"))
    assert told(form, lambda: client.job(approval).trigger("d")).disposition == "idempotent"
    told(form, lambda: client.wake(approval, "d", error=ValueError("not today")))
    with pytest.raises(RunFailed, match="not today"):
        told(form, first.result)
    with pytest.raises(ValidationError):
        told(form, lambda: client.wake("asks", "d", output=1))
    with pytest.raises(ValidationError, match="one of them"):
        client.wake("approval", "d")


@forms
def test_a_run_is_triggered_again(form: str, served: Served) -> None:
    run = told(form, lambda: served.client.job(import_rows).trigger_and_wait(1))
    again = told(form, lambda: served.client.retrigger(run.id))
    assert (again.id != run.id, again.input) == (True, run.input)
    ones = [told(form, lambda: served.client.retrigger(run.id, idempotency_key="k")).id for _ in range(2)]
    assert len(set(ones)) == 1


@forms
def test_many_are_cancelled_and_triggered_again_by_a_filter(form: str, idle: Served) -> None:
    client = idle.client
    made = told(form, lambda: client.trigger_many([import_rows.bind(n) for n in range(5)]))
    other = told(form, lambda: client.job(fails).trigger())
    done = told(form, lambda: client.cancel_runs(job=import_rows, limit=3))
    assert list(done.done) == [run.id for run in reversed(made[2:])]
    assert len(told(form, lambda: client.cancel_runs(job="import-rows")).done) == 2
    fresh = told(form, lambda: client.retrigger_runs(status="cancelled", idempotency_key="k"))
    assert set(fresh.done) == {run.id for run in made}
    assert told(form, lambda: client.retrigger_runs(status="cancelled", idempotency_key="k")) == fresh
    assert told(form, lambda: client.get_run(other.id)).status is RunStatus.PENDING


# -- reading -------------------------------------------------------------------------------------------------


def described(run: Run[Any]) -> dict[str, Any]:
    names = [name for name, of in inspect.getmembers(Run, lambda one: isinstance(one, property))]
    return {name: getattr(run, name) for name in names}


@forms
def test_a_run_has_everything_that_it_has_in_the_library(form: str, served: Served) -> None:
    client = served.client
    runs = [
        told(form, lambda: client.job(import_rows).options(labels={"a": "b"}).trigger_and_wait(2)),
        told(form, lambda: client.job(fails).trigger_and_wait("^x")),
        told(form, lambda: client.job(pair).trigger_and_wait(datetime(2026, 1, 1, tzinfo=UTC))),
        told(form, lambda: client.job(parent).trigger_and_wait(2)),
    ]
    for run in runs:
        wanted = described(served.app.get_run(run.id).wait(PATIENCE))
        found = described(told(form, run.refresh))
        assert repr(found.pop("output")) == repr(wanted.pop("output"))  # that of a parent is a new object each time
        assert found == wanted


@forms
def test_steps_logs_workers_and_figures_are_those_of_the_library(form: str, served: Served) -> None:
    client = served.client
    run = told(form, lambda: client.job(import_rows).trigger_and_wait(3))
    steps, logs = told(form, lambda: client.get_steps(run.id)), told(form, lambda: client.get_logs(run.id))
    wanted = served.app.get_steps(run.id).wait(PATIENCE)
    assert [(one.name, one.output, one.status, len(one.attempts)) for one in steps] == [
        (one.name, one.output, one.status, len(one.attempts)) for one in wanted
    ]
    (line,) = served.app.get_logs(run.id).wait(PATIENCE)
    assert [(one.id, one.level, one.message, one.data) for one in logs] == [
        (line.id, "warning", "imported", {"rows": 3})
    ]
    assert told(form, lambda: client.get_logs(run.id, after=line.id)) == []
    assert told(form, lambda: client.get_logs(run.id, limit=0)) == []
    (worker,) = told(form, client.workers)
    assert (worker.pid, worker.is_alive) == (os.getpid(), True)
    stats = told(form, client.stats)
    assert (stats.verbs["trigger"].count >= 1, stats.rounds > 0) == (True, True)
    assert {one.name for one in told(form, client.get_jobs)} >= {"import-rows", "approval"}


@forms
def test_lists_are_filtered_and_read_page_by_page(form: str, idle: Served) -> None:
    client = idle.client
    made = told(form, lambda: client.trigger_many([import_rows.bind(n) for n in range(450)]))
    newest = [run.id for run in reversed(made)]
    assert [run.id for run in told(form, lambda: client.get_runs(limit=None))] == newest
    assert [run.id for run in told(form, lambda: client.get_runs(limit=250, offset=10))] == newest[10:260]
    assert [run.id for run in told(form, lambda: client.get_runs(before=newest[400]))] == newest[401:]
    assert [run.id for run in told(form, lambda: client.job(import_rows).get_runs(limit=3))] == newest[:3]
    assert told(form, lambda: client.get_runs(limit=0)) == []
    told(form, lambda: client.cancel(newest[5]))
    for handle in (client, client.job(import_rows), client.job("import-rows")):
        found = told(form, lambda handle=handle: handle.get_runs(status=["cancelled", RunStatus.FAILED]))
        assert [run.id for run in found] == [newest[5]]
    assert told(form, lambda: client.get_runs(labels={"a": "b"})) == []
    with pytest.raises(ValidationError, match="Invalid status"):
        client.get_runs(status="lost")


@forms
def test_a_status_is_asked_for_by_its_own_name(form: str, served: Served) -> None:
    run = told(form, lambda: served.client.job(asks).trigger())
    until(lambda: served.app.get_run(run.id).wait(PATIENCE).status is RunStatus.WAITING)
    assert [one.id for one in told(form, lambda: served.client.get_runs(status="waiting"))] == [run.id]
    assert told(form, lambda: served.client.get_runs(status="leased")) == []
    assert told(form, run.refresh).waiting_for == "signal"


@forms
def test_runs_below_are_listed(form: str, served: Served) -> None:
    client = served.client
    above = told(form, lambda: client.job(parent).trigger_and_wait(3))
    below = told(form, lambda: client.get_runs(parent=above.id))
    assert [(run.parent_id, run.root_id) for run in below] == [(above.id, above.id)] * 3
    assert len(told(form, lambda: client.get_runs(parent=above.id, limit=2))) == 2
    assert len(told(form, lambda: client.get_runs(parent=above.id, limit=2, offset=2))) == 1
    assert told(form, lambda: client.get_runs(parent=above.id, status="failed")) == []
    with pytest.raises(NotFoundError, match="Run not found: nothing"):
        told(form, lambda: client.get_runs(parent="nothing"))


def test_runs_below_that_may_not_be_seen_end_no_list_and_are_not_counted(house: House) -> None:
    hidden: set[str] = set()
    app = app_on(house.url)
    auth = Auth(authenticate=lambda _: "ada", on_run_access=lambda who, run, operation: run.id not in hidden)
    with serving(app.asgi(auth=auth, max_page=2), lifespan="on") as url, Client(url) as client:
        above = client.job(parent).trigger_and_wait(8).wait(PATIENCE)
        below = [one.id for one in client.get_runs(parent=above.id).wait(PATIENCE)]
        assert len(below) == 8
        hidden.update((*below[:3], below[5]))
        seen = [below[4], below[6], below[7]]

        def listed(**how: Any) -> list[str]:
            return [one.id for one in client.get_runs(parent=above.id, **how).wait(PATIENCE)]

        assert listed(limit=None) == [below[3], *seen]
        assert listed(offset=1, limit=None) == seen
        assert listed(offset=1, limit=2) == seen[:2]
        assert listed(before=below[3], limit=1) == seen[:1]
        assert listed(limit=0) == listed(offset=4) == []


# -- life ----------------------------------------------------------------------------------------------------


def test_a_closed_client_asks_nobody_and_leaves_nobody_waiting(idle: Served) -> None:
    client = Client(idle.url)
    run = client.job(import_rows).trigger(1).wait(PATIENCE)
    waits = run.wait()
    answers: list[BaseException] = []

    def wait() -> None:
        try:
            waits.wait(PATIENCE)
        except StoreClosed as error:
            answers.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: client._engine._tasks)
    client.close().wait(PATIENCE)
    thread.join(PATIENCE)
    assert len(answers) == 1
    with pytest.raises(StoreClosed):
        client.get_runs().wait(PATIENCE)
    client.close().wait(PATIENCE)


def test_a_client_that_is_forgotten_takes_its_thread_with_it(idle: Served) -> None:
    def threads() -> int:
        return sum(one.name == "holdfast-client" for one in threading.enumerate())

    before = threads()
    client = Client(idle.url)
    client.get_runs().wait(PATIENCE)
    assert threads() == before + 1
    del client
    gc.collect()
    until(lambda: threads() == before)


def test_one_client_serves_several_loops_and_threads(idle: Served) -> None:
    client = idle.client
    reply = client.job(import_rows).trigger(1)

    async def ask() -> str:
        return (await reply).id

    ids = {asyncio.run(ask()), asyncio.run(ask()), reply.wait(PATIENCE).id}
    assert len(ids) == 1


def test_a_loop_is_not_blocked(idle: Served) -> None:
    async def block() -> None:
        with pytest.raises(WouldDeadlock):
            idle.client.get_runs().wait()
        with pytest.raises(WouldDeadlock):
            for _ in idle.client.subscribe("x"):
                pass

    asyncio.run(block())


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://host", "http://", "http://h/?a=b", "http://h:port", None, "sqlite:///a.db"]
)
def test_what_is_no_url_of_a_server_is_refused(url: Any) -> None:
    with pytest.raises(ValidationError, match="url: "):
        Client(url)


def test_a_password_is_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    client = Client("http://ada:sesame@127.0.0.1:9/", headers={"Authorization": "Bearer sesame"}, retry=Retry(0))
    with pytest.raises(Exception, match="no answer") as refused:
        client.get_runs().wait(PATIENCE)
    assert "sesame" not in repr(client) + str(refused.value) + repr(refused.value) + caplog.text
    client.close().wait(PATIENCE)
