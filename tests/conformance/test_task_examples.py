"""The second ancestor, 11.7: its examples under our names, and those that its users ask for most."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from itertools import pairwise
from typing import Any

import pytest
from conformance_jobs import FORMS
from conformance_tree import ended, told
from pydantic import BaseModel, Field

from holdfast import (
    Children,
    ChildResult,
    Done,
    Holdfast,
    LoopResult,
    NonRetryable,
    Retry,
    Retryable,
    Step,
    SyncStep,
    ValidationError,
)
from holdfast.testing import app_for_tests, drain


@pytest.fixture
def app() -> Iterator[Holdfast]:
    with app_for_tests() as app:
        yield app


# -- one run ---------------------------------------------------------------------------------------------------------


def test_a_sync_job(app: Holdfast) -> None:
    @app.job
    def greet(name: str) -> str:
        return f"Hello, {name}!"

    assert ended(app, greet.trigger("Ada").wait()).output == "Hello, Ada!"


def test_an_async_job(app: Holdfast) -> None:
    @app.job
    async def greet(name: str) -> str:
        return f"Hello, {name}!"

    assert ended(app, greet.trigger("Ada").wait()).output == "Hello, Ada!"


def test_a_validation_of_ones_own(app: Holdfast) -> None:
    def check(name: str) -> str:
        if not name.strip():
            raise ValueError("nobody to greet")
        return name.strip()

    @app.job(validate=check)
    async def greet(name: str) -> str:
        return f"Hello, {name}!"

    assert ended(app, greet.trigger("  Ada ").wait()).output == "Hello, Ada!"
    with pytest.raises(ValidationError, match="Invalid input to job 'greet': nobody to greet"):
        greet.trigger(" ")


class Person(BaseModel):
    name: str
    born: date
    visits: int = Field(default=1, ge=1)


def test_a_schema(app: Holdfast) -> None:
    @app.job
    async def greet(person: Person) -> str:
        return f"{person.name}, {person.born.year}, {person.visits}"

    assert ended(app, greet.trigger({"name": "Ada", "born": "1815-12-10"}).wait()).output == "Ada, 1815, 1"  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="visits"):
        greet.trigger({"name": "Ada", "born": "1815-12-10", "visits": 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
def test_retries_until_it_succeeds(app: Holdfast, form: str) -> None:
    times: list[int] = []

    def body(step: Any) -> str:
        times.append(app._engine.clock.now())
        if step.attempt < 2:
            raise OSError(f"attempt {step.attempt}")
        return f"after {step.previous_error}"

    retry = Retry(max_retries=5, delay=0.1, factor=1.5, max_delay=5)
    if form == "async":

        @app.job(name="work", retry=retry)
        async def work(step: Step) -> str:
            return body(step)
    else:

        @app.job(name="work", retry=retry)
        def work_sync(step: SyncStep) -> str:
            return body(step)

    run = ended(app, app.jobs.work.trigger().wait())
    assert (run.output, run.attempt, len(times)) == ("after attempt 1", 2, 3)
    assert [after - before for before, after in pairwise(times)] == [100_000, 150_000]


def test_what_a_run_knows_of_itself(app: Holdfast) -> None:
    @app.job(labels={"team": "a"})
    async def inner(step: Step) -> dict[str, Any]:
        return {"run": step.run_id, "parent": step.parent_id, "root": step.root_id, "attempt": step.attempt}

    @app.job
    async def outer(step: Step) -> dict[str, Any]:
        known = await step.call(inner.bind())
        return {**known, "before": step.previous_error, "job": step.job_name, "stopping": step.shutdown.aborted}

    run = ended(app, outer.trigger().wait())
    (below,) = app.get_runs(job="inner").wait()
    assert run.output == {
        "run": below.id, "parent": run.id, "root": run.id, "attempt": 0,
        "before": None, "job": "outer", "stopping": False,
    }  # fmt: skip


# -- parents ---------------------------------------------------------------------------------------------------------


class Files:
    """Two jobs that read a file, one of which may fail, and a parent of both."""

    def __init__(self, app: Holdfast, *, broken: bool = False) -> None:
        @app.job
        async def title(file: str) -> str:
            return file.removesuffix(".pdf").title()

        @app.job
        async def pages(file: str) -> int:
            if broken:
                raise ValueError("torn")
            return len(file)

        @app.job
        async def upload(file: str) -> Children[str]:
            return Children(file, [title.bind(file), pages.bind(file)])

        self.title, self.pages, self.upload = title, pages, upload


def test_children_at_the_same_time_without_a_finalize(app: Holdfast) -> None:
    files = Files(app)
    run = ended(app, files.upload.trigger("dune.pdf").wait())
    assert run.output.output == "dune.pdf"
    assert [one.unwrap() for one in run.output.results] == ["Dune", 8]


def test_children_and_one_combined_output(app: Holdfast) -> None:
    files = Files(app)

    @files.upload.finalize
    async def uploaded(output: str, children: list[ChildResult]) -> str:
        return f"{output}: {children[0].unwrap(files.title)}, {children[1].unwrap(files.pages)} pages"

    assert ended(app, uploaded.trigger("dune.pdf").wait()).output == "dune.pdf: Dune, 8 pages"


def test_a_strict_finalize_fails_if_any_child_has(app: Holdfast) -> None:
    files = Files(app, broken=True)

    @files.upload.finalize
    async def strict(output: str, children: list[ChildResult]) -> list[Any]:
        return [child.unwrap() for child in children]

    run = ended(app, strict.trigger("dune.pdf").wait())
    assert told(run) == ("finalize_failed", "RunFailed", "torn")


def test_a_tolerant_finalize_says_what_failed(app: Holdfast) -> None:
    files = Files(app, broken=True)

    @files.upload.finalize
    async def tolerant(output: str, children: list[ChildResult]) -> dict[str, Any]:
        good = [child.unwrap() for child in children if child.error is None]
        return {"good": good, "bad": [f"{child.job_name}: {child.error}" for child in children if child.error]}

    assert ended(app, tolerant.trigger("dune.pdf").wait()).output == {"good": ["Dune"], "bad": ["pages: torn"]}


def test_a_best_effort_finalize_fills_in_what_is_missing(app: Holdfast) -> None:
    files = Files(app, broken=True)

    @files.upload.finalize
    async def best(output: str, children: list[ChildResult]) -> list[Any]:
        return [child.unwrap() if str(child.status) == "completed" else None for child in children]

    assert ended(app, best.trigger("dune.pdf").wait()).output == ["Dune", None]


# -- one after the other ---------------------------------------------------------------------------------------------


def test_a_sequence(app: Holdfast) -> None:
    @app.job
    async def words(text: str) -> list[str]:
        return text.split()

    @app.job
    def count(words: list[str]) -> int:
        return len(words)

    @app.job
    async def say(n: int) -> str:
        return f"{n} words"

    assert ended(app, app.sequence("counted", words, count, say).trigger("a b c").wait()).output == "3 words"


def test_a_sequence_by_hand_with_nested_finalizes(app: Holdfast) -> None:
    @app.job
    async def add(n: int) -> int:
        return n + 1

    @app.job
    async def first(n: int) -> Children[None]:
        return Children(None, [add.bind(n)])

    @app.job
    async def second(output: None, children: list[ChildResult]) -> Children[None]:
        return Children(None, [add.bind(children[0].unwrap(add))])

    @app.job
    async def third(output: None, children: list[ChildResult]) -> Children[None]:
        return Children(None, [add.bind(children[0].unwrap(add))])

    @third.finalize
    async def last(output: None, children: list[ChildResult]) -> int:
        return children[0].unwrap(add)

    whole = first.finalize_with(second.finalize_with(last))
    run = ended(app, whole.trigger(0).wait())
    assert run.output == 3
    assert len(app.get_runs(job="add").wait()) == 3


def test_a_sequence_of_two_parents(app: Holdfast) -> None:
    @app.job
    async def one(n: int) -> int:
        return n

    @app.job
    async def fan(n: int) -> Children[int]:
        return Children(n, [one.bind(n), one.bind(2 * n)])

    @fan.finalize
    async def total(output: int, children: list[ChildResult]) -> int:
        return sum(child.unwrap(one) for child in children)

    @app.job
    async def squares(n: int) -> Children[int]:
        return Children(n, [one.bind(n * n)])

    @squares.finalize
    async def root(output: int, children: list[ChildResult]) -> list[int]:
        return [output, children[0].unwrap(one)]

    assert ended(app, app.sequence("both", total, root).trigger(2).wait()).output == [6, 36]


# -- trees -----------------------------------------------------------------------------------------------------------


def test_a_tree_of_parents_and_a_sequence(app: Holdfast) -> None:
    @app.job
    async def leaf(n: int) -> int:
        return n

    @app.job
    async def branch(n: int) -> Children[int]:
        return Children(n, [leaf.bind(n), leaf.bind(n + 1), leaf.bind(n + 2)])

    @branch.finalize(name="branch-total")
    async def branched(output: int, children: list[ChildResult]) -> int:
        return sum(child.unwrap(leaf) for child in children)

    chain = app.sequence("chain", leaf, leaf, leaf)

    @app.job
    async def root(n: int) -> Children[str]:
        return Children("tree", [branched.bind(n), chain.bind(n)])

    @root.finalize(name="root-total")
    async def rooted(output: str, children: list[ChildResult]) -> dict[str, int]:
        return {output: children[0].unwrap(branched) + children[1].unwrap(chain)}

    run = ended(app, rooted.trigger(1).wait())
    assert run.output == {"tree": 7}
    rows = app.get_runs(limit=None).wait()
    # The root, its two children, three leaves, a chain of three, and two finalizes; all know whose tree it is.
    assert (len(rows), {row.root_id for row in rows if row.id != run.id}) == (11, {run.id})


def test_a_parent_that_is_its_own_child_ten_times(app: Holdfast) -> None:
    @app.job
    async def count(n: int) -> Children[int]:
        return Children(n, [app.jobs.count.bind(n - 1)] if n > 0 else [])

    @count.finalize(name="counted")
    async def counted(output: int, children: list[ChildResult]) -> int:
        return 1 + sum(child.unwrap() for child in children)

    run = ended(app, counted.trigger(9).wait())
    assert (run.output, len(app.get_runs(job="count", limit=None).wait())) == (10, 10)


def test_a_loop(app: Holdfast) -> None:
    looks: list[str] = []

    async def look(name: str) -> Done[str] | None:
        looks.append(name)
        return Done(f"{name} after {len(looks)}") if len(looks) == 3 else None

    poll = app.loop("poll", look, max_iterations=20, delay="1s")
    assert ended(app, poll.trigger("x").wait()).output == LoopResult(success=True, output="x after 3")


def test_a_loop_by_hand_that_calls_itself(app: Holdfast) -> None:
    looks: list[int] = []

    async def ready() -> bool:
        looks.append(1)
        return len(looks) == 7

    @app.job
    async def again(step: Step, count: int) -> int:
        if await step.run("ready", ready) or count == 19:
            return count + 1
        return await step.call(app.jobs.again.options(delay="1s").bind(count + 1))

    run = ended(app, again.trigger(0).wait())
    assert run.output == 7
    assert 2 <= run.output < 20


# -- the world outside -----------------------------------------------------------------------------------------------


def test_a_webhook_ends_what_waits_for_it(app: Holdfast) -> None:
    """The third party is told the id of the run, and gives it back with its answer."""
    sent: list[dict[str, str]] = []

    @app.job
    async def payment(step: Step, order: str) -> str:
        await step.run("ask the bank", sent.append, {"order": order, "reference": step.run_id})
        paid = await step.wait_for_signal("paid", type=bool, timeout="1d")
        return "paid" if paid else "refused"

    @app.job
    async def purchase(order: str) -> Children[str]:
        return Children(order, [payment.bind(order)])

    @purchase.finalize
    async def purchased(output: str, children: list[ChildResult]) -> str:
        return f"{output} {children[0].unwrap(payment)}"

    run = purchased.trigger("order-7").wait()
    drain(app).wait()
    assert str(run.refresh().wait().status) == "waiting"
    for _ in range(2):  # a webhook comes twice at times
        app.send_signal(sent[0]["reference"], "paid", True, key="event-1").wait()
    assert ended(app, run).output == "order-7 paid"


def test_a_webhook_that_knows_a_key_only_wakes_a_sleeping_job(app: Holdfast) -> None:
    hook = app.sleeping("hook", output=dict[str, int], deadline="1d")
    app.wake(hook, "early", output={"amount": 1}).wait()  # before anybody waits
    late = hook.trigger("late").wait()
    drain(app).wait()
    app.wake(hook, "late", output={"amount": 2}).wait()
    assert ended(app, hook.trigger("early").wait()).output == {"amount": 1}
    assert ended(app, late).output == {"amount": 2}


def answered(status: int) -> str:
    """How a client of one's own tells what may pass from what will not."""
    if status in (408, 429) or status >= 500:
        raise Retryable(f"{status} of the server")
    if status >= 400:
        raise NonRetryable(f"{status} of the server", kind="not_found" if status == 404 else "bad_request")
    return "fine"


@pytest.mark.parametrize(
    ("statuses", "calls", "ending"),
    [
        ([503, 429, 200], 3, ("completed", None, None)),
        ([404, 200], 1, ("failed", "not_found", "404 of the server")),
        ([400, 200], 1, ("failed", "bad_request", "400 of the server")),
        ([500, 502, 504, 200], 3, ("failed", "Retryable", "504 of the server")),
    ],
    ids=["busy", "not found", "bad request", "down"],
)
def test_errors_of_a_server_are_told_apart(
    app: Holdfast, statuses: list[int], calls: int, ending: tuple[str, Any, Any]
) -> None:
    """What may pass is tried again, what will not is not."""
    answers = iter(statuses)
    asked: list[int] = []

    async def ask() -> str:
        asked.append(next(answers))
        return answered(asked[-1])

    @app.job(retry=Retry(max_retries=2, delay=1))
    async def fetch(step: Step) -> str:
        return await step.run("ask", ask)

    run = ended(app, fetch.trigger().wait())
    assert (told(run), len(asked)) == (ending, calls)


@pytest.mark.parametrize(
    ("status", "calls"),
    [
        *((status, 2) for status in (408, 429, 500, 502, 503, 504)),
        *((status, 1) for status in (400, 401, 403, 404, 422)),
    ],
)
def test_a_server_is_asked_again_or_not_by_the_status_of_its_answer(app: Holdfast, status: int, calls: int) -> None:
    asked: list[int] = []

    async def ask() -> str:
        asked.append(status)
        return answered(status)

    @app.job(retry=Retry(max_retries=1))
    async def fetch(step: Step) -> str:
        return await step.run("ask", ask)

    run = ended(app, fetch.trigger().wait())
    assert (str(run.status), len(asked)) == ("failed", calls)


def test_on_the_last_attempt_there_is_a_fallback(app: Holdfast) -> None:
    retry = Retry(max_retries=2, delay=1)

    async def ask() -> str:
        raise OSError("down")

    @app.job(retry=retry)
    async def price(step: Step) -> str:
        try:
            return await step.run("ask", ask)
        except OSError:
            if step.attempt < retry.max_retries:
                raise
            return f"yesterday's, for it is {step.previous_error}"

    run = ended(app, price.trigger().wait())
    assert (run.output, run.attempt) == ("yesterday's, for it is down", 2)
