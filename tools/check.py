"""Format, lint and strict types: everything that can be said about the code without running it.

    python3 tools/check.py

All checks run, also after one has failed. A check that could not run at all is named and counted, not hidden.
"""
# ruff: noqa: T201

from __future__ import annotations

import sys
import time
from pathlib import Path

import environment

CHECKS = {
    "format": ["ruff", "format", "--check", "."],
    "lint": ["ruff", "check", "."],
    "mypy": ["mypy"],
    "pyright": ["pyright", "--warnings"],
}


def _make_pyright_work(venv: Path) -> bool:
    """Pyright is a Node program. Without a Node on this machine, take the one that pip can bring."""
    if environment.run_in(venv, ["pyright", "--version"]) == 0:
        return True
    print("pyright did not start; trying again with a Node.js from pip …", flush=True)
    pip = ["python", "-m", "pip", "install", "-qq", "pyright[nodejs]"]
    return environment.run_in(venv, pip) == 0 and environment.run_in(venv, ["pyright", "--version"]) == 0


def main() -> int:
    python = environment.choose(environment.find_pythons())
    venv = environment.prepare_dev(python)
    failed, not_run, lines = 0, 0, []
    for name, arguments in CHECKS.items():
        print(f"\n━━ {name} ━━", flush=True)
        started = time.monotonic()
        if name == "pyright" and not _make_pyright_work(venv):
            not_run += 1
            lines.append(f"{name:<10}NOT CHECKED: pyright could not get Node.js or its own program")
            continue
        code = environment.run_in(venv, arguments, PYRIGHT_PYTHON_IGNORE_WARNINGS="1")
        failed += code != 0
        lines.append(f"{name:<10}{'clean' if code == 0 else 'FAILED':<8}{time.monotonic() - started:6.1f} s")
    print(f"\nChecked with Python {python.name}.{python.patch}")
    print("\n".join(lines))
    print(f"{len(CHECKS) - failed - not_run} clean, {failed} failed, {not_run} not run", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        raise SystemExit(130) from None
