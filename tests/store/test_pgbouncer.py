"""Behind a real pgbouncer in transaction mode, where every transaction may get another session."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

import servers
from holdfast import Holdfast, SyncStep
from holdfast.store.doctor import examine
from holdfast.store.postgres import PostgresStore

pytestmark = pytest.mark.sampled("what a server does is the same on every Python")

LONG = 60


@pytest.fixture
def pooled_url(postgres_url: str) -> Iterator[str]:
    """The URL of an empty database, through a pooler of this test's own."""
    program = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")
    if program is None:
        pytest.skip("NO PGBOUNCER: nothing is tried behind a pooler (install pgbouncer)")
    parts = urlsplit(postgres_url)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # It refuses to be root, and nobody else may look into pytest's own folders.
    folder = Path(tempfile.mkdtemp(prefix="holdfast-pgbouncer-"))
    folder.chmod(0o755)
    Path(folder, "users").write_text(f'"{parts.username}" "{parts.password}"\n')
    Path(folder, "ini").write_text(
        f"""
[databases]
* = host={parts.hostname} port={parts.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = plain
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = 5
"""
    )
    pooler = subprocess.Popen([program, "-q", str(folder / "ini")], stderr=subprocess.DEVNULL, **servers._as_nobody())
    try:
        pause = threading.Event()
        for _ in range(round(LONG / 0.05)):
            assert pooler.poll() is None, "pgbouncer did not start"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            pause.wait(0.05)
        yield urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}"))
    finally:
        pooler.terminate()
        pooler.wait(LONG)
        shutil.rmtree(folder)


@pytest.mark.parametrize("option", ["", "?pooler=transaction"], ids=["found out", "said"])
def test_two_workers_execute_keyed_and_unkeyed_runs_and_a_third_process_waits_for_them(
    pooled_url: str, option: str
) -> None:
    url = pooled_url + option
    workers = [Holdfast(url, worker="thread"), Holdfast(url, worker="thread")]
    watching = Holdfast(url, worker=False)

    @watching.job
    def greet(step: SyncStep, number: int) -> int:
        step.log.info("hello")
        return step.run("twice", lambda: 2 * number)

    for app in workers:
        app.register(greet)
    with watching:
        runs = watching.trigger_many(
            [greet.options(concurrency_key=f"key {n}" if n % 3 == 0 else None).bind(n) for n in range(30)]
        ).wait()
        for app in workers:
            app.init().wait()
        try:
            assert [run.result(timeout=LONG).wait() for run in runs] == [2 * n for n in range(30)]
        finally:
            for app in workers:
                app.stop().wait()
    store = PostgresStore(url)
    told = {one.check: one for one in examine(store)}
    assert "through a pooler" in told["server"].text
    assert told["claim"].level == "ok"
    assert told["runs"].data == {"completed": 30}


def test_a_cancel_from_elsewhere_reaches_a_run_behind_a_pooler(pooled_url: str) -> None:
    begun, told = threading.Event(), threading.Event()
    worker = Holdfast(pooled_url, worker="thread")

    @worker.job
    def wait(step: SyncStep) -> None:
        begun.set()
        if step.signal.wait(LONG):
            told.set()

    elsewhere = Holdfast(pooled_url, jobs=[], worker=False)
    with worker, elsewhere:
        run = wait.trigger().wait()
        assert begun.wait(LONG)
        elsewhere.cancel(run.id).wait()
        assert told.wait(LONG)


def test_nobody_listens_through_it(pooled_url: str) -> None:
    """A LISTEN would stay behind in a session that others are given."""
    store = PostgresStore(pooled_url)
    store.migrate()
    watch = store.watch()
    assert watch.changed() is not None
    assert watch.pace == "looks"
    watch.close()


@pytest.mark.parametrize("option", ["", "?pooler=transaction"], ids=["found out", "said"])
def test_transactions_of_steps_share_its_sessions(pooled_url: str, option: str) -> None:
    app = Holdfast(pooled_url + option, worker="thread")

    def pay(connection: Any, number: int) -> int:
        for part in range(10):  # the driver would prepare it
            connection.execute("insert into charges values (%s, %s)", (number, part))
        return part

    @app.job
    def work(step: SyncStep, number: int) -> int:
        with pytest.raises(TimeoutError):
            step.options(timeout=0.1).transaction(
                "late", lambda connection: connection.execute("select pg_sleep(3600)")
            )
        return step.transaction("pay", pay, number)

    with app:
        servers.execute(pooled_url, "create table charges (number int, part int, primary key (number, part))")
        runs = app.trigger_many([work.bind(n) for n in range(12)]).wait()
        assert [run.result(timeout=LONG).wait() for run in runs] == [9] * 12
    assert servers.execute(pooled_url, "select count(*) from charges") == [(120,)]
