"""The `holdfast` command. It needs the extra `cli` (Typer, Rich); without it, it says so."""

from __future__ import annotations

import importlib.util
import sys


def main() -> int:
    """Run the command line of this process; its exit code."""
    missing = [name for name in ("typer", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f"holdfast: the command line needs {' and '.join(missing)}. "
            'Get it with: pip install "holdfast[cli]" (in a checkout: pip install ".[cli]")\n'
        )
        return 2
    from .commands import run

    return run()
