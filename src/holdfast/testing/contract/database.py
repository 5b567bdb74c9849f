"""Promises about connections, transactions and the tables themselves."""

from __future__ import annotations

from typing import Any

from ...rules.lifecycle import TABLE, Cause
from ...store.base import Ending, Recall, Sweep
from .bench import SECOND, StoreBench


class DatabaseContract(StoreBench):
    def test_migrating_twice_does_nothing_the_second_time(self) -> None:
        run_id = self.trigger()
        assert self.store.migrate() == []
        assert self.run(run_id).status == "pending"

    def test_migrated_tables_are_those_that_this_code_knows(self) -> None:
        self.store.check_schema(self.connection)

    def test_the_database_keeps_its_id_across_connections(self) -> None:
        first = self.store.database_id(self.connection)
        self.store.disconnect(self.connection)
        self.connection = self.store.connect()
        self.store.migrate()
        assert self.store.database_id(self.connection) == first
        assert len(first) == 32

    def test_two_databases_have_two_ids(self) -> None:
        other = self.make_store(self.clock)
        other.migrate()
        connection = other.connect()
        try:
            assert other.database_id(connection) != self.store.database_id(self.connection)
        finally:
            other.disconnect(connection)
            other.close()

    def test_disconnecting_twice_does_no_harm(self) -> None:
        connection = self.store.connect()
        self.store.disconnect(connection)
        self.store.disconnect(connection)

    def test_a_transaction_has_one_time(self) -> None:
        with self.tx() as tx:
            started = tx.now
            self.clock.advance(5)
            answer = self.store.trigger(tx, [self.new()])[0]
        assert answer.run.created_at == started == self.clock.now() - 5 * SECOND

    def test_what_was_committed_is_seen_by_another_connection(self) -> None:
        run_id = self.trigger()
        self.store.disconnect(self.connection)
        self.connection: Any = self.store.connect(read_only=True)
        assert self.runs() == [run_id]

    def test_rolling_back_without_a_transaction_does_no_harm(self) -> None:
        tx = self.store.begin(self.connection)
        self.store.rollback(tx)
        self.store.rollback(tx)

    def test_a_rollback_leaves_nothing(self) -> None:
        lease = self.lease("held")
        self.lease("other", owner="lost")
        self.trigger("waiting")
        before = self.everything()
        tx = self.store.begin(self.connection)
        self.store.trigger(tx, [self.new(labels='{"a":"b"}')])
        self.store.claim(tx, [self.order("waiting")])
        self.store.save_steps(tx, [self.step(lease)])
        self.store.save_logs(tx, [self.line(lease)])
        self.store.save_progress(tx, [self.progress(lease)])
        self.store.renew_leases(tx, [self.renewal(lease, 90 * SECOND)])
        self.store.finish(tx, [Ending(lease, TABLE[Cause.COMPLETE], output="1")])
        self.store.cancel(tx, [lease.run_id])
        self.store.recall(tx, [Recall("lost", ())])
        self.store.expire(tx, [Sweep(5)])
        self.store.rollback(tx)
        assert self.everything() == before
        assert self.runs(labels=(("a", "b"),)) == []

    def test_after_a_rollback_the_connection_is_good_for_the_next_transaction(self) -> None:
        tx = self.store.begin(self.connection)
        self.store.trigger(tx, [self.new()])
        self.store.rollback(tx)
        assert self.run(self.trigger()).status == "pending"

    def test_the_mark_changes_when_somebody_else_commits(self) -> None:
        other = self.store.connect()
        before = self.store.change_mark(self.connection)
        tx = self.store.begin(other)
        self.store.trigger(tx, [self.new()])
        between = self.store.change_mark(self.connection)
        self.store.commit(tx)
        after = self.store.change_mark(self.connection)
        self.store.disconnect(other)
        assert before is None or before == between != after

    def test_the_mark_stands_still_while_nothing_happens(self) -> None:
        assert self.store.change_mark(self.connection) == self.store.change_mark(self.connection)

    def test_every_verb_takes_an_empty_list(self) -> None:
        self.lease()
        before = self.everything()
        verbs = "renew_leases save_logs save_progress save_steps finish cancel trigger expire recall claim"
        for verb in verbs.split():
            assert self.do(verb, []) == [], verb
        assert self.store.lost_leases(self.connection, []) == {}
        assert self.store.ended(self.connection, []) == {}
        assert self.everything() == before

    def test_errors_that_are_not_the_drivers_come_back_as_they_are(self) -> None:
        error = LookupError("mine")
        assert self.store.translate(error) is error
