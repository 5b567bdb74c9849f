"""Histories that nobody has lived: made by hand, for the checker."""

from __future__ import annotations

import json
from typing import Any

from crash_checker import AUDIT_COLUMNS, TERMINAL, Findings, History
from storm_checker import StormChecker
from storm_jobs import LIMIT, ORDER, STEPS, total

FIRST, SECOND, CLIENT = 11, 12, 50
"""Processes."""


class Told:
    """Each verb tells what the world, the clients and the audit of the database would have of it."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.audit: list[dict[str, Any]] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.steps: list[dict[str, Any]] = []
        self.orphans: list[tuple[str, str]] = []
        self.unlabelled: list[str] = []
        self.integrity = ["ok"]
        self.bad_rows: dict[str, str] = {}
        self.waits: list[dict[str, Any]] = []
        self.signals: list[dict[str, Any]] = []

    def check(self) -> Findings:
        history = History(
            self.events, self.audit, dict(self.runs), self.steps, self.unlabelled, self.orphans, self.integrity,
            waits=self.waits, signals=self.signals,
        )  # fmt: skip
        return StormChecker(history, bad_rows=self.bad_rows).check()

    def tell(self, what: str, pid: int = FIRST, **more: Any) -> int:
        self.events.append({"seq": len(self.events) + 1, "ev": what, "pid": pid, **more})
        return len(self.events)

    def row(self, kind: str, run: str, **more: Any) -> None:
        empty = dict.fromkeys(AUDIT_COLUMNS)
        self.audit.append({**empty, "id": len(self.audit) + 1, "kind": kind, "run_id": run, **more})

    # -- clients -----------------------------------------------------------------------------------------------

    def trigger(
        self, run: str, n: int, *, job: str = "order", key: str | None = None, line: str | None = None,
        batch: str | None = None,
    ) -> None:  # fmt: skip
        tag = f"tag of {run}"
        self.tell("asked", CLIENT, op="trigger", tag=tag, client=0, job=job, n=n, key=key, line=line, batch=batch)
        self.written(run, n, job=job, key=key, line=line)
        self.tell("ok", CLIENT, op="trigger", tag=tag, run=run, was="created")

    def written(self, run: str, n: int, *, job: str = "order", key: str | None = None, line: str | None = None) -> None:
        text = json.dumps({"n": n}, separators=(",", ":"))
        self.row("run", run, name=f"{job} {text}", after="pending", generation=0)
        self.runs[run] = {
            "id": run, "job_name": job, "input": text, "status": "pending", "generation": 0, "output": None,
            "error": None, "error_type": None, "crashes": 0, "idempotency_key": key, "concurrency_key": line,
        }  # fmt: skip

    def ask(self, op: str, run: str, pid: int = CLIENT, *, last: bool = False) -> None:
        self.tell("asked", pid, op=op, tag=run, client=0, **({"last": True} if last else {}))

    def cancel(self, run: str, pid: int = CLIENT) -> None:
        self.ask("cancel", run, pid)
        self.change(run, "cancelled", self.runs[run]["generation"] + 1)
        self.tell("ok", pid, op="cancel", tag=run, run=run)

    def delete(self, run: str) -> None:
        self.ask("delete", run)
        self.row("gone", run, before=self.runs.pop(run)["status"])
        self.steps = [step for step in self.steps if step["run_id"] != run]
        self.tell("ok", CLIENT, op="delete", tag=run, run=run)

    def read(self, run: str, output: Any = ..., **more: Any) -> None:
        row = self.runs[run]
        kept = None if row["output"] is None else json.loads(row["output"])
        outputs = [kept if output is ... else output]
        self.tell("seen", CLIENT, run=run, status=row["status"], outputs=outputs, **more)

    # -- workers -----------------------------------------------------------------------------------------------

    def change(self, run: str, after: str, generation: int | None = None, name: str | None = None) -> None:
        row = self.runs[run]
        before, row["status"] = row["status"], after
        generation_before = row["generation"]
        row["generation"] = generation_before if generation is None else generation
        self.row(
            "change", run, name=name, before=before, after=after, generation_before=generation_before,
            generation=row["generation"],
        )  # fmt: skip

    def claim(self, run: str) -> None:
        self.change(run, "leased", self.runs[run]["generation"] + 1)

    def expire(self, run: str) -> None:
        self.change(run, "pending", self.runs[run]["generation"] + 1, "expired")

    def begin(self, run: str, step: str, pid: int = FIRST, **more: Any) -> None:
        self.tell("begin", pid, **{**self._body(run, step), **more})

    def effect(self, run: str, step: str, pid: int = FIRST, **more: Any) -> int:
        return self.tell("effect", pid, **{**self._body(run, step), **more})

    def _body(self, run: str, step: str) -> dict[str, Any]:
        generation = self.runs[run]["generation"]
        return {"run": run, "step": step, "gen": generation, "attempt": 0, "key": f"{run}:{step}"}

    def save(self, run: str, step: str, mark: int, **more: Any) -> None:
        row = self.runs[run]
        n, generation = json.loads(row["input"])["n"], row["generation"]
        value = {"value": n + ORDER[row["job_name"]].index(step), "mark": mark}
        self.steps.append(
            {
                "run_id": run, "name": step, "occurrence": 0, "status": "completed", "output": json.dumps(value),
                "generation": generation,
            }
        )  # fmt: skip
        saved = {"before": row["status"], "after": "completed", "generation": generation, "writer": generation}
        self.row("step", run, name=f"{step}#0", **{**saved, **more})
        self.log(run, f"{step} is done")

    def log(self, run: str, line: str) -> None:
        row = self.runs[run]
        generation = row["generation"]
        self.row("log", run, name=line, before=row["status"], generation=generation, writer=generation)

    def step(self, run: str, step: str, pid: int = FIRST, *, value: int | None = None) -> None:
        self.begin(run, step, pid)
        self.save(run, step, self.effect(run, step, pid))

    def finish(self, run: str, status: str = "completed") -> None:
        row = self.runs[run]
        marks = {step["name"]: json.loads(step["output"])["mark"] for step in self.steps if step["run_id"] == run}
        if status == "completed":
            names = ORDER[row["job_name"]]
            output = {"total": total(json.loads(row["input"])["n"]), "marks": [marks[name] for name in names]}
            row["output"] = json.dumps(output)
        self.change(run, status)

    def execute(self, run: str, pid: int = FIRST) -> None:
        self.claim(run)
        for step in ORDER[self.runs[run]["job_name"]]:
            self.step(run, step, pid)
        self.finish(run)


def clean() -> Told:
    """A history in which much has happened, and nothing that may not."""
    told = Told()
    # One that was taken over after two steps, in the middle of the third.
    told.trigger("taken", 10, key="once")
    told.claim("taken")
    told.step("taken", "reserve")
    told.step("taken", "charge")
    told.begin("taken", "pack", before="charge", saved=True)
    told.effect("taken", "pack")
    told.tell("fault", FIRST, point="begin#9", phase="paused")
    told.expire("taken")
    told.claim("taken")
    told.step("taken", "pack", SECOND)
    told.tell("stale", FIRST, verb="save_steps", count=1, changed=0, of="taken", gen=1)
    told.step("taken", "ship", SECOND)
    told.step("taken", "notify", SECOND)
    told.finish("taken")
    # Two of one concurrency key, one after the other.
    for place, run in enumerate(("first", "second")):
        told.trigger(run, 20 + place, line="line")
        told.execute(run)
    # One cancelled while it executed, one gone, two of a batch.
    told.trigger("cancelled", 30)
    told.claim("cancelled")
    told.step("cancelled", "reserve")
    told.cancel("cancelled")
    told.begin("cancelled", "charge", gen=1)
    told.trigger("gone", 40)
    told.execute("gone")
    told.delete("gone")
    for place, run in enumerate(("left", "right")):
        told.trigger(run, 50 + place, batch="both")
    told.execute("left")
    told.execute("right", SECOND)
    # One that failed as it should, and some of a job with a limit, all at once.
    told.trigger("doomed", 60, job="doomed")
    told.claim("doomed")
    told.runs["doomed"]["error_type"] = "Declined"
    told.finish("doomed", "failed")
    for place in range(LIMIT):
        told.trigger(f"narrow {place}", 70 + place, job="narrow")
        told.claim(f"narrow {place}")
    for place in range(LIMIT):
        for step in ORDER["narrow"]:
            told.step(f"narrow {place}", step)
        told.finish(f"narrow {place}")
    for run in told.runs:
        told.read(run)
    told.trigger("last", 80)
    told.execute("last")
    told.read("last")
    told.ask("wait", "last", last=True)
    told.tell("ok", CLIENT, op="wait", tag="last", run="last")
    held = {"role": "worker", "number": 0, "tasks": 1, "held": 0, "executing": 0, "backlog": 0, "rss": 50_000}
    before = {"fds": 10, "threads": [], "rss": 40_000}
    for when, fds in (("fresh", 15), ("quiet", 17), ("stopped", 10)):
        told.tell("holdings", when=when, fds=fds, threads=["MainThread"], before=before, **held)
    assert all(row["status"] in TERMINAL for row in told.runs.values())
    assert len(ORDER["order"]) == STEPS
    return told
