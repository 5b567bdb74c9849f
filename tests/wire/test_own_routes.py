"""The routes that the ancestor does not have."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from asking import Asking
from holdfast import Children, Step, job
from holdfast.http.routes import ROUTES, RUN_ID
from holdfast.http.wire import camel
from house import House, until


@dataclass
class Order:
    number: int


@job(name="take-order")
async def take_order(order: Order) -> str:
    return f"order {order.number}"


@job
async def talking(step: Step, lines: int) -> int:
    for line in range(lines):
        step.log.info(f"line {line}", n=line)
    step.log.debug("a detail")
    return await step.run("twice", lambda: lines * 2)


@job
async def parent() -> Children[None]:
    return Children(None, [take_order.bind(Order(n)) for n in range(3)])


@job
async def asking(step: Step) -> Any:
    return await step.wait_for_signal("answer")


def run(test: Callable[[Asking], Any], house: House, *, worker: bool = True, **options: Any) -> None:
    async def main() -> None:
        async with house.app(take_order, talking, parent, asking, worker=worker) as app:
            app.sleeping("approval", output=int)
            await test(Asking(app, **options))

    asyncio.run(main())


async def ended(ask: Asking, run_id: str) -> Any:
    return await ask.handler.app.wait_for_run(run_id)


# -- the names of the wire ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wire"),
    [
        ("id", "id"),
        ("job_name", "jobName"),
        ("completed_step_count", "completedStepCount"),
        ("is_terminal", "isTerminal"),
    ],
)
def test_s11_one_function_makes_the_names_of_the_wire(name: str, wire: str) -> None:
    assert camel(name) == wire


# -- looking -----------------------------------------------------------------------------------------------


def test_jobs_are_listed_with_what_they_take_and_give(house: House) -> None:
    async def test(ask: Asking) -> None:
        jobs = {one["name"]: one for one in (await ask.get("/jobs")).json}
        assert set(jobs) == {"take-order", "talking", "parent", "asking", "approval"}
        order = jobs["take-order"]
        assert (order["key"], order["isSleeping"]) == ("take_order", False)
        assert order["inputSchema"]["properties"]["number"]["type"] == "integer"
        assert order["outputSchema"] == {"type": "string"}
        assert jobs["approval"]["isSleeping"]

    run(test, house)


def test_log_lines_come_in_order_and_in_pages(house: House) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("talking", {"lines": 4})
        await ended(ask, run_id)
        first = (await ask.get("/run/logs", {"runId": run_id, "limit": "3"})).json
        assert [(line["message"], line["data"], line["level"]) for line in first] == [
            (f"line {n}", {"n": n}, "info") for n in range(3)
        ]
        rest = (await ask.get("/run/logs", {"runId": run_id, "after": str(first[-1]["id"])})).json
        assert [line["message"] for line in rest] == ["line 3", "a detail"]

    run(test, house)


def test_steps_are_whole_also_after_the_end(house: House) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("talking", {"lines": 1})
        await ended(ask, run_id)
        (step,) = (await ask.get("/run/steps", {"runId": run_id})).json
        assert (step["name"], step["occurrence"], step["status"], step["output"]) == ("twice", 0, "completed", 2)
        assert [one["number"] for one in step["attempts"]] == [0]
        assert "traceback" not in step

    run(test, house)


def test_a_wait_is_a_step_that_is_not_over(house: House) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("asking")
        async with asyncio.timeout(30):
            while not await ask.handler.app.get_steps(run_id):
                pass  # nobody announces it
        (step,) = (await ask.get("/run/steps", {"runId": run_id})).json
        assert (step["name"], step["status"], step["wait"]) == ("answer", "waiting", "signal")

    run(test, house)


def test_children_are_listed_newest_first_and_in_pages(house: House) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("parent")
        await ended(ask, run_id)
        answer = (await ask.get("/run/children", {"runId": run_id})).json
        children = answer["runs"]
        assert answer["nextBefore"] is None
        assert [(child["input"], child["parentId"], child["rootId"]) for child in children] == [
            ({"number": n}, run_id, run_id) for n in (2, 1, 0)
        ]
        page = (await ask.get("/run/children", {"runId": run_id, "limit": "1", "before": children[0]["id"]})).json
        assert ([child["id"] for child in page["runs"]], page["nextBefore"]) == ([children[1]["id"]], children[1]["id"])
        page = (await ask.get("/run/children", {"runId": run_id, "limit": "1", "before": children[1]["id"]})).json
        assert ([child["id"] for child in page["runs"]], page["nextBefore"]) == ([children[2]["id"]], None)

    run(test, house)


def test_the_process_and_the_workers_tell_how_they_are_doing(house: House) -> None:
    async def test(ask: Asking) -> None:
        await ended(ask, await ask.trigger("talking", {"lines": 0}))
        stats = (await ask.get("/stats")).json
        assert {"uptime", "running", "verbs", "rounds", "roundSizes", "line", "longestLine", "droppedEvents"} <= set(
            stats
        )
        assert {"trigger", "save_steps"} <= set(stats["verbs"])
        (worker,) = (await ask.get("/workers")).json
        assert (worker["isAlive"], worker["queues"]) == (True, ["default"])
        assert "take-order" in worker["jobs"]

    run(test, house)


# -- saying something to a run -----------------------------------------------------------------------------


def test_a_signal_reaches_a_run_that_waits_for_it(house: House) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("asking")
        answer = await ask.post("/signal", {"name": "answer", "value": {"n": 7}, "key": "k"}, {"runId": run_id})
        assert (answer.status, answer.json) == (200, {"success": True})
        assert (await ended(ask, run_id)).output == {"n": 7}
        late = await ask.post("/signal", {"name": "answer"}, {"runId": run_id})
        assert (late.status, late.error) == (409, f"Cannot signal completed run: {run_id}")

    run(test, house)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({}, "name is required"),
        ({"name": ""}, "name is required"),
        ({"name": 5}, "name is required"),
        ({"name": "a\0b"}, "name: "),
        ({"name": "a", "key": 5}, "key: int is not a key."),
    ],
)
def test_a_signal_that_can_not_be_sent_is_refused(body: Any, error: str, house: House) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("asking")
        refused = await ask.post("/signal", body, {"runId": run_id})
        assert refused.status == 400
        assert refused.error.startswith(error)

    run(test, house, worker=False)


def test_a_sleeping_run_is_triggered_and_woken_by_its_key(house: House) -> None:
    async def test(ask: Asking) -> None:
        run_id = await ask.trigger("approval", {"key": "order-7"})
        again = await ask.post("/trigger", {"jobName": "approval", "input": {"key": "order-7"}})
        assert again.json == {"runId": run_id, "disposition": "idempotent"}
        woken = await ask.post("/wake", {"jobName": "approval", "key": "order-7", "output": 5})
        assert woken.json == {"success": True, "runId": run_id}
        assert (await ended(ask, run_id)).output == 5
        first = (await ask.post("/wake", {"jobName": "approval", "key": "order-8", "error": "no"})).json["runId"]
        assert (await ended(ask, first)).error == "no", "also before it is triggered"

    run(test, house)


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({}, 400, "jobName is required"),
        ({"jobName": "nobody"}, 404, "Job not found: nobody"),
        ({"jobName": "talking"}, 400, "talking is no sleeping job."),
        ({"jobName": "approval"}, 400, "key is required"),
        ({"jobName": "approval", "key": "k"}, 400, "Give output or error, one of them."),
        ({"jobName": "approval", "key": "k", "output": 1, "error": "x"}, 400, "Give output or error, one of them."),
        ({"jobName": "approval", "key": "k", "error": 5}, 400, "error: give a text."),
        ({"jobName": "approval", "key": "k", "output": "many"}, 400, "output: "),
    ],
)
def test_a_wake_that_can_not_be_is_refused(body: Any, status: int, error: str, house: House) -> None:
    async def test(ask: Asking) -> None:
        refused = await ask.post("/wake", body)
        assert refused.status == status
        assert refused.error.startswith(error)
        assert house.status() == []

    run(test, house, worker=False)


@pytest.mark.parametrize("output", ["1e400", "[1, -1e400]", '{"a": {"b": 1e400}}'])
def test_a_wake_with_a_number_that_is_too_large_is_refused(output: str, house: House) -> None:
    async def test(ask: Asking) -> None:
        ask.handler.app.sleeping("anything")
        refused = await ask.post("/wake", f'{{"jobName": "anything", "key": "k", "output": {output}}}'.encode())
        assert refused.status == 400
        assert refused.error.startswith("output")
        assert "the number is too large" in refused.error
        assert house.status() == []

    run(test, house, worker=False)


# -- many at once ------------------------------------------------------------------------------------------


def test_many_are_cancelled_and_triggered_again_by_a_filter(house: House) -> None:
    async def test(ask: Asking) -> None:
        ids = [await ask.trigger("talking", {"lines": n}, labels={"team": "a" if n else "b"}) for n in range(4)]
        answer = (await ask.post("/runs/cancel", params={"label.team": "a", "limit": "2"})).json
        assert answer == {"done": [{"runId": ids[3]}, {"runId": ids[2]}], "refused": [], "nextBefore": ids[2]}
        older = (await ask.post("/runs/cancel", params={"label.team": "a", "before": ids[2]})).json
        assert older == {"done": [{"runId": ids[1]}], "refused": [], "nextBefore": None}
        again = (await ask.post("/runs/retrigger", params={"status": "cancelled", "jobName": "talking"})).json
        assert [one["runId"] for one in again["done"]] == [ids[3], ids[2], ids[1]]
        fresh = [one["newRunId"] for one in again["done"]]
        assert sorted(house.status()) == ["cancelled"] * 3 + ["pending"] * 4
        assert len(set(fresh)) == 3

    run(test, house, worker=False)


def test_what_one_of_many_does_not_allow_is_told_and_keeps_no_other(house: House) -> None:
    async def test(ask: Asking) -> None:
        first = await ask.trigger("talking", {"lines": 0}, concurrencyKey="c")
        await ask.post("/cancel", params={"runId": first})
        second = await ask.trigger("talking", {"lines": 0}, concurrencyKey="c")
        other = await ask.trigger("asking")
        await ask.post("/cancel", params={"runId": other})
        answer = (await ask.post("/runs/retrigger")).json
        assert [one["runId"] for one in answer["done"]] == [other]
        (refused,) = answer["refused"]
        assert refused["runId"] == first
        assert 'concurrency key "c"' in refused["error"]
        assert (await ask.get("/run", {"runId": second})).json["status"] == "pending"

    run(test, house, worker=False)


# -- OpenAPI -----------------------------------------------------------------------------------------------


def test_openapi_has_every_route_with_what_it_needs(house: House) -> None:
    async def test(ask: Asking) -> None:
        document = (await ask.get("/api/openapi.json")).json
        assert document["openapi"] == "3.1.0"
        assert document["servers"] == [{"url": "/api"}]
        found = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
        assert found == {(route.method, route.path) for route in ROUTES}
        operations = [one for methods in document["paths"].values() for one in methods.values()]
        assert len({one["operationId"] for one in operations}) == len(ROUTES)
        assert all(one["summary"] and one["x-permission"] for one in operations)

    run(test, house, base_path="/api")


def fits(value: Any, schema: dict[str, Any], path: str = "$") -> list[str]:
    """What of a value a schema does not say, or says otherwise: also fields that it does not know."""
    kinds = {
        "string": str, "integer": int, "number": (int, float), "object": dict, "array": list, "boolean": bool,
        "null": type(None),
    }  # fmt: skip
    if "const" in schema:
        return [] if value == schema["const"] else [f"{path}: {value!r}"]
    wanted = schema.get("type")
    allowed = [wanted] if isinstance(wanted, str) else wanted or list(kinds)
    if not any(isinstance(value, kinds[kind]) for kind in allowed) and schema:
        return [f"{path}: {value!r} is not {wanted}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{path}: {value!r} is none of {schema['enum']}"]
    wrong: list[str] = []
    if isinstance(value, list) and "items" in schema:
        for index, one in enumerate(value):
            wrong += fits(one, schema["items"], f"{path}[{index}]")
    if isinstance(value, dict) and "properties" in schema:
        wrong += [f"{path}.{name}: missing" for name in schema.get("required", ()) if name not in value]
        for name, one in value.items():
            inner = schema["properties"].get(name)
            wrong += [f"{path}.{name}: not in the schema"] if inner is None else fits(one, inner, f"{path}.{name}")
    return wrong


def test_what_is_answered_is_what_the_schemas_say(house: House) -> None:
    async def test(ask: Asking) -> None:
        done = await ask.trigger("talking", {"lines": 2}, labels={"a": "b"})
        above = await ask.trigger("parent")
        waits = await ask.trigger("asking")
        for one in (done, above):
            await ended(ask, one)
        await until(lambda: ask.handler.app._engine.worker is not None)
        answers = 0
        for route in sorted(ROUTES, key=lambda route: route.method == "DELETE"):
            if route.is_stream:
                continue
            for run_id in (done, above, waits):
                body: Any = b""
                if route.body is not None:
                    body = {
                        "/trigger": {"jobName": "talking", "input": {"lines": 0}},
                        "/runs/trigger": {"calls": [{"jobName": "talking", "input": {"lines": 0}, "delay": 60}]},
                        "/signal": {"name": "other", "value": 1},
                        "/wake": {"jobName": "approval", "key": "k", "output": 1},
                    }[route.path]
                    assert fits(body, route.body) == []
                params = {"runId": run_id} if RUN_ID in route.params else {}
                answer = await ask.ask(route.method, route.path, params, body)
                if answer.status == 200:
                    assert fits(answer.json, route.answer) == [], route.path
                    answers += 1
                else:
                    assert (answer.status, list(answer.json)) in ((409, ["error"]), (404, ["error"])), route.path
        assert answers > 40
        assert fits({"id": 5}, {"type": "object", "properties": {"id": {"type": "string"}}}) != []

    run(test, house)
