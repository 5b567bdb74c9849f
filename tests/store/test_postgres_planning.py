"""What a session of PostgreSQL that writes leaves out: planning again, and looking for keys of runs without one."""

from __future__ import annotations

import re
from typing import Any

import pytest

from holdfast.model.run import NewRun
from holdfast.rules.lifecycle import TABLE, Cause
from holdfast.store.base import ClaimOrder, Ending, Lease
from holdfast.store.postgres import PostgresStore

pytestmark = pytest.mark.sampled("what a server does is the same on every Python")

MANY = 8
"""After five uses a server decides by itself whether to plan a statement once for all."""


def lives(store: PostgresStore, link: Any, *, keyed: bool) -> list[str]:
    """Trigger, claim and end a few runs, each for itself; the names of what was said."""
    names = {text: name for name, text in store._sql.items()}
    said: list[str] = []
    execute = link.execute

    def heard(sql: str, values: Any = None) -> Any:
        said.append(names.get(sql, sql))
        return execute(sql, values)

    link.execute = heard

    def do(verb: str, rows: list[Any]) -> Any:
        tx = store.begin_round(link, {verb: rows})
        answers = getattr(store, verb)(tx, rows)
        store.commit(tx)
        return answers

    for number in range(MANY):
        do("trigger", [NewRun(f"{number:026d}", "job", "1", concurrency_key=f"key {number}" if keyed else None)])
        (claimed,) = do("claim", [ClaimOrder("me", 10, 30_000_000, ("job",))])
        (run,) = claimed.runs
        (ended,) = do("finish", [Ending(Lease(run.id, 1, "me"), TABLE[Cause.COMPLETE], "1", keyed=keyed)])
        assert ended.accepted
    return said


@pytest.mark.parametrize("keyed", [False, True], ids=["without keys", "with keys"])
def test_who_writes_has_its_statements_planned_once(postgres_url: str, keyed: bool) -> None:
    store = PostgresStore(postgres_url)
    store.migrate()
    link = store.open()
    lives(store, link, keyed=keyed)
    planned = link.execute("select generic_plans, custom_plans, statement from pg_prepared_statements").fetchall()
    often = [row for row in planned if row[0] + row[1] >= MANY]
    assert len(often) >= 5
    assert [statement for _, again, statement in often if again] == []
    store.disconnect(link)


@pytest.mark.parametrize(("keyed", "looks"), [(False, 0), (True, MANY)], ids=["without a key", "with a key"])
def test_only_the_end_of_a_run_with_a_key_looks_for_it(postgres_url: str, keyed: bool, looks: int) -> None:
    store = PostgresStore(postgres_url)
    store.migrate()
    link = store.open()
    assert lives(store, link, keyed=keyed).count("keys_of") == looks
    store.disconnect(link)


#: The newest runs, in their order and not more than are asked for.
IN_ORDER = {"passing"}


def test_what_was_planned_for_empty_tables_reads_none_of_them_whole(postgres_url: str) -> None:
    """Others may fill them before it is planned anew. Of workers there are few."""
    store = PostgresStore(postgres_url)
    store.migrate()
    link = store.open()
    whole = []
    texts = {name: text for name, text in store._sql.items() if not name.startswith("doctor_") and "holdfast_" in text}
    assert len(texts) > 60
    for name, text in texts.items():
        if "savepoint" in text:
            continue
        values = ", ".join(["null"] * max((int(number) for number in re.findall(r"\$(\d+)", text)), default=0))
        link.say(f"prepare planned as {text}")
        plan = link.execute(f"explain (costs off) execute planned{values and f'({values})'}").fetchall()
        link.say("deallocate planned")
        lines = [line for (line,) in plan]
        for line, below in zip(lines, [*lines[1:], ""], strict=True):
            reads = "Seq Scan on" in line or re.search(r"Scan .*using \w+_pkey on", line)
            if reads and "Index Cond" not in below and "workers" not in line and name not in IN_ORDER:
                whole.append(f"{name}: {line.strip()}")
    assert not whole
    store.disconnect(link)
