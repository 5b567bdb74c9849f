"""Asks the named tests: each mutant with each of its tests, and each of these tests without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
TESTS = HERE.parent


class Word(NamedTuple):
    """What came of one test."""

    mutant: str | None
    test: str
    failure: str | None
    """Why it has failed; None: it has passed."""
    seconds: float


def ask(pairs: Sequence[tuple[str | None, str]], folder: Path) -> list[Word]:
    """Run each test with its mutant (or without any), in one session of pytest; the folder is for its files."""
    file = folder / "planted.json"
    file.write_text(json.dumps(pairs))
    files = dict.fromkeys(str(TESTS / test.split("::")[0]) for _, test in pairs)
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    options = ["-q", "-p", "planted", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={folder / 'tmp'}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": path, "HOLDFAST_PLANTED": str(file)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    told = json.loads(file.read_text())
    if done.returncode != 0 or (told and len(told[0]) != len(Word._fields)):
        raise AssertionError(f"the named tests could not be asked:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return [Word(*one) for one in told]
