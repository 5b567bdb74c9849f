"""The throw-away servers and databases that other tests stand on."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import servers
from servers import KINDS, NAMES, Kind, ServerTrouble

pytestmark = pytest.mark.sampled("what a server does is the same on every Python")

MAKERS = {"postgres": servers.postgres, "mariadb": servers.mariadb}
LONG = 60


def lacking(kind: Kind) -> Any:
    return pytest.mark.skipif(servers.programs(kind) is None, reason=f"NO {NAMES[kind]}: its programs are not here")


each_kind = pytest.mark.parametrize("kind", [pytest.param(kind, marks=lacking(kind)) for kind in KINDS])


@each_kind
def test_a_server_keeps_its_rows_and_its_port_however_it_is_stopped(kind: Kind) -> None:
    with MAKERS[kind]() as server:
        url = server.url(server.create_database())
        servers.execute(url, "create table kept (x integer)")
        ways: list[Any] = ["fast", "immediate", signal.SIGKILL]
        for number, how in enumerate(ways):
            servers.execute(url, "insert into kept values (%s)", (number,))
            before = server.pid
            server.stop(how)
            with pytest.raises(ServerTrouble, match="stopped"):
                print(server.pid)
            server.start()
            assert server.pid != before
        assert servers.execute(url, "select x from kept order by x") == [(0,), (1,), (2,)]
        assert server.log.count("ready") >= 4
        folder = server.data.parent
    assert not folder.exists()


@each_kind
def test_a_server_and_its_folder_end_with_a_killed_owner(kind: Kind) -> None:
    script = f"import servers; one = servers.{kind}(); s = one.__enter__(); print(s.data, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(servers.__file__).parent)},
    ) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip()).parent
        server = os.pidfd_open(int((folder / f"{kind}.pid").read_text()))
        keeper = os.pidfd_open(int((folder / "keeper").read_text()))
        owner.kill()
    try:
        assert select.select([server], [], [], LONG)[0], "the server is still there"
        assert select.select([keeper], [], [], LONG)[0], "its keeper has not ended"
    finally:
        os.close(server)
        os.close(keeper)
    assert not folder.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_each_test_has_an_empty_database_of_its_own(kind: Kind, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(f"{kind}_url")
    schema = {"postgres": "current_schema()", "mariadb": "database()"}[kind]
    count = f"select count(*) from information_schema.tables where table_schema = {schema}"
    assert servers.execute(url, count) == [(0,)]
    servers.execute(url, "create table left_over (x integer)")
    assert servers.execute(url, count) == [(1,)]


TESTS = """
import pytest
from pathlib import Path
import databases

def test_anywhere(tmp_path):
    assert databases.url(tmp_path / "a.db") == databases.url(tmp_path / "a.db") != databases.url(tmp_path / "b.db")
    databases.rows(tmp_path / "a.db", "create table t (x integer, y varchar(10))")
    databases.rows(tmp_path / "a.db", "insert into t values (?, '50%')", True)
    assert databases.rows(tmp_path / "a.db", "select x, y from t where x = ? and y like '5%'", 1) == [(1, "50%")]

@pytest.mark.only("sqlite", "it is a file")
def test_of_a_file(tmp_path):
    databases.rows(tmp_path / "a.db", "create table t (x integer)")
    assert (tmp_path / "a.db").exists()

@pytest.mark.only("postgres", "it listens")
def test_of_a_listener():
    pass
"""


@pytest.mark.parametrize(
    ("on", "summary"),
    [
        ("sqlite", ["2 passed, 1 deselected", "1 left out on sqlite: about", "1  only postgres: it listens"]),
        ("postgres", ["2 passed, 1 deselected", "1 left out on postgres: about", "1  only sqlite: it is a file"]),
        ("mariadb", ["1 passed, 2 deselected", "2 left out on mariadb: about", "1  only postgres: it listens"]),
    ],
)
def test_what_is_about_another_database_is_left_out_and_counted(
    on: str, summary: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if on != "sqlite":
        request.getfixturevalue(f"{on}_url")
    folder = Path(servers.__file__).parent
    (tmp_path / "test_some.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "databases", "test_some.py"],
        cwd=tmp_path,
        env={**os.environ, "HOLDFAST_TEST_ON": on, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for line in summary:
        assert line in done.stdout


def test_without_a_server_a_test_is_skipped_loudly_and_fails_where_all_is_required(tmp_path: Path) -> None:
    folder = Path(servers.__file__).parent
    (tmp_path / "test_some.py").write_text("def test_it(postgres_url): pass")
    (tmp_path / "postgres.told").write_text('{"trouble": "it is on holiday"}')
    order = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "databases", "test_some.py"]
    env = {name: value for name, value in os.environ.items() if name not in servers.VARIABLES.values()}
    env |= {"PYTHONPATH": str(folder), servers.HOME_VARIABLE: str(tmp_path), "HOLDFAST_TEST_ON": "sqlite"}
    env.pop("HOLDFAST_TEST_REQUIRE", None)
    more: Any = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": LONG, "check": False}
    done = subprocess.run(order, env=env, **more)
    assert done.returncode == 0
    assert "1 TESTS NOT RUN: there is no PostgreSQL" in done.stdout
    assert "it is on holiday" in subprocess.run([*order, "-rs"], env=env, **more).stdout
    done = subprocess.run(order, env=env | {"HOLDFAST_TEST_REQUIRE": "all"}, **more)
    assert done.returncode == 1
    assert "ServerTrouble: it is on holiday" in done.stdout
