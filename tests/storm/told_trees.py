"""Trees of runs that nobody has executed: told by hand as their reading has it, for the checker."""

from __future__ import annotations

import json
from typing import Any

from storm_trees import Node, node_of, read
from told_by_hand import CLIENT, Told


class ToldTree:
    """A whole tree in a history: each of its runs has come to what was drawn."""

    def __init__(self, told: Told, root: str) -> None:
        self.told = told
        self.root = root
        self.reading = read(root)
        self.outcomes = self.reading.outcomes
        for place in sorted(self.outcomes, key=lambda one: (len(one), one)):
            self._written(place)
        for place in self.outcomes:
            self._executed(place)
        for place in sorted(self.outcomes, key=lambda one: -len(one)):
            self._ended(place)
        for place in self.outcomes:
            told.read(place)

    def first(self, kind: str) -> str:
        """The place of the first run of this kind or with such a part."""
        return next(place for place in self.outcomes if _job(place) == kind)

    def _written(self, place: str) -> None:
        told, part = self.told, place.rpartition("/")[2] if "/" in place else ""
        above = _above(place)
        text = json.dumps({"n": place}, separators=(",", ":"))
        told.row("run", place, name=f"{_job(place)} {text}", after="pending", generation=0)
        if above is None:
            tag = f"tag of {place}"
            told.tell("asked", CLIENT, op="trigger", tag=tag, client=0, job=_job(place), n=place, key=None, line=None)
            told.tell("ok", CLIENT, op="trigger", tag=tag, run=place, was="created")
        told.runs[place] = {
            "id": place, "job_name": _job(place), "input": text, "status": "pending", "generation": 0, "output": None,
            "error": None, "error_type": None, "crashes": 0, "idempotency_key": None, "concurrency_key": None,
            "parent_id": above, "is_finalize": int(part == "finalize"), "awaited_as": part or "wait#0", "attempt": 0,
        }  # fmt: skip

    def _executed(self, place: str) -> None:
        self.told.claim(place)
        for step in self.reading.steps[place]:
            self.told.begin(place, step)
            value = {"value": 1, "mark": self.told.effect(place, step)}
            self.checkpoint(place, step, json.dumps(value))
        if "/" not in place:
            for act in node_of(place).acts:
                if act.what == "hear" and self.outcomes[place].status == "completed":
                    self._heard(place, act.name, act.value)

    def checkpoint(self, place: str, step: str, output: str) -> None:
        self.told.steps.append(
            {"run_id": place, "name": step, "occurrence": 0, "status": "completed", "output": output, "generation": 1}
        )
        self.told.row("step", place, name=f"{step}#0", before="leased", after="completed", generation=1, writer=1)

    def _heard(self, place: str, name: str, value: int) -> None:
        told, id = self.told, f"{place} {name}"
        told.row("wait", place, name=f"{name}#0", before="leased")
        told.row("signal", place, name=id, before="leased")
        told.row("taken", place, name=id, before="leased", after=f"{name}#0")
        self.checkpoint(place, name, str(value))
        told.signals.append({"id": id, "run_id": place, "name": name, "value": str(value), "consumed_by": f"{name}#0"})

    def _ended(self, place: str) -> None:
        run, outcome = self.told.runs[place], self.outcomes[place]
        run["error_type"] = outcome.error
        if outcome.status == "completed":
            run["output"] = json.dumps(_output(place, outcome.value))
        self.told.change(place, outcome.status)


def _job(place: str) -> str:
    node: Node = node_of(place)
    if "/" not in place:
        return node.kind
    part = place.rpartition("/")[2].partition("#")[0]
    finalize = {"closed": "closed.finalize", "signed": "sum_up"}
    return {"finalize": finalize.get(node.kind, ""), "iteration": "turn"}.get(part, part)


def _above(place: str) -> str | None:
    if "/" in place:
        return place.rpartition("/")[0]
    above, dot, _ = place.rpartition(".")
    return above.removesuffix("@1") if dot else None


def _output(place: str, value: int) -> Any:
    kind = _job(place)
    if kind in ("line", "stage_one", "stage_two"):
        return f"{place.partition('/')[0]} {value}"
    if kind == "turn":
        return {"value": value} if value else None
    if kind == "around":
        return {"success": bool(value), "output": value}
    return {"output": value, "children": []} if kind == "family" else value
