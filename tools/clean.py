"""Removes what the other commands made: environments, caches, build results. Never a source or a database."""
# ruff: noqa: T201

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MADE = [
    ".venv",
    ".venv-3.*",
    ".venv-dbos",
    ".venv-procrastinate",
    ".coverage",
    ".coverage.*",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    "htmlcov",
    "dist",
    "build",
    "tests/browser/node_modules",
]


def main() -> None:
    found = [path for pattern in MADE for path in ROOT.glob(pattern)]
    found += [
        path
        for top in ("src", "tests", "tools", "examples", "benchmarks")
        for path in (ROOT / top).rglob("__pycache__")
    ]
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(str(path))
        else:
            path.unlink()
    print(f"{len(found)} things removed")


if __name__ == "__main__":
    main()
