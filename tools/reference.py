"""Writes docs/reference/api.md from the docstrings of every public name.

    python tools/reference.py            writes the page
    python tools/reference.py --check    fails if the page is not what it would write

The source is read as text, so that the page is the same on every Python. What `holdfast.__all__` and
`holdfast.client.__all__` list is public.
"""
# ruff: noqa: T201

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "holdfast"
PAGE = ROOT / "docs" / "reference" / "api.md"

#: In this order; what is in no room goes to the last one, so that no name is forgotten.
ROOMS = {
    "The app": ["Holdfast", "Jobs"],
    "Defining and triggering": ["job", "Job", "Call"],
    "Inside a run": ["Step", "SyncStep", "StepLog", "AbortSignal"],
    "Runs": ["Run", "RunStatus", "StepRecord", "LogLine"],
    "Replies and events": [
        "Reply",
        "Event",
        "EventType",
        "is_domain_event",
        "Subscription",
        "Plugin",
        "Stats",
        "VerbStats",
        "Spread",
    ],
    "Time": ["Duration", "Clock", "SystemClock"],
    "Payloads": ["Codec"],
    "Errors": [],
}

#: A room of its own: these are imported from somewhere else.
CLIENT = """## A client of a server

These are imported from `holdfast.client` ([how](../how-to/client.md))."""

HEAD = """# Reference: every public name

<!-- Written by tools/reference.py from the docstrings. Change those, then run it again. -->

Everything here is imported from `holdfast`, unless it says otherwise. Verbs that touch the database give a
[`Reply`](#reply): `await` it, or call `.wait()`. The settings of an app and of a trigger are on
[their own page](options.md), and so are [events](events.md) and [errors](errors.md).
"""

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public_names(package: str = "") -> dict[str, str]:
    """Each public name, and the module that the package takes it from."""
    tree = ast.parse((SOURCE / package / "__init__.py").read_text("utf-8"))
    names: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            home = f"{package}.{node.module}".removeprefix(".")
            names |= {alias.asname or alias.name: home for alias in node.names}
    (listed,) = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return {name: names[name] for name in ast.literal_eval(listed)}


def module(name: str) -> ast.Module:
    """The syntax tree of a module of the package."""
    return ast.parse(SOURCE.joinpath(*name.split(".")).with_suffix(".py").read_text("utf-8"))


def find(tree: ast.Module, name: str) -> list[ast.stmt]:
    """All definitions of this name: the overloads of a function, and itself."""
    found: list[ast.stmt] = []
    for node in tree.body:
        is_definition = isinstance(node, Definition) and node.name == name
        is_alias = isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name
        if is_definition or is_alias:
            found.append(node)
    return found


def first_line(node: Definition) -> str:
    """The first line of the docstring."""
    return (ast.get_docstring(node) or "").partition("\n")[0]


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef, name: str, *, bound: bool) -> str:
    """How it is called, on one line."""
    arguments = ast.parse(ast.unparse(node)).body[0].args  # type: ignore[attr-defined]
    if bound:
        (arguments.posonlyargs or arguments.args).pop(0)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None and name != "__init__" else ""
    return f"({ast.unparse(arguments).removeprefix('/, ')}){returns}"


def decorators(node: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    return {ast.unparse(decorator) for decorator in node.decorator_list}


def is_private(name: str) -> bool:
    return name.startswith("_")


def bases(node: ast.ClassDef, tree: ast.Module) -> Iterator[ast.ClassDef]:
    """The class, and those of its bases that nobody imports: their members are its own to readers."""
    yield node
    imported = {
        alias.name: item.module
        for item in tree.body
        if isinstance(item, ast.ImportFrom) and item.module and item.level == 1
        for alias in item.names
    }
    for base in node.bases:
        if isinstance(base, ast.Name):
            home = module(imported[base.id]) if base.id in imported else tree
            for found in find(home, base.id):
                if isinstance(found, ast.ClassDef) and (is_private(base.id) or base.id in imported):
                    yield from bases(found, home)


def members(node: ast.ClassDef) -> Iterator[str]:
    """One line for each public member."""
    body = node.body
    for index, item in enumerate(body):
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and not is_private(item.name):
            if "overload" in decorators(item):
                yield f"* `{item.name}{signature(item, item.name, bound=True)}`"
                continue
            text = first_line(item)
            if "property" in decorators(item):
                kind = f": {ast.unparse(item.returns)}" if item.returns is not None else ""
                line = f"* `{item.name}{kind}`"
            elif any(
                isinstance(other, ast.FunctionDef) and other.name == item.name and "overload" in decorators(other)
                for other in body
            ):
                line = f"* `{item.name}`, in all its forms"
            else:
                line = f"* `{item.name}{signature(item, item.name, bound='staticmethod' not in decorators(item))}`"
            yield f"{line} — {text}" if text else line
        elif isinstance(item, ast.AnnAssign) and not is_private(ast.unparse(item.target)):
            line = f"* `{ast.unparse(item.target)}: {ast.unparse(item.annotation)}`"
            text = text_after(body, index)
            yield f"{line} — {text}" if text else line
        elif isinstance(item, ast.Assign) and ast.unparse(item.targets[0]).isupper():
            yield f"* `{ast.unparse(item)}`"
        elif isinstance(item, ast.FunctionDef) and item.name == "__init__":
            yield from attributes(item)


def attributes(init: ast.FunctionDef) -> Iterator[str]:
    """Public attributes that the constructor explains."""
    for index, item in enumerate(init.body):
        text = text_after(init.body, index)
        target = item.targets[0] if isinstance(item, ast.Assign) else getattr(item, "target", None)
        if text and isinstance(target, ast.Attribute) and not is_private(target.attr):
            yield f"* `{target.attr}` — {text}"


def text_after(body: list[ast.stmt], index: int) -> str:
    """The first line of the text that explains an attribute."""
    after = body[index + 1] if index + 1 < len(body) else None
    if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
        return after.value.value.strip().partition("\n")[0]
    return ""


def constructor(node: ast.ClassDef) -> str | None:
    """How users make one, where they do."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return f"{node.name}{signature(item, '__init__', bound=True)}"
    return None


def entry(name: str, tree: ast.Module) -> Iterator[str]:
    """The lines of one name."""
    found = find(tree, name)
    last = found[-1]
    yield f"### {name}\n"
    if isinstance(last, ast.AnnAssign):
        yield f"`{name} = {ast.unparse(last.value) if last.value else ''}`\n"
        yield (ast.get_docstring(tree) or "").partition("\n")[0] + "\n"
        return
    assert isinstance(last, Definition)
    if isinstance(last, ast.ClassDef):
        made = constructor(last)
        if made and name in ("Client", "Holdfast", "NonRetryable", "RunFailed"):
            yield f"```text\n{made}\n```\n"
        if (text := (ast.get_docstring(last) or "").partition("\n\n")[0].replace("\n", " ")) != "":
            yield f"{text}\n"
        lines = [line for one in bases(last, tree) for line in members(one)]
        if lines:
            yield "\n".join(lines) + "\n"
    else:
        for one in found if len(found) == 1 else found[:-1]:
            assert isinstance(one, ast.FunctionDef)
            yield f"* `{name}{signature(one, name, bound=False)}`"
        yield f"\n{first_line(last)}\n"


def page() -> str:
    """The whole page."""
    names = public_names()
    rooms = {room: list(listed) for room, listed in ROOMS.items()}
    placed = {name for listed in rooms.values() for name in listed}
    rooms["Errors"] += [name for name in names if name not in placed]
    lines = [HEAD]
    for room, listed in rooms.items():
        lines.append(f"## {room}\n")
        for name in listed:
            lines += entry(name, module(names[name]))
    lines.append(f"{CLIENT}\n")
    for name, home in public_names("client").items():
        lines += entry(name, module(home))
    return "\n".join(lines)


def main() -> int:
    text = page()
    if "--check" in sys.argv[1:]:
        if PAGE.read_text("utf-8") == text:
            return 0
        print(f"{PAGE.relative_to(ROOT)} is not what the docstrings say. Run: python tools/reference.py")
        return 1
    PAGE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
