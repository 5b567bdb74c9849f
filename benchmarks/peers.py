"""The virtual environment of DBOS: `.venv-dbos` beside ours, with the newest version that PyPI has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv-dbos"
COMMANDS = ["python -m venv .venv-dbos", ".venv-dbos/bin/python -m pip install --upgrade dbos"]


class NoPeer(Exception):
    """DBOS can't be had here; the message says why."""


def prepare() -> Path:
    """Its Python, installed or brought up to date; what is there is used when PyPI can't be reached."""
    python = FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print("Making .venv-dbos and installing DBOS …", file=sys.stderr, flush=True)
        venv.create(FOLDER, with_pip=True, clear=FOLDER.exists())
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--upgrade", "dbos"]
    installed = subprocess.run(pip, capture_output=True, text=True, check=False)
    try:
        versions(python)
    except subprocess.CalledProcessError:
        raise NoPeer(f"{' '.join(COMMANDS)} failed:\n{installed.stderr[-1000:]}") from None
    if installed.returncode:
        print("DBOS could not be brought up to date; what is installed is measured.", file=sys.stderr)
    return python


def versions(python: Path) -> dict[str, Any]:
    """Which versions are installed there, and how it is set up."""
    command = [str(python), str(Path(__file__).with_name("peer.py")), "versions"]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return found
