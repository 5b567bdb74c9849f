"""The plans of every hot statement, as pages of the documentation (`PAGES`).

    python benchmarks/explain.py postgres        on a server of its own; or mariadb
    python benchmarks/explain.py postgres --write

The statements are those that the stores send. The database is filled before: runs that have ended, that wait for their
time, for their key or for a worker, that are executed, that sleep; trees; steps, attempts, lines, labels. What
PostgreSQL shows is the plan for all values, as a session that writes has it.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import places
import verbs

from holdfast.basis.clock import SystemClock
from holdfast.model.run import RunFilter, RunStatus
from holdfast.store import mysql_listing, mysql_words, postgres_listing, postgres_statements
from holdfast.store.base import Old
from holdfast.store.opening import open_store
from holdfast.store.postgres_place import _SETTINGS, _WRITING

_FOLDER = Path(__file__).resolve().parent.parent / "docs" / "explanation"
PAGES = {"postgres": _FOLDER / "plans-postgresql.md", "mariadb": _FOLDER / "plans-mariadb.md"}
ENDED = 100_000
PENDING = 10_000

#: What is no question of a plan: savepoints, the clock, and what only `holdfast doctor` asks.
_COLD = re.compile("doctor_|batch$|undo_batch$|end_batch$|now$")
_LISTS = {
    "list_runs": RunFilter(),
    "list_runs, by id": RunFilter(ids=("a", "b")),
    "list_runs, of a job": RunFilter(jobs=("plain",)),
    "list_runs, with a label": RunFilter(labels=(("size", "1"),)),
    "list_runs, that went wrong": RunFilter(statuses=(RunStatus.FAILED,)),
}
_OLD = {"find_old": Old(1, 100), "find_old, with outputs": Old(1, 100, outputs=True)}


def statements(kind: str) -> dict[str, str]:
    """What is sent, by name, with `$1` and so on where values go."""
    if kind == "postgres":
        found = {name: text for name, text in postgres_statements.statements("public").items() if not _COLD.match(name)}
        found |= {name: postgres_listing.listing(one, str)[0] for name, one in _LISTS.items()}
        return found | {name: postgres_listing.question(one, str)[0] for name, one in _OLD.items()}
    _ = mysql_words.SQL["lease"]  # the first that is asked for reads them all
    texts = {name: _joined(parts) for name, parts in mysql_words.SQL.items() if not _COLD.match(name)}
    front = mysql_words.FRONT.format(key="null", kind=1, number=0, many=100)
    texts |= {"claim: who is next": front, "claim: lock them": _joined(mysql_words.LOCKED_FRONT)}
    texts |= {name: mysql_listing.listing(one)[0] for name, one in _LISTS.items()}
    return texts | {name: mysql_listing.question(one)[0] for name, one in _OLD.items()}


def _joined(parts: Any) -> str:
    return "".join(part if at % 2 == 0 else f"${part}" for at, part in enumerate(parts))


def fill(url: str) -> None:
    """Something of everything."""
    store = open_store(url, clock=SystemClock())
    store.migrate()
    store.close()
    verbs.fill_claims(url, PENDING, ENDED)
    now = time.time_ns() // 1000
    common = {"due": "1", "created_at": str(now), "updated_at": str(now), "input": "'1'"}
    pending = {**common, "status": "'pending'", "run_at": str(now)}
    places.add(url, 5000, "5", **{**pending, "due": "0", "run_at": f"{now} + i"}, job_name="'later'")
    places.add(url, 5000, "6", **pending, job_name="'late'", deadline_at=f"{now} + i * 1000")
    leased = {"lease_owner": "'w'", "lease_expires_at": f"{now} + i * 1000"}
    places.add(url, 1000, "7", **{**pending, "status": "'leased'"}, **leased, job_name="'leased'", generation="1")
    places.add(
        url, 1000, "8", **{**pending, "status": "'failed'"}, job_name="'broken'", completed_at=str(now), error="'x'"
    )
    _fill_waiting(url, {**common, "run_at": str(now), "generation": "1", "tree": "1"}, now)
    few = "select id, {} from holdfast_runs where job_name = 'leased'"
    for table, columns, values in (
        ("step_attempts", "name, occurrence, run_attempt, number, position, generation, started_at",
         "'step', 0, 0, 0, 0, 1, 1"),
        ("logs", "generation, level, message, created_at", "1, 'info', 'line', 1"),
    ):  # fmt: skip
        places.rows(url, f"insert into holdfast_{table} (run_id, {columns}) {few.format(values)}")
    places.rows(
        url,
        "insert into holdfast_labels (run_id, `key`, value) select id, 'size', job_name from holdfast_runs "
        "where job_name in ('late', 'broken')".replace("`", "" if places.kind_of(url) == "postgres" else "`"),
    )
    places.rows(
        url,
        "insert into holdfast_steps (run_id, name, occurrence, position, status, attempt, generation, output, "
        "started_at, completed_at) select id, 'step', 0, 0, 'completed', 0, 1, '1', 1, 1 from holdfast_runs "
        "where status <> 'pending'",
    )
    if places.kind_of(url) == "postgres":
        places.rows(url, "vacuum analyze")
    else:
        places.rows(url, "analyze table holdfast_runs, holdfast_steps, holdfast_labels, holdfast_logs, holdfast_keys, "
                         "holdfast_waits, holdfast_signals")  # fmt: skip


def _fill_waiting(url: str, common: dict[str, str], now: int) -> None:
    """Runs that sleep, that wait for a signal, for runs below them, and those below one that was cancelled."""
    below = {**common, "tree": "0", "job_name": "'below'", "awaited_as": "'wait#0'"}
    waiting = {**common, "status": "'waiting'", "generation": "1"}
    places.add(url, 5000, "w1", **waiting, job_name="'asleep'", waiting_for="'timer'", wake_at=f"{now} + i * 1000")
    places.add(url, 1000, "w2", **waiting, job_name="'hears'", waiting_for="'signal'")
    places.add(url, 1000, "w3", **waiting, job_name="'above'", waiting_for="'children'")
    ended = {"status": "'cancelled'", "completed_at": str(now), "error": "'x'", "error_type": "'Cancelled'"}
    places.add(url, 100, "w4", **{**common, **ended, "tree": "2"}, job_name="'cancelled'")
    for prefix, above, many, columns in (
        ("x3", "w3", 1000, {"status": "'pending'"}),
        ("y3", "w3", 1000, {**ended, "status": "'completed'", "output": "'1'"}),
        ("x4", "w4", 100, {"status": "'waiting'", "tree": "1"}),
        ("y4", "w4", 100, {**ended, "status": "'completed'", "output": "'1'", "tree": "3"}),
    ):
        for number in range(5):
            run_id = f"(select id from holdfast_runs where id = {places.id_of(url, above)})"
            values = {**below, "parent_id": run_id, "root_id": run_id, "child_index": str(number), **columns}
            places.add(url, many, f"{prefix}{number}", **values)
    key = "key" if places.kind_of(url) == "postgres" else "`key`"
    places.rows(
        url,
        f"insert into holdfast_waits (run_id, {key}, kind, until, created_at) "
        f"select id, 'wait#0', coalesce(waiting_for, 'children'), wake_at, {now} from holdfast_runs where tree = 1",
        "insert into holdfast_signals (id, run_id, name, value, created_at) "
        f"select id, id, 'go', '1', {now} from holdfast_runs where job_name = 'hears'",
    )


# -- plans -----------------------------------------------------------------------------------------------------------


def plans(url: str) -> Iterator[tuple[str, str, list[str]]]:
    """Of each statement its name, the plan, and the indexes that it uses."""
    kind = places.kind_of(url)
    texts = statements(kind)
    with contextlib.closing(places.connect(url)) as connection:
        cursor = connection.cursor()
        if kind == "postgres":
            for name, value in {**_SETTINGS, **_WRITING}.items():
                cursor.execute(f"set {name} = {value}")
        else:
            cursor.execute("set session transaction isolation level read committed")
            cursor.execute(
                "set session join_cache_level = 0, optimizer_switch = 'exists_to_in=off,materialization=off'"
            )
        for name in sorted(texts):
            yield (name, *(_postgres if kind == "postgres" else _mariadb)(cursor, texts[name]))


def _postgres(cursor: Any, text: str) -> tuple[str, list[str]]:
    many = max([int(number) for number in re.findall(r"\$(\d+)", text)], default=0)
    cursor.execute(f"prepare explained as {text}", prepare=False)
    values = f"({', '.join(['null'] * many)})" if many else ""
    cursor.execute(f"explain (costs off) execute explained {values}", prepare=False)
    plan = "\n".join(line for (line,) in cursor.fetchall())
    cursor.execute("deallocate explained", prepare=False)
    used = re.findall(r"Index (?:Only )?Scan(?: Backward)? (?:using|on) (\S+)|Conflict Arbiter Indexes: (\S+)", plan)
    return plan, [one or other for one, other in used]


def _mariadb(cursor: Any, text: str) -> tuple[str, list[str]]:
    text = re.sub(r"^\s*--.*$", "", text, flags=re.MULTILINE)
    text = text.replace("json_table($1", "json_table('[\"a\"]'")
    text = re.sub(r"((?:limit|offset) )\$\d+", r"\g<1>100", text)
    text = re.sub(r"\$(\d+)", r"'\1'", text)
    lines: list[list[str]] = []
    for part in text.split(";"):
        cursor.execute(f"explain {part}")
        named = [column[0] for column in cursor.description]
        keep = [named.index(name) for name in ("table", "type", "key", "rows", "Extra")]
        lines += [["" if row[at] is None else str(row[at]) for at in keep] for row in cursor.fetchall()]
    shown = [["table", "type", "index", "rows", "more"], *lines]
    wide = [max(len(line[at]) for line in shown) for at in range(len(shown[0]))]
    plan = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, wide, strict=True)).rstrip() for line in shown
    )
    return plan, [f"{key} of {table}" for table, _, key, *_ in lines if key]


def page(url: str, version: str) -> str:
    """The page of one database."""
    title = places.TITLES[places.kind_of(url)]
    kind = places.kind_of(url)
    found = [*plans(url)]
    head = f"""# Plans of the statements on {title}

Made by `python benchmarks/explain.py {kind} --write`, on {version}: {ENDED:,} runs that have ended,
{5 * PENDING:,} pending ones of five kinds (without keys, of 10 and of 10,000 keys, free and held), 5,000 whose time
will come, 5,000 with deadlines, 1,000 that are executed, 6,000 that sleep or wait for a signal, 1,100 trees of ten
below one, and their steps, attempts, lines and labels. Names are those of the files in
`store/queries/{"postgres" if kind == "postgres" else "mysql"}/`.
"""
    if kind == "postgres":
        head += """
Sessions that write have `plan_cache_mode = force_generic_plan`: each statement is planned once, for all values, and
that is the plan shown here. Sessions that read plan as the server likes. `enable_seqscan` is off in both.
"""
    lines = [head, "| statement | indexes |", "|---|---|"]
    for name, _, used in found:
        lines.append(f"| [{name}](#{_anchor(name)}) | {', '.join(dict.fromkeys(used)) or '–'} |")
    for name, plan, _ in found:
        lines.append(f"\n## {name}\n\n```text\n{plan}\n```")
    return "\n".join(lines) + "\n"


def _anchor(name: str) -> str:
    return re.sub(r"[^a-z0-9_ -]", "", name.lower()).replace(" ", "-")


def main() -> None:
    """As the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["postgres", "mariadb"])
    parser.add_argument("--write", action="store_true", help="into the page; else it is printed")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, places.place(asked.kind, Path(folder)) as place:
        url = place.empty()
        fill(url)
        version = " ".join(next(iter(place.told().values())).split()[:2])
        text = page(url, version if asked.kind == "postgres" else f"MariaDB {version.split('-')[0]}")
    if asked.write:
        PAGES[asked.kind].write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
