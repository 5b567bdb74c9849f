"""Who may do what: the hooks, tenants, and each threat of docs/explanation/reliability that comes over HTTP."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from asking import PATIENCE, Answer, Asking
from holdfast import Children, ConflictError, Holdfast, Run, ValidationError, job
from holdfast.http import Auth, Insecure, Need, Reject, Request
from holdfast.http.routes import ROUTES, Route
from house import House


@job
async def nothing() -> None: ...


@job
async def number(n: int) -> int:
    return n


@job
async def parent() -> Children[None]:
    return Children(None, [nothing.bind()])


def who(request: Request) -> str:
    """A bearer token that is the name."""
    kind, _, token = (request.header("authorization") or "").partition(" ")
    if kind != "Bearer" or token not in ("a", "b", "admin"):
        raise Reject(401, "Who are you?", headers={"WWW-Authenticate": "Bearer"})
    return token


def by_tenant(name: str) -> dict[str, str]:
    return {"tenant": name}


def run(test: Callable[[Asking], Any], house: House, **options: Any) -> None:
    async def main() -> None:
        async with house.app(nothing, number, parent, worker=False) as app:
            await test(Asking(app, **options))

    asyncio.run(main())


def as_(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


# -- T3: nobody forgets it ------------------------------------------------------------------------------------------


def test_t3_without_auth_only_this_machine_is_answered(house: House) -> None:
    async def test(ask: Asking) -> None:
        for client in ("127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"):
            ask.client = client
            assert (await ask.get("/runs", headers={"Host": "localhost:8000"})).status == 200
        for client in ("10.0.0.1", "192.168.1.5", "2001:db8::1", "::ffff:10.0.0.1", "not an address", ""):
            ask.client = client
            for route in ROUTES:
                answer = await ask.ask(route.method, route.path, headers={"Host": "localhost"})
                assert answer.status == (200 if route.need is Need.NOTHING else 403), (client, route)
            refused = await ask.get("/runs", headers={"Host": "localhost"})
            assert "auth=" in refused.error

    run(test, house)


def test_t3_switching_it_off_needs_a_reason(house: House) -> None:
    for reason in ("", "  ", None):
        with pytest.raises(ValidationError, match="reason"):
            Insecure(reason)  # type: ignore[arg-type]

    async def test(ask: Asking) -> None:
        ask.client = "10.0.0.1"
        assert (await ask.get("/runs", headers={"Host": "anything.example"})).status == 200

    run(test, house, auth=Insecure("a private network"))


def test_t3_auth_without_authenticate_is_refused_where_it_is_made() -> None:
    with pytest.raises(ValidationError, match="authenticate is required"):
        Auth(authenticate=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Auth()  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="on_trigger"):
        Auth(authenticate=who, on_trigger="no")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="neither Auth"):
        Holdfast("sqlite://").handler(auth={"authenticate": who})  # type: ignore[typeddict-item]


def test_t3_every_route_without_credentials_is_401(house: House) -> None:
    async def test(ask: Asking) -> None:
        for route in ROUTES:
            answer = await ask.ask(route.method, route.path)
            assert answer.status == (200 if route.need is Need.NOTHING else 401), route
        assert (await ask.get("/unknown")).status == 401
        assert (await ask.get("/runs")).headers["WWW-Authenticate"] == "Bearer"

    run(test, house, auth=Auth(authenticate=who))


# -- T4: no way around ----------------------------------------------------------------------------------------------


def test_t4_a_route_that_does_not_say_what_it_needs_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="says what it needs"):
        Route("GET", "/x", None, ROUTES[0].act, {})  # type: ignore[arg-type]
    open_to_all = [route.path for route in ROUTES if route.need is Need.NOTHING]
    assert open_to_all == ["/health", "/ready"]
    assert {route.need for route in ROUTES} == set(Need)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("nobody", [None, False])
def test_t4_nobody_is_let_in_by_an_authenticate_that_gives_nothing(nobody: Any, is_async: bool, house: House) -> None:
    async def slow(_: Request) -> Any:
        return nobody

    asked: list[str] = []
    auth = Auth(
        authenticate=slow if is_async else lambda _: nobody,
        on_trigger=lambda *_: asked.append("on_trigger"),
        on_run_access=lambda *_: asked.append("on_run_access"),
        scope_runs=lambda _, scope: asked.append("scope_runs") or scope,
        permit=lambda *_: asked.append("permit"),
    )

    async def test(ask: Asking) -> None:
        for route in ROUTES:
            if route.need is not Need.NOTHING:
                answer = await ask.ask(route.method, route.path, {"runId": "x"}, {"jobName": "nothing"})
                assert (answer.status, answer.error) == (401, "Unauthorized"), route
        assert (await ask.get("/unknown")).status == 401
        assert (asked, house.status()) == ([], [])

    run(test, house, auth=auth, on_request=lambda: asked.append("on_request"))


@pytest.mark.parametrize("somebody", ["", 0, {}, ()])
def test_t4_every_hook_is_called_whoever_it_is(somebody: Any, house: House) -> None:
    called: list[str] = []

    def hook(name: str, value: Any = None) -> Any:
        def call(*args: Any) -> Any:
            assert name == "authenticate" or args[0] is somebody
            called.append(name)
            return args[1] if name.startswith("scope") else value

        return call

    auth = Auth(
        authenticate=hook("authenticate", somebody),
        on_trigger=hook("on_trigger"),
        on_run_access=hook("on_run_access"),
        scope_runs=hook("scope_runs"),
        scope_runs_subscribe=hook("scope_runs_subscribe"),
        permit=hook("permit"),
    )

    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("nothing")
        await ask.get("/run", {"runId": run_id})
        await ask.get("/runs")
        async with ask.stream("/runs/subscribe"):
            pass
        await ask.get("/stats")
        assert [name for name in called if name != "authenticate"] == [
            "on_trigger", "on_run_access", "scope_runs", "permit", "scope_runs_subscribe", "permit", "permit",
        ]  # fmt: skip

    run(test, house, auth=auth)


@pytest.mark.parametrize("answer", [Reject(401, "no"), RuntimeError("secret"), ValidationError("secret"), False])
@pytest.mark.parametrize("is_async", [False, True])
def test_t4_a_hook_that_raises_or_says_false_is_a_refusal(answer: Any, is_async: bool, house: House) -> None:
    def plain(_: Any) -> Any:
        if answer is False:
            return False
        raise answer

    async def slow(request: Any) -> Any:
        return plain(request)

    async def test(ask: Asking) -> None:
        for route in ROUTES:
            if route.need is not Need.NOTHING:
                refused = await ask.ask(route.method, route.path, {"runId": "x"})
                assert refused.status == (401 if answer is False or isinstance(answer, Reject) else 500)
                assert "secret" not in refused.error

    run(test, house, auth=Auth(authenticate=slow if is_async else plain))


HANGING = """
import asyncio, logging, threading
from holdfast import Holdfast
from holdfast.http import Auth, Request
import holdfast.http.auth

logging.disable()
holdfast.http.auth.PATIENCE = 0.05
never = threading.Event()

async def main():
    async with Holdfast("sqlite://") as app:
        handler = app.handler(auth=Auth(authenticate=lambda _: never.wait()))
        print((await handler.handle(Request("GET", "/runs", "", {}, b"", None))).status)

asyncio.run(main())
"""


def test_t4_a_hook_that_takes_too_long_is_a_refusal(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.http.auth.PATIENCE", 0.02)

    async def never(_: Any) -> Any:
        await asyncio.Event().wait()

    async def test(ask: Asking) -> None:
        assert (await ask.get("/runs")).status == 500

    run(test, house, auth=Auth(authenticate=never))


def test_t4_plain_hooks_that_never_return_are_refusals_and_keep_no_more_than_so_many_threads(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.http.auth.PATIENCE", 0.02)
    monkeypatch.setattr("holdfast.http.aside.MOST", 2)
    may_return = threading.Event()

    async def test(ask: Asking) -> None:
        try:
            assert [(await ask.get("/runs")).status for _ in range(4)] == [500, 500, 503, 503]
        finally:
            may_return.set()

    run(test, house, auth=Auth(authenticate=lambda _: may_return.wait(PATIENCE)))


def test_t4_a_server_stops_although_a_hook_never_returns() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "500\n", "")


def test_t4_a_scope_hook_that_forgets_its_return_shows_nothing(house: House) -> None:
    async def test(ask: Asking) -> None:
        assert (await ask.get("/runs")).status == 500
        assert (await ask.get("/runs/subscribe")).status == 500

    run(test, house, auth=Auth(authenticate=lambda _: "x", scope_runs=lambda *_: None))


@pytest.mark.parametrize(
    "path", ["/x/../run", "//run", "/%72un", "/run/", "/RUN", "/run;x", "/health/../run", "/run/health", "/./run"]
)
def test_t4_no_spelling_of_a_path_leads_around_the_gate(path: str, house: House) -> None:
    async def test(ask: Asking) -> None:
        assert (await ask.get(path)).status == 401
        assert (await ask.get(path, headers=as_("a"))).status == 404

    run(test, house, auth=Auth(authenticate=who))


# -- the hooks of the ancestor ---------------------------------------------------------------------------------------


def test_authenticate_comes_before_on_request_and_a_refusal_keeps_it_from_being_called(house: House) -> None:
    order: list[str] = []

    def authenticate(request: Request) -> str:
        order.append("authenticate")
        return who(request)

    async def test(ask: Asking) -> None:
        assert (await ask.get("/unknown", headers=as_("a"))).status == 404
        assert order == ["authenticate", "on_request"]
        assert (await ask.get("/runs")).status == 401
        assert order == ["authenticate", "on_request", "authenticate"]

    run(test, house, auth=Auth(authenticate=authenticate), on_request=lambda: order.append("on_request"))


def test_on_request_may_open_the_app_and_its_faults_are_ours(house: House) -> None:
    async def main() -> None:
        app = house.app(nothing, worker=False)
        began: list[Any] = []

        async def begin() -> None:
            if not began:
                began.append(await app.init())

        ask = Asking(app, on_request=begin)
        assert (await ask.get("/runs")).json == []
        await app.stop()

        def broken() -> None:
            raise OSError("secret")

        refused = await Asking(app, on_request=broken).get("/runs")
        assert (refused.status, "secret" in refused.error) == (500, False)

    asyncio.run(main())


def test_on_trigger_gets_who_it_is_and_the_body_and_what_it_changes_counts(house: House) -> None:
    asked: list[Any] = []

    async def on_trigger(name: str, body: dict[str, Any]) -> None:
        asked.append((name, dict(body)))
        if body["input"].get("n") == 13:
            raise Reject(403, "not that one")
        body["labels"] = {"by": name}

    async def test(ask: Asking) -> None:
        ask.headers = as_("a")
        for body, status in (({}, 400), ({"jobName": "x"}, 404)):
            assert (await ask.post("/trigger", body)).status == status
        assert asked == []
        refused = await ask.post("/trigger", {"jobName": "number", "input": {"n": 13}})
        assert (refused.status, refused.error) == (403, "not that one")
        run_id = await ask.trigger("number", {"n": 1}, labels={"by": "somebody else"})
        assert asked[-1] == (
            "a", {"jobName": "number", "input": {"n": 1}, "labels": {"by": "somebody else"}},
        )  # fmt: skip
        assert (await ask.get("/run", {"runId": run_id})).json["labels"] == {"by": "a"}
        many = len(asked)
        await ask.post("/cancel", params={"runId": run_id})
        assert (await ask.post("/retrigger", params={"runId": run_id})).status == 200
        assert len(asked) == many, "a retrigger is no trigger"
        calls = [{"jobName": "number", "input": {"n": n}} for n in (1, 13)]
        refused = await ask.post("/runs/trigger", {"calls": calls})
        assert (refused.status, len(house.status())) == (403, 2), "of many it is asked about each, and none is written"

    run(test, house, auth=Auth(authenticate=who, on_trigger=on_trigger))


def test_on_run_access_gets_the_run_and_what_is_to_be_done_with_it(house: House) -> None:
    asked: list[tuple[str, str, str]] = []

    def on_run_access(name: str, run: Run[Any], operation: str) -> None:
        asked.append((name, run.id, operation))

    async def test(ask: Asking) -> None:
        ask.headers = as_("a")
        run_id = await ask.trigger("nothing")
        for place in ("GET /run", "GET /steps", "POST /cancel", "POST /retrigger", "DELETE /run"):
            assert (await ask.ask(*place.split(" "), {"runId": run_id})).status == 200, place
        assert asked == [("a", run_id, one) for one in ("read", "steps", "cancel", "retrigger", "delete")]
        other = await ask.trigger("nothing")
        async with ask.stream("/subscribe", {"runId": other}):
            pass
        await ask.get("/run/logs", {"runId": other})
        await ask.post("/signal", {"name": "x"}, {"runId": other})
        assert [one[2] for one in asked[5:]] == ["subscribe", "logs", "signal"]

    run(test, house, auth=Auth(authenticate=who, on_run_access=on_run_access))


@pytest.mark.parametrize("no", [Reject(403, "no"), Reject(404, "gone"), False])
def test_t5_a_run_that_may_not_be_seen_is_answered_as_one_that_is_not_there(no: Any, house: House) -> None:
    def on_run_access(name: str, *_: Any) -> Any:
        if name == "a" or no is False:
            return name == "a"
        raise no

    async def test(ask: Asking) -> None:
        ask.headers = as_("a")
        run_id = await ask.trigger("nothing", idempotencyKey="k")
        for route in ROUTES:
            if route.need.is_of_a_run:
                answers = [
                    await ask.ask(route.method, route.path, {"runId": one}, headers=as_("b"))
                    for one in (run_id, "nobody")
                ]
                assert answers[0] == answers[1]
                assert answers[0].status == 404
        again = await ask.post("/trigger", {"jobName": "nothing", "idempotencyKey": "k"}, headers=as_("b"))
        assert again.status == 409, "q26: the id of a run that they may not see is not told"
        assert run_id not in again.error

    run(test, house, auth=Auth(authenticate=who, on_run_access=on_run_access))


def test_another_status_of_a_hook_is_answered_as_it_is(house: House) -> None:
    def on_run_access(*_: Any) -> None:
        raise Reject(429, "later", headers={"Retry-After": "9"}, body=b'{"mine": 1}')

    async def test(ask: Asking) -> None:
        ask.headers = as_("a")
        run_id = await ask.trigger("nothing")
        answer = await ask.get("/run", {"runId": run_id})
        assert (answer.status, answer.body, answer.headers["Retry-After"]) == (429, b'{"mine": 1}', "9")

    run(test, house, auth=Auth(authenticate=who, on_run_access=on_run_access))


def test_scope_runs_gets_what_was_asked_and_says_what_is_listed(house: House) -> None:
    asked: list[Any] = []

    async def scope(name: str, given: Any) -> Any:
        asked.append(json.loads(json.dumps(given)))
        return {**given, "labels": {**given.get("labels", {}), "by": name}}

    async def test(ask: Asking) -> None:
        ask.headers = as_("a")
        mine = await ask.trigger("nothing", labels={"by": "a"})
        await ask.trigger("nothing", labels={"by": "b"})
        listed = await ask.get("/runs", [("status", "pending"), ("limit", "5")])
        assert [one["id"] for one in listed.json] == [mine]
        await ask.get("/runs", [("status", "pending"), ("status", "failed"), ("jobName", "x"), ("label.q", "1")])
        async with ask.stream("/runs/subscribe", {"jobName": "nothing", "label.q": "1", "status": "x"}):
            pass
        assert asked == [
            {"status": "pending", "limit": 5},
            {"status": ["pending", "failed"], "job_name": ["x"], "labels": {"q": "1"}, "limit": 500},
            {"job_name": ["nothing"], "labels": {"q": "1"}},
        ]

    run(test, house, auth=Auth(authenticate=who, scope_runs=scope))


def test_the_stream_of_all_runs_has_a_scope_of_its_own(house: House) -> None:
    async def test(ask: Asking) -> None:
        ask.headers = as_("a")
        async with ask.stream("/runs/subscribe") as stream:
            await ask.trigger("nothing", labels={"by": "b"})
            mine = await ask.trigger("nothing", labels={"by": "stream"})
            assert (await stream.until("run:trigger"))["runId"] == mine

    auth = Auth(
        authenticate=who,
        scope_runs=lambda _, given: given,
        scope_runs_subscribe=lambda _, given: {**given, "labels": {"by": "stream"}},
    )
    run(test, house, auth=auth)


# -- T5: tenants -----------------------------------------------------------------------------------------------------

OF_TENANTS = Auth(authenticate=who, tenant=by_tenant)


def test_t5_a_run_has_the_labels_of_its_tenant_whatever_was_sent(house: House) -> None:
    async def test(ask: Asking) -> None:
        sent = {"jobName": "nothing", "labels": {"tenant": "b", "more": "x"}}
        answer = await ask.post("/trigger", sent, headers=as_("a"))
        shown = await ask.get("/run", {"runId": answer.json["runId"]}, headers=as_("a"))
        assert shown.json["labels"] == {"tenant": "a", "more": "x"}

    run(test, house, auth=OF_TENANTS)


OF_A = {"tenant": "a"}


def test_t5_the_application_itself_may_act_for_a_tenant(house: House) -> None:
    async def test(ask: Asking) -> None:
        mine = await nothing_of(ask).options(tenant=OF_A, labels={"tenant": "b", "more": "x"}).trigger()
        assert mine.labels == {"tenant": "a", "more": "x"}
        assert (await ask.get("/run", {"runId": mine.id}, headers=as_("a"))).json["labels"] == mine.labels
        assert (await ask.get("/run", {"runId": mine.id}, headers=as_("b"))).status == 404

    run(test, house, auth=OF_TENANTS)


def nothing_of(ask: Asking) -> Any:
    return ask.handler.app.get_job("nothing")


@pytest.mark.parametrize("first", ["over HTTP", "by the application"])
def test_t5_the_keys_of_a_tenant_are_the_same_for_the_application(house: House, first: str) -> None:
    async def test(ask: Asking) -> None:
        body = {"jobName": "nothing", "idempotencyKey": "i", "concurrencyKey": "c"}
        ours = nothing_of(ask).options(tenant=OF_A)
        there = (await ask.post("/trigger", body, headers=as_("a"))).json["runId"] if first == "over HTTP" else None
        here = (await ours.options(idempotency_key="i", concurrency_key="c").trigger()).id
        there = there or (await ask.post("/trigger", body, headers=as_("a"))).json["runId"]
        assert here == there
        with pytest.raises(ConflictError):
            await ours.options(concurrency_key="c").trigger()
        await nothing_of(ask).options(concurrency_key="c").trigger()
        refused = await ask.post("/trigger", {"jobName": "nothing", "concurrencyKey": "c"}, headers=as_("a"))
        assert (refused.status, 'concurrency key "c"' in str(refused.error)) == (409, True)

    run(test, house, auth=OF_TENANTS)


def test_t5_the_application_wakes_the_sleeping_run_of_a_tenant(house: House) -> None:
    async def test(ask: Asking) -> None:
        approval = ask.handler.app.sleeping("approval")
        sent = {"jobName": "approval", "input": {"key": "order-7"}}
        theirs = {name: (await ask.post("/trigger", sent, headers=as_(name))).json["runId"] for name in ("a", "b")}
        woken = await ask.handler.app.wake(approval.options(tenant=OF_A), "order-7", output=True)
        assert woken.id == theirs["a"]
        assert house.sql("select run_id from holdfast_signals") == [(theirs["a"],)]

    run(test, house, auth=OF_TENANTS)


@pytest.mark.parametrize("wrong", ["a", {"tenant": 1}, {"no key": "a"}, {"tenant": "a" * 250}])
def test_t5_a_tenant_that_can_not_be_one_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError, match=r"^tenant: "):
        Holdfast("sqlite://").register(nothing).options(tenant=wrong)


def test_t5_another_tenants_run_is_answered_as_one_that_is_not_there_on_every_route(house: House) -> None:
    async def test(ask: Asking) -> None:
        sent = await ask.post("/trigger", {"jobName": "nothing"}, headers=as_("a"))
        run_id = sent.json["runId"]
        for route in ROUTES:
            if route.need.is_of_a_run:
                foreign, missing = [
                    await ask.ask(route.method, route.path, {"runId": one}, headers=as_("b"))
                    for one in (run_id, "01ARZ3NDEKTSV4RRFFQ69G5FAV")
                ]
                assert foreign == missing
                assert (foreign.status, foreign.error) == (404, "Run not found")
        assert house.status() == ["pending"]

    run(test, house, auth=OF_TENANTS)


def test_t5_a_list_shows_what_is_theirs_whatever_is_asked_for(house: House) -> None:
    async def test(ask: Asking) -> None:
        mine = (await ask.post("/trigger", {"jobName": "nothing"}, headers=as_("a"))).json["runId"]
        await ask.post("/trigger", {"jobName": "nothing"}, headers=as_("b"))

        async def ids(*params: tuple[str, str]) -> list[str]:
            answer = await ask.get("/runs", list(params), headers=as_("a"))
            return [one["id"] for one in answer.json]

        assert await ids() == [mine]
        assert await ids(("label.tenant", "a")) == [mine]
        assert await ids(("label.tenant", "b")) == []
        assert await ids(("label.tenant", "b"), ("label.tenant", "a")) == [mine]
        assert await ids(("label.tenant", "a"), ("label.tenant", "b")) == []

    run(test, house, auth=OF_TENANTS)


def test_t5_a_scope_hook_can_only_narrow_what_a_tenant_sees(house: House) -> None:
    async def test(ask: Asking) -> None:
        await ask.post("/trigger", {"jobName": "nothing"}, headers=as_("b"))
        assert (await ask.get("/runs", headers=as_("a"))).json == []

    run(test, house, auth=Auth(authenticate=who, tenant=by_tenant, scope_runs=lambda *_: {"labels": {"tenant": "b"}}))


def test_t5_the_stream_of_all_runs_tells_a_tenant_what_is_theirs(house: House) -> None:
    async def test(ask: Asking) -> None:
        async with (
            ask.stream("/runs/subscribe", headers=as_("a")) as stream,
            ask.stream("/runs/subscribe", {"label.tenant": "b"}, headers=as_("a")) as greedy,
        ):
            reading = asyncio.ensure_future(greedy.rest())
            await ask.post("/trigger", {"jobName": "nothing"}, headers=as_("b"))
            mine = (await ask.post("/trigger", {"jobName": "nothing"}, headers=as_("a"))).json["runId"]
            assert (await stream.until("run:trigger"))["runId"] == mine
            ask.handler.close()
            assert await reading == []

    run(test, house, auth=OF_TENANTS)


def test_t5_keys_of_two_tenants_have_nothing_to_do_with_each_other(house: House) -> None:
    async def test(ask: Asking) -> None:
        body = {"jobName": "nothing", "idempotencyKey": "i", "concurrencyKey": "c"}
        answers = [await ask.post("/trigger", body, headers=as_(name)) for name in ("a", "b", "a", "b")]
        assert [answer.json["disposition"] for answer in answers] == ["created", "created", "idempotent", "idempotent"]
        assert answers[0].json["runId"] == answers[2].json["runId"] != answers[1].json["runId"]
        second = {"jobName": "nothing", "concurrencyKey": "c"}
        refused = await ask.post("/trigger", second, headers=as_("b"))
        assert (refused.status, 'concurrency key "c" in' in refused.error) == (409, True)
        assert "tenant" not in refused.error
        among = await ask.post("/runs/trigger", {"calls": [{"jobName": "nothing"}, second]}, headers=as_("b"))
        assert (among.status, among.error) == (409, f"calls[1]: {refused.error}")
        skipped = await ask.post("/trigger", second | {"coalesce": "skip"}, headers=as_("b"))
        assert skipped.json == {"runId": answers[1].json["runId"], "disposition": "coalesced"}
        await ask.post("/cancel", params={"runId": answers[1].json["runId"]}, headers=as_("b"))
        again = await ask.post("/retrigger", params={"runId": answers[1].json["runId"]}, headers=as_("b"))
        assert (await ask.get("/run", {"runId": again.json["runId"]}, headers=as_("b"))).status == 200
        taken = await ask.post("/retrigger", params={"runId": answers[1].json["runId"]}, headers=as_("b"))
        assert (taken.status, 'concurrency key "c" in' in taken.error) == (409, True)

    run(test, house, auth=OF_TENANTS)


def test_t5_runs_below_a_run_and_those_that_it_triggers_are_of_the_same_tenant(house: House) -> None:
    @job
    async def triggering() -> str:
        return (await app.jobs.nothing.trigger()).id

    app: Holdfast

    async def main() -> None:
        nonlocal app
        async with house.app(nothing, parent, triggering) as app:
            ask = Asking(app, auth=OF_TENANTS)
            run_id = (await ask.post("/trigger", {"jobName": "parent"}, headers=as_("a"))).json["runId"]
            await app.wait_for_run(run_id)
            (child,) = (await ask.get("/run/children", {"runId": run_id}, headers=as_("a"))).json["runs"]
            assert (child["labels"], child["parentId"]) == ({"tenant": "a"}, run_id)
            above = (await ask.post("/trigger", {"jobName": "triggering"}, headers=as_("a"))).json["runId"]
            triggered = (await app.wait_for_run(above)).output
            assert (await ask.get("/run", {"runId": triggered}, headers=as_("a"))).status == 200
            assert (await ask.get("/run", {"runId": triggered}, headers=as_("b"))).status == 404

    asyncio.run(main())


def test_t5_bulk_actions_reach_only_what_is_theirs(house: House) -> None:
    async def test(ask: Asking) -> None:
        for name in ("a", "b"):
            await ask.post("/trigger", {"jobName": "nothing"}, headers=as_(name))
        answer = await ask.post("/runs/cancel", headers=as_("a"))
        assert len(answer.json["done"]) == 1
        assert sorted(house.status()) == ["cancelled", "pending"]
        assert (await ask.post("/runs/cancel", params={"label.tenant": "b"}, headers=as_("a"))).json["done"] == []
        again = await ask.post("/runs/retrigger", headers=as_("a"))
        assert len(again.json["done"]) == 1
        assert sorted(house.status()) == ["cancelled", "pending", "pending"]

    run(test, house, auth=OF_TENANTS)


def test_t5_a_sleeping_run_is_woken_by_its_own_tenant_only(house: House) -> None:
    async def test(ask: Asking) -> None:
        ask.handler.app.sleeping("approval", output=int)
        body = {"jobName": "approval", "input": {"key": "k"}}
        ids = [(await ask.post("/trigger", body, headers=as_(name))).json["runId"] for name in ("a", "b")]
        assert ids[0] != ids[1], "the key of one tenant is not the key of another"
        woken = await ask.post("/wake", {"jobName": "approval", "key": "k", "output": 1}, headers=as_("b"))
        assert woken.json["runId"] == ids[1]
        mine = (await ask.get("/run", {"runId": ids[0]}, headers=as_("a"))).json
        assert (mine["isTerminal"], mine["output"]) == (False, None)
        early = await ask.post("/wake", {"jobName": "approval", "key": "early", "output": 1}, headers=as_("b"))
        shown = await ask.get("/run", {"runId": early.json["runId"]}, headers=as_("b"))
        assert (shown.status, shown.json["labels"]) == (200, {"tenant": "b"}), "also one that is there by its wake"
        assert (await ask.get("/run", {"runId": early.json["runId"]}, headers=as_("a"))).status == 404

    run(test, house, auth=OF_TENANTS)


def test_t5_every_page_of_runs_and_every_run_of_many_is_of_the_tenant(house: House) -> None:
    async def test(ask: Asking) -> None:
        calls = [{"jobName": "nothing", "idempotencyKey": "k", "labels": {"tenant": "b"}}, {"jobName": "nothing"}]
        made: dict[str, list[str]] = {}
        for name in ("a", "b"):
            answer = await ask.post("/runs/trigger", {"calls": calls}, headers=as_(name))
            assert [one["disposition"] for one in answer.json["runs"]] == ["created", "created"]
            assert {one["run"]["labels"]["tenant"] for one in answer.json["runs"]} == {name}
            made[name] = [one["run"]["id"] for one in answer.json["runs"]]
        for name, other in (("a", "b"), ("b", "a")):
            listed = (await ask.get("/runs/records", headers=as_(name))).json
            assert sorted(one["id"] for one in listed["runs"]) == sorted(made[name])
            foreign = await ask.get("/runs/records", {"label.tenant": other}, headers=as_(name))
            assert foreign.json == {"runs": [], "nextBefore": None}
            # The id of a foreign run as a place in a list: only what is theirs is behind it.
            for path in ("/runs", "/runs/records"):
                found = (await ask.get(path, {"before": max(made[other])}, headers=as_(name))).json
                runs = found if path == "/runs" else found["runs"]
                assert {one["id"] for one in runs} <= set(made[name])

    run(test, house, auth=OF_TENANTS)


def test_t5_a_key_of_a_retrigger_is_of_the_tenant(house: House) -> None:
    async def test(ask: Asking) -> None:
        again: list[str] = []
        for name in ("a", "b"):
            run_id = (await ask.post("/trigger", {"jobName": "nothing"}, headers=as_(name))).json["runId"]
            await ask.post("/cancel", params={"runId": run_id}, headers=as_(name))
            for _ in range(2):
                answer = await ask.post(
                    "/retrigger", params={"runId": run_id, "idempotencyKey": "k"}, headers=as_(name)
                )
                assert answer.status == 200
                again.append(answer.json["runId"])
        assert again[0] == again[1] != again[2] == again[3]

    run(test, house, auth=OF_TENANTS)


def test_t5_every_route_that_lists_or_acts_on_many_is_tried_with_two_tenants(house: House) -> None:
    """Whatever route comes later: nothing that it answers to one tenant names a run or a word of another."""

    async def test(ask: Asking) -> None:
        secret = "the-other-tenants-secret"
        sent = await ask.post(
            "/trigger",
            {"jobName": "number", "input": {"n": 424242}, "labels": {"x": secret}, "idempotencyKey": secret},
            headers=as_("b"),
        )
        run_id = sent.json["runId"]
        for route in ROUTES:
            for params in ({}, {"runId": run_id}, {"label.x": secret}, {"label.tenant": "b"}, {"jobName": "number"}):
                body = b"" if route.need is Need.BULK else {"runId": run_id}  # it has no body, and says so
                request = ask.request(route.method, route.path, params, body, as_("a"))
                response = await ask.handler.handle(request)
                if response.stream is not None:
                    ask.handler.close()
                    told = b"".join([chunk async for chunk in response.stream])
                    ask.handler.open()
                else:
                    told = response.body
                assert run_id.encode() not in told, route
                assert secret.encode() not in told, route
                assert b"424242" not in told, route
        assert house.status() == ["pending"]

    run(test, house, auth=Auth(authenticate=who, tenant=by_tenant, permit=lambda *_: True))


def test_t5_what_is_about_the_whole_database_needs_a_permission_where_there_are_tenants(house: House) -> None:
    async def test(ask: Asking) -> None:
        for path in ("/stats", "/workers"):
            assert (await ask.get(path, headers=as_("a"))).status == 403
        assert (await ask.get("/jobs", headers=as_("a"))).status == 200

    run(test, house, auth=OF_TENANTS)

    async def permitted(ask: Asking) -> None:
        for path in ("/stats", "/workers"):
            assert (await ask.get(path, headers=as_("a"))).status == 403
            assert (await ask.get(path, headers=as_("admin"))).status == 200

    permit = Auth(authenticate=who, tenant=by_tenant, permit=lambda name, _: name == "admin")
    run(permitted, house, auth=permit)


@pytest.mark.parametrize("given", [None, {}, "a", {"a b": "x"}, {"a": 5}, {"a": "x" * 300}])
def test_t5_a_tenant_hook_that_names_nobody_is_a_refusal(given: Any, house: House) -> None:
    async def test(ask: Asking) -> None:
        assert (await ask.get("/runs", headers=as_("a"))).status in (403, 500)

    run(test, house, auth=Auth(authenticate=who, tenant=lambda _: given))


# -- T6, T7: pages of others ------------------------------------------------------------------------------------------

CHANGING = [route for route in ROUTES if route.method != "GET"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://localhost.evil.example:8000"},
        {"Origin": "http://["},
        {"Origin": ""},
    ],
)
def test_t6_a_page_of_another_site_changes_nothing(headers: dict[str, str], house: House) -> None:
    async def test(ask: Asking) -> None:
        ask.client = "127.0.0.1"
        ask.headers = {"Host": "localhost:8000"}
        run_id = await ask.trigger("nothing")
        for route in CHANGING:
            answer = await ask.ask(route.method, route.path, {"runId": run_id}, {"jobName": "nothing"}, headers)
            assert answer.status == 403, route
        assert house.status() == ["pending"]

    run(test, house)


def test_t6_a_page_of_this_site_and_of_one_that_is_named_may(house: House) -> None:
    async def test(ask: Asking) -> None:
        ask.client = "127.0.0.1"
        ask.headers = {"Host": "localhost:8000"}
        for headers in (
            {"Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"},
            {"Sec-Fetch-Site": "same-origin"},
            {"Sec-Fetch-Site": "none"},
            {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"},
        ):
            assert (await ask.post("/trigger", {"jobName": "nothing"}, headers=headers)).status == 200

    run(test, house, origins=["https://app.example/"])


def test_t6_a_form_of_a_browser_is_no_request(house: House) -> None:
    async def test(ask: Asking) -> None:
        ask.headers = {"Host": "localhost", "Sec-Fetch-Site": "same-origin"}
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            answer = await ask.post("/trigger", {"jobName": "nothing"}, headers={"Content-Type": kind})
            assert answer.status == 415

    run(test, house)


def test_t6_reading_changes_nothing(house: House) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("nothing")
        tables = ("runs", "labels", "steps", "logs", "signals", "waits", "progress", "meta", "workers")
        before = [house.sql(f"select * from holdfast_{table}") for table in tables]
        for route in ROUTES:
            if route.method == "GET" and not route.is_stream:
                await ask.get(route.path, {"runId": run_id})
            elif route.is_stream:
                async with ask.stream(route.path, {"runId": run_id}):
                    pass
            else:
                assert (await ask.get(route.path, {"runId": run_id})).status in (200, 404)
        assert [house.sql(f"select * from holdfast_{table}") for table in tables] == before

    run(test, house)


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "evil.example:8000", "[::2]", "", "127.0.0.1.nip.io"]
)
def test_t7_by_another_name_nothing_is_answered(host: str, house: House) -> None:
    async def test(ask: Asking) -> None:
        ask.client = "127.0.0.1"
        for route in ROUTES:
            status = (await ask.ask(route.method, route.path, headers={"Host": host})).status
            assert status == (200 if route.need is Need.NOTHING else 403), route
        assert (await ask.get("/x/../runs", headers={"Host": host})).status == 403

    run(test, house)


def test_whether_it_lives_is_told_to_a_load_balancer_that_knows_an_address_only(house: House) -> None:
    async def test(ask: Asking) -> None:
        ask.client = "10.0.0.7"
        for path in ("/health", "/ready"):
            assert (await ask.get(path, headers={"Host": "10.0.0.1:8000"})).status == 200

    run(test, house)
    run(test, house, auth=Auth(authenticate=who), hosts=["api.example"])


def test_another_machine_is_told_that_there_is_no_auth_whatever_name_it_asks_by(house: House) -> None:
    async def test(ask: Asking) -> None:
        ask.client = "10.0.0.7"
        refused = await ask.get("/runs", headers={"Host": "api.example"})
        assert (refused.status, "has no auth" in refused.error) == (403, True)

    run(test, house)


@pytest.mark.parametrize("option", ["hosts", "origins"])
def test_a_single_name_where_a_list_is_wanted_is_refused(option: str, house: House) -> None:
    with pytest.raises(ValidationError, match=rf"{option}: 'https://x' is no list. Write \['https://x'\]."):
        house.app(worker=False).handler(**{option: "https://x"})  # type: ignore[arg-type]


def test_t7_one_host_is_named_and_it_is_one_of_those_that_are_allowed(house: House) -> None:
    async def test(ask: Asking) -> None:
        ask.client = "10.0.0.1"
        assert (await ask.get("/runs")).status == 400
        twice = Request("GET", "/runs", "", [("Host", "api.example"), ("Host", "evil.example")], b"", "10.0.0.1")
        assert (await ask.handler.handle(twice)).status == 400
        for host, status in (("api.example:8443", 200), ("API.example.", 200), ("localhost", 403)):
            assert (await ask.get("/runs", headers={"Host": host})).status == status

    run(test, house, auth=Insecure("tests"), hosts=["api.example"])


# -- T8, T9, T11: what is sent -----------------------------------------------------------------------------------------


def test_t8_whatever_a_run_says_is_json_and_never_a_page(house: House) -> None:
    async def test(ask: Asking) -> None:
        evil = "<script>alert(1)</script>"
        run_id = await ask.trigger("nothing", labels={"x": evil})
        for route in ROUTES:
            if route.method == "GET" and not route.is_stream:
                headers = (await ask.get(route.path, {"runId": run_id})).headers
                assert headers["Content-Type"] == "application/json"
                assert headers["X-Content-Type-Options"] == "nosniff"
        missing = await ask.post("/trigger", {"jobName": evil})
        assert missing.headers["Content-Type"] == "application/json"

    run(test, house)


def test_t9_no_value_of_a_header_begins_another_one() -> None:
    from holdfast.http.asgi import _safe

    assert _safe("a\r\nSet-Cookie: x") == "aSet-Cookie: x"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (Request("GET", "/runs", "", [(f"x-{n}", "v") for n in range(100)]), 200),
        (Request("GET", "/runs", "", [(f"x-{n}", "v") for n in range(101)]), 431),
        (Request("GET", "/runs", "", {"x": "v" * (32 << 10)}), 431),
        (Request("GET", "/runs", "&".join(["label.a=b"] * 200)), 200),
        (Request("GET", "/runs", "&".join(["label.a=b"] * 201)), 400),
        (Request("GET", "/runs", "x=" + "v" * (16 << 10)), 414),
        (Request("GET", "/runs", "limit=%"), 400),
        (Request("GET", "/runs", "jobName=%ff%fe"), 200),
        (Request("GET", "/runs", "&".join([f"label.k{n}=v" for n in range(33)])), 400),
    ],
)
def test_t11_what_is_too_much_is_refused_at_its_limit(request_: Request, status: int, house: House) -> None:
    async def test(ask: Asking) -> None:
        assert (await ask.handler.handle(request_)).status == status

    run(test, house)


def test_t11_a_body_is_read_no_further_than_its_limit(house: House) -> None:
    async def test(ask: Asking) -> None:
        read = 0

        async def part() -> bytes:
            nonlocal read
            read += 1
            return b" " * 1000

        endless = Request("POST", "/trigger", receive=part)
        response = await ask.handler.handle(endless)
        assert (response.status, read) == (413, 11)
        told = Request("POST", "/trigger", headers={"Content-Length": "10001"}, receive=part)
        assert (await ask.handler.handle(told)).status == 413
        assert read == 11, "what says that it is too long is not read at all"
        exact = json.dumps({"jobName": "nothing"}).encode().ljust(10_000)
        assert (await ask.post("/trigger", exact)).status == 200
        assert (await ask.post("/trigger", exact + b" ")).status == 413

    run(test, house, max_body=10_000)


def test_t11_a_body_is_nested_no_deeper_than_its_limit(house: House) -> None:
    async def test(ask: Asking) -> None:
        for depth, status in ((50, 200), (100, 200), (101, 400), (150_000, 400)):
            nested = b"[" * (depth - 1) + b"]" * (depth - 1)
            answer = await ask.post("/trigger", b'{"jobName": "nothing", "x": ' + nested + b"}")
            assert answer.status == status, depth

    run(test, house)


def test_t11_an_input_that_is_too_large_is_refused_before_it_is_written(house: House) -> None:
    async def main() -> None:
        async with house.app(nothing, number, worker=False, max_input_bytes=100) as app:
            ask = Asking(app)
            answer = await ask.post("/trigger", {"jobName": "number", "input": {"n": int("9" * 200)}})
            assert answer.status in (400, 413)
            assert house.status() == []

    asyncio.run(main())


def test_t13_no_refusal_names_what_is_inside(house: House) -> None:
    async def test(ask: Asking) -> None:
        answers: list[Answer] = []
        for route in ROUTES:
            for params in ("runId=x", "runId=%00", "limit=x&offset=y&label.%00=z&status=q", "runId=" + "x" * 9000):
                for body in (b"", b"{", b"[]", b'{"jobName": "number", "input": {"n": "\\u0000"}}'):
                    if not route.is_stream or "runId=x" not in params:
                        request = ask.request(route.method, route.path, params, body)
                        response = await ask.handler.handle(request)
                        answers.append(Answer(response.status, {}, response.body))
        assert {answer.status for answer in answers} <= {200, 400, 404, 409}
        for answer in answers:
            assert not any(
                word in answer.body.lower() for word in (b"traceback", b"sqlite", b"select ", b".py", b"/tmp")
            )

    run(test, house)
