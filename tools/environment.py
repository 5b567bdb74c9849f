"""Finds the Pythons of this machine and keeps one virtual environment for each.

    python3 tools/environment.py demo COMMAND ...    runs COMMAND in .venv (what a user installs)
    python3 tools/environment.py dev COMMAND ...     runs COMMAND in .venv-3.X (the lowest version found)
    python3 tools/environment.py higher              makes .venv-3.X of all versions but the lowest, and runs nothing

Runs on any Python from 3.8 on and needs only the standard library, because its task is to find a better one.
"""
# ruff: noqa: T201, UP006, UP035

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, NoReturn, Tuple

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
#: Every version that pyproject.toml promises. A missing one is reported, never passed over in silence.
PROMISED = [(3, 11), (3, 12), (3, 13), (3, 14)]

Version = Tuple[int, int]

_PROBE = """
import json, sys
lacks = []
for name in ("venv", "ensurepip", "sqlite3", "ssl"):
    try:
        __import__(name)
    except Exception:
        lacks.append(name)
json.dump({"path": getattr(sys, "_base_executable", None) or sys.executable, "version": sys.version_info[:3],
           "implementation": sys.implementation.name, "lacks": lacks}, sys.stdout)
"""


class Python(NamedTuple):
    """One interpreter that was started and gave a sensible answer."""

    path: str
    version: Version
    patch: int
    lacks: Tuple[str, ...]

    @property
    def name(self) -> str:
        return "{}.{}".format(*self.version)


def fail(message: str) -> NoReturn:
    """Say what is wrong and what to do, and stop."""
    print(f"\n{message}\n", file=sys.stderr, flush=True)
    raise SystemExit(1)


def environment() -> Dict[str, str]:
    """Our environment without what would leak another Python's packages into the new one, or make it slow."""
    hidden = {
        "PYTHONPATH",
        "PYTHONHOME",
        # Tests start thousands of processes: 0.15 s more for each that has to compile what it imports.
        "PYTHONDONTWRITEBYTECODE",
        "VIRTUAL_ENV",
        "__PYVENV_LAUNCHER__",
        "MAKEFLAGS",
        "MAKELEVEL",
        "MFLAGS",
    }
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    kept["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    kept["PIP_ROOT_USER_ACTION"] = "ignore"
    return kept


def _candidates() -> Iterator[Path]:
    names = ["python3", *[f"python3.{minor}" for _, minor in reversed(PROMISED)], "python"]
    for folder in os.get_exec_path():
        for name in names:
            yield Path(folder, name)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    uv = Path.home() / ".local" / "share" / "uv" / "python"
    for versions in (pyenv / "versions", uv):
        if versions.is_dir():
            for version in sorted(versions.iterdir(), reverse=True):
                yield version / "bin" / "python3"


def _probe(candidate: Path) -> Python | None:
    # A pyenv shim or a shop-window stub exists and can't run: only starting it tells.
    try:
        done = subprocess.run(
            [str(candidate), "-I", "-c", _PROBE],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=20,
            env=environment(),
            check=False,
        )
        answer = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    if answer["implementation"] != "cpython":
        return None
    major, minor, patch = answer["version"]
    return Python(answer["path"], (major, minor), patch, tuple(answer["lacks"]))


def find_pythons() -> Dict[Version, Python]:
    """The best interpreter of each version from 3.11 on: complete ones first, then as on PATH."""
    found: Dict[Version, Python] = {}
    seen = set()
    for candidate in _candidates():
        if not os.access(str(candidate), os.X_OK):
            continue
        real = os.path.realpath(str(candidate))
        # All shims are one file: tell them apart by name.
        mark = (real, candidate.name if "shims" in candidate.parts else "")
        if mark in seen:
            continue
        seen.add(mark)
        python = _probe(candidate)
        if python is None or python.version < OLDEST:
            continue
        known = found.get(python.version)
        if known is None or len(python.lacks) < len(known.lacks):
            found[python.version] = python
    return dict(sorted(found.items()))


def choose(pythons: Dict[Version, Python]) -> Python:
    """The lowest complete version: what works there works above."""
    if not pythons:
        fail("Holdfast needs Python 3.11 or newer, and none was found on PATH or under pyenv.")
    complete = [python for python in pythons.values() if not python.lacks]
    return (complete or list(pythons.values()))[0]


def command(venv: Path, name: str) -> str:
    """The path of a program inside a virtual environment."""
    folder, suffix = ("Scripts", ".exe") if os.name == "nt" else ("bin", "")
    return str(venv / folder / (name + suffix))


def _works(venv: Path, python: Python) -> bool:
    probed = _probe(Path(command(venv, "python"))) if venv.is_dir() else None
    if probed is None or probed.version != python.version:
        return False
    # A moved environment starts, but its programs point to the old place.
    asked = subprocess.run(
        [command(venv, "python"), "-I", "-c", "import sys, pip; print(sys.prefix)"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    script = Path(command(venv, "pip"))
    return (
        asked.returncode == 0
        and os.path.realpath(asked.stdout.decode().strip()) == os.path.realpath(str(venv))
        and script.exists()
        and os.fsencode(str(venv)) in script.read_bytes()[:1024]
    )


def prepare(venv: Path, python: Python, extra: str) -> Path:
    """Make sure that `venv` has this checkout with `extra` installed. Does nothing when it already has."""
    stamp = venv / f".holdfast-{extra}"
    text = (ROOT / "pyproject.toml").read_bytes()
    wanted = f"{hashlib.sha256(text).hexdigest()} {python.name} {ROOT}\n"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted and _works(venv, python):
        return venv
    if not _works(venv, python):
        print(f"Making {venv.name} with Python {python.name}.{python.patch} …", flush=True)
        if venv.exists():
            shutil.rmtree(str(venv))
        if {"venv", "ensurepip"} & set(python.lacks):
            fail(
                f"{python.path} lacks the venv or ensurepip module.\n"
                f"On Debian and Ubuntu: apt-get install python{python.name}-venv"
            )
        _must([python.path, "-m", "venv", str(venv)], "The virtual environment could not be made.")
    print(f"Installing holdfast[{extra}] into {venv.name} …", flush=True)
    pip = [command(venv, "python"), "-m", "pip", "install", "-qq", "--editable", f".[{extra}]"]
    _must(pip, "pip could not install the package; its message stands above.")
    stamp.write_text(wanted, encoding="utf-8")
    return venv


def prepare_dev(python: Python) -> Path:
    """The development environment of one Python version."""
    return prepare(ROOT / f".venv-{python.name}", python, "dev")


def prepare_demo(pythons: Dict[Version, Python]) -> Path:
    """`.venv`, as a user has it. An environment that is already there keeps its Python."""
    venv = ROOT / ".venv"
    present = _probe(Path(command(venv, "python")))
    python = pythons.get(present.version) if present is not None else None
    return prepare(venv, python or choose(pythons), "standard")


def _must(arguments: List[str], message: str) -> None:
    if subprocess.run(arguments, cwd=str(ROOT), env=environment(), check=False).returncode != 0:
        fail(message)


def run_in(venv: Path, arguments: List[str], limit: float | None = None, **more: str) -> int:
    """Run a program of the environment from the top of the repository; gives its exit code.

    After `limit` seconds it is killed, and the code is 124.
    """
    env = environment()
    env["PATH"] = os.path.dirname(command(venv, "python")) + os.pathsep + env.get("PATH", "")
    env.update(more)
    try:
        return subprocess.run(
            [command(venv, arguments[0]), *arguments[1:]], cwd=str(ROOT), env=env, check=False, timeout=limit
        ).returncode
    except KeyboardInterrupt:
        return 130
    except subprocess.TimeoutExpired:
        print(f"\n{arguments[0]} did not end within {limit:.0f} s, and was killed.", flush=True)
        return 124


def main(arguments: List[str]) -> int:
    if arguments != ["higher"] and (len(arguments) < 2 or arguments[0] not in ("demo", "dev")):
        print(__doc__)
        return 2
    pythons = find_pythons()
    if arguments == ["higher"]:
        for python in pythons.values():
            if python is not choose(pythons) and python.version in PROMISED and not python.lacks:
                prepare_dev(python)
        return 0
    venv = prepare_demo(pythons) if arguments[0] == "demo" else prepare_dev(choose(pythons))
    return run_in(venv, arguments[1:])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
