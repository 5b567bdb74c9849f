"""The console script as the tests of this folder call it, and a database with runs of every kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast import Holdfast, SyncStep

LONG = 60.0
"""Seconds after which a test has failed. Nothing ever waits that long."""

SCRIPT = Path(sys.executable).parent / ("holdfast.exe" if os.name == "nt" else "holdfast")

Cli = Callable[..., subprocess.CompletedProcess[str]]
Spawn = Callable[..., "subprocess.Popen[str]"]


def environment(**more: str) -> dict[str, str]:
    """Ours, without what would change what the command does or shows."""
    hidden = {"HOLDFAST_URL", "HOLDFAST_DEBUG", "COLUMNS", "FORCE_COLOR", "VIRTUAL_ENV"}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "error", **more}


def parsed(done: subprocess.CompletedProcess[str]) -> Any:
    """The one JSON document on stdout."""
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


class Shop:
    """A database with runs, and the app that made them."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder / 'runs.db'}"
        self.app = Holdfast(self.url)

        @self.app.job
        def greet(step: SyncStep, name: str) -> str:
            step.log.info("greeting", name=name)
            step.progress(1, 2, "words")
            return step.run("greet", f"hello {name}".upper)

        @self.app.job
        def refuse(step: SyncStep, why: str) -> None:
            def raise_it() -> None:
                raise ValueError(why)

            step.run("refuse", raise_it)

        @self.app.job
        def never() -> None:
            pass

        self.greet, self.refuse, self.never = greet, refuse, never
        self.app.migrate().wait()

    def work(self) -> None:
        self.app.process_until_idle().wait()


SHOP_MODULE = """
from holdfast import AbortSignal, Holdfast, Step

app = Holdfast("sqlite:///runs.db", worker=False, polling_interval=0.1)
empty = Holdfast("sqlite:///runs.db")
number = 7

@app.job
async def greet(step: Step, name: str) -> str:
    return await step.run("greet", f"hello {name}".upper)

async def until_told(signal: AbortSignal | None = None) -> None:
    assert signal is not None
    await signal

@app.job
async def hold(step: Step) -> str:
    first = await step.run("first", str)
    await step.run("hold", until_told)
    return first
"""
