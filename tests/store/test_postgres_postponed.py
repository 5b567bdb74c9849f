"""What a round on PostgreSQL asks goes along with its COMMIT, and what was promised of both still holds."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from postgres_messages import LEASE, a_run, a_step, an_end, eventually, found, messages

import servers
from holdfast.basis.errors import SchemaError, StoreUnavailable, ValidationError
from holdfast.commit.round import Rounds
from holdfast.commit.ticket import Ticket
from holdfast.model.run import NewRun, RunRow
from holdfast.model.step import LogRow
from holdfast.rules.lifecycle import TABLE, Cause
from holdfast.store import postgres_postponed, postgres_together
from holdfast.store.base import ClaimOrder, Ending, Lease, LogSave, Recall, Undone
from holdfast.store.postgres import PostgresStore
from holdfast.store.postgres_place import Link

pytestmark = pytest.mark.sampled("what a server does is the same on every Python", every=8)

ORDER = ClaimOrder("me", 10, LEASE, ("job",))


class Line:
    """Rounds over one connection."""

    def __init__(self, url: str) -> None:
        self.store = PostgresStore(url, lock_timeout=0.5)
        self.store.migrate()
        self.rounds = Rounds(self.store, self.store.clock)

    @property
    def link(self) -> Link:
        if self.rounds.connection is None:
            self.rounds.connection = self.store.open()
        link: Link = self.rounds.connection
        return link

    def serve(self, *asked: tuple[Any, Any]) -> list[Any]:
        """The answers to these rows, each with its verb, in one round."""
        tickets: list[Ticket[Any]] = [Ticket(verb, row) for verb, row in asked]
        self.rounds.serve(tickets)
        return [ticket.wait(0) for ticket in tickets]

    def one(self, verb: Any, row: Any) -> Any:
        return self.serve((verb, row))[0]

    def a_run(self, run_id: str = "run", **values: Any) -> Lease:
        return a_run(self.store, self.link, run_id, **values)

    def found(self, run_id: str = "run") -> RunRow:
        return found(self.store, self.link, run_id)

    def steps(self) -> list[str]:
        return [step.name for step in self.store.find_steps(self.link, "run")]


@pytest.fixture
def line(postgres_url: str) -> Iterator[Line]:
    line = Line(postgres_url)
    yield line
    line.rounds.disconnect()


# -- one message ---------------------------------------------------------------------------------------------------


def test_a_round_of_one_verb_is_one_message(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = line.a_run()
    asked: tuple[tuple[Any, Any], ...] = (
        ("trigger", NewRun("new", "other", "1")),
        ("save_steps", a_step()),
        ("claim", ORDER),
        ("finish", an_end(lease)),
    )
    warm: tuple[tuple[Any, Any], ...] = (
        ("trigger", NewRun("warm", "other", "1")),
        ("save_steps", a_step("warm")),
        ("claim", ORDER),
        ("finish", an_end(line.a_run("warm too"))),
    )
    for one in warm:
        line.one(*one)
    for verb, row in asked:
        with monkeypatch.context() as patched:
            sent = messages(line.link, patched)
            line.one(verb, row)
        assert [(text[:5], text[-6:]) for text in sent] == [("begin", "commit")], (verb, sent)
    assert line.steps() == ["s", "warm"]
    assert line.found().status == "completed"


def test_a_run_is_triggered_and_claimed_in_one_message(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.serve(("trigger", NewRun("warm", "job", "1")), ("claim", ORDER))
    sent = messages(line.link, monkeypatch)
    made, claimed = line.serve(("trigger", NewRun("new", "job", "1")), ("claim", ORDER))
    assert len(sent) == 1
    assert made.run == line.found("new")._replace(
        status="pending", generation=0, lease_owner=None, lease_expires_at=None, started_at=None,
        updated_at=made.run.updated_at,
    )  # fmt: skip
    assert claimed.runs == [line.found("new")]


def test_who_looks_at_an_answer_before_the_commit_is_told_it_then(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.a_run()
    sent = messages(line.link, monkeypatch)
    tx = line.store.begin_round(line.link, {"save_steps": [a_step()]})
    tx.patient = True
    answers = line.store.save_steps(tx, [a_step()])
    assert (len(answers), sent) == (1, [])
    assert list(answers) == [True]
    assert answers[0] is True
    assert line.steps() == ["s"], "by this transaction itself"
    line.store.rollback(tx)
    assert line.steps() == []


def test_an_answer_is_the_one_that_would_have_been_given_alone(line: Line) -> None:
    lease = line.a_run()
    ended = line.one("finish", an_end(lease))
    run = line.found()
    assert ended == (True, run.completed_at, "completed", False)
    back = line.a_run("back")
    again = line.one("finish", Ending(back, TABLE[Cause.RETRY], error="no", delay=5, keyed=False))
    assert (again.status, line.found("back").status, line.found("back").run_at) == ("pending", "pending", again.at + 5)


def test_what_is_large_is_not_said_as_text(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.a_run()
    sent = messages(line.link, monkeypatch)
    assert line.one("save_steps", a_step(output='"' + "x" * 300_000 + '"'))
    assert max(map(len, sent)) < 10_000
    assert line.steps() == ["s"]


def test_what_can_not_be_kept_is_refused_before_anything_is_said(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.a_run()
    sent = messages(line.link, monkeypatch)
    with pytest.raises(ValidationError, match="NUL"):
        line.one("save_steps", a_step(output='"\0"'))
    assert sent == []


# -- what takes more -----------------------------------------------------------------------------------------------


def test_a_stale_checkpoint_and_a_stale_end_are_refused(line: Line) -> None:
    lease = line.a_run()
    line.one("cancel", "run")
    assert line.one("save_steps", a_step()) is False
    ended = line.one("finish", an_end(lease))
    assert (ended.accepted, ended.status) == (False, "cancelled")
    assert line.steps() == []


def test_of_a_round_only_what_needs_more_is_served_again(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.a_run()
    gone = a_step("gone")._replace(owner="somebody else")
    sent = messages(line.link, monkeypatch)
    assert line.serve(("save_steps", a_step()), ("save_steps", gone)) == [True, False]
    assert [text.endswith("commit") for text in sent].count(True) == 2
    assert line.rounds.count == 2
    assert line.steps() == ["s"]


def test_the_end_of_a_run_with_something_below_it_takes_that_along(line: Line) -> None:
    lease = line.a_run()
    servers.execute(line.store.address.conninfo, "update holdfast_runs set tree = 1 where id = 'run'")
    ended = line.one("finish", Ending(lease, TABLE[Cause.FAIL], error="no", keyed=False))
    assert (ended.accepted, ended.leaves) == (True, True)
    assert line.rounds.count == 2


def test_an_end_is_seen_by_the_claim_that_counts_it(line: Line) -> None:
    """It takes more than one statement, and must not come after the claim of its round, which would find no room."""
    lease = line.a_run()
    line.one("trigger", NewRun("next", "job", "1"))
    servers.execute(line.store.address.conninfo, "update holdfast_runs set tree = 1 where id = 'run'")
    _, claimed = line.serve(("finish", an_end(lease)), ("claim", ORDER._replace(limits=(("job", 1),))))
    assert [run.id for run in claimed.runs] == ["next"]


def test_a_cancel_or_a_recall_comes_after_the_end_of_its_round(line: Line) -> None:
    for run_id, verb, row in (("one", "cancel", "one"), ("two", "recall", Recall("me", ()))):
        lease = line.a_run(run_id)
        servers.execute(line.store.address.conninfo, f"update holdfast_runs set tree = 1 where id = '{run_id}'")
        ended, _ = line.serve(("finish", an_end(lease)), (verb, row))
        assert (ended.accepted, line.found(run_id).status) == (True, "completed")


def test_a_step_that_is_saved_twice_beside_the_end_of_its_run_is_told_so(line: Line) -> None:
    lease = line.a_run()
    line.one("save_steps", a_step())
    again, ended = line.serve(("save_steps", a_step()), ("finish", an_end(lease)))
    assert (again, ended.accepted) == (True, True)


def test_a_batch_is_asked_once(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.one("trigger_many", [NewRun("warm", "job", "1")])
    sent = messages(line.link, monkeypatch)
    made = line.one("trigger_many", [NewRun("a", "job", "1"), NewRun("b", "job", "1")])
    assert [one.disposition for one in made] == ["created", "created"]
    assert len([text for text in sent if "insert into" in text or ("execute" in text and '"a"' in text)]) == 1


def test_a_claim_takes_what_has_a_key_or_was_executed_before_in_its_order(line: Line) -> None:
    line.a_run("again")
    line.one("finish", Ending(Lease("again", 1, "me"), TABLE[Cause.RETRY], error="no", keyed=False))
    line.one("trigger", NewRun("keyed", "job", "1", priority=2, concurrency_key="k"))
    line.one("trigger", NewRun("plain", "job", "1", priority=1))
    line.store._pauses.clear()
    claimed = line.one("claim", ORDER._replace(limit=2))
    assert [run.id for run in claimed.runs] == ["keyed", "plain"]
    assert [run.id for run in line.one("claim", ORDER).runs] == ["again"]


def test_a_claim_of_a_delayed_run_whose_time_has_come_takes_it(line: Line) -> None:
    line.one("trigger", NewRun("later", "job", "1", delay=1))
    line.one("trigger", NewRun("much later", "job", "1", delay=60_000_000))
    line.store._pauses.clear()
    claimed = line.one("claim", ORDER)
    assert [run.id for run in claimed.runs] == ["later"]
    assert claimed.next_due_at == line.found("much later").run_at


def test_a_claim_says_when_the_next_run_is_due(line: Line) -> None:
    line.one("trigger", NewRun("later", "job", "1", delay=60_000_000))
    claimed = line.one("claim", ORDER)
    assert (claimed.runs, claimed.next_due_at) == ([], line.found("later").run_at)
    assert line.rounds.count == 2


def test_what_had_to_be_served_twice_is_not_postponed_for_a_while(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_postponed, "_PAUSE", 2)
    gone = a_step("gone")._replace(owner="somebody else")
    line.a_run()
    counts = []
    for _ in range(4):
        before = line.rounds.count
        line.one("save_steps", gone)
        counts.append(line.rounds.count - before)
    # The second serving of the first is not postponed in any case; then come two that might have been.
    assert counts == [2, 1, 1, 2]


# -- trouble -------------------------------------------------------------------------------------------------------


def test_tables_that_somebody_has_migrated_are_refused_and_nothing_is_written(line: Line) -> None:
    line.a_run()
    line.one("save_steps", a_step("before"))
    servers.execute(line.store.address.conninfo, "insert into holdfast_migrations values (9999, 'newer', 1)")
    with pytest.raises(SchemaError, match="newer"):
        line.one("save_steps", a_step())
    assert servers.execute(line.store.address.conninfo, "select name from holdfast_steps") == [("before",)]


def test_a_session_that_may_not_write_any_more_is_left(line: Line) -> None:
    line.a_run()
    left = line.link.pg.info.backend_pid
    line.link.say("set default_transaction_read_only = on")
    assert line.one("save_steps", a_step())
    assert line.link.pg.info.backend_pid != left
    assert line.steps() == ["s"]


def test_a_lock_that_is_not_given_refuses_the_round(
    line: Line, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    line.a_run()
    other = line.store.open()
    holding = line.store.begin(other)
    line.store.lock(holding, {"cancel": ["run"]})
    began = messages(line.link, monkeypatch)
    with pytest.raises(StoreUnavailable, match="locked for too long"):
        line.one("save_steps", a_step())
    assert len([text for text in began if text.startswith("begin")]) == 1, "nobody waits twice"
    line.store.rollback(holding)
    line.store.disconnect(other)
    assert "gave no answer" not in caplog.text
    assert line.one("save_steps", a_step())


def test_an_error_of_one_row_undoes_that_row_and_no_other(line: Line) -> None:
    line.a_run()
    wrong = a_step("wrong")._replace(step=a_step("wrong").step._replace(completed_at=2**70))
    tickets: list[Ticket[Any]] = [Ticket("save_steps", step) for step in (a_step("first"), wrong, a_step("last"))]
    line.rounds.serve(tickets)
    assert tickets[0].wait(0) is True
    with pytest.raises(ValidationError):
        tickets[1].wait(0)
    assert tickets[2].wait(0) is True
    assert line.steps() == ["first", "last"]


@pytest.mark.parametrize("begun", [False, True], ids=["before it", "in it"])
def test_who_can_not_be_reached_is_not_taken_for_a_commit_without_an_answer(
    line: Line, caplog: pytest.LogCaptureFixture, begun: bool
) -> None:
    line.a_run()
    name = line.store.address.conninfo.rpartition("/")[2]
    admin = line.store.address.conninfo.rpartition("/")[0] + "/postgres"
    servers.execute(admin, f"alter database {name} allow_connections false")
    session = line.link.pg.info.backend_pid
    asked: list[tuple[Any, Any]] = [("save_steps", a_step())]
    if begun:
        # Its lines are said before the commit.
        asked.append(("save_logs", LogSave("me", LogRow(0, "run", 1, None, "info", "x", None, 1))))
    servers.execute(admin, f"select pg_terminate_backend({session}, 10000)")
    with pytest.raises(StoreUnavailable):
        line.serve(*asked)
    assert "gave no answer" not in caplog.text
    servers.execute(admin, f"alter database {name} allow_connections true")
    assert line.one("save_steps", a_step())


def test_a_table_that_is_gone_is_not_taken_for_a_commit_without_an_answer(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    line.a_run()
    servers.execute(line.store.address.conninfo, "alter table holdfast_steps rename to gone")
    with pytest.raises(SchemaError):
        line.one("save_steps", a_step())
    assert "gave no answer" not in caplog.text


def test_statements_are_planned_anew_from_time_to_time(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that was small when they were planned grows."""
    line.a_run()
    line.link._said, line.link._plan_at = 0, 10
    sent = messages(line.link, monkeypatch)
    for number in range(18):  # of four statements each
        assert line.one("save_steps", a_step(f"s{number}"))
    assert len([text for text in sent if "discard plans" in text]) == 3, "after 10, 20 and 40"
    assert all(text.endswith("commit") for text in sent if text.startswith("begin"))


def test_what_was_planned_a_minute_ago_is_planned_anew(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may have filled the table while we said nothing."""
    line.a_run()
    line.link._plan_at = 1_000_000
    sent = messages(line.link, monkeypatch)
    now = postgres_together._steady()
    for number, later in enumerate((0, 61, 62, 122)):
        monkeypatch.setattr(postgres_together, "_steady", lambda later=later: now + later)
        assert line.one("save_steps", a_step(f"s{number}"))
    assert ["discard plans" in text for text in sent if text.startswith("begin")] == [False, True, False, True]


def test_a_connection_that_was_lost_before_is_no_commit_without_an_answer(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    line.a_run()
    line.one("save_steps", a_step("warm"))
    lost = line.link.pg.info.backend_pid
    servers.execute(line.store.address.conninfo, f"select pg_terminate_backend({lost}, 10000)")
    assert line.one("save_steps", a_step())
    assert line.link.pg.info.backend_pid != lost
    assert "gave no answer" not in caplog.text


@pytest.mark.parametrize("happened", [True, False])
def test_a_message_without_an_answer_is_read_back(
    line: Line, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, happened: bool
) -> None:
    lease = line.a_run()
    line.one("save_steps", a_step("warm"))
    link = line.link
    end = link.end

    def lost(*asked: Any) -> Any:
        if happened:
            end(*asked)
        link.pg.close()
        return end("commit")

    for verb, row, good in (("save_steps", a_step(), True), ("finish", an_end(lease), (True, "completed"))):
        with monkeypatch.context() as patched:
            patched.setattr(link, "end", lost)
            caplog.clear()
            answer = line.one(verb, row)
        assert (answer if verb == "save_steps" else (answer.accepted, answer.status)) == good
        assert "a commit gave no answer, reading back: postgresql" in caplog.text, "what the driver says"
        link = line.link
        end = link.end
    assert line.steps() == ["s", "warm"]
    assert line.found().status == "completed"


def test_who_is_refused_to_tell_others_writes_all_the_same(
    line: Line, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lease = line.a_run()
    monkeypatch.setattr(PostgresStore, "channel", property(lambda _: "x" * 100))  # longer than a server takes
    caplog.set_level(logging.WARNING)
    assert line.one("finish", an_end(lease)).accepted
    assert "other processes are not told" in caplog.text
    assert line.found().status == "completed"
    caplog.clear()
    assert line.one("trigger", NewRun("next", "job", "1")).disposition == "created"
    assert caplog.text == ""


def test_after_the_commit_nothing_can_be_asked_that_would_belong_to_nothing(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.a_run()
    tx = line.store.begin_round(line.link, {"save_steps": [a_step()]})
    tx.patient = True
    answers: Any = line.store.save_steps(tx, [a_step()])
    monkeypatch.setattr(answers, "_read", lambda _: line.store.find_steps(line.link, "run"))
    with pytest.raises(AssertionError, match="after the commit"):
        line.store.commit(tx)
    assert line.steps() == ["s"]


def test_a_message_that_has_failed_has_done_nothing(line: Line) -> None:
    line.a_run()
    wrong = a_step()._replace(step=a_step().step._replace(completed_at=2**70))
    tx = line.store.begin_round(line.link, {"save_steps": [wrong]})
    tx.patient = True
    line.store.save_steps(tx, [wrong])
    with pytest.raises(Undone):
        line.store.commit(tx)
    line.store.rollback(tx)
    assert not line.link.in_transaction
    assert eventually(lambda: line.steps() == [])
