"""Effects that a test declares: what a job does to the world and can't take back, noted outside the database.

Let the fake of a mail server or a bank call `record`. What the world does with a second request is part of it: a
receiver that is given an `idempotency_key` ignores the second one with the same key, any other does it again.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..basis.errors import ValidationError
from ..basis.text import shown
from ..engine.context import current_step

#: Names the file that takes effects, also those of processes that a job starts.
VARIABLE = "HOLDFAST_EFFECTS"


@dataclass(frozen=True, slots=True)
class Effect:
    """Something that was done to the world, by which step, and the key that its receiver was given."""

    key: str
    step: str | None
    idempotency_key: str | None


_lock = threading.Lock()
_recordings: list[list[Effect]] = []


def _as_it_is(step: str | None) -> str | None:
    return step


#: How `crash_at_every_step` calls a step: there is more than one run.
place: Callable[[str | None], str | None] = _as_it_is


def record(key: str, /, *, idempotency_key: str | None = None) -> None:
    """Declare that `key` is done to the world, unless its receiver has seen `idempotency_key` before.

    Gives no answer, as a receiver gives the same one to the second request. Where nobody looks (no `recording`, no
    `crash_at_every_step`) nothing is kept.
    """
    given: tuple[tuple[str, object, Any], ...] = (
        ("key", key, str), ("idempotency_key", idempotency_key, str | None)
    )  # fmt: skip
    for name, value, kind in given:
        if not isinstance(value, kind):
            raise ValidationError(f"effects.record: {name}: {shown(value)} is not a string.")
    effect = Effect(key, place(current_step.get()), idempotency_key)
    path = os.environ.get(VARIABLE)
    if path is not None:
        _append(path, effect)
    with _lock:
        for recording in _recordings:
            if not _is_known(effect, recording):
                recording.append(effect)


@contextlib.contextmanager
def recording() -> Iterator[list[Effect]]:
    """The list that takes what is done to the world while this is entered, by any thread of this process."""
    mine: list[Effect] = []
    with _lock:
        _recordings.append(mine)
    try:
        yield mine
    finally:
        with _lock:
            # By identity: two lists may be equal.
            _recordings[:] = [one for one in _recordings if one is not mine]


def read(path: str) -> list[Effect]:
    """The effects in a file."""
    try:
        with open(path, encoding="utf-8") as file:
            return [Effect(*json.loads(line)) for line in file if line.endswith("]\n")]
    except FileNotFoundError:
        return []


def _is_known(effect: Effect, seen: list[Effect]) -> bool:
    given = effect.idempotency_key
    return given is not None and any(one.idempotency_key == given for one in seen)


def _append(path: str, effect: Effect) -> None:
    import fcntl  # not on Windows, where nothing sets the variable

    with open(path, "a", encoding="utf-8") as file:
        # Released with the file, and by a kill.
        fcntl.flock(file, fcntl.LOCK_EX)
        if not _is_known(effect, read(path)):
            # A process killed inside its write may have left the beginning of a line: what it stood for was not done.
            stump = "\n" if file.tell() and not _ends_a_line(path) else ""
            file.write(stump + json.dumps([effect.key, effect.step, effect.idempotency_key]) + "\n")


def _ends_a_line(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
