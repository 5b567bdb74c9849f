"""The pages about running on a database are true: their SQL is executed, their figures are measured again."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import servers
from holdfast import Holdfast, StoreUnavailable, SyncStep
from holdfast.store import doctor, mysql_doctor, postgres_doctor, sqlite_doctor
from holdfast.store.postgres import PostgresStore
from holdfast.store.postgres_place import OLDEST, address

ROOT = Path(__file__).resolve().parents[2]
HOW_TO = ROOT / "docs" / "how-to"

#: A measurement in small differs from a large one by this part: pages that are half full.
DIFFERS = 0.25


def page(name: str) -> str:
    return (HOW_TO / f"{name}.md").read_text("utf-8")


def sql_blocks(name: str) -> list[list[str]]:
    """The SQL of a page: each block's statements, without comments."""
    blocks = re.findall(r"^```sql\n(.*?)^```$", page(name), flags=re.MULTILINE | re.DOTALL)
    return [
        [one.strip() for one in re.sub(r"^--.*$", "", block, flags=re.MULTILINE).split(";") if one.strip()]
        for block in blocks
    ]


def headings(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("module", [sqlite_doctor, postgres_doctor, mysql_doctor, doctor], ids=lambda one: one.__name__)
def test_where_the_doctor_points_there_is_a_heading(module: ModuleType) -> None:
    text = Path(str(module.__file__)).read_text("utf-8")
    places = [value for value in vars(module).values() if isinstance(value, str) and value.startswith("docs/how-to/")]
    assert len(places) == len(re.findall(r'^_\w+ = f?"(?:docs/how-to/|\{_PAGE\})', text, flags=re.MULTILINE))
    for place in places:
        file, _, anchor = place.partition("#")
        assert (ROOT / file).is_file()
        assert not anchor or anchor in headings((ROOT / file).read_text("utf-8")), place


# -- PostgreSQL ----------------------------------------------------------------------------------------------------


@contextmanager
def roles(url: str) -> Iterator[dict[str, str]]:
    """The two roles of the page, under names that nobody else has on this server: the URL of each."""
    database = url.rpartition("/")[2]
    names = {role: f"{database}_{role}" for role in ("shop_owner", "shop_app")}
    for statement in sql_blocks("postgresql")[0]:
        servers.execute(url, re.sub(r"\bshop_(owner|app)\b", lambda found: names[found[0]], statement))
    try:
        for name in names.values():
            servers.execute(url, f"alter role {name} password 'a'")
        host = url.partition("@")[2]
        yield {role: f"postgresql://{name}:a@{host}?schema=holdfast" for role, name in names.items()}
    finally:
        for name in reversed(names.values()):
            with suppress(Exception):
                servers.execute(url, f"drop owned by {name} cascade")
            servers.execute(url, f"drop role {name}")


def test_the_two_roles_of_the_page_are_enough_and_one_of_them_can_change_no_table(postgres_url: str) -> None:
    with roles(postgres_url) as urls:
        app = Holdfast(PostgresStore(urls["shop_app"]))

        @app.job
        def greet(step: SyncStep, name: str) -> str:
            step.log.info("hello")
            return step.run("greet", str.upper, name)

        with pytest.raises(StoreUnavailable, match="refuses access") as refused:
            app.migrate().wait()
        # Its password is a letter of these words.
        assert "permission denied for schema holdfast" in str(refused.value)
        assert str(refused.value).endswith("run `holdfast migrate` as the owner of the tables.")
        assert PostgresStore(urls["shop_owner"]).migrate() == ["0001_initial"]
        with app:
            keyed = greet.options(concurrency_key="a", idempotency_key="b", labels={"c": "d"})
            assert keyed.run("you").wait() == "YOU"
            assert app.purge_runs(older_than=0).wait() == 1
        with pytest.raises(Exception, match="must be owner"):
            servers.execute(urls["shop_app"], "drop table holdfast.holdfast_runs")


def test_every_query_of_the_page_is_understood_by_postgresql(postgres_url: str) -> None:
    PostgresStore(f"{postgres_url}?schema=holdfast").migrate()
    asked = 0
    for statement in [one for block in sql_blocks("postgresql")[1:] for one in block]:
        servers.execute(f"{postgres_url}?schema=holdfast", statement)
        asked += 1
    assert asked >= 8


def test_the_options_of_the_url_are_those_that_the_store_takes() -> None:
    listed = re.findall(r"^\| `(\w+)(?:=(\w[\w-]*))?`", page("postgresql").partition("## Who may")[0], re.MULTILINE)
    assert {"schema", "pooler", "sslmode", "target_session_attrs", "application_name"} <= {name for name, _ in listed}
    for name, value in listed:
        address(f"postgresql://somebody@host/shop?{name}={value or 'any'}")
    assert f"PostgreSQL {OLDEST // 10000} or newer" in " ".join(page("postgresql").split())


# -- MariaDB -------------------------------------------------------------------------------------------------------


def test_every_query_of_the_page_is_understood_by_mariadb(mariadb_url: str) -> None:
    from holdfast.store.mysql import MysqlStore

    MysqlStore(mariadb_url).migrate()
    asked = 0
    for statement in [one for block in sql_blocks("mariadb")[1:] for one in block]:
        servers.execute(mariadb_url, statement)
        asked += 1
    assert asked >= 5


def test_the_two_users_of_the_page_are_enough_and_one_of_them_can_change_no_table(mariadb_url: str) -> None:
    from holdfast.store.mysql import MysqlStore

    database = mariadb_url.rpartition("/")[2]
    names = {"shop_owner": f"{database}_o", "shop_app": f"{database}_a"}
    _, *statements = sql_blocks("mariadb")[0]
    try:
        for statement in statements:
            text = re.sub(r"\bshop_(owner|app)\b", lambda found: names[found[0]], statement)
            servers.execute(mariadb_url, re.sub(r"\bshop\.", f"{database}.", text))
        host = mariadb_url.partition("@")[2]
        url = {role: f"mysql://{name}:{{}}@{host}" for role, name in names.items()}
        with pytest.raises(StoreUnavailable, match="run `holdfast migrate` as the owner of the tables"):
            MysqlStore(url["shop_app"].format("another%20one")).migrate()
        assert MysqlStore(url["shop_owner"].format("a%20long%20one")).migrate() == ["0001_initial"]
        app = Holdfast(MysqlStore(url["shop_app"].format("another%20one")))

        @app.job
        def greet(step: SyncStep, name: str) -> str:
            return step.run("greet", str.upper, name)

        with app:
            assert greet.options(concurrency_key="a", labels={"c": "d"}).run("you").wait() == "YOU"
        with pytest.raises(Exception, match="DROP command denied"):
            servers.execute(url["shop_app"].format("another one"), f"drop table {database}.holdfast_runs")
    finally:
        for name in names.values():
            servers.execute(mariadb_url, f"drop user if exists {name}")


# -- sizes ---------------------------------------------------------------------------------------------------------


def sizes() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import sizes
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return sizes


def told(kind: str) -> dict[str, int]:
    """The figures of a kind of database, as the page has them."""
    found = re.search(rf"^{kind} = Bytes\((.*?)\)", page("sizing"), flags=re.MULTILINE)
    assert found is not None
    return {name.replace("_", " "): int(size) for name, size in re.findall(r"(\w+)=(\d+)", found[1])}


def assert_measured(kind: str, url: str) -> None:
    measured = sizes().measured(url, 200)
    assert {name: pytest.approx(size, rel=DIFFERS) for name, size in told(kind).items()} == measured


@pytest.mark.sampled("sizes of rows: the same on every Python")
def test_the_sizes_of_rows_are_those_that_are_measured_on_sqlite(tmp_path: Path) -> None:
    assert_measured("SQLITE", f"sqlite:///{tmp_path / 'sizes.db'}")


@pytest.mark.sampled("sizes of rows: the same on every Python")
def test_the_sizes_of_rows_are_those_that_are_measured_on_postgresql(postgres_url: str) -> None:
    assert_measured("POSTGRESQL", postgres_url)
