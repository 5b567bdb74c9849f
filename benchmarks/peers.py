"""The virtual environments of the others: `.venv-dbos` and `.venv-procrastinate` beside ours, newest from PyPI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Peer:
    """A library that is measured in an environment of its own."""

    name: str
    packages: tuple[str, ...]
    program: str

    @property
    def folder(self) -> Path:
        return ROOT / f".venv-{self.packages[0]}"

    @property
    def commands(self) -> list[str]:
        """How its environment is made."""
        folder = self.folder.name
        packages = " ".join(self.packages)
        return [f"python -m venv {folder}", f"{folder}/bin/python -m pip install --upgrade {packages}"]


DBOS = Peer("DBOS", ("dbos",), "peer.py")
PROCRASTINATE = Peer("Procrastinate", ("procrastinate", "psycopg[binary]"), "peer_procrastinate.py")


class NoPeer(Exception):
    """It can't be had here; the message says why."""


def prepare(peer: Peer) -> Path:
    """Its Python, installed or brought up to date; what is there is used when PyPI can't be reached."""
    python = peer.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print(f"Making {peer.folder.name} and installing {peer.name} …", file=sys.stderr, flush=True)
        venv.create(peer.folder, with_pip=True, clear=peer.folder.exists())
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--upgrade", *peer.packages]
    installed = subprocess.run(pip, capture_output=True, text=True, check=False)
    try:
        versions(peer, python)
    except subprocess.CalledProcessError:
        raise NoPeer(f"{' '.join(peer.commands)} failed:\n{installed.stderr[-1000:]}") from None
    if installed.returncode:
        print(f"{peer.name} could not be brought up to date; what is installed is measured.", file=sys.stderr)
    return python


def versions(peer: Peer, python: Path) -> dict[str, Any]:
    """Which versions are installed there, and how it is set up."""
    command = [str(python), str(Path(__file__).with_name(peer.program)), "versions"]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return found
