"""`holdfast doctor`: each check, what it says of a sick database, and that looking changes nothing."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from console_script import LONG, Cli, Shop, parsed

from holdfast import Holdfast, SyncStep
from holdfast.store.sqlite import SqliteStore
from holdfast.store.sqlite_doctor import examine, has_reset_bug

pytestmark = pytest.mark.sampled("commands: what they print is the same on every Python", every=8)

CHECKS = [
    "file", "sqlite", "log", "space", "journal", "pages", "tables", "runs", "expired leases", "oldest pending run",
    "runs that nobody takes", "workers with leases", "clock", "payloads",
]  # fmt: skip


def microseconds() -> int:
    return time.time_ns() // 1000


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A database with one run of each end, and one that waits."""
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    app = Holdfast(url)

    @app.job
    def greet(step: SyncStep, name: str) -> str:
        return step.run("greet", str.upper, name)

    @app.job
    def refuse(step: SyncStep) -> None:
        step.run("refuse", int, "x")

    app.migrate().wait()
    greet.trigger("you").wait()
    refuse.trigger().wait()
    app.process_until_idle().wait()
    greet.trigger("later").wait()
    app.stop().wait()
    return url


class Told(NamedTuple):
    """A finding whose numbers are asked for."""

    level: str
    text: str
    advice: str
    data: dict[str, Any]


def found(url: str) -> dict[str, Told]:
    return {one.check: Told(one.level, one.text, one.advice, one.data or {}) for one in examine(SqliteStore(url))}


def change(url: str, sql: str, *values: Any) -> None:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
        connection.execute(sql, values)


def state_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


# -- the command ---------------------------------------------------------------------------------------------------


def test_a_healthy_database_has_nothing_that_fails(cli: Cli, url: str) -> None:
    done = cli("doctor", url)
    assert done.returncode == 0, done.stdout
    assert "fail" not in done.stdout.split()
    for check in CHECKS:
        assert re.search(rf"^(ok|warn) +{check} ", done.stdout, re.MULTILINE), check
    assert "1 completed, 1 failed, 1 pending" in done.stdout


def test_as_json_every_check_has_level_text_and_numbers(cli: Cli, url: str) -> None:
    document = parsed(cli("doctor", "--json", "--url", url))
    assert document["ok"] is True
    assert document["url"] == url
    assert [check["check"] for check in document["checks"]] == CHECKS
    assert all(set(check) == {"check", "level", "text", "advice", "data"} for check in document["checks"])
    by_name = {check["check"]: check["data"] for check in document["checks"]}
    assert by_name["runs"] == {"completed": 1, "failed": 1, "pending": 1}
    assert len(by_name["tables"]["database_id"]) == 32
    assert by_name["payloads"]["runs"] == 3


def test_a_check_that_fails_is_exit_code_1(cli: Cli, url: str) -> None:
    change(url, "insert into holdfast_migrations values (9999, '9999_future', 0)")
    done = cli("doctor", url)
    assert done.returncode == 1
    assert "upgrade the package" in done.stdout
    assert parsed(cli("doctor", "--json", url))["ok"] is False


def test_a_missing_file_is_said_as_everywhere(cli: Cli, tmp_path: Path) -> None:
    done = cli("doctor", f"sqlite:///{tmp_path}/none.db")
    assert done.returncode == 5
    assert "there is no file" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_a_url_it_asks_for_one(cli: Cli) -> None:
    assert cli("doctor").returncode == 2


def test_what_a_job_wrote_moves_no_cursor(cli: Cli, url: str) -> None:
    change(url, "update holdfast_runs set job_name = char(27) || '[2J' where status = 'pending'")
    assert "\x1b" not in cli("doctor", url).stdout


# -- it only looks -------------------------------------------------------------------------------------------------


def test_it_changes_no_file_and_leaves_none_behind(url: str, tmp_path: Path) -> None:
    before = state_of(tmp_path)
    assert list(before) == ["runs.db"]
    assert not [finding for finding in examine(SqliteStore(url)) if finding.level == "fail"]
    assert state_of(tmp_path) == before


def test_it_sees_what_a_killed_process_left_in_the_log_and_leaves_it_there(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from holdfast import Holdfast
app = Holdfast(sys.argv[1], worker=False)
@app.job
def job(text: str) -> None: ...
app.init().wait()
for n in range(3):
    job.trigger("x").wait()
os.kill(os.getpid(), signal.SIGKILL)
"""
    url = f"sqlite:///{tmp_path}/runs.db"
    done = subprocess.run([sys.executable, "-c", script, url], timeout=LONG, check=False)
    assert done.returncode == -signal.SIGKILL
    before = state_of(tmp_path)
    assert found(url)["runs"].data == {"pending": 3}
    after = state_of(tmp_path)
    for name in ("runs.db", "runs.db-wal"):
        assert after[name] == before[name]


def test_it_works_beside_a_running_worker(shop: Shop) -> None:
    with shop.app:
        shop.greet.run("you").wait(LONG)
        assert found(shop.url)["runs"].data == {"completed": 1}
        assert shop.greet.run("me").wait(LONG) == "HELLO ME"


# -- each check ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 53, 0), False),
    ],
)
def test_s9_which_versions_have_the_reset_bug(version: tuple[int, ...], affected: bool) -> None:
    assert has_reset_bug(version) is affected


def test_s9_an_affected_library_is_named_with_what_to_do(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.store.sqlite_doctor.sqlite3.sqlite_version_info", (3, 40, 1))
    told = found(url)["sqlite"]
    assert told.level == "warn"
    assert "3.40.1 has the WAL-reset bug" in told.text
    assert "3.51.3 or newer" in told.advice
    monkeypatch.setattr("holdfast.store.sqlite_doctor.sqlite3.sqlite_version_info", (3, 51, 3))
    assert found(url)["sqlite"].level == "ok"
    monkeypatch.setattr("holdfast.store.sqlite_doctor.sqlite3.sqlite_version_info", (3, 37, 0))
    assert found(url)["sqlite"].level == "fail"


def test_a_file_that_may_not_be_written(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert found(url)["file"].level == "fail"


@pytest.mark.parametrize(("free", "level"), [(1 << 40, "ok"), (100 << 20, "warn"), (1 << 20, "fail")])
def test_little_space(url: str, monkeypatch: pytest.MonkeyPatch, free: int, level: str) -> None:
    class Usage:
        def __init__(self) -> None:
            self.free = free

    monkeypatch.setattr("holdfast.store.sqlite_doctor.shutil.disk_usage", lambda path: Usage())
    assert found(url)["space"].level == level


def test_a_long_log(url: str) -> None:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
        connection.execute("pragma wal_autocheckpoint = 0")
        connection.execute("create table large (text)")
        connection.execute("insert into large values (zeroblob(70000000))")
        told = found(url)["log"]
    assert told.level == "warn"
    assert told.data["bytes"] > 64 << 20


def test_another_journal_mode(tmp_path: Path, url: str) -> None:
    change(url, "pragma journal_mode = delete")
    assert (found(url)["journal"].level, found(url)["journal"].data) == ("warn", {"mode": "delete"})
    change(url, "pragma journal_mode = wal")
    assert found(url)["journal"].level == "ok"


def test_a_damaged_page(url: str, tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "runs.db"
    with closing(sqlite3.connect(path)) as connection:
        [root] = connection.execute("select rootpage from sqlite_master where name = 'holdfast_runs'").fetchone()
    text = bytearray(path.read_bytes())
    text[(root - 1) * 4096 : root * 4096] = b"\xff" * 4096
    path.write_bytes(text)
    told = found(url)
    assert told["pages"].level == "fail"
    assert "backup" in told["pages"].advice
    assert told["tables"].level == "ok", "what can be looked at is looked at"
    assert told["runs"].level == "fail" or told["payloads"].level == "fail"
    assert cli("doctor", url).returncode == 1


def test_a_file_that_is_no_database(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "letter.db").write_text("Dear madam, " * 400)
    done = cli("doctor", f"sqlite:///{tmp_path}/letter.db")
    assert done.returncode == 1
    assert "is not an SQLite database" in done.stdout


def test_a_database_without_our_tables(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("create table letters (text)")
    told = found(f"sqlite:///{tmp_path}/other.db")["tables"]
    assert told.level == "fail"
    assert "holdfast migrate" in told.advice


def test_leases_that_ran_out(url: str) -> None:
    then = microseconds() - 3_600_000_000
    change(
        url,
        "update holdfast_runs set status = 'leased', generation = 1, lease_owner = 'dead', lease_expires_at = ? "
        "where status = 'pending'",
        then,
    )
    told = found(url)
    assert told["expired leases"].level == "warn"
    assert told["expired leases"].data["count"] == 1
    assert told["workers with leases"].data["workers"][0]["id"] == "dead"


def test_a_run_that_waits_for_long(url: str) -> None:
    assert found(url)["oldest pending run"].level == "ok"
    change(url, "update holdfast_runs set run_at = 1000000 where status = 'pending'")
    told = found(url)["oldest pending run"]
    assert told.level == "warn"
    assert "knows the job 'greet'" in told.advice
    change(url, "delete from holdfast_runs where status = 'pending'")
    assert found(url)["oldest pending run"].text == "none waits"


def a_worker(url: str, jobs: str, queues: str) -> None:
    """One that was seen just now."""
    values = ("w", "host", 1, 1, microseconds(), jobs, queues, "1", 30_000_000)
    change(url, "delete from holdfast_workers")
    change(
        url,
        "insert into holdfast_workers (id, host, pid, started_at, seen_at, jobs, queues, version, lease) "
        "values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        *values,
    )


def test_runs_that_no_worker_takes_are_told_with_what_is_missing(url: str) -> None:
    told = found(url)["runs that nobody takes"]
    assert (told.level, told.text) == ("warn", "1 of greet in the queue default (no worker is alive)")
    assert told.data["untaken"] == [{"job_name": "greet", "queue": "default", "runs": 1}]
    assert "Start a worker" in told.advice
    a_worker(url, '["greet"]', '["mail"]')
    told = found(url)["runs that nobody takes"]
    assert told.text.endswith("(no worker that is alive takes the queue default)")
    a_worker(url, '["bill"]', '["default"]')
    assert found(url)["runs that nobody takes"].text.endswith("(no worker that is alive has the job greet)")
    a_worker(url, '["bill", "greet"]', '["mail", "default"]')
    told = found(url)["runs that nobody takes"]
    assert (told.level, told.text) == ("ok", "none; 1 worker alive")
    change(url, "update holdfast_workers set seen_at = 1")
    assert found(url)["runs that nobody takes"].level == "warn"


def test_a_run_whose_time_has_not_come_is_missed_by_nobody(url: str) -> None:
    change(url, "update holdfast_runs set run_at = ? where status = 'pending'", microseconds() + 3_600_000_000)
    assert found(url)["runs that nobody takes"].level == "ok"


def test_rows_of_the_future(url: str) -> None:
    change(url, "update holdfast_runs set updated_at = ?", microseconds() + 3_600_000_000)
    told = found(url)["clock"]
    assert (told.level, told.data["rows_of_the_future"]) == ("warn", 3)


def test_a_lease_that_ends_in_years(url: str) -> None:
    change(
        url,
        "update holdfast_runs set status = 'leased', generation = 1, lease_owner = 'me', lease_expires_at = ? "
        "where status = 'pending'",
        9 * 10**17,
    )
    told = found(url)
    assert (told["clock"].level, told["clock"].data["long_leases"]) == ("warn", 1)
    assert told["workers with leases"].level == "ok"


@pytest.mark.parametrize(
    ("sql", "named"),
    [
        ("update holdfast_runs set input = '{' where status = 'pending'", "input of"),
        ("update holdfast_runs set output = 'nonsense' where status = 'completed'", "output of"),
        ("update holdfast_runs set labels = '[]' where status = 'pending'", "labels of"),
        ("update holdfast_runs set labels = cast(x'7bff' as text) where status = 'pending'", "labels of"),
        ("update holdfast_runs set input = cast(x'22ff22' as text) where status = 'pending'", "input of"),
        (
            "update holdfast_steps set output = '~{\"$\": \"no such tag\"}' where status = 'completed'",
            "step 'greet' of",
        ),
        ("update holdfast_steps set error = 'oh' where status = 'failed'", "step 'refuse' of"),
    ],
)
def test_a_text_that_cannot_be_read_is_named(url: str, sql: str, named: str) -> None:
    assert found(url)["payloads"].level == "ok"
    change(url, sql)
    told = found(url)["payloads"]
    assert told.level == "warn"
    assert named in told.text
    assert "of the newest 3 runs and 2 of their steps" in told.text
    assert len(told.data["unreadable"]) == 1


def test_what_a_codec_has_sealed_is_left_closed(url: str) -> None:
    change(url, "update holdfast_runs set input = '^vault^AAAA' where status = 'pending'")
    assert found(url)["payloads"].level == "ok"
