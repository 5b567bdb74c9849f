"""Answers that are lost, and servers that are away: what may be repeated is, and no run is made twice."""

from __future__ import annotations

import json
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from far import PATIENCE, Served, app_on, asks, import_rows, told, until

from asking import serving
from faulty_link import FaultyLink
from holdfast import (
    ConflictError,
    HoldfastError,
    NotFoundError,
    PayloadTooLarge,
    Reply,
    Retry,
    StoreClosed,
    StoreUnavailable,
    ValidationError,
)
from holdfast.client import Client, Refused, ServerError, ServerUnavailable, line
from holdfast.http import Auth, Reject
from house import House

pytestmark = [
    pytest.mark.sampled("the client: the same on every Python", every=8),
    pytest.mark.elsewhere("the client: it knows the wire only", every=8),
]

forms = pytest.mark.parametrize("form", ["async", "sync"])

QUICK = Retry(50, delay=0.02)


class Lossy(NamedTuple):
    served: Served
    link: FaultyLink
    client: Client
    heal_when: Callable[[Callable[[], Any]], None]


@pytest.fixture
def lossy(idle: Served) -> Iterator[Lossy]:
    """A link that passes questions on and swallows the answers, until what is asked has been done."""
    threads: list[threading.Thread] = []
    with FaultyLink(idle.url) as link, Client(link.url, timeout=0.4, retry=QUICK) as client:

        def heal_when(done: Callable[[], Any]) -> None:
            def wait() -> None:
                until(done)
                link.heal()

            link.break_("mute")
            threads.append(threading.Thread(target=wait))
            threads[-1].start()

        yield Lossy(idle, link, client, heal_when)
        for thread in threads:
            thread.join(PATIENCE)


@forms
@pytest.mark.parametrize("kind", ["typed", "named", "many"])
def test_a_trigger_whose_answer_is_lost_makes_one_run(form: str, kind: str, lossy: Lossy) -> None:
    client, app = lossy.client, lossy.served.app
    client.job("import-rows").get_info().wait(PATIENCE)
    lossy.heal_when(lambda: app.get_runs().wait(PATIENCE))
    if kind == "many":
        runs = told(form, lambda: client.trigger_many([import_rows.bind(1), import_rows.bind(2)]))
    else:
        handle: Any = client.job(import_rows) if kind == "typed" else client.job("import-rows")
        runs = [told(form, lambda: handle.trigger(1))]
    assert lossy.link.swallowed > 0
    assert {run.id for run in app.get_runs().wait(PATIENCE)} == {run.id for run in runs}
    # Nobody but this call knows the key: it has made the run, whatever the second answer says.
    assert {run.disposition for run in runs} == {"created"}


def test_a_lost_answer_under_a_concurrency_key_is_no_conflict(lossy: Lossy) -> None:
    app = lossy.served.app
    lossy.heal_when(lambda: app.get_runs().wait(PATIENCE))
    run = lossy.client.job(import_rows).options(concurrency_key="c").trigger(1).wait(PATIENCE)
    assert [one.id for one in app.get_runs().wait(PATIENCE)] == [run.id]


@forms
def test_a_retrigger_whose_answer_is_lost_makes_one_run(form: str, lossy: Lossy) -> None:
    client, app = lossy.client, lossy.served.app
    old = client.job(import_rows).trigger(1).wait(PATIENCE)
    app.cancel(old.id).wait(PATIENCE)
    lossy.heal_when(lambda: len(app.get_runs().wait(PATIENCE)) > 1)
    again = told(form, lambda: client.retrigger(old.id))
    assert {run.id for run in app.get_runs().wait(PATIENCE)} == {old.id, again.id}
    lossy.heal_when(lambda: len(app.get_runs().wait(PATIENCE)) > 2)
    (made,) = told(form, client.retrigger_runs).done.values()
    assert {run.id for run in app.get_runs().wait(PATIENCE)} == {old.id, again.id, made}


@forms
def test_a_signal_whose_answer_is_lost_is_sent_once(form: str, lossy: Lossy, house: House) -> None:
    run = lossy.client.job(asks).trigger().wait(PATIENCE)
    lossy.heal_when(lambda: house.sql("select 1 from holdfast_signals"))
    told(form, lambda: lossy.client.send_signal(run.id, "answer", 1))
    assert lossy.link.swallowed > 0
    assert len(house.sql("select 1 from holdfast_signals")) == 1


@forms
def test_a_wake_whose_answer_is_lost_counts_once(form: str, lossy: Lossy, house: House) -> None:
    lossy.heal_when(lambda: house.sql("select 1 from holdfast_signals"))
    run = told(form, lambda: lossy.client.wake("approval", "k", output=5))
    assert [one.id for one in lossy.served.app.get_runs().wait(PATIENCE)] == [run.id]
    assert len(house.sql("select 1 from holdfast_signals")) == 1


def test_an_error_after_a_lost_answer_says_that_it_may_have_been_done() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        if len(asked) == 1:
            raise httpx.ReadTimeout("lost")
        return said(409, "it has ended")

    asked: list[str] = []
    client = Client("http://far", transport=httpx.MockTransport(answer), retry=Retry(1))
    with client, pytest.raises(ConflictError, match="it has ended") as refused:
        client.send_signal("x", "answer").wait(PATIENCE)
    assert refused.value.__notes__ == ["An answer before this one was lost: what was asked may have been done."]


@forms
def test_what_may_not_be_repeated_is_not(form: str, lossy: Lossy) -> None:
    run = lossy.client.job(import_rows).trigger(1).wait(PATIENCE)
    lossy.link.break_("mute")
    with pytest.raises(ServerUnavailable, match="no answer"):
        told(form, run.cancel)
    lossy.link.heal()
    assert told(form, run.refresh).status == "cancelled"


@forms
def test_what_was_never_sent_is_tried_again_whatever_it_is(form: str) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        if len(asked) < 4:
            raise httpx.ConnectError("nobody listens")
        return httpx.Response(200, json={"success": True})

    with Client("http://far", transport=httpx.MockTransport(answer), retry=Retry(5, delay=0.001)) as client:
        told(form, lambda: client.delete_run("x"))
    assert asked == ["DELETE"] * 4


def test_a_server_that_is_not_there_is_said_to_be_that() -> None:
    client = Client("http://127.0.0.1:9", retry=Retry(1, delay=0.01))
    with client, pytest.raises(StoreUnavailable, match=r"GET http://127.0.0.1:9/runs/records: no answer") as refused:
        client.get_runs().wait(PATIENCE)
    # All that is worth saying is in the message: not, before it, how httpx came to it.
    assert "httpcore" not in "".join(traceback.format_exception(refused.value))


# -- answers -------------------------------------------------------------------------------------------------


class Answering:
    """A server of which only the answers matter."""

    def __init__(self, *answers: httpx.Response) -> None:
        self.answers = list(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def client(self, **options: Any) -> Client:
        return Client("http://far/base/", transport=httpx.MockTransport(self), **options)


def said(status: int, text: str = "because", **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"error": text}, headers=headers)


#: Of each status, asked for a run to be cancelled: what is raised, and how often it is asked for a read.
MEANT: list[tuple[int, type[HoldfastError], int]] = [
    (400, ValidationError, 1),
    (401, Refused, 1),
    (403, Refused, 1),
    (404, NotFoundError, 1),
    (408, ServerUnavailable, 3),
    (409, ConflictError, 1),
    (413, PayloadTooLarge, 1),
    (415, ServerError, 1),
    (422, ServerError, 1),
    (429, ServerUnavailable, 3),
    (500, ServerError, 1),
    (501, ServerError, 1),
    (502, ServerUnavailable, 3),
    (503, ServerUnavailable, 3),
    (504, ServerUnavailable, 3),
    (302, ServerError, 1),
]


@pytest.mark.parametrize(("status", "kind", "tries"), MEANT, ids=[str(status) for status, _, _ in MEANT])
def test_each_status_is_an_error_of_its_own(status: int, kind: type[HoldfastError], tries: int) -> None:
    server = Answering(said(status))
    with server.client(retry=Retry(2, delay=0.001)) as client:
        for call in (client.cancel, client.delete_run):
            with pytest.raises(kind, match="because") as raised:
                call("x").wait(PATIENCE)
            assert type(raised.value) is kind
            assert getattr(raised.value, "answered", status) == status
        assert len(server.asked) == 2, "a cancel is asked once"
        server.asked.clear()
        with pytest.raises(kind):
            client.get_jobs().wait(PATIENCE)
        assert len(server.asked) == tries


def test_what_is_no_answer_of_ours_is_said_to_be_that() -> None:
    for answer, error in (
        (httpx.Response(404, text="<h1>Not Found</h1>"), "there is no such route"),
        (httpx.Response(200, text="<h1>Welcome</h1>"), "is no JSON"),
        (httpx.Response(400, text="<h1>no</h1>"), "answered 400"),
    ):
        with Answering(answer).client() as client, pytest.raises(ServerError, match=error):
            client.get_run("x").wait(PATIENCE)


@forms
def test_a_server_that_asks_for_patience_gets_it(form: str) -> None:
    server = Answering(said(503, **{"retry-after": "0.05"}), said(429), httpx.Response(200, json=[]))
    with server.client(retry=Retry(5, delay=0.001)) as client:
        assert told(form, client.get_jobs) == []
    assert [request.url.path for request in server.asked] == ["/base/jobs"] * 3


def test_headers_go_with_each_request_and_may_be_made_for_it() -> None:
    server, tokens = Answering(httpx.Response(200, json=[])), iter("abc")
    with server.client(headers=lambda: {"Authorization": f"Bearer {next(tokens)}"}) as client:
        client.get_jobs().wait(PATIENCE)
        client.get_jobs().wait(PATIENCE)
    assert [request.headers["authorization"] for request in server.asked] == ["Bearer a", "Bearer b"]


@pytest.mark.parametrize(
    "given",
    [{"Authorization": "Bearer sesame\n"}, {"Authorization": None}, {"a b": "sesame"}, {"a": "s\u00e9same"}, "sesame"],
    ids=["newline", "none", "name", "no ascii", "text"],
)
def test_headers_that_cannot_be_sent_are_refused_at_once_without_their_value(given: Any) -> None:
    with pytest.raises(ValidationError, match="headers: ") as refused:
        Client("http://far", headers=given)
    assert "same" not in str(refused.value)
    server = Answering(httpx.Response(200, json=[]))
    with server.client(headers=lambda: given) as client, pytest.raises(ValidationError, match="headers: ") as refused:
        client.get_jobs().wait(PATIENCE)
    assert "same" not in str(refused.value)
    assert not server.asked


def _ask_on(client: Client, begun: threading.Event, errors: list[Exception]) -> None:
    try:
        while True:
            client.get_jobs().wait(PATIENCE)
            begun.set()
    except Exception as error:
        errors.append(error)


def test_calls_that_race_the_close_are_all_answered() -> None:
    for _ in range(30):
        client = Client("http://far", transport=httpx.MockTransport(lambda _: httpx.Response(200, json=[])))
        client.get_jobs().wait(PATIENCE)
        begun, errors = threading.Event(), list[Exception]()
        threads = [threading.Thread(target=_ask_on, args=(client, begun, errors)) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert begun.wait(PATIENCE)
        client.close().wait(PATIENCE)
        for thread in threads:
            thread.join(PATIENCE)
        assert [type(error) for error in errors] == [StoreClosed] * 4


def test_who_is_not_known_is_refused_and_who_is_sees_their_own_runs(house: House) -> None:
    def authenticate(request: Any) -> str:
        name = (request.header("authorization") or "").removeprefix("Bearer ")
        if name not in ("ada", "bob"):
            raise Reject(401, "Who are you?")
        return name

    app = app_on(house.url, worker=False)
    web = app.asgi(auth=Auth(authenticate=authenticate, tenant=lambda name: {"user": name}))

    def of(name: str) -> Client:
        return Client(url, headers={"Authorization": f"Bearer {name}"})

    with serving(web, lifespan="on") as url, of("ada") as ada, of("bob") as bob, of("eve") as eve:
        run = ada.job(import_rows).options(idempotency_key="k", concurrency_key="c").trigger(1).wait(PATIENCE)
        assert (run.labels, run.concurrency_key) == ({"user": "ada"}, "c")
        assert bob.get_run(run.id).wait(PATIENCE) is None
        assert bob.get_runs().wait(PATIENCE) == []
        other = bob.job(import_rows).options(idempotency_key="k", concurrency_key="c").trigger(1).wait(PATIENCE)
        assert (other.id != run.id, other.disposition) == (True, "created")
        asking: list[Callable[[], Reply[Any]]] = [
            lambda: bob.cancel(run.id), lambda: bob.get_steps(run.id), lambda: bob.get_runs(parent=run.id),
            lambda: bob.send_signal(run.id, "a"), lambda: bob.retrigger(run.id),
        ]  # fmt: skip
        for ask in asking:
            with pytest.raises(NotFoundError, match="Run not found"):
                ask().wait(PATIENCE)
        with pytest.raises(NotFoundError):
            next(bob.subscribe(run.id))
        with pytest.raises(Refused, match="Who are you") as refused:
            eve.get_runs().wait(PATIENCE)
        assert refused.value.answered == 401
        with pytest.raises(Refused):
            next(eve.subscribe(run.id))


@forms
def test_a_pause_that_a_server_asks_for_is_no_longer_than_the_retry_allows(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def rest(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(line, "_sleep", rest)
    for retry, pause in ((Retry(2, delay=0.05), 0.05), (Retry(2, delay=0.05, factor=2), 0.1),
                         (Retry(2, delay=0.05, factor=0.5), 0.05), (Retry(2), 0.0), (Retry(2, max_delay=8), 8.0),
                         (Retry(2, max_delay=3600), 60.0)):  # fmt: skip
        server = Answering(said(503, **{"retry-after": "3600"}))
        with server.client(retry=retry) as client, pytest.raises(ServerUnavailable) as refused:
            told(form, client.get_jobs)
        assert (pauses, refused.value.retry_after) == ([pause, pause], 60.0), retry
        pauses.clear()


#: What answers as if all were well, and is no server of ours.
FOREIGN: list[Any] = [{"a": 1}, [], [{"a": 1}], {}, None, 5, "text", {"runs": [{}], "success": False}, {"runs": 5}]


@pytest.mark.parametrize("document", FOREIGN, ids=repr)
def test_json_that_is_none_of_ours_is_said_to_be_that_by_every_verb(document: Any) -> None:
    verbs: list[tuple[str, Callable[[Client], Any]]] = [
        ("/jobs", lambda client: client.get_jobs().wait(PATIENCE)),
        ("/jobs", lambda client: client.job("a").trigger(1).wait(PATIENCE)),
        ("/runs/trigger", lambda client: client.job(import_rows).trigger(1).wait(PATIENCE)),
        ("/runs/trigger", lambda client: client.job(import_rows).run(1).wait(PATIENCE)),
        ("/run/record", lambda client: client.get_run("x").wait(PATIENCE)),
        ("/run/record", lambda client: client.wait_for_run("x").wait(PATIENCE)),
        ("/runs/records", lambda client: client.get_runs().wait(PATIENCE)),
        ("/run/children", lambda client: client.get_runs(parent="x").wait(PATIENCE)),
        ("/run/steps", lambda client: client.get_steps("x").wait(PATIENCE)),
        ("/run/logs", lambda client: client.get_logs("x").wait(PATIENCE)),
        ("/retrigger", lambda client: client.retrigger("x").wait(PATIENCE)),
        ("/cancel", lambda client: client.cancel("x").wait(PATIENCE)),
        ("/run", lambda client: client.delete_run("x").wait(PATIENCE)),
        ("/signal", lambda client: client.send_signal("x", "a").wait(PATIENCE)),
        ("/wake", lambda client: client.wake("a", "k", output=1).wait(PATIENCE)),
        ("/runs/cancel", lambda client: client.cancel_runs().wait(PATIENCE)),
        ("/workers", lambda client: client.workers().wait(PATIENCE)),
        ("/stats", lambda client: client.stats().wait(PATIENCE)),
    ]
    for path, ask in verbs:
        if document == [] and path in ("/jobs", "/run/steps", "/run/logs", "/workers"):
            continue  # there may be none
        server = Answering(httpx.Response(200, content=json.dumps(document)))
        said_so = rf"far/base{path}: the answer is not one of a Holdfast server\. Is it the URL of a Holdfast server\?"
        with server.client() as client, pytest.raises(ServerError, match=said_so) as refused:
            ask(client)
        assert (refused.value.answered, len(server.asked)) == (200, 1)


def test_an_error_of_whoever_gives_the_headers_is_none_of_the_server() -> None:
    def headers() -> dict[str, str]:
        raise KeyError("TOKEN")

    server = Answering(httpx.Response(200, json=[]))
    with server.client(headers=headers) as client, pytest.raises(KeyError, match="TOKEN"):
        client.get_jobs().wait(PATIENCE)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("https://far/base/runs/records?most=100", "https://far/base"),
        ("/new/runs/records", "http://far/new"),
        ("https://ada:sesame@far/base/runs/records", "https://far/base"),
        ("https://far/login?next=%2Fbase", "https://far/login"),
    ],
)
def test_a_redirect_says_where_it_points_and_what_to_give_as_url(status: int, location: str, url: str) -> None:
    server = Answering(httpx.Response(status, headers={"location": location}))
    with server.client() as client, pytest.raises(ServerError) as refused:
        client.get_runs().wait(PATIENCE)
    assert f"the server answered {status}" in str(refused.value)
    assert str(refused.value).endswith(f"give its url: url='{url}'.")
    assert (refused.value.answered, "sesame" in str(refused.value)) == (status, False)


def test_a_redirect_to_nowhere_is_said_to_be_one() -> None:
    for headers in ({}, {"location": "http://["}):
        server = Answering(httpx.Response(302, headers=headers))
        with server.client() as client, pytest.raises(ServerError, match=r"the server answered 302\.$"):
            client.get_runs().wait(PATIENCE)


def test_a_client_that_nobody_holds_answers_what_was_asked_of_it(idle: Served) -> None:
    run = idle.app.get_job("asks").trigger().wait(PATIENCE)  # type: ignore[union-attr]  # it is there
    assert len(Client(idle.url).get_jobs().wait(PATIENCE)) > 1
    assert Client(idle.url).get_steps(run.id).wait(PATIENCE) == []
    assert Client(idle.url).get_logs(run.id).wait(PATIENCE) == []
    assert [worker.id for worker in Client(idle.url).workers().wait(PATIENCE)] == []
    assert Client(idle.url).stats().wait(PATIENCE).uptime > 0
    assert Client(idle.url).cancel_runs().wait(PATIENCE).done == {run.id: run.id}
