"""Wrong arguments, the wrong step and wrong outputs are errors for `mypy --strict` and for pyright; right ones are not.

`good.py` must have no error at all. In `bad.py` the set of lines marked `# E` must be the set of lines with errors:
that says more than `# type: ignore`, whose codes differ from checker to checker, and it can't be satisfied by a checker
that finds nothing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import holdfast

HERE = Path(__file__).parent
GOOD, BAD = HERE / "good.py", HERE / "bad.py"
SECONDS = 300

pytestmark = pytest.mark.sampled("types: the checkers say the same on every Python")


def marked(path: Path) -> set[int]:
    """The lines that must be errors."""
    return {number for number, line in enumerate(path.read_text().splitlines(), 1) if re.search(r"# E\b", line)}


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "NO_COLOR": "1"}
    # Pyright does not look for `py.typed` where an editable installation points to.
    environment["PYTHONPATH"] = str(Path(holdfast.__file__).parents[1])
    environment.pop("MYPYPATH", None)
    # By this it finds what is installed beside this Python, whether or not the environment is activated.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=SECONDS
    )


def mypy(path: Path, folder: Path) -> dict[int, str]:
    """The errors that mypy finds in the file, by line."""
    config = folder / "mypy.ini"
    config.write_text("[mypy]\nstrict = true\n")
    done = run("mypy", "--config-file", str(config), "--cache-dir", str(folder / "cache"), "--no-error-summary",
               "--hide-error-context", "--no-pretty", str(path), cwd=folder)  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[int, str] = {}
    for line in done.stdout.splitlines():
        match = re.match(r"(?P<file>.+\.py):(?P<line>\d+): (?P<kind>error|note): (?P<text>.*)", line)
        if match and match["kind"] == "error":
            assert Path(folder, match["file"]).resolve() == path.resolve(), line
            found.setdefault(int(match["line"]), match["text"])
    assert bool(found) == bool(done.returncode), done.stdout + done.stderr
    return found


def pyright_starts() -> bool:
    """Whether there is a pyright here. It is a Node program, and may have to be fetched first."""
    if importlib.util.find_spec("pyright") is not None:
        done = run("pyright", "--version", cwd=HERE)
        if done.returncode == 0:
            return True
        why = (done.stderr or done.stdout).strip()[-500:]
    else:
        why = "it is not installed"
    if os.environ.get("HOLDFAST_NO_PYRIGHT"):
        print(f"\n!!! NOT CHECKED by pyright (HOLDFAST_NO_PYRIGHT is set): {why}", file=sys.stderr)
        return False
    pytest.fail(
        f"pyright does not start: {why}\n"
        "It needs Node.js: install one, or `pip install 'pyright[nodejs]'`. "
        "Or set HOLDFAST_NO_PYRIGHT=1 to go without this proof.",
        pytrace=False,
    )


def pyright(path: Path, folder: Path) -> dict[int, str]:
    """The errors that pyright finds in the file, by line."""
    config = folder / "pyrightconfig.json"
    # Copied: pyright looks for what to include only below its configuration.
    copied = shutil.copy(path, folder)
    settings = {"include": [path.name], "pythonVersion": "3.11", "typeCheckingMode": "strict"}
    # Strict about types; not about what these files do on purpose: functions and variables that nobody uses.
    settings |= dict.fromkeys(
        ["reportUnusedFunction", "reportUnusedClass", "reportUnusedVariable", "reportUnusedExpression",
         "reportUnusedCoroutine",
         "reportUnknownMemberType", "reportUnknownVariableType", "reportUnknownArgumentType",
         "reportUnknownLambdaType", "reportUnknownParameterType", "reportMissingParameterType"],
        False,
    )  # fmt: skip
    config.write_text(json.dumps(settings))
    done = run("pyright", "--project", str(config), "--pythonpath", sys.executable, "--outputjson", cwd=folder)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 1, report["summary"]
    found: dict[int, str] = {}
    for one in report["generalDiagnostics"]:
        if one["severity"] == "error":
            assert Path(one["file"]).resolve() == Path(copied).resolve(), one
            found.setdefault(one["range"]["start"]["line"] + 1, one["message"])
    return found


def told(found: dict[int, str], lines: set[int]) -> str:
    return "".join(f"\n  {line}: {found.get(line, 'no error was found here')}" for line in sorted(lines))


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_right_code_has_no_error(checker: object, tmp_path: Path) -> None:
    if checker is pyright and not pyright_starts():
        pytest.skip("pyright can't be started, and HOLDFAST_NO_PYRIGHT is set")
    assert GOOD.read_text().count("assert_type(") >= 40
    found = checker(GOOD, tmp_path)  # type: ignore[operator]
    assert not found, told(found, set(found))


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_every_marked_line_and_no_other_is_an_error(checker: object, tmp_path: Path) -> None:
    if checker is pyright and not pyright_starts():
        pytest.skip("pyright can't be started, and HOLDFAST_NO_PYRIGHT is set")
    wanted = marked(BAD)
    assert len(wanted) >= 50
    found = checker(BAD, tmp_path)  # type: ignore[operator]
    assert set(found) == wanted, (
        f"missed:{told(found, wanted - set(found))}\nnot marked:{told(found, set(found) - wanted)}"
    )


def test_every_public_name_has_a_known_type(tmp_path: Path) -> None:
    if not pyright_starts():
        pytest.skip("pyright can't be started, and HOLDFAST_NO_PYRIGHT is set")
    # Away from the repository: its pyright settings would be used otherwise.
    command = ["pyright", "--pythonpath", sys.executable, "--verifytypes", "holdfast", "--ignoreexternal"]
    done = run(*command, "--outputjson", cwd=tmp_path)
    report = json.loads(done.stdout)["typeCompleteness"]
    unknown = [
        f"{symbol['name']}: {symbol['diagnostics'][0]['message'] if symbol['diagnostics'] else 'unknown'}"
        for symbol in report["symbols"]
        if symbol["isExported"] and not (symbol["isTypeKnown"] and not symbol["isTypeAmbiguous"])
    ]
    assert report["exportedSymbolCounts"]["withKnownType"] > 200
    assert report["completenessScore"] == 1, "\n".join(unknown)
