"""What is wrong with a MariaDB database, found by looking only: `holdfast doctor`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pymysql

from . import doctor
from .doctor import OF_RUNS, SHOWN, Finding, in_bytes, span, tried
from .mysql import MysqlStore
from .mysql_place import Link, code_of
from .mysql_words import FRONT, filled, split

_PAGE = "docs/how-to/mariadb.md"
_SERVER = f"{_PAGE}#what-the-server-must-have"
_OLD = f"{_PAGE}#old-transactions"
_REPLICAS = f"{_PAGE}#replication-and-backups"
_GALERA = f"{_PAGE}#galera"
_CONNECTIONS = f"{_PAGE}#connections"
_USERS = f"{_PAGE}#who-may-do-what"

#: Of the connections that may be there; beyond it the next deploy may find none left.
_MANY_CONNECTIONS = 0.8
#: Seconds. Nothing of ours takes longer than 30.
_LONG_TRANSACTION = 600.0
#: What the oldest transaction keeps: every reader steps over it.
_LONG_HISTORY = 1_000_000
#: Bytes. A round has some 4 MiB, and becomes longer by the quotes in it.
_SMALL_PACKET = 16 << 20
#: The error that says which right is missing.
_NO_RIGHT = 1227

#: The index that a claim has to read, in its order.
CLAIMED_BY = "holdfast_runs_claimable"


def examine(store: MysqlStore) -> list[Finding]:
    """All findings, in the order in which they are worth reading. `StoreUnavailable` if nobody answers."""
    link = store.connect(read_only=True)
    try:
        return list(_findings(store, link))
    finally:
        store.disconnect(link)


def _findings(store: MysqlStore, link: Link) -> Iterator[Finding]:
    find = partial(store._find, link)
    try:
        variables, status = dict(find("doctor_variables")), dict(find("doctor_status"))
    except pymysql.Error as error:
        yield doctor.failed("server", store.translate(error))
        return
    yield tried(store, "server", lambda: _server(find))
    yield durability(variables)
    yield replication(variables, status)
    yield packets(int(variables["max_allowed_packet"]))
    yield connections(int(status["threads_connected"]), int(variables["max_connections"]))
    yield tried(store, "clock skew", lambda: _skew(store, find))
    yield tried(store, "oldest transaction", lambda: _transactions(find, status))
    yield (
        tables := tried(
            store,
            "tables",
            lambda: doctor.tables(store, store.version(link), store.schema.newest, lambda: store.database_id(link)),
            f"Does this user have its rights? See {_USERS}.",
        )
    )
    if tables.level != "ok":
        return
    yield tried(store, "comparison", lambda: comparison(find("doctor_odd_tables")))
    yield tried(store, "claim", lambda: _claim(link), f"Is {CLAIMED_BY} missing? Restore it from a fresh database.")
    ((now,),) = find("now")
    for name, ask in OF_RUNS.items():
        yield tried(store, name, partial(ask, now, find), f"Does this user have its rights? See {_USERS}.")


# -- the server ----------------------------------------------------------------------------------------------------


def _server(find: doctor.Find) -> Finding:
    ((version, read_only, user, size),) = find("doctor_server")
    data = {"version": version, "read_only": bool(read_only), "database_bytes": int(size)}
    text = f"MariaDB {version}, the database has {in_bytes(int(size))}, as {user}"
    if read_only:
        advice = "Runs are claimed on the primary only: is this a replica?"
        return Finding("server", "fail", f"{text}; it is read-only", advice, data)
    return Finding("server", "ok", text, data=data)


def durability(variables: Mapping[str, str]) -> Finding:
    """Whether a power cut takes away what was acknowledged."""
    names = ("innodb_flush_log_at_trx_commit", "innodb_doublewrite", "log_bin", "sync_binlog", "binlog_format")
    data = {name: variables.get(name, "") for name in names}
    flushed, logged = data["innodb_flush_log_at_trx_commit"], data["log_bin"] == "ON"
    if flushed not in ("1", "3"):
        text = f"innodb_flush_log_at_trx_commit is {flushed}: a power cut loses up to a second of acknowledged work"
        return Finding("durability", "fail", text, f"Set it to 1. See {_SERVER}.", data)
    if data["innodb_doublewrite"] == "OFF":
        text = "innodb_doublewrite is off: a crash in the middle of a page's write may destroy it"
        advice = f"Turn it on, unless the file system never tears a page. See {_SERVER}."
        return Finding("durability", "warn", text, advice, data)
    if logged and data["sync_binlog"] != "1":
        text = f"sync_binlog is {data['sync_binlog']}: after a power cut replicas and primary may differ"
        return Finding("durability", "warn", text, f"Set it to 1. See {_SERVER}.", data)
    if logged and data["binlog_format"] == "STATEMENT":
        text = "binlog_format is STATEMENT, with which nothing can be written in READ COMMITTED"
        return Finding("durability", "fail", text, f"Set it to ROW. See {_SERVER}.", data)
    return Finding("durability", "ok", "each commit is flushed to disk, pages are written twice", data=data)


def replication(variables: Mapping[str, str], status: Mapping[str, str]) -> Finding:
    """What a failover would lose, and what a cluster says of itself."""
    galera = {name: value for name, value in status.items() if name.startswith("wsrep_")}
    replicas = int(status.get("slaves_connected", 0))
    semi = status.get("rpl_semi_sync_master_status") == "ON"
    data: dict[str, Any] = {"replicas": replicas, "semi_synchronous": semi, "galera": galera}
    if variables.get("wsrep_on") == "ON":
        size, kind = galera.get("wsrep_cluster_size", "?"), galera.get("wsrep_cluster_status", "?")
        text = (
            f"a Galera node of {size}, {kind}; {galera.get('wsrep_local_cert_failures', '?')} commits lost to others, "
            f"{galera.get('wsrep_local_bf_aborts', '?')} transactions ended by them"
        )
        if kind != "Primary" or galera.get("wsrep_ready") == "OFF":
            advice = f"This node is cut off from the majority and refuses work. See {_GALERA}."
            return Finding("replication", "fail", text, advice, data)
        return Finding(
            "replication", "warn", text, f"Galera is not tested; write to one node only. See {_GALERA}.", data
        )
    if replicas and not semi:
        text = f"{replicas} connected, and no commit waits for any"
        advice = f"A failover may lose what was acknowledged in its last moments. See {_REPLICAS}."
        return Finding("replication", "warn", f"replicas: {text}", advice, data)
    if replicas:
        return Finding("replication", "ok", f"replicas: {replicas} connected, semi-synchronous", data=data)
    return Finding("replication", "ok", "no replica: what is on its disk is all there is", data=data)


def packets(size: int) -> Finding:
    """Whether a round fits into a statement."""
    data = {"max_allowed_packet": size}
    if size < _SMALL_PACKET:
        advice = f"Large payloads and batches are refused. Set it to 16 MiB or more. See {_SERVER}."
        return Finding("packets", "warn", f"max_allowed_packet is {in_bytes(size)}", advice, data)
    return Finding("packets", "ok", f"max_allowed_packet is {in_bytes(size)}", data=data)


def connections(there: int, allowed: int) -> Finding:
    """Whether the next process will find room."""
    data = {"connections": there, "allowed": allowed}
    if there > allowed * _MANY_CONNECTIONS:
        advice = f"A process takes up to four. Fewer processes, or more max_connections: see {_CONNECTIONS}."
        return Finding("connections", "warn", f"{there} of {allowed}", advice, data)
    return Finding("connections", "ok", f"{there} of {allowed}", data=data)


def _skew(store: MysqlStore, find: doctor.Find) -> Finding:
    advice = "Leases are judged by the server's clock alone; times of steps and log lines are of this machine's."
    return doctor.skew(store, lambda: int(find("now")[0][0]), "the server's clock", advice)


def _transactions(find: doctor.Find, status: Mapping[str, str]) -> Finding:
    history = int(status.get("innodb_history_list_length", 0))
    kept = f"{history:,} changes are kept for readers"
    try:
        found = find("doctor_transactions", SHOWN)
    except pymysql.Error as error:
        if code_of(error) != _NO_RIGHT:
            raise
        advice = f"Transactions of others are hidden from this user: grant it process. See {_USERS}."
        return Finding("oldest transaction", "ok", f"hidden; {kept}", advice, {"history": history})
    return transactions(found, history)


def transactions(found: list[Any], history: int) -> Finding:
    """Who makes every reader step over old rows."""
    kept = f"{history:,} changes are kept for readers"
    data = {
        "history": history,
        "transactions": [
            {"thread": thread, "user": user, "command": command, "seconds": age, "rows_modified": rows}
            for thread, user, command, age, rows in found
        ],
    }
    if found and found[0][3] > _LONG_TRANSACTION:
        thread, user, command, age, _ = found[0]
        text = f"thread {thread} ({user}), {command or 'unknown'}, {span(age)} old; {kept}"
        advice = f"Claims get slower with it. If it is forgotten: kill {thread}. See {_OLD}."
        return Finding("oldest transaction", "warn", text, advice, data)
    if history > _LONG_HISTORY:
        advice = f"Somebody had or has a transaction open for long; it must become shorter by itself. See {_OLD}."
        return Finding("oldest transaction", "warn", kept, advice, data)
    if not found:
        return Finding("oldest transaction", "ok", f"none is open; {kept}", data=data)
    thread, user, command, age, _ = found[0]
    return Finding("oldest transaction", "ok", f"thread {thread} ({user}), {span(age)} old; {kept}", data=data)


# -- our tables ----------------------------------------------------------------------------------------------------


def comparison(odd: list[Any]) -> Finding:
    """Whether names and keys are told apart byte by byte."""
    data = {"odd": [{"what": what, "is": how} for what, how in odd]}
    if odd:
        shown = ", ".join(f"{what} is {how}" for what, how in odd[:SHOWN])
        advice = f"Somebody has converted the tables: different keys count as one. See {_SERVER}."
        return Finding("comparison", "fail", shown, advice, data)
    return Finding("comparison", "ok", "names and keys are compared byte by byte, in InnoDB", data=data)


def _claim(link: Link) -> Finding:
    """Whether a claim finds its candidates by the index that is there for it. Nothing is claimed."""
    front = FRONT.format(key="null", kind=1, number=0, many=10)
    plan = link.ask(f"explain {filled(split(front), ('default', ''))}")
    used = [row[5] for row in plan if row[2] is not None]
    sorts = any("filesort" in (row[-1] or "") for row in plan)
    data = {"indexes": used, "sorts": sorts}
    if set(used) != {CLAIMED_BY} or sorts:
        ways = ", ".join(map(str, used)) or "no index"
        advice = "`analyze table holdfast_runs`, and look again."
        return Finding("claim", "warn", f"it finds runs by {ways}{', and sorts them' * sorts}", advice, data)
    return Finding("claim", "ok", f"it finds runs by {CLAIMED_BY}, in order", data=data)
