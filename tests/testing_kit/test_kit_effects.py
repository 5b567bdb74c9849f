"""Declared effects: what a receiver does with a second request is part of what is recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast import SyncStep, ValidationError, job
from holdfast.testing import Effect, effects, run


@job
def order(step: SyncStep) -> None:
    step.run("pay", lambda: effects.record("pay", idempotency_key=step.idempotency_key("pay")))


def test_an_effect_that_nobody_records_is_done_and_forgotten() -> None:
    effects.record("mail")
    with effects.recording() as seen:
        pass
    assert seen == []


def test_effects_are_recorded_with_their_step_and_key_from_any_thread() -> None:
    with effects.recording() as seen:
        run(order).wait()
    (effect,) = seen
    assert (effect.key, effect.step) == ("pay", "pay")
    assert effect.idempotency_key is not None
    assert effect.idempotency_key.endswith(":pay")


def test_a_receiver_ignores_an_idempotency_key_that_it_has_seen() -> None:
    with effects.recording() as seen:
        for key in ("one", "one", "two"):
            effects.record("pay", idempotency_key=key)
    assert seen == [Effect("pay", None, "one"), Effect("pay", None, "two")]


def test_without_an_idempotency_key_every_request_counts() -> None:
    with effects.recording() as outer, effects.recording() as inner:
        effects.record("mail")
        effects.record("mail")
    assert outer == inner == [Effect("mail", None, None)] * 2


def test_a_file_takes_the_effects_of_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("the file is for crash_at_every_step, which needs POSIX")
    path = tmp_path / "effects.log"
    monkeypatch.setenv(effects.VARIABLE, str(path))
    program = "from holdfast.testing import effects; effects.record('pay', idempotency_key='one')"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program], timeout=60, check=True)
    effects.record("pay")
    assert effects.read(str(path)) == [Effect("pay", None, "one"), Effect("pay", None, None)]
    assert [json.loads(line)[0] for line in path.read_text().splitlines()] == ["pay", "pay"]


@pytest.mark.parametrize(("key", "idempotency_key"), [(1, None), (None, None), ("pay", 7)])
def test_keys_are_strings(key: object, idempotency_key: object) -> None:
    with pytest.raises(ValidationError, match="is not a string"):
        effects.record(key, idempotency_key=idempotency_key)  # type: ignore[arg-type]


def test_the_beginning_of_a_line_that_a_killed_process_left_stands_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "effects"
    path.write_text('["paid", null, "k1"]\n["pa')
    monkeypatch.setenv("HOLDFAST_EFFECTS", str(path))
    effects.record("mailed", idempotency_key="k2")
    effects.record("paid", idempotency_key="k1")
    assert [effect.key for effect in effects.read(str(path))] == ["paid", "mailed"]
