"""A codec stands between every payload and the database, and a codec in trouble loses nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

import databases
from holdfast import Codec, Event, Holdfast, Outdated, RunFailed, Step, StoreUnavailable, SyncStep, ValidationError, job
from holdfast.testing.clock import HandClock


class Secret(Codec):
    """Not a secret at all, but unreadable."""

    name = "secret"
    away = False

    def encode(self, text: str) -> str:
        if self.away:
            raise ConnectionError("no key service")
        return text.encode().hex()

    def decode(self, text: str) -> str:
        if self.away:
            raise StoreUnavailable("no key service")
        return bytes.fromhex(text).decode()


def _url(folder: Path) -> str:
    return databases.url(folder / "app.db")


def _everything(folder: Path) -> str:
    path = folder / "app.db"
    return repr([databases.rows(path, f"select * from {name}") for name in databases.tables(path)])


def _hospital(app: Holdfast, calls: list[str]) -> Any:
    @app.job
    async def examine(step: Step, patient: str) -> str:
        async def look() -> str:
            calls.append("look")
            step.log.info(f"looking at {patient}", patient=patient)
            return f"{patient} is well"

        async def fail() -> None:
            calls.append("fail")
            raise ValueError(f"no bed for {patient}")

        found = await step.run("look", look)
        try:
            await step.run("bed", fail)
        except ValueError as error:
            step.log.warning(str(error))
        return found

    return examine


def test_nothing_that_a_run_works_with_can_be_read_in_the_file(tmp_path: Path) -> None:
    app = Holdfast(_url(tmp_path), codec=Secret())
    with app:
        run = _hospital(app, []).trigger("ada lovelace").wait()
        assert run.result().wait() == "ada lovelace is well"
        again = run.refresh().wait()
        assert (again.input, again.output) == ({"patient": "ada lovelace"}, "ada lovelace is well")
        steps = app.get_steps(run.id).wait()
        assert [(step.name, step.output, step.error) for step in steps] == [
            ("look", "ada lovelace is well", None),
            ("bed", None, "no bed for ada lovelace"),
        ]
        lines = app.get_logs(run.id).wait()
        assert [line.message for line in lines] == ["looking at ada lovelace", "no bed for ada lovelace"]
        assert lines[0].data == {"patient": "ada lovelace"}
    assert "ada lovelace" not in _everything(tmp_path)


def test_the_error_of_a_run_is_sealed_too(tmp_path: Path) -> None:
    app = Holdfast(_url(tmp_path), codec=Secret())

    @app.job
    async def examine(patient: str) -> None:
        raise ValueError(f"{patient} is away")

    with app:
        run = examine.trigger("ada lovelace").wait()
        with pytest.raises(RunFailed, match="ada lovelace is away"):
            run.result().wait()
    assert "ada lovelace" not in _everything(tmp_path)


def test_a_run_that_was_interrupted_opens_what_it_has_saved(tmp_path: Path) -> None:
    calls: list[str] = []
    app = Holdfast(_url(tmp_path), codec=Secret())
    examine = _hospital(app, calls)
    with app:
        run = examine.trigger("ada lovelace").wait()
        run.wait().wait()
    edit = "update holdfast_runs set status = 'pending', completed_at = null, output = null"
    databases.rows(tmp_path / "app.db", edit)
    with app:
        assert run.result().wait() == "ada lovelace is well"
    assert calls == ["look", "fail"]


def test_listeners_get_what_was_sealed_as_it_was(tmp_path: Path) -> None:
    seen: list[Event] = []
    app = Holdfast(_url(tmp_path), codec=Secret())
    for kind in ("run:trigger", "step:complete", "run:complete", "log:write"):
        app.on(kind, seen.append)
    with app:
        _hospital(app, []).run("ada lovelace").wait()
    told = {event.type: event.data for event in reversed(seen)}
    assert told["run:trigger"]["input"] == {"patient": "ada lovelace"}
    assert told["step:complete"]["output"] == "ada lovelace is well"
    assert told["run:complete"]["output"] == "ada lovelace is well"
    assert told["log:write"]["message"] == "looking at ada lovelace"


def test_runs_from_before_the_codec_go_on(tmp_path: Path) -> None:
    plain = Holdfast(_url(tmp_path), worker=False)
    with plain:
        run = _hospital(plain, []).trigger("ada lovelace").wait()
    app = Holdfast(_url(tmp_path), codec=Secret())
    _hospital(app, [])
    with app:
        assert (app.wait_for_run(run.id).wait()).output == "ada lovelace is well"


def test_a_run_whose_codec_the_app_does_not_have_fails_and_says_so(tmp_path: Path) -> None:
    sealing = Holdfast(_url(tmp_path), codec=Secret(), worker=False)
    with sealing:
        run = _hospital(sealing, []).trigger("ada lovelace").wait()
    app = Holdfast(_url(tmp_path))
    _hospital(app, [])
    with app:
        ended = app.wait_for_run(run.id).wait()
    assert (ended.status, ended.error_type) == ("failed", "Outdated")
    assert "written by codec 'secret', which this app doesn't have" in (ended.error or "")


def test_who_only_looks_without_the_codec_sees_why_there_is_nothing(tmp_path: Path) -> None:
    sealing = Holdfast(_url(tmp_path), codec=Secret())
    with sealing:
        run = _hospital(sealing, []).trigger("ada lovelace").wait()
        run.wait().wait()
    with Holdfast(_url(tmp_path), worker=False) as app:
        seen = app.get_run(run.id).wait()
        assert seen is not None
        for text in (
            seen.input,
            seen.output,
            (app.get_steps(run.id).wait())[1].error,
            (app.get_logs(run.id).wait())[0].message,
        ):
            assert "codec 'secret'" in text


def test_a_trigger_that_can_not_be_sealed_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    codec = Secret()
    app = Holdfast(_url(tmp_path), codec=codec, worker=False)
    with app:
        codec.away = True
        with pytest.raises(StoreUnavailable, match="codec 'secret' failed: ConnectionError: no key service"):
            _hospital(app, []).trigger("ada lovelace").wait()
        assert app.get_runs().wait() == []


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_result_that_can_not_be_sealed_now_is_kept_and_written_later(tmp_path: Path, kind: str) -> None:
    codec, clock, calls = Secret(), HandClock(), []
    app = Holdfast(_url(tmp_path), codec=codec, clock=clock)
    reported: list[Event] = []

    def work() -> str:
        calls.append("work")
        codec.away = True
        return "done"

    def back(event: Event) -> None:
        reported.append(event)
        codec.away = False

    if kind == "async":

        @app.job(name="work")
        async def job(step: Step) -> str:
            return await step.run("work", work)
    else:

        @app.job(name="work")
        def job(step: SyncStep) -> str:
            return step.run("work", work)

    app.on("worker:error", back)
    with app:
        run = job.trigger().wait()
        ended = run.result()
        for _ in range(200):
            clock.advance(0.1)
            with contextlib.suppress(TimeoutError):
                assert ended.wait(timeout=0.05) == "done"
                break
        assert ended.done()
    assert calls == ["work"]
    assert reported
    assert "codec 'secret' failed" in reported[0].error


def test_an_input_that_can_not_be_opened_now_is_tried_again_later(tmp_path: Path) -> None:
    codec, clock = Secret(), HandClock()
    app = Holdfast(_url(tmp_path), codec=codec, clock=clock)
    run = None
    with app:
        examine = _hospital(app, [])
        app.stop().wait()
        app.migrate().wait()
    quiet = Holdfast(_url(tmp_path), codec=codec, clock=clock, worker=False)
    with quiet:
        run = _hospital(quiet, []).trigger("ada lovelace").wait()
        codec.away = True
        assert app.process_one().wait()
        released = quiet.get_run(run.id).wait()
        assert released is not None
        assert (released.status, released.crashes, released.attempt) == ("pending", 0, 0)
        codec.away = False
        assert not app.process_one().wait()
        clock.advance(1.1)
        assert app.process_one().wait()
        assert (quiet.wait_for_run(run.id).wait()).status == "completed"
    app.stop().wait()
    assert examine.name == "examine"


def test_what_is_no_codec_is_refused_when_the_app_is_made() -> None:
    with pytest.raises(ValidationError, match="codec"):
        Holdfast(codec="aes")  # type: ignore[arg-type]


def test_an_output_that_can_not_be_opened_is_outdated_for_who_wants_its_value(tmp_path: Path) -> None:
    app = Holdfast(_url(tmp_path), codec=Secret())

    @app.job
    def one() -> int:
        return 1

    with app:
        run = one.trigger().wait()
        run.wait().wait()
    other = Holdfast(_url(tmp_path), worker=False)
    seen = other.register(one)
    with other:
        found = seen.get_run(run.id).wait()
        assert found is not None
        with pytest.raises(Outdated, match="codec 'secret'"):
            _ = found.output


def test_s8_a_codec_can_not_wait_for_a_reply(tmp_path: Path) -> None:
    class Waiting(Secret):
        def encode(self, text: str) -> str:
            return str(app.get_runs().wait())

    app = Holdfast(_url(tmp_path), codec=Waiting(), worker=False)
    with app, pytest.raises(StoreUnavailable, match=r"WouldDeadlock: .*a codec"):
        app.register(one_of_two).trigger().wait()


@job
def one_of_two() -> int:
    return 1
