"""Ways around who may do what that were found by somebody who looked for them: each is closed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from pydantic import BaseModel

from asking import Asking
from holdfast import Children, Holdfast, NotFoundError, PayloadTooLarge, job
from holdfast.engine.call import Call
from holdfast.http import Auth, Request
from house import House


@job
async def nothing() -> None: ...


@job
async def number(n: int) -> int:
    return n


@job
async def parent() -> Children[None]:
    return Children(None, [nothing.bind()])


class Topic(BaseModel):
    """Labels of an app that knows nothing of tenants."""

    topic: str = ""


def who(request: Request) -> str:
    return request.header("x-user") or ""


def by_user(name: str) -> dict[str, str]:
    return {"user": name}


def as_(name: str) -> dict[str, str]:
    return {"X-User": name}


def run(test: Callable[[Asking], Any], house: House, options: dict[str, Any] | None = None, **hooks: Any) -> None:
    async def main() -> None:
        async with house.app(nothing, number, parent, worker=False, **(options or {})) as app:
            await test(Asking(app, auth=Auth(authenticate=who, **hooks)))

    asyncio.run(main())


async def ended(ask: Asking, name: str, **more: Any) -> str:
    """A run of theirs that was cancelled."""
    answer = await ask.post("/trigger", {"jobName": "nothing", "input": {}, **more}, headers=as_(name))
    assert answer.status == 200, answer
    run_id = str(answer.json["runId"])
    assert (await ask.post("/cancel", params={"runId": run_id}, headers=as_(name))).status == 200
    return run_id


def test_a_retrigger_keeps_the_labels_of_the_tenant_that_the_schema_does_not_know(house: House) -> None:
    async def test(ask: Asking) -> None:
        first = await ended(ask, "ada")
        again = await ask.post("/retrigger", params={"runId": first}, headers=as_("ada"))
        assert again.status == 200, again
        seen = await ask.get("/run", {"runId": again.json["runId"]}, headers=as_("ada"))
        assert seen.json["labels"]["user"] == "ada"

    run(test, house, {"labels_schema": Topic}, tenant=by_user)


def test_keys_of_retriggers_are_apart_also_of_runs_that_the_app_wrote_itself(house: House) -> None:
    async def test(ask: Asking) -> None:
        for name in ("ada", "bob"):
            first = await ask.handler.app.trigger(nothing.options(labels={"user": name}).bind())
            await ask.handler.app.cancel(first.id)
            params = {"runId": first.id, "idempotencyKey": "monday"}
            again = await ask.post("/retrigger", params=params, headers=as_(name))
            assert again.status == 200, (name, again)

    run(test, house, tenant=by_user)


def test_a_bulk_retrigger_by_a_key_leaves_out_what_an_earlier_one_made(house: House) -> None:
    async def test(ask: Asking) -> None:
        await ended(ask, "ada")
        await ended(ask, "ada")
        for made in (2, 2, 2):
            answer = await ask.post("/runs/retrigger", params={"idempotencyKey": "monday"}, headers=as_("ada"))
            assert len(answer.json["done"]) == made
            for run_id in {one["newRunId"] for one in answer.json["done"]}:
                await ask.post("/cancel", params={"runId": run_id}, headers=as_("ada"))
        assert len(house.status()) == 4

    run(test, house, tenant=by_user)


@pytest.mark.parametrize("none", [{"job_name": []}, {"status": []}], ids=["jobs", "statuses"])
def test_a_scope_of_no_jobs_or_statuses_shows_nothing_and_acts_on_nothing(none: dict[str, Any], house: House) -> None:
    async def test(ask: Asking) -> None:
        await ended(ask, "ada")
        assert (await ask.get("/runs")).json == []
        assert (await ask.get("/runs/records")).json["runs"] == []
        assert (await ask.post("/runs/retrigger")).json["done"] == []
        async with ask.stream("/runs/subscribe") as stream:
            await ended(ask, "ada")
            ask.handler.close()
            assert await stream.event() is None or none == {"status": []}, "of the stream a status is no part"

    run(test, house, scope_runs=lambda who, scope: {**scope, **none})


def test_children_of_a_status_and_a_state_that_exclude_each_other_are_none(house: House) -> None:
    async def test(ask: Asking) -> None:
        app = ask.handler.app
        above = await app.trigger(parent.bind())
        await app.process_until_idle()
        assert len((await ask.get("/run/children", {"runId": above.id})).json["runs"]) == 1
        both = {"runId": above.id, "status": "failed", "state": "pending"}
        assert (await ask.get("/run/children", both)).json == {"runs": [], "nextBefore": None}

    run(test, house)


def test_a_run_whose_hook_breaks_is_answered_as_one_that_is_not_there(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*_: Any) -> None:
        raise KeyError("no project of this run")

    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("nothing")
        theirs, missing = [await ask.get("/run", {"runId": one}) for one in (run_id, "missing")]
        assert (theirs.status, theirs.body) == (missing.status, missing.body) == (404, theirs.body)
        assert "no project of this run" in caplog.text

    run(test, house, on_run_access=breaks)


def test_an_error_of_ours_out_of_a_hook_is_no_word_about_the_request(house: House) -> None:
    def breaks(*_: Any) -> None:
        raise NotFoundError("a secret of the application")

    async def test(ask: Asking) -> None:
        for method, path in (("POST", "/trigger"), ("GET", "/runs"), ("GET", "/runs/subscribe"), ("GET", "/jobs")):
            answer = await ask.ask(method, path, {}, {"jobName": "nothing"} if method == "POST" else b"")
            assert answer.status == 500, path
            assert "secret" not in answer.error

    run(test, house, on_trigger=breaks, scope_runs=breaks, permit=breaks)


@pytest.mark.parametrize("name", ["wake", "holdfast:wake"])
def test_no_signal_ends_a_sleeping_run_around_what_a_wake_checks(name: str, house: House) -> None:
    async def test(ask: Asking) -> None:
        app = ask.handler.app
        app.sleeping("approval", output=int)
        run_id = await ask.trigger("approval", {"key": "order-7"})
        await app.process_until_idle()
        await ask.post("/signal", {"name": name, "value": {"output": "not an int"}}, {"runId": run_id})
        await app.process_until_idle()
        assert not (await ask.get("/run", {"runId": run_id})).json["isTerminal"]
        assert (await ask.post("/wake", {"jobName": "approval", "key": "order-7", "output": 5})).status == 200
        await app.process_until_idle()
        assert (await ask.get("/run", {"runId": run_id})).json["output"] == 5

    run(test, house)


def test_a_wake_asks_the_hooks_of_a_trigger_and_of_the_run(house: House) -> None:
    def on_trigger(name: str, body: dict[str, Any]) -> None:
        body["labels"] = {"owner": name}

    async def test(ask: Asking) -> None:
        ask.handler.app.sleeping("approval", output=int)
        body = {"jobName": "approval", "input": {"key": "k"}}
        run_id = (await ask.post("/trigger", body, headers=as_("ada"))).json["runId"]
        word = {"jobName": "approval", "key": "k", "output": 1}
        refused = await ask.post("/wake", word, headers=as_("bob"))
        assert (refused.status, refused.error) == (404, "Run not found")
        assert (await ask.post("/wake", word, headers=as_("ada"))).json["runId"] == run_id
        early = await ask.post("/wake", {**word, "key": "early"}, headers=as_("bob"))
        seen = await ask.get("/run", {"runId": early.json["runId"]}, headers=as_("bob"))
        assert seen.json["labels"] == {"owner": "bob"}, "also of one that is there by its wake"

    run(test, house, on_trigger=on_trigger, on_run_access=lambda name, run, _: run.labels["owner"] == name)


def test_a_body_that_a_hook_has_read_is_there_for_the_route(house: House) -> None:
    parts = [b'{"jobName": ', b'"nothing"}', b""]

    async def receive() -> bytes:
        return parts.pop(0)

    async def reads(request: Request) -> str:
        for most in (5, 1000, 1000):
            with contextlib.suppress(PayloadTooLarge):
                assert b"nothing" in await request.read(most)
        return "ada"

    async def main() -> None:
        async with house.app(nothing, worker=False) as app:
            handler = app.handler(auth=Auth(authenticate=reads))
            answer = await handler.handle(Request("POST", "/trigger", receive=receive))
            assert answer.status == 200, answer.body

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/runs/cancel", "/runs/retrigger", "/runs/records", "/run/children"])
def test_a_label_given_twice_is_refused_where_only_our_own_client_asks(path: str, house: House) -> None:
    async def test(ask: Asking) -> None:
        ids = [await ask.trigger("nothing", {}, labels={"team": team}) for team in ("a", "b")]
        twice = [("runId", ids[0])] if path == "/run/children" else []
        twice += [("label.team", "a"), ("label.topic", "x"), ("label.team", "b")]
        refused = await ask.ask("POST" if path in ("/runs/cancel", "/runs/retrigger") else "GET", path, twice)
        assert (refused.status, refused.error) == (400, "'label.team' is given twice. A run has one value of it.")
        assert house.status() == ["pending", "pending"]

    run(test, house)


@pytest.mark.parametrize(
    ("path", "misspelt", "error"),
    [
        ("/retrigger", {"idempotencykey": "k"}, "unknown parameter 'idempotencykey': did you mean idempotencyKey?"),
        ("/retrigger", {"idempotency_key": "k"}, "unknown parameter 'idempotency_key': did you mean idempotencyKey?"),
        ("/cancel", {"runid": "x"}, "unknown parameter 'runid': did you mean runId?"),
        ("/signal", {"key": "k"}, "unknown parameter 'key'. There are runId."),
        ("/wake", {"key": "k"}, "unknown parameter 'key'. There are none."),
        ("/runs/trigger", {"idempotencyKey": "k"}, "unknown parameter 'idempotencyKey'. There are none."),
        ("/runs/retrigger", {"idempotencykey": "k"}, "unknown parameter 'idempotencykey': did you mean idempotency"),
    ],
)
def test_a_parameter_that_is_not_read_does_not_make_another_run(
    path: str, misspelt: dict[str, str], error: str, house: House
) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ended(ask, "ada") if path == "/retrigger" else await ask.trigger("nothing")
        before = house.status()
        about = {"runId": run_id} if path in ("/retrigger", "/cancel", "/signal") else {}
        body = {"/signal": {"name": "go"}, "/runs/trigger": {"calls": [{"jobName": "nothing"}]}}.get(path, {})
        refused = await ask.post(path, body, params={**about, **misspelt})
        assert (refused.status, refused.error[: len(error)]) == (400, error)
        assert house.status() == before
        if path in ("/retrigger", "/cancel"):
            kept = await ask.post(path, params={**about, "colour": "x", "_": "1"})
            assert kept.status == 200, "the ancestor ignores other parameters"

    run(test, house)


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/signal", {"name": "go", "valu": 5}, "unknown name 'valu': did you mean value?"),
        ("/signal", {"name": "go", "data": 5}, "unknown name 'data'. There are name, value, key."),
        (
            "/wake",
            {"jobName": "approval", "key": "k", "output": 1, "outputs": 2},
            "unknown name 'outputs': did you mean",
        ),
        ("/wake", {"jobName": "approval", "key": "k", "output": 1, "labels": {}}, "unknown name 'labels'. There are"),
        ("/runs/trigger", {"calls": [], "idempotencyKey": "k"}, "unknown name 'idempotencyKey'. There are calls."),
    ],
)
def test_a_name_in_a_body_that_is_not_read_is_refused_by_our_own_routes(
    path: str, body: dict[str, Any], error: str, house: House
) -> None:
    async def test(ask: Asking) -> None:
        ask.handler.app.sleeping("approval", output=int)
        run_id = await ask.trigger("nothing")
        refused = await ask.post(path, body, params={"runId": run_id} if path == "/signal" else {})
        assert (refused.status, refused.error[: len(error)]) == (400, error)
        assert house.status() == ["pending"]

    run(test, house)


@pytest.mark.parametrize("path", ["/runs/cancel", "/runs/retrigger"])
@pytest.mark.parametrize(
    ("params", "body", "error"),
    [
        ({"jobNam": "x"}, b"", "unknown parameter 'jobNam'"),
        ({"offset": "2"}, b"", "unknown parameter 'offset'"),
        ({}, {"jobName": "x"}, "Filters go in the query"),
    ],
    ids=["misspelt", "offset", "body"],
)
def test_a_filter_that_nobody_reads_is_refused_before_it_acts_on_everything(
    path: str, params: dict[str, str], body: Any, error: str, house: House
) -> None:
    async def test(ask: Asking) -> None:
        await ended(ask, "ada")
        await ask.trigger("nothing")
        before = house.status()
        refused = await ask.post(path, body, params)
        assert refused.status == 400
        assert refused.error.startswith(error)
        assert house.status() == before

    run(test, house)


def test_many_of_which_one_leads_to_somebody_elses_run_leave_nothing_behind(house: House) -> None:
    async def test(ask: Asking) -> None:
        theirs = {"jobName": "nothing", "idempotencyKey": "k"}
        labelled = {**theirs, "labels": {"owner": "ada"}}
        assert (await ask.post("/trigger", labelled, headers=as_("ada"))).status == 200
        refused = await ask.post("/runs/trigger", {"calls": [{"jobName": "nothing"}, theirs]}, headers=as_("bob"))
        assert refused.status == 409
        assert house.status() == ["pending"], "that of ada"

    run(test, house, on_run_access=lambda name, run, _: run.labels.get("owner") == name)


def test_many_of_which_one_leads_to_somebody_elses_run_are_refused_before_any_of_them_begins(
    house: House,
) -> None:
    began: list[int] = []
    apps: list[Holdfast] = []

    @job
    async def begins(n: int) -> None:
        began.append(n)

    async def what_is_there_begins() -> None:
        await apps[0].jobs.nothing.run()  # which was triggered after it

    async def on_run_access(name: str, run: Any, _: str) -> bool:
        await what_is_there_begins()
        return run.labels.get("owner") == name

    async def test(ask: Asking) -> None:
        theirs = {"jobName": "begins", "input": {"n": 0}, "idempotencyKey": "k"}
        mine = [{"jobName": "begins", "input": {"n": n}} for n in (1, 2)]
        labelled = {**theirs, "labels": {"owner": "ada"}}
        assert (await ask.post("/trigger", labelled, headers=as_("ada"))).status == 200
        refused = await ask.post("/runs/trigger", {"calls": [*mine, theirs]}, headers=as_("bob"))
        assert (refused.status, refused.error) == (409, "calls[2]: There is a run of this key already.")
        await what_is_there_begins()
        assert (len(await apps[0].get_runs(job="begins")), began) == (1, [0])

    async def main() -> None:
        async with house.app(begins, nothing) as app:
            apps.append(app)
            await test(Asking(app, auth=Auth(authenticate=who, on_run_access=on_run_access)))

    asyncio.run(main())


def test_what_was_written_beside_a_run_that_came_meanwhile_stays_and_is_named(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(ask: Asking) -> None:
        app = ask.handler.app
        look = app._standing

        async def looked(calls: Sequence[Call[Any]]) -> Any:
            found = await look(calls)
            await app._trigger(calls[-1])  # by somebody else, between the look and the write
            return found

        monkeypatch.setattr(app, "_standing", looked)
        calls = [{"jobName": "nothing", "labels": {"owner": "bob"}}, {"jobName": "nothing", "idempotencyKey": "k"}]
        refused = await ask.post("/runs/trigger", {"calls": calls}, headers=as_("bob"))
        (written,) = (await ask.get("/runs", {"label.owner": "bob"}, headers=as_("bob"))).json
        assert refused.status == 409
        assert refused.error.startswith("calls[1]: There is a run of this key already. ")
        assert written["id"] in refused.error
        assert house.status() == ["pending", "pending"]

    run(test, house, on_run_access=lambda name, run, _: run.labels.get("owner") == name)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"idempotency_key": "k"}, "unknown name 'idempotency_key': did you mean idempotencyKey?"),
        ({"label": {"a": "b"}}, "unknown name 'label': did you mean labels?"),
        ({"input": {"n": 1, "name": "x"}}, "Invalid input: 'name': there is no such parameter. There are: n."),
        ({"colour": 1}, "unknown name 'colour'. There are jobName, input, "),
    ],
    ids=["snake", "near", "input", "unknown"],
)
def test_a_name_that_nobody_knows_is_refused_where_only_our_own_client_asks(
    more: dict[str, Any], error: str, house: House
) -> None:
    async def test(ask: Asking) -> None:
        body = {"jobName": "number", "input": {"n": 1}, **more}
        refused = await ask.post("/runs/trigger", {"calls": [body]})
        assert (refused.status, refused.error[: len(error)]) == (400, error)
        compatible = await ask.post("/trigger", body)
        assert compatible.status == (400 if "did you mean" in error else 200), "the ancestor drops other names"

    run(test, house)


def test_a_misspelt_option_is_refused_unless_a_hook_takes_it_out(house: House) -> None:
    def on_trigger(_: str, body: dict[str, Any]) -> None:
        body["labels"] = {"team": body.pop("label", "none")}

    async def test(ask: Asking) -> None:
        refused = await ask.post("/trigger", {"jobName": "nothing", "idempotency_key": "k"})
        assert (refused.status, refused.error) == (400, "unknown name 'idempotency_key': did you mean idempotencyKey?")
        assert house.status() == []
        made = await ask.post("/trigger", {"jobName": "nothing", "label": "x", "colour": 1})
        assert made.status == 200, "the hook has read the one, and may have read the other"
        assert (await ask.get("/run", {"runId": made.json["runId"]})).json["labels"] == {"team": "x"}

    run(test, house, on_trigger=on_trigger)


def test_a_hook_of_triggers_may_say_which_job_it_is_and_that_one_is_checked(house: House) -> None:
    def on_trigger(_: str, body: dict[str, Any]) -> None:
        body["jobName"] = body.pop("instead")

    async def test(ask: Asking) -> None:
        made = await ask.post("/trigger", {"jobName": "nothing", "instead": "number", "input": {"n": 1}})
        assert (await ask.get("/run", {"runId": made.json["runId"]})).json["jobName"] == "number"
        refused = await ask.post("/trigger", {"jobName": "nothing", "instead": "number", "input": {}})
        assert (refused.status, refused.error[:13]) == (400, "Invalid input")
        unknown = await ask.post("/trigger", {"jobName": "nothing", "instead": "nobody"})
        assert (unknown.status, unknown.error) == (404, "Job not found: nobody")

    run(test, house, on_trigger=on_trigger)


def test_a_hook_of_triggers_does_not_make_a_wake_one_of_another_job(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    def on_trigger(_: str, body: dict[str, Any]) -> None:
        body["jobName"] = "other"

    async def test(ask: Asking) -> None:
        for name in ("approval", "other"):
            ask.handler.app.sleeping(name, output=int)
        broken = await ask.post("/wake", {"jobName": "approval", "key": "k", "output": 1})
        assert (broken.status, house.status()) == (500, [])
        assert "on_trigger made a wake of approval one of other" in caplog.text
        assert (await ask.post("/wake", {"jobName": "other", "key": "k", "output": 1})).status == 200

    run(test, house, on_trigger=on_trigger)


@pytest.mark.parametrize("given", [{"jobName": "nothing"}, "yes", 1, []], ids=["body", "text", "number", "list"])
def test_a_body_that_a_hook_of_triggers_returns_is_not_ignored_without_a_word(
    given: Any, house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(ask: Asking) -> None:
        broken = await ask.post("/trigger", {"jobName": "nothing", "priority": 99})
        assert broken.status == 500
        assert f"on_trigger gave {type(given).__name__}" in caplog.text
        assert house.status() == []

    run(test, house, on_trigger=lambda *_: given)


@pytest.mark.parametrize("yes", [lambda _, __: True, lambda _, body: body], ids=["yes", "the body"])
def test_a_hook_of_triggers_may_say_yes(yes: Any, house: House) -> None:
    async def test(ask: Asking) -> None:
        assert (await ask.post("/trigger", {"jobName": "nothing"})).status == 200

    run(test, house, on_trigger=yes)
