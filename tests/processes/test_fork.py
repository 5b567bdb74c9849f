"""Forks: the child starts with nothing of the parent's but the definitions, and the parent goes on (S10)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from child import child

import databases

pytestmark = pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason=f"{sys.platform} has no fork")

APP = """
warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)  # multi-threaded, and on purpose
app = Holdfast(URL, polling_interval=POLLING)

@app.job
async def note(step: Step, n: int) -> list[int]:
    return [n, await step.run("pid", os.getpid)]

def in_child(work):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        import faulthandler, traceback
        traceback.print_exc()
        faulthandler.dump_traceback(all_threads=True)
    finally:
        sys.stdout.flush()
        os._exit(code)

def ended(*pids):
    return all(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 for pid in pids)
""".replace("POLLING", str(databases.across(60)))


def test_s10_the_child_of_a_working_parent_can_trigger_read_and_work_and_the_parent_goes_on(tmp_path: Path) -> None:
    script = (
        APP
        + """
def work():
    assert app._engine.worker is None and app._engine.keeper.held == []
    run = note.trigger(2).wait(20)               # the parent's worker may take it
    assert run.result().wait(20)[0] == 2
    assert len(app.get_runs().wait(20)) >= 2
    app.init().wait(20)                          # a worker of its own
    assert note.run(3).wait(20)[0] == 3
    app.stop().wait(20)
    assert [t.name for t in threading.enumerate() if t.name.startswith("holdfast")] == []

app.init().wait(20)
assert note.run(1).wait(20) == [1, os.getpid()]
for _ in range(3):
    assert ended(in_child(work))
    assert note.run(4).wait(20)[0] == 4
app.stop().wait(20)
say("done")
"""
    )
    with child(tmp_path / "app.db", script) as one:
        assert one.hear() == "done"
        one.end()


def test_s10_an_app_initialised_before_many_forks_executes_every_run_once(tmp_path: Path) -> None:
    script = (
        APP
        + """
@app.job
def mark(step: SyncStep, n: int) -> int:
    def write():
        with open(os.path.join(sys.argv[2], "executed"), "a") as file:
            file.write(f"{n} ")
    step.run("write", write)
    return n

note = mark

def work():
    with app:
        say("serving")
        runs = [note.trigger(n).wait(20) for n in range(10)]
        for run in runs:
            assert run.result().wait(20) == run.input["n"]

app.migrate().wait(20)
note.trigger(99).wait(20)
pids = [in_child(work) for _ in range(4)]
say("ended", ended(*pids))
app.stop().wait(20)
"""
    )
    with child(tmp_path / "app.db", script) as one:
        assert [one.hear() for _ in range(5)] == ["serving"] * 4 + ["ended True"]
        one.end()
    found = databases.rows(tmp_path / "app.db", "select status, crashes, count(*) from holdfast_runs group by 1, 2")
    assert found == [("completed", 0, 41)]
    executed = (tmp_path / "executed").read_text().split()
    assert sorted(executed) == sorted(["99", *map(str, range(10))] + 3 * [str(n) for n in range(10)])


def test_s10_what_was_in_the_line_at_the_fork_is_written_once_by_the_parent(tmp_path: Path) -> None:
    script = (
        APP
        + """
app.migrate().wait(20)
note.trigger(0).wait(20)
app._engine.committer.gate = gate = threading.Event()
replies = [note.trigger(n) for n in range(1, 6)]

def work():
    for reply in replies:
        try:
            reply.wait(20)
        except Exception as error:
            assert "parent" in str(error)
        else:
            raise AssertionError("answered")
    note.trigger(6).wait(20)

pid = in_child(work)
assert ended(pid)
gate.set()
for reply in replies:
    reply.wait(20)
say(len(app.get_runs().wait(20)))
app.stop().wait(20)
"""
    )
    with child(tmp_path / "app.db", script) as one:
        assert one.hear() == "7"
        one.end()


def test_s10_the_child_keeps_the_parents_temporary_database(tmp_path: Path) -> None:
    script = (
        APP.replace("Holdfast(URL,", 'Holdfast("sqlite://",')
        + """
app.init().wait(20)
assert ended(in_child(lambda: note.run(1).wait(20)))
path = app._engine.store.path
assert os.path.exists(path)
app.stop().wait(20)
assert not os.path.exists(path)
say("done")
"""
    )
    with child(tmp_path / "app.db", script) as one:
        assert one.hear() == "done"
        one.end()


def test_s10_a_fork_waits_until_nobody_is_inside_the_database(tmp_path: Path) -> None:
    script = (
        APP
        + """
from holdfast.commit.forks import inside

def hold():
    with inside, inside:
        entered.set()
        say("inside")
        heard()
        say("still inside")

entered = threading.Event()
thread = threading.Thread(target=hold)
with inside:  # who forks may be inside itself
    thread.start()
    assert entered.wait(20)
    pid = in_child(lambda: app.migrate().wait(20))
say("forked", ended(pid))
thread.join()
"""
    )
    with child(tmp_path / "app.db", script) as one:
        assert one.hear() == "inside"
        one.tell()
        assert [one.hear(), one.hear()] == ["still inside", "forked True"]
        one.end()
