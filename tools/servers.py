"""Sees to it that PostgreSQL and MariaDB can be started for tests, and tries both.

    python3 tools/servers.py             installs what is missing (Debian, as root), starts each once, says what it is
    python3 tools/servers.py --stay      and leaves them running until Control-C, with the lines for your shell

Only programs are installed: nothing is left running, and no cluster of the system is made. Elsewhere install them
yourself, or point HOLDFAST_TEST_POSTGRES and HOLDFAST_TEST_MYSQL to servers where databases may be created and
dropped. How servers are started for tests is in tests/servers.py.
"""
# ruff: noqa: T201, UP006, UP035

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict, List

import environment

KINDS = ["postgres", "mariadb"]
NAMES = {"postgres": "PostgreSQL", "mariadb": "MariaDB"}
VARIABLES = {"postgres": "HOLDFAST_TEST_POSTGRES", "mariadb": "HOLDFAST_TEST_MYSQL"}
#: The pooler is one of PostgreSQL, which some tests are behind. For MariaDB only the programs: the package
#: `mariadb-server` would bring a service along.
PACKAGES = {
    "postgres": ["postgresql"],
    "pooler": ["pgbouncer"],
    "mariadb": ["mariadb-server-core", "mariadb-client-core"],
}
SERVERS = str(environment.ROOT / "tests" / "servers.py")


def missing(venv: Path) -> List[str]:
    """The kinds of server whose programs are not here, and which no variable points to; and the pooler."""
    python = environment.command(venv, "python")
    done = subprocess.run([python, SERVERS, "missing"], stdout=subprocess.PIPE, check=True)
    lacking = [kind for kind in done.stdout.decode().split() if not os.environ.get(VARIABLES[kind])]
    path = os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin"
    return lacking if shutil.which("pgbouncer", path=path) else [*lacking, "pooler"]


def can_install() -> bool:
    return hasattr(os, "getuid") and os.getuid() == 0 and shutil.which("apt-get") is not None


def apt_get(packages: List[str]) -> bool:
    """Install these packages of Debian; whether it went well."""
    print(f"Installing {' and '.join(packages)} with apt-get …", flush=True)
    env = dict(environment.environment(), DEBIAN_FRONTEND="noninteractive")
    for order in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages],
    ):
        if subprocess.run(order, env=env, stdin=subprocess.DEVNULL, check=False).returncode != 0:
            print(f"{' '.join(order)} failed; its message stands above.", flush=True)
            return False
    return True


def install(kinds: List[str]) -> bool:
    """Install the programs of these servers with apt-get. Nothing is started, now or at the next boot."""
    packages = [package for kind in kinds for package in PACKAGES[kind]]
    # PostgreSQL's packages make a cluster of the system unless told not to; and a service starts only where
    # policy-rc.d lets it. Both files are there for the installation only.
    no_cluster = Path("/etc/postgresql-common/createcluster.d/holdfast-tests.conf")
    no_start = Path("/usr/sbin/policy-rc.d")
    made = []
    try:
        if "postgres" in kinds:
            made += _write(no_cluster, "create_main_cluster = false\n")
        if not no_start.exists():
            made += _write(no_start, "#!/bin/sh\nexit 101\n")
            no_start.chmod(0o755)
        return apt_get(packages)
    finally:
        for path in made:
            path.unlink()


def _write(path: Path, text: str) -> List[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return [path]


class Running:
    """The servers for one run of tests. They end with us, however we end: they hang on a pipe of ours."""

    def __init__(self, venv: Path) -> None:
        python = environment.command(venv, "python")
        given = [kind for kind in KINDS if os.environ.get(VARIABLES[kind])]
        self.told: Dict[str, Dict[str, str]] = {kind: {"address": os.environ[VARIABLES[kind]]} for kind in given}
        order = [python, SERVERS, "serve"]
        wanted = [kind for kind in KINDS if kind not in given]
        self._process: Any = None
        if not wanted:
            return
        if len(wanted) == 1:
            order += ["--only", wanted[0]]
        # A session of its own: Control-C ends the tests first, and the servers when the pipe is closed.
        self._process = subprocess.Popen(
            order,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment.environment(),
            start_new_session=True,
        )
        line = self._process.stdout.readline()
        if not line:
            environment.fail("tests/servers.py ended without an answer; its message stands above.")
        self.told.update(json.loads(line.decode()))

    @property
    def addresses(self) -> Dict[str, str]:
        """The variables for those that run."""
        return {VARIABLES[kind]: told["address"] for kind, told in self.told.items() if "address" in told}

    @property
    def troubles(self) -> Dict[str, str]:
        """Why there is no such server."""
        return {kind: told["trouble"] for kind, told in self.told.items() if "trouble" in told}

    def stop(self) -> None:
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()


def prepare(venv: Path) -> None:
    """Install what is missing, where we may."""
    lacking = missing(venv)
    if lacking and can_install():
        install(lacking)


def main() -> int:
    parser = argparse.ArgumentParser(description="Install and try the database servers that tests need.")
    parser.add_argument("--stay", action="store_true", help="leave them running until Control-C")
    options = parser.parse_args()
    venv = environment.prepare_dev(environment.choose(environment.find_pythons()))
    prepare(venv)
    running = Running(venv)
    try:
        for kind in KINDS:
            told = running.told[kind]
            if "trouble" in told:
                print(f"{NAMES[kind]:<12}NOT HERE: {told['trouble']}")
            else:
                print(f"{NAMES[kind]:<12}{told.get('version', 'yours: ' + VARIABLES[kind])}")
        if options.stay:
            for name, address in running.addresses.items():
                print(f"export {name}='{address}'")
            print("Control-C stops them.", flush=True)
            running._process.wait()
    except KeyboardInterrupt:
        print()
    finally:
        running.stop()
    return 1 if len(running.addresses) < len(KINDS) else 0


if __name__ == "__main__":
    raise SystemExit(main())
