"""The database is in trouble while a worker runs: what is said, that nothing acknowledged is lost, and that work goes
on by itself when the trouble is over. The page "When the database is in trouble" promises all of this."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from child import HEAD, LONG

from holdfast import Event, Holdfast, StoreUnavailable
from holdfast.basis.errors import StoreError

pytestmark = pytest.mark.only("sqlite", "the trouble is with a file")


class Patient:
    """An app with a worker on a file, what it was told, and what was acknowledged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.app = Holdfast(f"sqlite:///{path}", polling_interval=0.1)
        self.store: Any = self.app._engine.store
        self.errors: list[tuple[str, str]] = []
        self.acknowledged: list[str] = []
        self._heard = threading.Condition()
        self.app.on("worker:error", self._hear)

        @self.app.job(name="good")
        async def good(number: int) -> int:
            return number + 1

        self.good = good

    def _hear(self, event: Event) -> None:
        with self._heard:
            self.errors.append((event.context, event.error))
            self._heard.notify_all()

    def hears(self, text: str) -> None:
        """The worker reports it."""
        with self._heard:
            assert self._heard.wait_for(lambda: any(text in error for _, error in self.errors), LONG), self.errors

    def trigger(self) -> Any:
        run = self.good.trigger(1).wait(LONG)
        self.acknowledged.append(run.id)
        return run

    def works_again(self) -> None:
        """Without any help: the next run that is acknowledged is executed, and everything acknowledged before is there.

        The first few may be refused, by connections that still have the old file.
        """
        pause = threading.Event()
        for _ in range(round(LONG / 0.05)):
            try:
                run = self.trigger()
                break
            except StoreError:
                pause.wait(0.05)
        else:
            raise AssertionError("it never works again")
        for _ in range(3):
            try:
                assert run.result().wait(LONG) == 2
                break
            except StoreError:  # the reading connection notices by itself, once
                continue
        else:
            raise AssertionError("nothing can be read")
        for run_id in self.acknowledged:
            assert self.app.wait_for_run(run_id).wait(LONG).output == 2
        with closing(sqlite3.connect(self.path)) as connection:
            assert connection.execute("pragma integrity_check").fetchone() == ("ok",)

    def settle(self) -> None:
        """Everything that was committed is in the file itself."""
        pause = threading.Event()
        for _ in range(round(LONG / 0.05)):
            if self.app._engine.committer.tidy().wait(LONG):
                return
            pause.wait(0.05)  # somebody was reading at that moment: to be asked again
        raise AssertionError("somebody reads all the time")

    def backup(self, to: Path) -> None:
        with closing(sqlite3.connect(self.path)) as source, closing(sqlite3.connect(to)) as target:
            source.backup(target)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "app.db"


@pytest.fixture
def patient(path: Path) -> Iterator[Patient]:
    patient = Patient(path)
    with patient.app:
        assert patient.trigger().result().wait(LONG) == 2
        yield patient


def beside(path: Path) -> list[Path]:
    return [Path(f"{path}-wal"), Path(f"{path}-shm")]


# -- the file is not there, or is another ---------------------------------------------------------------------------


def test_a_file_that_is_moved_away_under_a_worker_and_comes_back(patient: Patient, path: Path) -> None:
    elsewhere = path.with_name("elsewhere.db")
    path.rename(elsewhere)
    patient.hears(f"the file {path} is gone")
    with pytest.raises(StoreUnavailable, match="is gone"):
        patient.good.trigger(1).wait(LONG)
    assert not path.exists(), "no empty database was made in its place"
    elsewhere.rename(path)
    patient.works_again()


def test_a_deleted_file_is_replaced_by_its_backup(patient: Patient, path: Path, tmp_path: Path) -> None:
    patient.backup(tmp_path / "backup.db")
    for each in (path, *beside(path)):
        each.unlink()
    patient.hears(f"the file {path} is gone")
    with pytest.raises(StoreUnavailable, match="is gone"):
        patient.good.trigger(1).wait(LONG)
    assert not path.exists()
    shutil.move(tmp_path / "backup.db", path)
    patient.works_again()


def test_another_database_is_refused_until_the_right_one_is_back(patient: Patient, path: Path) -> None:
    elsewhere = path.with_name("elsewhere.db")
    for each in (path, *beside(path)):
        each.rename(each.with_name(each.name.replace("app", "elsewhere")))
    other = Holdfast(f"sqlite:///{path}", worker=False)
    other.migrate().wait(LONG)
    other.stop().wait(LONG)
    before = path.read_bytes()
    patient.hears("is another database than the one that this app has used so far")
    with pytest.raises(StoreUnavailable):
        patient.good.trigger(1).wait(LONG)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("select count(*) from holdfast_runs").fetchone() == (0,)
    assert path.read_bytes() == before
    for each in (path, *beside(path)):
        each.unlink(missing_ok=True)
    for each in (elsewhere, *beside(elsewhere)):
        if each.exists():
            each.rename(each.with_name(each.name.replace("elsewhere", "app")))
    patient.works_again()


def test_a_run_in_flight_survives_that_its_file_is_away_for_a_while(patient: Patient, path: Path) -> None:
    calls: list[str] = []
    inside, go_on = threading.Event(), threading.Event()
    app = patient.app
    app.stop().wait(LONG)

    @app.job(name="long")
    def long() -> str:
        calls.append("called")
        inside.set()
        assert go_on.wait(LONG)
        return "done"

    with app:
        run = long.trigger().wait(LONG)
        assert inside.wait(LONG)
        elsewhere = path.with_name("elsewhere.db")
        path.rename(elsewhere)
        patient.hears("is gone")
        go_on.set()
        with pytest.raises(StoreUnavailable):
            patient.good.trigger(1).wait(LONG)
        elsewhere.rename(path)
        patient.works_again()
        assert app.wait_for_run(run.id).wait(LONG).output == "done"
    assert calls == ["called"]


# -- the file is damaged -------------------------------------------------------------------------------------------


def test_a_deleted_log_costs_nothing(patient: Patient, path: Path) -> None:
    for _ in range(5):
        patient.trigger().result().wait(LONG)
    Path(f"{path}-wal").unlink()
    patient.works_again()


def test_a_cut_file_is_refused_until_its_backup_is_there(patient: Patient, path: Path, tmp_path: Path) -> None:
    patient.settle()
    patient.backup(tmp_path / "backup.db")
    os.truncate(path, 4096)
    patient.hears("has become shorter")
    with pytest.raises(StoreUnavailable):
        patient.good.trigger(1).wait(LONG)
    for each in (path, *beside(path)):
        each.unlink()
    shutil.move(tmp_path / "backup.db", path)
    patient.works_again()


def test_an_emptied_file_is_refused_until_its_backup_is_there(patient: Patient, path: Path, tmp_path: Path) -> None:
    patient.settle()
    patient.backup(tmp_path / "backup.db")
    os.truncate(path, 0)
    patient.hears("is empty now")
    assert path.stat().st_size == 0, "no new database was made of it"
    for each in (path, *beside(path)):
        each.unlink()
    shutil.move(tmp_path / "backup.db", path)
    patient.works_again()


def test_a_damaged_page_is_said_and_the_worker_lives(patient: Patient, path: Path) -> None:
    """All pages that hold runs: what is asked for fails, with advice. Nothing that was acknowledged is overwritten."""
    patient.settle()
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        pages = connection.execute(
            "select pageno from dbstat where name = 'holdfast_runs' union select rootpage from sqlite_master "
            "where name = 'holdfast_runs'"
        ).fetchall()
    whole = path.read_bytes()
    with open(path, "r+b") as file:
        for (page,) in pages:
            file.seek((page - 1) * 4096)
            file.write(b"\xff" * 4096)
    # Whoever has read these pages before may go on working with them for a while: ask over new connections.
    with closing(sqlite3.connect(path)) as connection, pytest.raises(sqlite3.DatabaseError, match="malformed"):
        connection.execute("select count(input) from holdfast_runs").fetchone()

    def lost(_: object) -> None:
        raise StoreUnavailable("the connection was lost")

    with pytest.raises(StoreUnavailable):
        patient.app._engine.reader.read("lose", lost, str).wait(LONG)
    with pytest.raises(StoreUnavailable, match=r"is damaged; run `pragma integrity_check` on a copy"):
        patient.app.get_runs().wait(LONG)
    with open(path, "r+b") as file:
        for (page,) in pages:
            file.seek((page - 1) * 4096)
            file.write(whole[(page - 1) * 4096 : page * 4096])
    patient.works_again()


# -- locked --------------------------------------------------------------------------------------------------------


def test_a_file_that_is_locked_longer_than_we_wait(patient: Patient, path: Path) -> None:
    patient.store.lock_timeout = 0.2
    patient.app.stop().wait(LONG)  # connections that are opened from now on wait no longer than that
    with patient.app:
        patient.trigger().result().wait(LONG)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("begin immediate")
            with pytest.raises(StoreUnavailable, match="is locked by another process"):
                patient.good.trigger(1).wait(LONG)
            patient.hears("is locked by another process")
            other.execute("rollback")
        patient.works_again()


# -- in trouble from the beginning ---------------------------------------------------------------------------------


def no_directory(path: Path) -> None:
    path.parent.rmdir()


def a_directory(path: Path) -> None:
    path.mkdir()


def a_letter(path: Path) -> None:
    path.write_text("Dear madam, " * 1000)


def an_empty_file(path: Path) -> None:
    path.touch()


def nothing(path: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (no_directory, "does not exist"),
        (a_directory, "can't be opened"),
        (a_letter, "is not an SQLite database"),
        (an_empty_file, "no Holdfast tables yet"),
        (nothing, "there is no file"),
    ],
)
def test_a_worker_that_starts_in_trouble_works_when_it_is_over(
    path: Path, tmp_path: Path, trouble: Callable[[Path], None], said: str
) -> None:
    ready = tmp_path / "ready.db"
    maker = Holdfast(f"sqlite:///{ready}", worker=False)
    maker.migrate().wait(LONG)
    maker.stop().wait(LONG)
    trouble(path)
    patient = Patient(path)
    patient.app.start().wait(LONG)
    patient.hears(said)
    with pytest.raises(StoreError, match=said):
        patient.good.trigger(1).wait(LONG)
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir(exist_ok=True)
    shutil.move(ready, path)
    patient.works_again()
    patient.app.stop().wait(LONG)


# -- in a file system of its own ------------------------------------------------------------------------------------


def in_mounts(path: Path, before: str, script: str) -> str:
    """What the script prints, run by a child with mounts of its own, which go with it."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("NOT CHECKED: only root may mount a small disk. Run this test as root.")
    code = HEAD + textwrap.dedent(script)
    command = f'{before} && exec "$0" -X dev -c "$1" "$2"'
    tried = subprocess.run(["unshare", "-m", "sh", "-c", before], capture_output=True, text=True, timeout=LONG)
    if tried.returncode:
        pytest.skip(f"NOT CHECKED: mounting is not allowed here: {tried.stderr.strip()}")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command, sys.executable, code, f"sqlite:///{path}"],
        capture_output=True,
        text=True,
        timeout=2 * LONG,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_disk_that_is_really_full(path: Path) -> None:
    """2 MiB: what was acknowledged is there, the worker lives, and goes on when there is space."""
    said = in_mounts(
        path,
        f"mount -t tmpfs -o size=2m holdfast {path.parent}",
        """
        import sqlite3
        from holdfast import StoreUnavailable
        path = URL.removeprefix("sqlite:///")
        app = Holdfast(URL, polling_interval=0.1)
        full = threading.Event()
        app.on("worker:error", lambda event: "disk is full" in event.error and full.set())

        @app.job
        def keep(step: SyncStep, text: str) -> int:
            return step.run("length", len, text)

        ids = []
        with app:
            ids.append(keep.trigger("x").wait(30).id)
            app.wait_for_run(ids[0]).wait(30)
            filler = open(os.path.join(os.path.dirname(path), "filler"), "wb")
            try:
                filler.write(b"x" * (900 << 10))
                filler.flush()
            except OSError:
                pass
            refused = None
            for n in range(2000):
                try:
                    ids.append(keep.trigger("x" * 2000).wait(30).id)
                except StoreUnavailable as error:
                    refused = str(error)
                    break
            say(refused)
            say("worker told", full.wait(30))
            filler.truncate(0)
            filler.close()
            for run_id in ids:
                ended = app.wait_for_run(run_id).wait(60)
                assert ended.status == "completed", ended.error
            say("all", len(ids) > 5)  # the worker writes into the same 2 MiB meanwhile, more or less
            assert keep.run("again").wait(30) == 5
        with sqlite3.connect(path) as connection:
            say(connection.execute("pragma integrity_check").fetchone()[0])
            say(connection.execute("select count(*) from holdfast_runs").fetchone()[0] == len(ids) + 1)
        """,
    ).splitlines()
    assert "the disk is full" in said[0]
    assert said[1:] == ["worker told True", "all True", "ok", "True"]


def test_a_file_system_that_is_read_only_for_a_while(path: Path) -> None:
    maker = Holdfast(f"sqlite:///{path}", worker=False)
    maker.migrate().wait(LONG)
    maker.stop().wait(LONG)
    said = in_mounts(
        path,
        f"mount --bind {path.parent} {path.parent} && mount -o remount,ro,bind {path.parent}",
        """
        import subprocess
        from holdfast import StoreUnavailable
        app = Holdfast(URL, polling_interval=0.1)
        told = threading.Event()
        app.on("worker:error", lambda event: told.set())

        @app.job
        def good(number: int) -> int:
            return number + 1

        app.start().wait(30)
        assert told.wait(30)
        try:
            good.trigger(1).wait(30)
        except StoreUnavailable as error:
            say(error)
        subprocess.run(["mount", "-o", "remount,rw,bind", os.path.dirname(URL.removeprefix("sqlite:///"))], check=True)
        while True:
            try:
                run = good.trigger(1).wait(30)
                break
            except StoreUnavailable:
                threading.Event().wait(0.05)
        say(run.result().wait(30))
        app.stop().wait(30)
        """,
    ).splitlines()
    assert "is read-only" in said[0] or "can't be opened" in said[0], said
    assert said[1] == "2"


@pytest.mark.parametrize("what", ["the file", "all its files", "the directory"])
def test_what_an_ordinary_user_may_not_write(path: Path, what: str) -> None:
    """Permissions don't bind root, so a child gives up being root."""
    if os.geteuid() != 0:
        uid = os.geteuid()
    else:
        uid = 65534
    maker = Holdfast(f"sqlite:///{path}", worker=False)
    maker.migrate().wait(LONG)
    maker.stop().wait(LONG)
    # Other users don't get into pytest's folders: make one where they do.
    script = """
    import contextlib, subprocess, tempfile, shutil, stat
    from holdfast import StoreUnavailable
    source, uid, what = URL.removeprefix("sqlite:///"), int(sys.argv[2]), sys.argv[3]
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        data = os.path.join(folder, "data")
        os.mkdir(data)
        path = shutil.copy(source, os.path.join(data, "app.db"))
        if os.geteuid() == 0:
            os.chown(path, uid, uid); os.chown(data, uid, uid)
        if what == "all its files":  # somebody else has it open
            program = "import sqlite3; c = sqlite3.connect({!r}); c.execute('create table t (x)'); print(); input()"
            keeper = subprocess.Popen(
                [sys.executable, "-c", program.format(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            keeper.stdout.readline()
            for name in os.listdir(data):
                os.chown(os.path.join(data, name), uid, uid)
                os.chmod(os.path.join(data, name), 0o444)
        os.chmod(path, 0o444 if what != "the directory" else 0o644)
        os.chmod(data, 0o555 if what == "the directory" else 0o755)
        pid = os.fork()
        if pid == 0:
            try:
                with Holdfast("sqlite://") as warm:  # whoever is not root may not be able to import any more
                    @warm.job
                    def first(number: int) -> int:
                        return number
                    first.run(1).wait(30)
                app = Holdfast(f"sqlite:///{path}", polling_interval=0.1)
                if os.geteuid() == 0:
                    os.setgid(uid); os.setuid(uid)
                told = threading.Event()
                app.on("worker:error", lambda event: told.set())

                @app.job
                def good(number: int) -> int:
                    return number + 1

                app.start().wait(30)
                assert told.wait(30)
                try:
                    good.trigger(1).wait(30)
                    say("was written")
                except StoreUnavailable as error:
                    say(error)
                os.chmod(data, 0o755)
                while True:
                    # Each time: SQLite gives the -shm that it makes at this moment the mode that the file still has.
                    for name in os.listdir(data):
                        with contextlib.suppress(FileNotFoundError):
                            os.chmod(os.path.join(data, name), 0o644)
                    try:
                        run = good.trigger(1).wait(30)
                        break
                    except StoreUnavailable:
                        threading.Event().wait(0.05)
                say(run.result().wait(30))
                app.stop().wait(30)
                os._exit(0)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if what == "all its files":
            keeper.communicate()
    sys.exit(code)
    """
    done = subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(script), f"sqlite:///{path}", str(uid), what],
        capture_output=True,
        text=True,
        timeout=2 * LONG,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    refused, result = done.stdout.splitlines()
    assert "is read-only" in refused or "can't be opened" in refused, refused
    assert result == "2"
