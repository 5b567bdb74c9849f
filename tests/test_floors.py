"""The house keeps its floors: imports go down, SQL stays in the store, time and chance stay in the basis.

The source is only read, never imported, so that a type-only or late import counts as much as any other.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.sampled("the floors: what imports what is the same on every Python")

SOURCE = Path(__file__).resolve().parent.parent / "src" / "holdfast"

FLOORS = {
    "basis": 0,
    "model": 1,
    "rules": 2,
    "store": 3,
    "commit": 4,
    "engine": 5,
    # the face
    "__init__": 6,
    "app": 6,
    "managing": 6,
    "watching": 6,
    "job": 6,
    "reply": 6,
    "run": 6,
    "testing": 6,
    # the edges
    "__main__": 7,
    "cli": 7,
    "client": 7,
    "contrib": 7,
    "dashboard": 7,
    "http": 7,
}

#: (from, to) -> why this one import may go up. Better empty.
UPWARD_ALLOWED: dict[tuple[str, str], str] = {
    ("holdfast.app", "holdfast.http"): "app.asgi(…) is where users look for it; imported when it is called",
}

#: Path below src/holdfast (or the folder it is in) -> why SQL may stand there. Better empty.
SQL_ALLOWED: dict[str, str] = {
    "cli/demo_job": "The table that the demo fills is the demo's own, not the engine's.",
}

#: Path below src/holdfast (or the folder it is in) -> why it may read a clock or draw at random.
CHANCE_ALLOWED: dict[str, str] = {
    "cli": "A terminal shows a person how long something took. Nothing durable is decided by it.",
}

DATABASES = {"sqlite3", "aiosqlite", "apsw", "psycopg", "asyncpg", "pymysql", "MySQLdb"}
CHANCE = {"time", "random", "uuid", "secrets"}
#: A type is no act: naming these draws nothing.
HARMLESS = {"uuid": {"UUID", "SafeUUID"}, "time": {"struct_time"}}
CALLS_OF_CHANCE = {
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "date.today",
    "os.urandom",
}
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "common", "manager", "managers", "misc"}
LONGEST = 400

# Whole statements at the start of a line, in one case throughout: "Select a job from the list" is no SQL.
_STATEMENTS = r"""
    select\s.*\sfrom\s | select\s+[\w.]+\( | select\s+\d | insert\s+(or\s+\w+\s+)?into\s | replace\s+into\s
  | update\s+(or\s+\w+\s+)?[\w."{}]+\s+(as\s+\w+\s+)?set\s | delete\s+from\s | pragma\s+\w+
  | begin\s+(immediate|exclusive|deferred|transaction) | rollback\s+to\s | savepoint\s+\w+
  | create\s+(unique\s+|temp\s+|temporary\s+|virtual\s+)*(table|index|trigger|view)\s
  | drop\s+(table|index|trigger|view)\s | alter\s+table\s | attach\s+database\s | vacuum\s+into\s
  | with\s+(recursive\s+)?\w+(\s*\([^)]*\))?\s+as\s+(not\s+|materialized\s+)*\(
"""
_LEAD = r"^[\s(]*"
_UPPER = re.sub(r"\\.|[a-z]+", lambda m: m[0] if m[0].startswith("\\") else m[0].upper(), _STATEMENTS)
SQL = re.compile(f"{_LEAD}(?:{_STATEMENTS}|{_UPPER})", re.VERBOSE | re.MULTILINE | re.DOTALL)


def floor_of(module: str) -> int | None:
    """The floor of a dotted module name; None for a module outside the package."""
    first, *rest = module.split(".")
    if first != "holdfast":
        return None
    return FLOORS.get(rest[0], -1) if rest else FLOORS["__init__"]


def _module_name(source: Path, path: Path) -> str:
    parts = ["holdfast", *path.relative_to(source).with_suffix("").parts]
    return ".".join(parts)


def _imports(tree: ast.Module, module: str, names: set[str]) -> Iterator[tuple[int, str]]:
    """Every module that the tree imports, wherever in it, as (line, absolute dotted name)."""
    package = module.rsplit(".", 1)[0]  # `holdfast.store.__init__` lies in the package `holdfast.store`
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                above = parts[: len(parts) - node.level + 1]
                base = ".".join([*above, node.module] if node.module else above)
            for alias in node.names:
                # `from holdfast import store` means the store's floor, `import Holdfast` the face's.
                submodule = base == "holdfast" and (alias.name in FLOORS or alias.name in names)
                yield node.lineno, f"{base}.{alias.name}" if submodule else base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = _dotted(node.func).rsplit(".", 1)[-1]
            name = node.args[0].value
            if called in ("import_module", "__import__") and isinstance(name, str):
                yield node.lineno, f"holdfast.{name.lstrip('.')}" if name.startswith(".") else name


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def _texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """String constants that a program can use: all but the ones that stand alone, as docstrings do."""
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.lineno, node.value


def _upward_imports(tree: ast.Module, module: str, names: set[str]) -> Iterator[tuple[int, str]]:
    here = floor_of(module)
    if here == -1:
        yield 1, f"{module} stands on no floor: add it to FLOORS"
        return
    for line, imported in _imports(tree, module, names):
        there = floor_of(imported)
        if there == -1:
            yield line, f"imports {imported}, which stands on no floor"
        elif (module, ".".join(imported.split(".")[:2])) in UPWARD_ALLOWED:
            continue
        elif there is not None and here is not None and there > here:
            yield line, f"floor {here} imports {imported} of floor {there}"


def _sql(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for line, imported in _imports(tree, "holdfast.x", set()):
        if imported.split(".")[0] in DATABASES:
            yield line, f"imports the database driver {imported} outside store/"
    for line, text in _texts(tree):
        if SQL.search(text):
            yield line, f"SQL outside store/: {' '.join(text.split())[:60]!r}"
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("execute", "executemany", "executescript")
            and node.args
            and isinstance(node.args[0], ast.Constant | ast.JoinedStr)
        ):
            yield node.lineno, f"executes a statement outside store/: {ast.unparse(node.args[0])[:60]}"


def _chance(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in CHANCE:
                    yield node.lineno, f"imports {alias.name}: take the clock or the ids as an argument"
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            taken = {alias.name for alias in node.names} - HARMLESS.get(node.module or "", set())
            if node.module in CHANCE and taken:
                yield node.lineno, f"imports {', '.join(sorted(taken))} from {node.module}"
        elif isinstance(node, ast.Attribute):
            name = _dotted(node)
            if name.split(".")[0] in CHANCE - {"time"} or ".".join(name.split(".")[-2:]) in CALLS_OF_CHANCE:
                yield node.lineno, f"uses {name}: take the clock or the ids as an argument"
            # `time` is also a fine name for a value: only the module's own functions count.
            elif re.fullmatch(r"time\.(time|monotonic|perf_counter|process_time|sleep|clock_gettime)(_ns)?", name):
                yield node.lineno, f"uses {name}: take the clock as an argument"


def _length(text: str) -> Iterator[tuple[int, str]]:
    lines = text.splitlines()
    if len(lines) > LONGEST and not any(re.match(r"\s*#?\s*Long because\b", line) for line in lines):
        yield len(lines), f"{len(lines)} lines: divide it, or say in its docstring 'Long because …'"


def _excused(name: str, allowed: dict[str, str]) -> bool:
    return any(name == entry or name.startswith(entry + "/") or name == entry + ".py" for entry in allowed)


def violations(source: Path) -> list[str]:
    """Everything below `source` that breaks a rule of the house, as `path:line: what`."""
    found: list[str] = []
    names = {path.stem for path in source.iterdir() if path.is_dir() or path.suffix == ".py"}
    for path in sorted(source.rglob("*.py")):
        name = path.relative_to(source).as_posix()
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text, filename=name)
        module = _module_name(source, path)
        kept = [*_upward_imports(tree, module, names), *_length(text)]
        if not name.startswith("store/") and not _excused(name, SQL_ALLOWED):
            kept += _sql(tree)
        if not name.startswith("basis/") and not _excused(name, CHANCE_ALLOWED):
            kept += _chance(tree)
        vague = {part.strip("_") for part in module.split(".")} & VAGUE_NAMES
        if vague:
            kept.append((1, f"{', '.join(sorted(vague))} says nothing: name the module after what it is about"))
        found += [f"{name}:{line}: {what}" for line, what in kept]
    found += [
        f"{path.relative_to(source).as_posix()}:1: a file of SQL outside store/"
        for path in sorted(source.rglob("*.sql"))
        if not path.relative_to(source).as_posix().startswith("store/")
    ]
    return found


def test_the_house_keeps_its_floors() -> None:
    assert len(list(SOURCE.rglob("*.py"))) >= len([floor for floor in FLOORS.values() if floor < 6])
    found = violations(SOURCE)
    assert not found, "\n" + "\n".join(found)


def test_every_exception_names_a_file_and_a_reason() -> None:
    for name, reason in (SQL_ALLOWED | CHANCE_ALLOWED).items():
        assert (SOURCE / name).exists() or (SOURCE / f"{name}.py").exists() or name == "cli", name
        assert len(reason.split()) >= 5, f"{name}: say why"
    for reason in UPWARD_ALLOWED.values():
        assert len(reason.split()) >= 5, "say why"


# The rules can fail: each planted fault is found, and what only looks like one is left alone.

PLANTED = {
    "upward": (
        "rules/a.py",
        "from holdfast.store import base\n",
        "floor 2 imports holdfast.store of floor 3",
    ),
    "relative": ("rules/a.py", "from ..store.base import Store\n", "imports holdfast.store.base"),
    "relative package": ("store/__init__.py", "from ..commit import ticket\n", "imports holdfast.commit"),
    "bare relative": ("rules/a.py", "from .. import engine\n", "imports holdfast.engine"),
    "deep relative": ("store/sqlite/a.py", "from ...engine import worker\n", "imports holdfast.engine"),
    "in a function": (
        "model/a.py",
        "def f():\n    import holdfast.engine.worker\n",
        "a.py:2: floor 1 imports",
    ),
    "type only": (
        "engine/a.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from holdfast.app import Holdfast\n",
        "a.py:3: floor 5 imports holdfast.app of floor 6",
    ),
    "the face by its front door": (
        "engine/a.py",
        "from holdfast import Holdfast\n",
        "imports holdfast of floor 6",
    ),
    "by name": (
        "rules/a.py",
        "import importlib\nimportlib.import_module('holdfast.cli')\n",
        "imports holdfast.cli",
    ),
    "homeless": ("attic.py", "x = 1\n", "stands on no floor"),
    "importing the homeless": (
        "engine/a.py",
        "from ..attic import x\n",
        "imports holdfast.attic, which stands",
    ),
    "sql": ("engine/a.py", 'Q = "select id from runs"\n', "SQL outside store/"),
    "sql in capitals": ("engine/a.py", 'Q = """\n  UPDATE runs SET status = 1\n"""\n', "SQL outside store/"),
    "sql in an f-string": ("app.py", 'Q = f"delete from {t}"\n', "SQL outside store/"),
    "pragma": ("testing/a.py", 'Q = "pragma journal_mode"\n', "SQL outside store/"),
    "insert": ("commit/a.py", 'Q = "insert or ignore into runs values (1)"\n', "SQL outside store/"),
    "begin": ("commit/a.py", 'Q = "BEGIN IMMEDIATE"\n', "SQL outside store/"),
    "with": ("commit/a.py", 'Q = "with a as (select 1) select * from a"\n', "SQL outside store/"),
    "execute": ("commit/a.py", 'c.execute("commit")\n', "executes a statement outside store/"),
    "driver": ("commit/a.py", "import sqlite3\n", "imports the database driver sqlite3"),
    "driver for types": (
        "commit/a.py",
        "from sqlite3 import Connection\n",
        "imports the database driver sqlite3",
    ),
    "file of sql": ("engine/a.sql", "select 1", "a file of SQL outside store/"),
    "clock": ("engine/a.py", "import time\n", "imports time"),
    "clock by name": ("store/a.py", "from time import monotonic\n", "imports monotonic from time"),
    "chance": ("rules/a.py", "import random\n", "imports random"),
    "secret chance": ("model/a.py", "from secrets import token_hex\n", "imports token_hex from secrets"),
    "uuid": ("engine/a.py", "from uuid import UUID, uuid4\n", "imports uuid4 from uuid"),
    "chance by attribute": ("engine/a.py", "from x import uuid\nuuid.uuid4()\n", "uses uuid.uuid4"),
    "clock by attribute": ("engine/a.py", "from x import time\ntime.monotonic()\n", "uses time.monotonic"),
    "datetime": ("engine/a.py", "import datetime\ndatetime.datetime.now()\n", "uses datetime.datetime.now"),
    "vague": ("engine/utils.py", "x = 1\n", "utils says nothing"),
    "vague folder": ("engine/common/a.py", "x = 1\n", "common says nothing"),
    "vague and private": ("engine/_helpers.py", "x = 1\n", "helpers says nothing"),
    "long": ("engine/a.py", "x = 1\n" * 401, "401 lines"),
}

INNOCENT = {
    "downward": ("engine/a.py", "from ..store.base import Store\nfrom ..commit import ticket\nimport json\n"),
    "same floor": ("engine/a.py", "from . import worker\nfrom .worker import Worker\n"),
    "edges": ("cli/a.py", "from holdfast import Holdfast\nfrom ..http import asgi\n"),
    "face": ("__init__.py", "from .app import Holdfast\nfrom .basis.errors import HoldfastError\n"),
    "sql in its place": ("store/a.py", 'import sqlite3\nQ = "select id from runs"\n'),
    "prose": (
        "cli/a.py",
        '"""select id from runs"""\nA = "Select a job from the list"\nB = "Update the schema"\n'
        'C = "begin"\nD = "with care"\nE = "Delete from here"\nexecutor.execute(job)\n',
    ),
    "chance in its place": ("basis/a.py", "import secrets, time\n"),
    "a type": ("engine/a.py", "from uuid import UUID\n"),
    "a value named time": ("engine/a.py", "def f(time): return time.hour\n"),
    "our clock": ("engine/a.py", "def f(clock): return clock.now()\n"),
    "long with a reason": ("engine/a.py", '"""A table.\n\nLong because it is one.\n"""\n' + "x = 1\n" * 401),
}


def _plant(tmp_path: Path, name: str, text: str) -> Path:
    source = tmp_path / "holdfast"
    file = source / name
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")
    if name.startswith("engine/a") and "attic" in text:
        (source / "attic.py").write_text("", encoding="utf-8")
    return source


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_fault_is_found(case: str, tmp_path: Path) -> None:
    name, text, expected = PLANTED[case]
    found = violations(_plant(tmp_path, name, text))
    assert any(expected in line for line in found), found


@pytest.mark.parametrize("case", INNOCENT)
def test_what_keeps_the_rules_is_left_alone(case: str, tmp_path: Path) -> None:
    name, text = INNOCENT[case]
    assert violations(_plant(tmp_path, name, text)) == []
