"""`holdfast doctor URL` on PostgreSQL and MariaDB: one command, one form, the same exit codes."""

from __future__ import annotations

from typing import Any

import pytest
from console_script import Cli, parsed

pytestmark = pytest.mark.sampled("commands: what they print is the same on every Python")

EVERYWHERE = [
    "tables", "runs", "expired leases", "oldest pending run", "runs that nobody takes", "workers with leases", "clock",
    "payloads",
]  # fmt: skip


@pytest.fixture(params=["postgres_url", "mariadb_url"], ids=["postgresql", "mariadb"])
def url(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def test_the_same_checks_of_runs_have_the_same_form_on_every_database(cli: Cli, url: str) -> None:
    assert cli("migrate", url).returncode == 0
    document = parsed(cli("doctor", "--json", url))
    assert [one["check"] for one in document["checks"] if one["check"] in EVERYWHERE] == EVERYWHERE
    assert all(set(one) == {"check", "level", "text", "advice", "data"} for one in document["checks"])
    assert document["ok"] == all(one["level"] != "fail" for one in document["checks"])
    assert "***" not in document["url"]
    assert url.split("@")[0].split(":")[-1] not in document["url"]


def test_a_check_that_fails_is_exit_code_1_with_advice_below_it(cli: Cli, url: str) -> None:
    done = cli("doctor", url)
    assert done.returncode == 1
    assert "there are no Holdfast tables" in done.stdout
    assert "→ Run `holdfast migrate " in done.stdout


@pytest.mark.parametrize("nowhere", ["postgresql://nobody@127.0.0.1:9/none", "mysql://nobody@127.0.0.1:9/none"])
def test_a_database_that_does_not_answer_is_exit_code_5(cli: Cli, nowhere: str) -> None:
    done = cli("doctor", nowhere)
    assert done.returncode == 5, done.stderr
    assert "can't be reached" in done.stderr
