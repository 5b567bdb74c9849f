"""What is promised of SQLite alone: durability settings, locks, its errors in our words, URLs, temporary files."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from holdfast import Holdfast
from holdfast.basis.errors import HoldfastError, StoreError, StoreUnavailable, ValidationError
from holdfast.model.run import NewRun, RunFilter
from holdfast.store import sqlite_place
from holdfast.store.base import ClaimOrder, Tx
from holdfast.store.sqlite import SqliteStore
from holdfast.store.sqlite_place import NumberedConnection
from holdfast.testing.clock import HandClock


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(f"sqlite:///{tmp_path}/app.db", lock_timeout=0.05)
    store.migrate()
    yield store
    store.close()


def error_of(store: SqliteStore, caught: pytest.ExceptionInfo[BaseException]) -> str:
    meant = store.translate(caught.value)
    assert isinstance(meant, StoreUnavailable)
    return str(meant)


# -- durability ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_only", [False, True])
def test_every_connection_uses_the_wal_and_syncs_every_commit(store: SqliteStore, read_only: bool) -> None:
    for _ in range(2):
        with closing(store.connect(read_only=read_only)) as connection:
            assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
            assert connection.execute("pragma synchronous").fetchone() == (2,), "FULL"


def test_numbered_parameters_mean_the_same_where_python_takes_them_for_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_place, "_TAKES_NUMBERS_FOR_NAMES", True)
    with closing(sqlite3.connect(":memory:", factory=NumberedConnection)) as connection:
        assert connection.execute("select ?2, ?1, ?2", (1, "two")).fetchone() == ("two", 1, "two")
        assert connection.execute("select ?", (3,)).fetchone() == (3,)
        assert connection.execute("select 4").fetchone() == (4,)


def test_a_reading_connection_can_not_write(store: SqliteStore) -> None:
    with closing(store.connect(read_only=True)) as connection:
        with pytest.raises(sqlite3.OperationalError) as caught:
            store.trigger(Tx(connection, 1), [NewRun("a", "job", "1")])
        assert "is read-only" in error_of(store, caught)


def test_a_reader_works_beside_an_open_write_transaction(store: SqliteStore) -> None:
    with closing(store.connect()) as writer, closing(store.connect(read_only=True)) as reader:
        tx = store.begin(writer)
        store.trigger(tx, [NewRun("a", "job", "1")])
        assert store.find_runs(reader, RunFilter()) == []
        store.commit(tx)
        assert len(store.find_runs(reader, RunFilter())) == 1


# -- locks ---------------------------------------------------------------------------------------------------------


def test_a_transaction_holds_the_write_lock_from_its_beginning(store: SqliteStore) -> None:
    with closing(store.connect()) as first, closing(store.connect()) as second:
        tx = store.begin(first)
        with pytest.raises(sqlite3.OperationalError) as caught:
            store.begin(second)
        assert "is locked by another process" in error_of(store, caught)
        store.rollback(tx)
        store.rollback(store.begin(second))


def test_a_writer_waits_for_the_lock_and_says_how_long(store: SqliteStore) -> None:
    patient = SqliteStore(store.name, lock_timeout=30)
    with closing(store.connect()) as first, closing(patient.connect()) as second:
        tx = store.begin(first)
        waiting = threading.Event()

        def release() -> None:
            waiting.wait()
            store.commit(tx)

        thread = threading.Thread(target=release)
        thread.start()
        waiting.set()
        later = patient.begin(second)
        thread.join()
        assert later.waited >= 0
        patient.rollback(later)


def test_a_writer_that_has_waited_for_long_asks_as_often_as_one_that_has_just_come(store: SqliteStore) -> None:
    """By itself SQLite asks less and less often: among others who write all the time it would come last."""
    patient = SqliteStore(store.name, lock_timeout=30)
    with closing(store.connect()) as first, closing(patient.connect()) as second:
        tx = store.begin(first)
        asked: list[str] = []
        often = threading.Event()

        def hear(statement: str) -> None:
            asked.append(statement)
            if len(asked) == 40:
                often.set()

        second.set_trace_callback(hear)
        thread = threading.Thread(target=lambda: often.wait(20) and store.commit(tx))
        thread.start()
        patient.rollback(patient.begin(second))
        thread.join()
        assert asked[:40] == ["begin immediate"] * 40


class Told(HandClock):
    """Tells when somebody notes the beginning of a transaction."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()

    def steady(self) -> float:
        self.asked.set()
        return super().steady()


def test_a_claim_sees_what_was_claimed_while_it_waited_for_the_lock(tmp_path: Path) -> None:
    clock = Told()
    first, second = (SqliteStore(f"sqlite:///{tmp_path}/app.db", clock=one) for one in (HandClock(), clock))
    first.migrate()
    claimed: list[list[str]] = []

    def claim(store: SqliteStore, tx: Tx, owner: str) -> None:
        (found,) = store.claim(tx, [ClaimOrder(owner, 10, 30_000_000, ("job",))])
        claimed.append([run.id for run in found.runs])
        store.commit(tx)

    with closing(first.connect()) as one, closing(second.connect()) as other:
        tx = first.begin(one)
        first.trigger(tx, [NewRun(name, "job", "1") for name in "abc"])
        first.commit(tx)
        tx = first.begin(one)
        clock.asked.clear()
        thread = threading.Thread(target=lambda: claim(second, second.begin(other), "second"))
        thread.start()
        assert clock.asked.wait(20)
        claim(first, tx, "first")
        thread.join()
    assert claimed == [["a", "b", "c"], []]


def test_migrating_a_locked_database_says_that_it_is_locked(store: SqliteStore) -> None:
    with closing(store.connect()) as first:
        tx = store.begin(first)
        with pytest.raises(StoreUnavailable, match="is locked by another process"):
            store.migrate()
        store.rollback(tx)


def test_switching_to_the_wal_waits_for_others_only_so_long(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("create table t (a)")
        other.execute("begin immediate")
        # The clock stands still: the waiting must end all the same.
        store = SqliteStore(f"sqlite:///{path}", lock_timeout=0.05, clock=HandClock())
        with pytest.raises(StoreUnavailable, match="is locked"):
            store.connect()
        other.execute("rollback")
        store.connect().close()


# -- errors in our words -------------------------------------------------------------------------------------------


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"the directory .*/nowhere does not exist"):
        SqliteStore(f"sqlite:///{tmp_path}/nowhere/app.db").migrate()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="can't be opened"):
        SqliteStore(f"sqlite:///{tmp_path}").migrate()


def test_a_file_in_the_place_of_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match=r"the directory .*/file does not exist"):
        SqliteStore(f"sqlite:///{tmp_path}/file/app.db").connect()


@pytest.mark.parametrize("read_only", [False, True])
def test_another_file_is_not_taken_for_a_database(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "letter.db"
    path.write_text("Dear madam, " * 400)
    with pytest.raises(StoreUnavailable, match="is not an SQLite database"):
        SqliteStore(f"sqlite:///{path}").connect(read_only=read_only)
    assert path.read_text() == "Dear madam, " * 400


def test_a_read_only_database_says_so(store: SqliteStore) -> None:
    with closing(store.connect()) as connection:
        connection.execute("pragma query_only = on")  # root may write everywhere, so no file mode would do
        with pytest.raises(sqlite3.OperationalError) as caught:
            store.begin(connection)
        assert "is read-only" in error_of(store, caught)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="NOT CHECKED: this system has no /proc to be refused by")
def test_a_directory_in_which_nothing_can_be_made_says_so() -> None:
    with pytest.raises(StoreUnavailable, match="can't be opened"):
        SqliteStore("sqlite:////proc/self/app.db").migrate()


def test_a_full_disk_says_so_and_leaves_nothing_of_the_round(store: SqliteStore) -> None:
    with closing(store.connect()) as connection:
        pages = connection.execute("pragma page_count").fetchone()[0]
        connection.execute(f"pragma max_page_count = {pages + 2}")
        tx = store.begin(connection)
        store.trigger(tx, [NewRun("small", "job", "1")])
        with pytest.raises(sqlite3.Error) as caught:
            store.trigger(tx, [NewRun("large", "job", "1" * 100_000)])
        assert "the disk is full" in error_of(store, caught)
        store.rollback(tx)
        assert store.find_runs(connection, RunFilter()) == []
        connection.execute(f"pragma max_page_count = {pages + 1000}")
        tx = store.begin(connection)
        store.trigger(tx, [NewRun("large", "job", "1" * 100_000)])
        store.commit(tx)
        assert len(store.find_runs(connection, RunFilter())) == 1


def test_a_damaged_file_says_so_and_what_to_do(store: SqliteStore, tmp_path: Path) -> None:
    with closing(store.connect()) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    path = tmp_path / "app.db"
    text = bytearray(path.read_bytes())
    text[4096:] = b"\xff" * (len(text) - 4096)
    path.write_bytes(text)
    with pytest.raises(StoreUnavailable, match=r"is damaged; run .*integrity_check"):
        store.connect()


def test_a_closed_connection_is_the_database_in_trouble(store: SqliteStore) -> None:
    connection = store.connect()
    connection.close()
    with pytest.raises(sqlite3.ProgrammingError) as caught:
        store.find_runs(connection, RunFilter())
    assert "closed" in error_of(store, caught)


def test_a_mistake_in_the_sql_is_not_taken_for_trouble(store: SqliteStore) -> None:
    with closing(store.connect()) as connection, pytest.raises(sqlite3.OperationalError) as caught:
        connection.execute("select nothing from nowhere")
    meant = store.translate(caught.value)
    assert type(meant) is StoreError
    assert meant.__cause__ is caught.value


# -- URLs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "app.db",
        "sqlite:app.db",
        "sqlite:/app.db",
        "sqlite://app.db",
        "sqlite://host/app.db",
        "sqlite:///",
        "SQLITE:///app.db",
        "postgresql:///app",
        "sqlite:///app.db?mode=ro",
        "sqlite:///app%3Fmode",
        "sqlite:///app%00.db",
        "file:///app.db",
    ],
)
def test_a_bad_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValidationError):
        SqliteStore(url)


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("redis://user:geheim@host/0", "'postgresql://user:password@host/database'"),
        ("sqlite+aiosqlite:///app.db", "'sqlite:///path/to/file.db'"),
        ("http://user:geheim@host", "holdfast.client.Client(url)"),
        ("app.db", "'postgresql://…' or 'mysql://…'"),
    ],
)
def test_a_url_of_none_is_told_what_can_be_used_and_its_password_is_not_repeated(url: str, advice: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Holdfast(url)
    assert advice in str(caught.value)
    assert "geheim" not in str(caught.value)
    assert "SQLite" not in str(caught.value)


@pytest.mark.parametrize("url", ["libsql://db.example.org?authToken=secret", "LIBSQL:///app.db"])
def test_a_libsql_url_is_refused_with_the_reason_and_without_its_token(url: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Holdfast(url)
    assert str(caught.value) == (
        "libsql:// URLs are not supported: libSQL's Python driver stops every thread of the process while it waits for "
        "the database. Use an SQLite file: 'sqlite:///path/to/file.db'."
    )


def test_a_relative_file_stays_where_it_was_when_the_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = SqliteStore("sqlite:///app.db")
    monkeypatch.chdir("/")
    store.migrate()
    assert store.path == str(tmp_path / "app.db")
    assert (tmp_path / "app.db").is_file()


@pytest.mark.parametrize(
    "name", ["with space.db", "100%25.db", "a%20b.db", "ümläut 🧗.db", "#hash.db", "file:x.db", "a'b.db"]
)
def test_the_file_of_a_url_may_have_a_hostile_name(tmp_path: Path, name: str) -> None:
    store = SqliteStore(f"sqlite:///{tmp_path}/{name}")
    store.migrate()
    expected = name.replace("%25", "%").replace("%20", " ")
    assert [path.name for path in tmp_path.iterdir()] == [expected]
    assert store.path == str(tmp_path / expected)


def test_the_name_of_a_store_is_its_url() -> None:
    assert SqliteStore("sqlite:///a.db").name == "sqlite:///a.db"


# -- databases without a file of their own --------------------------------------------------------------------------


def test_a_temporary_database_is_a_file_that_goes_at_close() -> None:
    store = SqliteStore("sqlite://")
    store.migrate()
    folder = Path(store.path).parent
    with closing(store.connect()) as connection:
        assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
        store.check_schema(connection)
    assert folder.is_dir()
    store.close()
    store.close()
    assert not folder.exists()


def test_a_temporary_database_is_made_on_first_use_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = SqliteStore("sqlite://")
    assert list(tmp_path.iterdir()) == []
    store.close()


def test_two_temporary_databases_are_two() -> None:
    a, b = SqliteStore("sqlite://"), SqliteStore("sqlite://")
    assert a.path != b.path
    a.close()
    b.close()


def test_closing_a_store_leaves_a_named_file(store: SqliteStore) -> None:
    store.close()
    assert Path(store.path).is_file()


def test_a_database_in_memory_has_one_connection_for_everybody() -> None:
    store = SqliteStore("sqlite:///:memory:")
    store.migrate()
    connection = store.connect()
    assert store.connect(read_only=True) is connection
    store.disconnect(connection)
    store.check_schema(connection)
    tx = store.begin(connection)
    store.trigger(tx, [NewRun("a", "job", "1")])
    store.commit(tx)
    assert len(store.find_runs(store.connect(), RunFilter())) == 1
    store.close()
    store.close()


def test_a_text_with_a_nul_is_refused_where_sqlite_would_cut_it(store: SqliteStore) -> None:
    with closing(store.connect()) as connection:
        tx = store.begin(connection)
        for text in ("a\0b", "\0", "\\\0", '{"a":"\\\\\0"}'):
            with pytest.raises(ValidationError, match="NUL"):
                store.trigger(tx, [NewRun("a", "job", text)])
        fine = ["\\u0000", '"\\u0000"', "\\\\u0000", '{"a":"\\\\u0000"}']
        store.trigger(tx, [NewRun(str(n), "job", text) for n, text in enumerate(fine)])
        store.commit(tx)
        assert [run.input for run in store.find_runs(connection, RunFilter())] == fine[::-1]


def test_errors_name_the_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/nowhere/app.db"
    with pytest.raises(HoldfastError, match=r"^sqlite:///"):
        SqliteStore(url).connect()


def test_a_library_that_is_too_old_is_named_before_any_statement_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(StoreError, match=r"SQLite 3\.38\.0 or newer is needed"):
        SqliteStore(f"sqlite:///{tmp_path}/app.db").connect()
