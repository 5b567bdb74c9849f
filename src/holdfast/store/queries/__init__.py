"""Named SQL. A file holds several statements, each under a line `-- name: <name>`."""

from __future__ import annotations

import re
from importlib import resources

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def load(dialect: str, **parts: str) -> dict[str, str]:
    """All statements of a dialect by name. `{part}` in a statement is replaced by the part of that name."""
    statements: dict[str, str] = {}
    for file in sorted(resources.files(__name__).joinpath(dialect).iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".sql"):
            continue
        _, *named = _NAME.split(file.read_text("utf-8"))
        for name, text in zip(named[::2], named[1::2], strict=True):
            if name in statements:
                raise LookupError(f"two statements are called {name}")
            for part, value in parts.items():
                text = text.replace("{" + part + "}", value)
            statements[name] = text.strip().removesuffix(";")
    return statements


class Queries(dict[str, str]):
    """The same, read when the first one is needed: importing the package touches no file."""

    def __init__(self, dialect: str, **parts: str) -> None:
        super().__init__()
        self._dialect = dialect
        self._parts = parts

    def __missing__(self, name: str) -> str:
        if self:
            raise LookupError(f"no statement is called {name}")
        self.update(load(self._dialect, **self._parts))
        return self[name]
