"""The documentation is true: its programs run, its links lead somewhere, its words and names exist.

How a fenced block is marked says what happens to it:

    ```python               all of a page are one program, run in an empty folder with airports.csv in it
    ```python file=name.py  is written to that file first
    ```python no-run: why   is not run
    ```console              its `$ python …` and `$ holdfast …` lines are run; the output must be what stands there,
                            where `…` stands for anything

`# prints: text` in a program that is run: a line of its output is this text, in this order.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

import holdfast
from holdfast.engine.hub import EVENTS
from holdfast.store.base import Store

pytestmark = pytest.mark.sampled("the documentation: its programs do the same on every Python", every=6)

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    + list((ROOT / "docs").rglob("*.md"))
)
TABLE = ROOT / "examples" / "data" / "airports.csv"
SECONDS = 120
#: Of all blocks of Python. More would mean that the documentation is not tested.
MOST_NOT_RUN = 4

_FENCE = re.compile(r"^```(\w*)(.*)$")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block; `line` is the number of its first line in the page, from 1."""

    language: str
    mark: str
    line: int
    lines: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


def blocks(text: str) -> list[Block]:
    found: list[Block] = []
    open_block: Block | None = None
    for number, line in enumerate(text.splitlines(), 1):
        fence = _FENCE.match(line)
        if open_block is not None:
            if line == "```":
                found.append(open_block)
                open_block = None
            else:
                open_block.lines.append(line)
        elif fence:
            open_block = Block(fence[1], fence[2].strip(), number + 1, [])
    assert open_block is None, f"the block at line {open_block.line} has no end"
    return found


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    text = without_blocks(page.read_text("utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- programs ----------------------------------------------------------------------------------------------------


def run(command: list[str], folder: Path) -> tuple[int, str]:
    """Exit code and output. The folder is all that the program sees of this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"}
    # As in a terminal, where what a program has printed is seen even if it is killed.
    environment |= {"COLUMNS": "100", "TERM": "dumb", "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECONDS,
        check=False,
    )
    return done.returncode, done.stdout.decode("utf-8")


def is_run(block: Block) -> bool:
    return block.language == "python" and not block.mark


def program_of(page: list[Block]) -> str:
    """All blocks that are run, each line where it stands in the page, so that tracebacks tell the page's lines."""
    lines: list[str] = []
    for block in page:
        if is_run(block):
            lines += [""] * (block.line - 1 - len(lines)) + block.lines
    return "\n".join(lines) + "\n" if lines else ""


def commands_of(block: Block) -> list[tuple[str, list[str]]]:
    """Each command line of a console block, with the lines that it should print."""
    commands: list[tuple[str, list[str]]] = []
    for line in block.lines:
        if line.startswith("$ "):
            commands.append((line[2:], []))
        else:
            assert commands, f"a console block begins with a command, not with {line!r}"
            commands[-1][1].append(line)
    return commands


def interpreter_for(command: str) -> list[str]:
    """The command with this very Python in it."""
    words = shlex.split(command, comments=True)
    if words[0] == "python":
        return [sys.executable, "-W", "error", *words[1:]]
    assert words[0] == "holdfast", f"{command!r}: console blocks are run, so they hold python and holdfast only"
    return [sys.executable, "-c", "import sys; from holdfast.cli import main; sys.exit(main())", *words[1:]]


def shown(expected: list[str]) -> re.Pattern[str]:
    """A pattern for the output: `…` stands for anything, a line that is only `…` for any lines."""
    pattern = ""
    for line in expected:
        pattern += "(?:.*\n)*?" if line.strip() == "…" else ".*?".join(map(re.escape, line.split("…"))) + "[ ]*\n"
    return re.compile(pattern)


@pytest.mark.parametrize(
    ("expected", "output", "fits"),
    [
        (["run: created", "… ms"], "run: created\n12.5 ms\n", True),
        (["one", "…", "two"], "one\na\nb\ntwo\n", True),
        (["run: created"], "run: idempotent\n", False),
        (["one"], "one\nand more\n", False),
        ([], "Traceback\n", False),
    ],
)
def test_output_fits_only_what_stands_in_the_page(expected: list[str], output: str, fits: bool) -> None:
    assert (shown(expected).fullmatch(output) is not None) is fits


TESTED = [page for page in PAGES if any(is_run(b) or b.language == "console" for b in blocks(page.read_text("utf-8")))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(TABLE, tmp_path / "airports.csv")
    return tmp_path


@pytest.mark.parametrize("page", TESTED, ids=name_of)
def test_the_programs_of_a_page_run_and_print_what_it_says(page: Path, folder: Path) -> None:
    found = blocks(page.read_text("utf-8"))
    for block in found:
        if block.language == "python" and block.mark.startswith("file="):
            Path(folder, block.mark.removeprefix("file=")).write_text(block.text, "utf-8")
        for command, expected in commands_of(block) if block.language == "console" else ():
            _, output = run(interpreter_for(command), folder)
            assert shown(expected).fullmatch(output), f"{name_of(page)}: $ {command}\n{output}"
    if program := program_of(found):
        Path(folder, "page.py").write_text(program, "utf-8")
        code, output = run([sys.executable, "-W", "error", "page.py"], folder)
        assert code == 0, f"{name_of(page)}:\n{output}"
        lines = iter(output.splitlines())
        for wanted in re.findall(r"# prints: (.*)$", program, flags=re.MULTILINE):
            assert wanted in lines, f"{name_of(page)}: {wanted!r} was not printed (in this place):\n{output}"


def test_the_example_of_the_readme_is_run_as_it_stands() -> None:
    assert ROOT / "README.md" in TESTED
    program = program_of(blocks((ROOT / "README.md").read_text("utf-8")))
    assert "# prints: 3376" in program


def test_the_first_screen_of_the_readme_holds_the_commands_and_the_example() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    first = blocks(text)[0], blocks(text)[1]
    assert "make demo" in first[0].text
    assert "make test" in first[0].text
    assert is_run(first[1])
    assert first[1].line <= 20


@pytest.mark.parametrize("example", sorted((ROOT / "examples" / "web").glob("*.py")), ids=lambda path: path.name)
def test_an_example_of_a_web_framework_is_shown_on_a_page_as_it_stands(example: Path) -> None:
    shown = [
        block.text
        for page in PAGES
        for block in blocks(page.read_text("utf-8"))
        if block.mark == f"file={example.name}"
    ]
    assert shown == [example.read_text("utf-8")]
    assert len(shown[0].splitlines()) <= 80


def test_few_blocks_of_python_are_not_run_and_each_says_why() -> None:
    for page in PAGES:
        for block in blocks(page.read_text("utf-8")):
            if block.language == "python" and block.mark and not block.mark.startswith("file="):
                assert re.fullmatch(r"no-run: .{10,}", block.mark), f"{name_of(page)}:{block.line}: {block.mark!r}"
    marks = [block.mark for page in PAGES for block in blocks(page.read_text("utf-8")) if block.language == "python"]
    assert sum(mark.startswith("no-run") for mark in marks) <= MOST_NOT_RUN
    assert len(marks) > 2 * MOST_NOT_RUN


# -- links and words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in _LINK.findall(without_blocks(page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            assert link.startswith("https://"), f"{name_of(page)}: {link}"
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link} leads nowhere"
        assert target.is_relative_to(ROOT), f"{name_of(page)}: {link} leads out of the project"
        assert not anchor or anchor in headings(target), f"{name_of(page)}: {link}: there is no such heading"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, to_do = set(), [ROOT / "README.md"]
    while to_do:
        page = to_do.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        for link in _LINK.findall(without_blocks(page.read_text("utf-8"))):
            path = link.partition("#")[0]
            if path and not re.match(r"[a-z]+:", link):
                to_do.append((page.parent / path).resolve())
    assert sorted(map(name_of, set(PAGES) - reached)) == []


def test_the_reference_is_what_the_docstrings_say() -> None:
    reference = tool("reference")
    written = (ROOT / "docs" / "reference" / "api.md").read_text("utf-8")
    assert written == reference.page(), "run: python tools/reference.py"


@pytest.mark.parametrize("name", holdfast.__all__)
def test_every_public_name_has_a_place_in_the_reference(name: str) -> None:
    written = (ROOT / "docs" / "reference" / "api.md").read_text("utf-8")
    assert re.search(rf"^### {name}$\n\n.*\w", written, flags=re.MULTILINE | re.DOTALL)


def test_every_option_of_the_app_is_explained() -> None:
    text = (ROOT / "docs" / "reference" / "options.md").read_text("utf-8")
    for name in inspect.signature(holdfast.Holdfast).parameters:
        assert f"| `{name}` |" in text, name
    for name in [*inspect.signature(holdfast.Job.options).parameters][1:]:
        assert f"| `{name}` |" in text, name


def test_every_event_is_explained() -> None:
    text = (ROOT / "docs" / "reference" / "events.md").read_text("utf-8")
    assert set(re.findall(r"^\| `([a-z]+:[a-z-]+)` \|", text, flags=re.MULTILINE)) == EVENTS


def test_every_error_stands_in_the_tree_with_its_status() -> None:
    text = (ROOT / "docs" / "reference" / "errors.md").read_text("utf-8")
    errors = [one for one in map(holdfast.__dict__.get, holdfast.__all__) if inspect.isclass(one)]
    errors = [one for one in errors if issubclass(one, Exception)]
    assert errors
    for error in errors:
        status = getattr(error, "status", "–")
        assert re.search(rf"^[ │├└─]*{error.__name__} +{status}( |$)", text, re.MULTILINE), error


# -- glossary ----------------------------------------------------------------------------------------------------


def glossary_rows() -> list[list[str]]:
    text = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    return [re.split(r"\s*\|\s*", line.strip("| ")) for line in text.splitlines() if line.startswith("| **")]


def test_the_words_of_the_house_are_in_the_glossary() -> None:
    words = {word for row in glossary_rows() for word in re.findall(r"\*\*(.+?)\*\*", row[0])}
    listed = {
        "job", "call", "run", "step", "attempt", "crashes", "lease", "generation", "worker", "child", "parent", "root",
        "finalize", "signal", "label", "idempotency key", "concurrency key", "limit", "concurrency", "disposition",
        "retrigger", "purge", "reply", "round",
    }  # fmt: skip
    assert listed <= words


def test_every_python_name_in_the_glossary_exists_unless_it_comes_later() -> None:
    owners: dict[str, Any] = {
        "run": holdfast.Run, "step": holdfast.Step, "job": holdfast.Job, "app": holdfast.Holdfast,
        "store": Store,
    }  # fmt: skip
    checked = 0
    for row in glossary_rows():
        if "later" in row[0]:
            continue
        for code in re.findall(r"`([^`]+)`", row[2]):
            code = code.removeprefix("@")
            call, _, arguments = code.partition("(")
            owner, _, member = call.partition(".")
            if member:
                assert hasattr(owners[owner], member), code
            elif call == "options":
                parameters = inspect.signature(holdfast.Job.options).parameters
                assert set(re.findall(r"(\w+)=", arguments)) <= set(parameters), code
            else:
                assert call.partition("[")[0] in holdfast.__all__, code
                if call == "Holdfast":
                    parameters = inspect.signature(holdfast.Holdfast).parameters
                    assert set(re.findall(r"(\w+)=", arguments)) <= set(parameters), code
            checked += 1
    assert checked > 15


def test_every_column_in_the_glossary_is_in_the_schema() -> None:
    schema = (ROOT / "src" / "holdfast" / "store" / "migrations" / "sqlite" / "schema.sql").read_text("utf-8")
    words = set(re.findall(r"\w+", schema))
    named = {word for row in glossary_rows() for code in re.findall(r"`([^`]+)`", row[3]) for word in code.split()[:1]}
    assert named
    assert named <= words
