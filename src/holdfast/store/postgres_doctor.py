"""What is wrong with a PostgreSQL database, found by looking only: `holdfast doctor`.

Over one session, set up as a worker's own: what it is told of plans and limits is what workers meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import psycopg
from pydantic_core import to_json

from . import doctor
from .doctor import OF_RUNS, SHOWN, Finding, in_bytes, span, tried, when
from .postgres import PostgresStore
from .postgres_place import Link

_PAGE = "docs/how-to/postgresql.md"
_SETTINGS = f"{_PAGE}#what-the-server-must-not-have-turned-off"
_OLD = f"{_PAGE}#autovacuum-and-who-stands-in-its-way"
_FAILOVER = f"{_PAGE}#what-a-failover-loses"
_CONNECTIONS = f"{_PAGE}#connections"
_POOLER = f"{_PAGE}#behind-pgbouncer"
_ROLES = f"{_PAGE}#who-may-do-what"

#: Of the connections that may be there; beyond it the next deploy may find none left.
_MANY_CONNECTIONS = 0.8
#: Seconds. Nothing of ours takes longer than 30.
_LONG_TRANSACTION = 600.0
#: Dead rows: a part of the living ones, and some that don't matter in any table.
_DEAD_PART, _DEAD_ANYWAY = 0.2, 1000
#: Bytes of log that a slot may hold before somebody should know.
_MUCH_LOG = 1 << 30
#: Seconds that a notification may take before it counts as lost, and after which it is slow.
_NOTIFIED, _SLOWLY = 5.0, 1.0
_FULL_QUEUE = 0.25

#: The index that a claim has to read, in its order.
CLAIMED_BY = "holdfast_runs_claimable"


class Settings(NamedTuple):
    """Those of the server, as they are for everybody."""

    fsync: str
    full_page_writes: str
    synchronous_commit: str
    synchronous_standby_names: str
    autovacuum: str


def examine(store: PostgresStore) -> list[Finding]:
    """All findings, in the order in which they are worth reading. `StoreUnavailable` if nobody answers."""
    link = store.connect(read_only=True)
    try:
        return list(_findings(store, link))
    finally:
        store.disconnect(link)


def _findings(store: PostgresStore, link: Link) -> Iterator[Finding]:
    find = partial(store._find, link)
    yield tried(store, "server", lambda: _server(find, link))
    try:
        settings = Settings(**dict(find("doctor_settings")))
    except psycopg.Error as error:
        yield doctor.failed("durability", store.translate(error))
        return
    yield durability(settings, pooled=link.pooled)
    yield tried(store, "replication", lambda: replication(settings, find("doctor_standbys"), find("doctor_slots")))
    yield tried(store, "connections", lambda: connections(*find("doctor_connections")[0]))
    yield tried(store, "clock skew", lambda: _skew(store, find))
    yield tried(
        store, "oldest transaction", lambda: transactions(find("doctor_transactions", SHOWN), find("doctor_prepared"))
    )
    yield tried(store, "notifications", lambda: _notifications(store, find, link))
    tables = tried(
        store,
        "tables",
        lambda: doctor.tables(store, store.version(link), store.schema.newest, lambda: store.database_id(link)),
        f"Does this role have its rights? See {_ROLES}.",
    )
    yield tables
    if tables.level != "ok":
        return
    yield tried(store, "dead rows", lambda: dead_rows(find("doctor_rows", store.address.schema), settings))
    yield tried(store, "claim", lambda: _claim(store, link))
    now = store._find(link, "now")[0][0]
    for name, ask in OF_RUNS.items():
        yield tried(store, name, partial(ask, now, find), f"Does this role have its rights? See {_ROLES}.")


# -- the server ----------------------------------------------------------------------------------------------------


def _server(find: doctor.Find, link: Link) -> Finding:
    ((version, standby, user, sees_all, _, size),) = find("doctor_server")
    data = {"version": version, "standby": standby, "pooler": link.pooled, "database_bytes": size}
    text = f"PostgreSQL {version}, the database has {in_bytes(size)}, as {user}"
    if standby:
        return Finding("server", "fail", f"{text}; it is a standby", "Runs are claimed on the primary only.", data)
    if link.pooled:
        advice = f"Other processes are noticed by asking, not by notifications. See {_POOLER}."
        return Finding("server", "ok", f"{text}, through a pooler", advice, data)
    if not sees_all:
        advice = f"What sessions of other roles do is hidden from it: grant pg_monitor to {user}. See {_ROLES}."
        return Finding("server", "ok", text, advice, data)
    return Finding("server", "ok", text, data=data)


def durability(settings: Settings, *, pooled: bool) -> Finding:
    """Whether a power cut takes away what was acknowledged."""
    data = settings._asdict()
    if settings.fsync == "off":
        text = "fsync is off: a crash of the machine may destroy the database"
        return Finding("durability", "fail", text, f"Turn it on. See {_SETTINGS}.", data)
    if settings.full_page_writes == "off":
        text = "full_page_writes is off: a crash in the middle of a page's write may destroy it"
        advice = f"Turn it on, unless the file system never tears a page. See {_SETTINGS}."
        return Finding("durability", "warn", text, advice, data)
    if settings.synchronous_commit == "off":
        if pooled:
            text = "synchronous_commit is off: a crash loses the last moments, acknowledged or not"
            advice = f"`alter role … set synchronous_commit = on`: a pooler drops what we set. See {_POOLER}."
            return Finding("durability", "fail", text, advice, data)
        text = "fsync and full_page_writes are on; synchronous_commit is off, and on in sessions of Holdfast"
        return Finding("durability", "ok", text, data=data)
    return Finding("durability", "ok", "fsync, full_page_writes and synchronous_commit are on", data=data)


def replication(settings: Settings, standbys: list[Any], slots: list[Any]) -> Finding:
    """What a failover would lose, and who keeps the log."""
    waited_for = [name for name, state in standbys if state in ("sync", "quorum")]
    data = {
        "standbys": [{"name": name, "state": state} for name, state in standbys],
        "synchronous_standby_names": settings.synchronous_standby_names,
        "unread_slots": [{"name": name, "log_bytes": size} for name, _, size in slots],
    }
    for name, _, size in slots:
        if size > _MUCH_LOG:
            text = f"nobody reads the replication slot {name}, which keeps {in_bytes(size)} of the log"
            advice = f"Bring its reader back, or drop it (pg_drop_replication_slot): it fills the disk. See {_OLD}."
            return Finding("replication", "warn", text, advice, data)
    if settings.synchronous_standby_names and standbys and all(state == "" for _, state in standbys):
        text = "what the standbys are is hidden from this role"
        return Finding("replication", "ok", text, f"Grant it pg_monitor. See {_ROLES}.", data)
    if settings.synchronous_standby_names and not waited_for:
        text = f"commits wait for {settings.synchronous_standby_names}, and no such standby is connected"
        advice = f"Nothing is acknowledged until one is back. See {_FAILOVER}."
        return Finding("replication", "fail", text, advice, data)
    if waited_for and settings.synchronous_commit in ("local", "remote_write"):
        text = f"synchronous_commit is {settings.synchronous_commit}: no commit waits until a standby has it on disk"
        advice = f"A failover may lose what was acknowledged: set it to on. See {_FAILOVER}."
        return Finding("replication", "warn", text, advice, data)
    if standbys and not waited_for:
        text = f"{_many(len(standbys), 'standby', 'standbys')}, none of them synchronous"
        advice = f"A failover may lose what was acknowledged in its last moments. See {_FAILOVER}."
        return Finding("replication", "warn", text, advice, data)
    if standbys:
        return Finding("replication", "ok", f"synchronous with {', '.join(waited_for)}", data=data)
    return Finding("replication", "ok", "no standby: what is on its disk is all there is", data=data)


def connections(there: int, ours: int, allowed: int) -> Finding:
    """Whether the next process will find room."""
    data = {"connections": there, "ours": ours, "allowed": allowed}
    text = f"{there} of {allowed}, {ours} of them say that they are Holdfast's (this one, too)"
    if there > allowed * _MANY_CONNECTIONS:
        advice = f"A process takes up to four. Fewer processes, a pooler, or more max_connections: see {_CONNECTIONS}."
        return Finding("connections", "warn", text, advice, data)
    return Finding("connections", "ok", text, data=data)


def _skew(store: PostgresStore, find: doctor.Find) -> Finding:
    advice = "Leases are judged by the server's clock alone; times of steps and log lines are of this machine's."
    return doctor.skew(store, lambda: int(find("now")[0][0]), "the server's clock", advice)


def transactions(found: list[Any], prepared: list[Any]) -> Finding:
    """Who keeps dead rows from being cleaned up."""
    data: dict[str, Any] = {
        "transactions": [
            {"pid": pid, "role": role, "application": name, "state": state, "seconds": age, "holds_back": behind}
            for pid, role, name, state, age, behind in found
        ],
        "prepared": [{"gid": gid, "owner": owner, "seconds": age} for gid, owner, age in prepared],
    }
    for gid, owner, age in prepared:
        if age > _LONG_TRANSACTION:
            text = f"the prepared transaction {gid!r} of {owner} is {span(age)} old"
            advice = f"`rollback prepared` or `commit prepared`: nothing younger is cleaned up. See {_OLD}."
            return Finding("oldest transaction", "warn", text, advice, data)
    if not found:
        return Finding("oldest transaction", "ok", "none is open", data=data)
    pid, role, name, state, age, behind = found[0]
    since = "of unknown age" if age is None else f"{span(age)} old"
    text = f"process {pid} ({role}, {name or 'no name'}), {state or 'state hidden'}, {since}, {behind} behind"
    if (age or 0.0) > _LONG_TRANSACTION:
        advice = (
            f"No dead row since then can be cleaned up. If it is forgotten: select pg_terminate_backend({pid}). "
            f"See {_OLD}."
        )
        return Finding("oldest transaction", "warn", text, advice, data)
    return Finding("oldest transaction", "ok", text, data=data)


def _notifications(store: PostgresStore, find: doctor.Find, link: Link) -> Finding:
    """A notification to ourselves, and how long it takes."""
    if link.pooled:
        return Finding("notifications", "ok", "none behind a pooler: other processes are noticed by asking")
    ((full,),) = find("doctor_notifications")
    channel = f"holdfast_doctor_{link.pg.info.backend_pid}"
    link.execute(f"listen {channel}")
    began = store.clock.steady()
    try:
        link.execute(f"notify {channel}")
        heard = list(link.pg.notifies(timeout=_NOTIFIED, stop_after=1))
    finally:
        link.execute(f"unlisten {channel}")
    took = store.clock.steady() - began
    data = {"seconds": took if heard else None, "queue": full}
    if not heard:
        advice = "Something between here and the server drops them. Other processes are noticed by asking meanwhile."
        return Finding("notifications", "warn", f"one was not heard within {span(_NOTIFIED)}", advice, data)
    text = f"one was here after {took * 1000:.1f} ms"
    if full > _FULL_QUEUE:
        advice = "Somebody listens and does not read: an idle transaction that has said LISTEN. End it."
        return Finding("notifications", "warn", f"{text}; their queue is {full:.0%} full", advice, data)
    return Finding("notifications", "warn" if took > _SLOWLY else "ok", text, data=data)


# -- our tables ----------------------------------------------------------------------------------------------------


def dead_rows(tables: list[Any], settings: Settings) -> Finding:
    """Whether vacuum keeps pace with what runs leave behind."""
    data = {
        name: {"rows": rows, "dead": dead, "vacuumed": when(vacuumed), "bytes": size}
        for name, rows, dead, vacuumed, _, size in tables
    }
    total = sum(size for *_, size in tables)
    if settings.autovacuum == "off":
        text = f"autovacuum is off; our tables have {in_bytes(total)}"
        return Finding("dead rows", "warn", text, f"Turn it on: claims get slower by the hour. See {_OLD}.", data)
    spared = [name for name, *_, is_spared, _ in tables if is_spared]
    if spared:
        text = f"autovacuum leaves out {', '.join(spared)}"
        return Finding("dead rows", "warn", text, f"`alter table … reset (autovacuum_enabled)`. See {_OLD}.", data)
    sick = [row for row in tables if row[2] > row[1] * _DEAD_PART + _DEAD_ANYWAY]
    if sick:
        name, rows, dead, vacuumed, *_ = sick[0]
        text = f"{name} has {dead:,} dead rows beside {rows:,}, last vacuumed {when(vacuumed) or 'never'}"
        advice = f"Who keeps autovacuum from it? See the oldest transaction above, and {_OLD}."
        return Finding("dead rows", "warn", text, advice, data)
    dead = sum(row[2] for row in tables)
    return Finding("dead rows", "ok", f"{dead:,} in {in_bytes(total)} of ours", data=data)


def _claim(store: PostgresStore, link: Link) -> Finding:
    """Whether a claim finds its candidates by the index that is there for it. Nothing is claimed."""
    values = (to_json([("default", "")]).decode(), 10, "doctor", 0, 0, -1, 0)
    link.say(link.begin)  # behind a pooler the settings of a worker are those of its transactions
    try:
        ((plan,),) = link.execute("explain (format json) " + store._sql["claim"], values).fetchall()
    finally:
        store._roll_back(link)
    candidates = next(node for node in nodes_of(plan[0]["Plan"]) if node.get("Subplan Name") == "CTE p")
    used = [node["Index Name"] for node in nodes_of(candidates) if "Index Name" in node]
    sorted_by_hand = any(node["Node Type"] == "Sort" for node in nodes_of(candidates))
    data = {"indexes": used, "sorts": sorted_by_hand}
    if CLAIMED_BY not in used or sorted_by_hand:
        ways = ", ".join(used) or "no index"
        advice = f"Is {CLAIMED_BY} missing or invalid (a `create index concurrently` that failed)? Then `reindex` it."
        return Finding("claim", "warn", f"it finds runs by {ways}{', and sorts them' * sorted_by_hand}", advice, data)
    return Finding("claim", "ok", f"it finds runs by {CLAIMED_BY}, in order", data=data)


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A node of a plan and all below it."""
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes_of(child)


def _many(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"
