"""Writes docs/reference/cli.md: every command with its arguments and options, as `--help` says them.

`--check` only tells whether the page is up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from holdfast.cli.commands import cli

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "cli.md"
HEAD = """# Reference: the command line

What `--help` says, on one page. [How to use it](../how-to/cli.md) ·
[Exit codes](errors.md#exit-codes-of-holdfast)

`--url` (`-u`) names the database; without it the variable `HOLDFAST_URL` counts. With `--json` there is JSON on stdout
instead of text. `--help` (`-h`) is everywhere.
"""
#: Explained above, once.
EVERYWHERE = {"--help", "-h", "--url", "-u", "--json"}


def commands(command: Any = None, name: str = "holdfast") -> dict[str, Any]:
    """All commands that do something, by what one types."""
    command = command or typer.main.get_command(cli)
    below = getattr(command, "commands", None)
    if below is None:
        return {name: command}
    return {full: one for word in below for full, one in commands(below[word], f"{name} {word}").items()}


def options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def rows(command: Any) -> Iterator[str]:
    """Arguments, then options, each with its help and default."""
    for parameter in sorted(command.params, key=lambda one: one.param_type_name):  # argument, option
        if parameter.hidden:
            continue
        said = parameter.help or ""
        if parameter.param_type_name == "argument":
            yield f"| `{parameter.metavar or parameter.name.upper()}` | {said} |"
            continue
        names = [name for name in parameter.opts if name not in EVERYWHERE]
        if not names:
            continue
        value = "" if parameter.is_flag else " " + (parameter.metavar or names[0].lstrip("-").upper())
        if not parameter.is_flag and parameter.default is not None and not parameter.required:
            said += f" Default: {parameter.default}."
        names += parameter.secondary_opts  # what says the opposite
        words = ", ".join([f"`{names[0]}{value}`", *(f"`{name}`" for name in names[1:])])
        yield f"| {words}{', required' if parameter.required else ''} | {said} |"


def page() -> str:
    """The whole page."""
    found = commands()
    lines = [HEAD, "| command | `--url` | `--json` |", "|---|---|---|"]
    for name, command in found.items():
        has = options(command)
        lines.append(f"| `{name}` | {'yes' if '--url' in has else '–'} | {'yes' if '--json' in has else '–'} |")
    for name, command in found.items():
        lines += ["", f"## `{name}`", "", *command.help.strip().splitlines()]
        if told := list(rows(command)):
            lines += ["", "| argument or option | meaning |", "|---|---|", *told]
    return "\n".join(lines) + "\n"


def main() -> int:
    text = page()
    if "--check" in sys.argv[1:]:
        if PAGE.read_text("utf-8") == text:
            return 0
        sys.stderr.write(f"{PAGE.relative_to(ROOT)} is not what --help says. Run: python tools/cli_reference.py\n")
        return 1
    PAGE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
