"""docs/reference/cli.md says what `--help` says, and the exit codes are the same everywhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from console_script import Cli

from holdfast.cli import exits

pytestmark = pytest.mark.sampled("commands: what they print is the same on every Python", every=8)

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cli_reference", ROOT / "tools" / "cli_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_help_says(tool: ModuleType) -> None:
    written = (REFERENCE / "cli.md").read_text("utf-8")
    assert written == tool.page(), "run: python tools/cli_reference.py"


def test_the_page_has_every_command_that_the_help_lists(cli: Cli) -> None:
    written = (REFERENCE / "cli.md").read_text("utf-8")
    for words in ([], ["runs"]):
        listed = re.findall(r"^│ ([a-z]+) ", cli(*words, "--help", COLUMNS="120").stdout, flags=re.MULTILINE)
        assert len(listed) >= 3
        for word in set(listed) - {"runs"}:
            assert f"\n## `{' '.join(['holdfast', *words, word])}`\n" in written


def test_the_page_has_both_words_of_a_switch(tool: ModuleType) -> None:
    assert "\n| `--worker`, `--no-worker` | " in tool.page()


def test_the_exit_codes_of_the_help_are_those_of_the_code_and_of_the_page_of_errors() -> None:
    page = (REFERENCE / "errors.md").read_text("utf-8")
    listed = re.findall(r"^\| (\d+) \| ", page, flags=re.MULTILINE)
    assert listed == re.findall(r"(?:: |· )(\d+) ", exits.EPILOG)
    assert sorted(map(int, listed)) == sorted(
        code for name, code in vars(exits).items() if name.isupper() and type(code) is int
    )
