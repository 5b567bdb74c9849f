"""Promises about new runs: what is kept, idempotency, keys, labels."""

from __future__ import annotations

from ...model.run import NewRun
from ...rules.lifecycle import Cause
from ...store.base import Triggered
from .bench import HOSTILE, NAMES, SECOND, StoreBench


class TriggerContract(StoreBench):
    def test_a_new_run_is_kept_as_it_was_given(self) -> None:
        new = self.new(
            "import", '{"file":"a.csv"}', queue="slow", priority=7, idempotency_key="once", concurrency_key="customer",
            labels='{"env":"test","who":"me"}', tenant="acme", codec="zip", trace="00-abc-def-01",
        )  # fmt: skip
        self.do("trigger", [new])
        run = self.run(new.id)
        for name, value in new._asdict().items():
            if name not in ("delay", "run_at", "coalesce", "deadline"):
                assert getattr(run, name) == value, name
        assert (run.status, run.generation, run.attempt, run.crashes) == ("pending", 0, 0, 0)
        assert run.created_at == run.updated_at == run.run_at == self.clock.now()
        assert (run.started_at, run.completed_at, run.lease_owner, run.output, run.error) == (None,) * 5

    def test_the_answer_of_a_trigger_is_the_stored_row(self) -> None:
        answers = self.do("trigger", [self.new(), self.new(delay=5, priority=-3, labels='{"a":"b"}')])
        for answer in answers:
            assert answer == Triggered(self.run(answer.run.id), "created")

    def test_many_runs_in_one_call_are_answered_in_order(self) -> None:
        new = [self.new(f"job-{n % 7}") for n in range(500)]
        answers = self.do("trigger", new)
        assert [answer.run.id for answer in answers] == [run.id for run in new]
        assert len(self.runs()) == 500

    def test_one_run_twice_in_one_call_is_written_once(self) -> None:
        new = self.new()
        first, second = self.do("trigger", [new, new])
        assert first == second == Triggered(self.run(new.id), "created")
        assert len(self.runs()) == 1

    def test_a_trigger_repeated_after_a_lost_answer_says_that_it_made_the_run(self) -> None:
        new = self.new(idempotency_key="once", labels='{"a":"b"}')
        self.do("trigger", [new])
        assert self.do("trigger", [new], replay=True) == [Triggered(self.run(new.id), "created")]
        assert self.runs(labels=(("a", "b"),)) == [new.id]

    def test_a_repeated_trigger_gives_the_run_as_it_is_by_now(self) -> None:
        new = self.new(idempotency_key="once", concurrency_key="line")
        self.do("trigger", [new])
        self.claim()
        self.trigger(concurrency_key="line")
        assert self.do("trigger", [new], replay=True) == [Triggered(self.run(new.id), "created")]
        assert self.run(new.id).status == "leased"

    # -- idempotency keys --------------------------------------------------------------------------------------

    def test_an_idempotency_key_leads_to_one_run(self) -> None:
        first = self.trigger(idempotency_key="order-1")
        answer = self.do("trigger", [self.new(input="other", idempotency_key="order-1")])[0]
        assert answer == Triggered(self.run(first), "idempotent")
        assert self.runs() == [first]

    def test_an_idempotency_key_counts_within_one_call(self) -> None:
        answers = self.do("trigger", [self.new(idempotency_key="k", input=str(n)) for n in range(3)])
        assert [answer.disposition for answer in answers] == ["created", "idempotent", "idempotent"]
        assert {answer.run.id for answer in answers} == set(self.runs())
        assert answers[2].run.input == "0"

    def test_an_idempotency_key_counts_after_its_run_has_ended(self) -> None:
        lease = self.lease(idempotency_key="k")
        self.finish(lease, output="42")
        answer = self.do("trigger", [self.new(idempotency_key="k")])[0]
        assert (answer.disposition, answer.run.id, answer.run.output) == ("idempotent", lease.run_id, "42")

    def test_what_a_trigger_would_be_answered_is_found_without_writing(self) -> None:
        one = self.trigger(idempotency_key="k", concurrency_key="c")
        other = self.trigger(tenant="a", idempotency_key="k")
        held = self.trigger("held", concurrency_key="h")
        assert [run.id for run in self.claim("held")] == [held]
        asked = [
            self.new(input="x" * 1000, idempotency_key="k"), self.new(), self.new(tenant="a", idempotency_key="k"),
            self.new(concurrency_key="c"), self.new(concurrency_key="c", coalesce="skip"), self.new("b"),
            self.new("b", idempotency_key="k", concurrency_key="c"), self.new("held", concurrency_key="h"),
            self.new("held", concurrency_key="h", coalesce="skip"),
            self.new("held", concurrency_key="h", coalesce="active"),
            self.new(idempotency_key="new"), self.new(idempotency_key="new"),
        ]  # fmt: skip
        found = self.store.find_standing(self.connection, asked)
        assert [one and (one.run.id, one.disposition) for one in found] == [
            (one, "idempotent"), None, (other, "idempotent"), (one, "conflict"), (one, "coalesced"), None, None, None,
            None, (held, "coalesced"), None, None,
        ]  # fmt: skip
        assert found[0] == Triggered(self.run(one), "idempotent")
        assert self.store.find_standing(self.connection, []) == []
        assert self.runs() == [held, other, one]

    def test_idempotency_keys_belong_to_a_job(self) -> None:
        assert self.trigger("a", idempotency_key="k") != self.trigger("b", idempotency_key="k")

    def test_idempotency_keys_belong_to_a_tenant(self) -> None:
        assert self.trigger(tenant="a", idempotency_key="k") != self.trigger(tenant="b", idempotency_key="k")

    def test_a_tenant_is_given_its_own_run_for_its_idempotency_key(self) -> None:
        made = {tenant: self.trigger(tenant=tenant, idempotency_key="k") for tenant in ("", "a", "b")}
        for tenant, run_id in made.items():
            answer = self.do("trigger", [self.new(tenant=tenant, idempotency_key="k")])[0]
            assert (answer.disposition, answer.run.id) == ("idempotent", run_id)

    def test_idempotency_keys_differ_by_case_accent_space_and_form(self) -> None:
        keys = ["key", "KEY", "kéy", "ke\u0301y", "key ", " key", "key\n", "Ｋey", "K\u0130y", "k\u0131y", "0", "00"]
        answers = self.do("trigger", [self.new(idempotency_key=key) for key in keys])
        assert [answer.disposition for answer in answers] == ["created"] * len(keys)

    def test_runs_without_an_idempotency_key_never_meet(self) -> None:
        assert len({self.trigger() for _ in range(5)}) == 5

    # -- concurrency keys --------------------------------------------------------------------------------------

    def test_one_run_of_a_concurrency_key_waits_for_its_first_claim_and_a_second_is_refused(self) -> None:
        first = self.trigger(concurrency_key="line")
        answers = self.do("trigger", [self.new(concurrency_key="line"), self.new(concurrency_key="other")])
        assert answers[0] == Triggered(self.run(first), "conflict")
        assert answers[1].disposition == "created"
        assert len(self.runs()) == 2, "the refused one was not written"

    def test_whoever_asks_to_skip_is_given_the_never_claimed_run_as_it_is(self) -> None:
        first = self.trigger(concurrency_key="line", input="first", labels='{"a":"1"}')
        new = self.new(concurrency_key="line", input="second", labels='{"a":"2"}', coalesce="skip")
        assert self.do("trigger", [new]) == [Triggered(self.run(first), "coalesced")]
        assert (self.run(first).input, self.run(first).labels) == ("first", '{"a":"1"}')
        assert self.runs(labels=(("a", "2"),)) == []

    def test_a_delayed_run_that_was_never_claimed_is_the_one_of_its_key(self) -> None:
        first = self.trigger(concurrency_key="line", delay=90 * SECOND)
        answers = self.do("trigger", [self.new(concurrency_key="line", coalesce=how) for how in (None, "skip")])
        assert [(answer.disposition, answer.run.id) for answer in answers] == [
            ("conflict", first),
            ("coalesced", first),
        ]

    def test_one_run_of_a_concurrency_key_is_made_by_one_call(self) -> None:
        hows = (None, "skip", None, "active")
        answers = self.do("trigger", [self.new(concurrency_key="line", coalesce=how) for how in hows])
        assert [answer.disposition for answer in answers] == ["created", "coalesced", "conflict", "coalesced"]
        assert {answer.run.id for answer in answers} == set(self.runs())

    def test_many_keys_in_one_call_are_answered_in_order(self) -> None:
        new = [self.new(concurrency_key=f"key {n % 50}", coalesce="skip") for n in range(200)]
        answers = self.do("trigger", new)
        assert [answer.disposition for answer in answers] == ["created"] * 50 + ["coalesced"] * 150
        assert [answer.run.id for answer in answers] == [run.id for run in new[:50]] * 4

    def test_a_refused_trigger_leaves_the_others_of_its_call_alone(self) -> None:
        self.trigger(concurrency_key="line")
        answers = self.do("trigger", [self.new(), self.new(concurrency_key="line"), self.new(concurrency_key="b")])
        assert [answer.disposition for answer in answers] == ["created", "conflict", "created"]
        assert self.run(answers[2].run.id).status == "pending"

    def test_to_skip_looks_at_never_claimed_runs_only(self) -> None:
        for cause in (None, Cause.RETRY, Cause.SUSPEND, Cause.COMPLETE):
            lease = self.lease(str(cause), concurrency_key="line " + str(cause))
            if cause is not None:
                self.finish(lease, cause)
            new = self.new(str(cause), concurrency_key="line " + str(cause), coalesce="skip")
            assert self.do("trigger", [new])[0].disposition == "created", cause

    def test_coalesce_active_also_answers_with_a_run_that_is_under_way(self) -> None:
        for cause in (None, Cause.RETRY, Cause.RELEASE, Cause.SUSPEND):
            lease = self.lease(str(cause), concurrency_key="line " + str(cause))
            if cause is not None:
                self.finish(lease, cause)
            new = self.new(str(cause), concurrency_key="line " + str(cause), coalesce="active")
            assert self.do("trigger", [new]) == [Triggered(self.run(lease.run_id), "coalesced")], cause

    def test_coalesce_active_makes_a_run_where_the_last_one_has_ended(self) -> None:
        for cause in (Cause.COMPLETE, Cause.FAIL, Cause.CANCEL_ITSELF):
            self.finish(self.lease(concurrency_key="line"), cause)
            answer = self.do("trigger", [self.new(concurrency_key="line", coalesce="active")])[0]
            assert answer.disposition == "created"
            self.cancel(answer.run.id)

    def test_coalesce_active_prefers_the_run_that_was_never_claimed(self) -> None:
        self.lease(concurrency_key="line")
        waiting = self.trigger(concurrency_key="line")
        answer = self.do("trigger", [self.new(concurrency_key="line", coalesce="active")])[0]
        assert (answer.disposition, answer.run.id) == ("coalesced", waiting)

    def test_coalesce_active_knows_only_runs_of_the_same_job_and_key(self) -> None:
        self.lease("a", concurrency_key="line")
        answers = self.do(
            "trigger",
            [self.new("b", concurrency_key="line", coalesce="active"), self.new("a", concurrency_key="other")],
        )
        assert [answer.disposition for answer in answers] == ["created", "created"]

    def test_a_repeated_trigger_is_created_again_however_it_coalesces_and_whatever_became_of_it(self) -> None:
        for how in (None, "skip", "active"):
            new = self.new(str(how), concurrency_key=f"line {how}", coalesce=how)
            second = self.new(str(how), concurrency_key=f"line {how}", coalesce="skip")
            self.do("trigger", [new])
            again = self.do("trigger", [new, second], replay=True)
            assert again == [Triggered(self.run(new.id), kind) for kind in ("created", "coalesced")], how
            lease = self.lease_of(new.id, self.claim(str(how)))
            assert self.do("trigger", [new], replay=True) == [Triggered(self.run(new.id), "created")], how
            self.finish(lease)
            assert self.do("trigger", [new], replay=True) == [Triggered(self.run(new.id), "created")], how

    def test_a_run_queues_behind_a_leased_one_of_its_concurrency_key(self) -> None:
        lease = self.lease(concurrency_key="line")
        assert self.trigger(concurrency_key="line") != lease.run_id

    def test_a_younger_run_of_its_key_does_not_keep_a_run_from_returning_to_pending(self) -> None:
        causes = [Cause.RETRY, Cause.RELEASE]
        for cause in causes:
            lease = self.lease(cause, concurrency_key=cause)
            self.trigger(cause, concurrency_key=cause)
            assert self.finish(lease, cause).accepted
        expired = self.lease("expired", concurrency_key="line")
        self.trigger("expired", concurrency_key="line")
        self.crash(expired)
        assert self.run(expired.run_id).status == "pending"

    def test_a_trigger_coalesces_with_the_never_claimed_run_and_not_with_one_that_returned(self) -> None:
        returned = self.lease(concurrency_key="line")
        first = self.trigger(concurrency_key="line")
        self.finish(returned, Cause.RETRY)
        answer = self.do("trigger", [self.new(concurrency_key="line", coalesce="skip")])[0]
        assert (answer.disposition, answer.run.id) == ("coalesced", first)

    def test_idempotency_comes_before_coalescing(self) -> None:
        known = self.lease(idempotency_key="k")
        self.trigger(concurrency_key="line")
        for how in (None, "skip", "active"):
            new = self.new(idempotency_key="k", concurrency_key="line", coalesce=how)
            answer = self.do("trigger", [new])[0]
            assert (answer.disposition, answer.run.id) == ("idempotent", known.run_id)

    def test_concurrency_keys_of_two_jobs_do_not_coalesce(self) -> None:
        assert self.trigger("a", concurrency_key="line") != self.trigger("b", concurrency_key="line")

    # -- what is kept ------------------------------------------------------------------------------------------

    def test_hostile_texts_are_kept_exactly(self) -> None:
        for name, text in zip(NAMES, HOSTILE, strict=True):
            new = self.new(
                name, text, queue=name, idempotency_key=name, concurrency_key=name, tenant=name, codec=text, trace=text
            )
            answer = self.do("trigger", [new])[0]
            assert answer.run == self.run(new.id)
            kept = self.run(new.id)
            names = (kept.job_name, kept.queue, kept.idempotency_key, kept.concurrency_key, kept.tenant)
            assert (set(names), {kept.input, kept.codec, kept.trace}) == ({name}, {text})
            assert [run.id for run in self.claim(name, queues=(name,))] == [new.id]
        assert len(self.runs()) == len(HOSTILE)

    def test_hostile_idempotency_keys_are_found_again(self) -> None:
        made = self.do("trigger", [self.new(idempotency_key=text) for text in NAMES])
        again = self.do("trigger", [self.new(idempotency_key=text) for text in NAMES])
        assert [answer.run for answer in again] == [answer.run for answer in made]
        assert {answer.disposition for answer in again} == {"idempotent"}

    def test_a_text_with_a_nul_is_kept_exactly_or_refused(self) -> None:
        for values in ({"idempotency_key": "a\0b"}, {"job": "\0"}, {"input": "ends with\0"}):
            new = self.new(**values)
            try:
                self.do("trigger", [new])
            except ValueError:
                assert self.runs(ids=(new.id,)) == []
            else:
                kept = self.run(new.id)
                assert (kept.job_name, kept.input, kept.idempotency_key) == (
                    new.job_name,
                    new.input,
                    new.idempotency_key,
                )

    def test_an_input_of_a_mebibyte_is_kept(self) -> None:
        text = '"' + "ä" * (1 << 19) + '"'
        assert self.run(self.trigger(input=text)).input == text

    def test_the_largest_numbers_are_kept(self) -> None:
        largest = NewRun("z", "job", "null", priority=2**31 - 1, run_at=2**62)
        smallest = NewRun("y", "job", "null", priority=-(2**31), run_at=0)
        self.do("trigger", [largest, smallest])
        assert (self.run("z").priority, self.run("z").run_at) == (2**31 - 1, 2**62)
        assert (self.run("y").priority, self.run("y").run_at) == (-(2**31), 0)

    def test_a_delay_counts_from_the_databases_now(self) -> None:
        run_id = self.trigger(delay=90 * SECOND)
        assert self.run(run_id).run_at == self.clock.now() + 90 * SECOND

    def test_a_fixed_time_goes_before_a_delay(self) -> None:
        assert self.run(self.trigger(delay=90 * SECOND, run_at=12_345)).run_at == 12_345

    def test_hostile_labels_are_found(self) -> None:
        new = self.new(labels='{"key with \\"quotes\\"":"\'; drop table","emoji":"🧗","":"","a":"1"}')
        self.do("trigger", [new])
        for label in (('key with "quotes"', "'; drop table"), ("emoji", "🧗"), ("", ""), ("a", "1")):
            assert self.runs(labels=(label,)) == [new.id]
        assert self.runs(labels=(("emoji", "🧗‍♀️"),)) == []
