"""The pytest plugin: two fixtures, and nothing imported for those who use neither."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

TESTS = """
import asyncio

from holdfast import Step, SyncStep, job
from holdfast.testing import HandClock, drain

clocks = []


@job
def remind(step: SyncStep, who: str) -> str:
    return step.run("mail", lambda: f"mail to {who}")


@job
async def fetch(step: Step, name: str) -> str:
    return await step.run("fetch", str.upper, name)


def test_sync(holdfast_app, holdfast_clock):
    assert isinstance(holdfast_clock, HandClock)
    clocks.append(holdfast_clock)
    later = holdfast_app.register(remind).options(delay="1h").trigger("ada").wait()
    assert drain(holdfast_app).wait() == 0
    holdfast_clock.advance(3600)
    assert drain(holdfast_app).wait() == 1
    assert later.result().wait() == "mail to ada"


def test_async(holdfast_app, holdfast_clock):
    assert holdfast_clock not in clocks
    assert holdfast_app.get_job("remind") is None

    async def main():
        triggered = await holdfast_app.register(fetch).trigger("ada")
        await drain(holdfast_app, until="1h")
        assert await triggered.result() == "ADA"

    asyncio.run(main())
"""


def _python(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # Given by -p, whether or not this checkout was installed since the plugin came into pyproject.toml.
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=90
    )


def test_the_fixtures_give_an_app_and_its_clock_to_sync_and_async_tests(tmp_path: Path) -> None:
    (tmp_path / "test_jobs.py").write_text(TESTS, "utf-8")
    done = _python("-m", "pytest", "-q", "-p", "holdfast_pytest", "-p", "no:cacheprovider", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_the_plugin_imports_holdfast_only_for_who_uses_a_fixture(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "import sys\n\ndef test_other():\n    assert 'holdfast_pytest' in sys.modules\n"
        "    assert 'holdfast' not in sys.modules\n"
    )
    done = _python("-m", "pytest", "-q", "-p", "holdfast_pytest", "-p", "no:cacheprovider", folder=tmp_path)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_installing_holdfast_installs_the_plugin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["entry-points"]["pytest11"] == {"holdfast": "holdfast_pytest"}
    assert "src/holdfast_pytest.py" in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def test_importing_holdfast_does_not_import_the_testing_kit(tmp_path: Path) -> None:
    program = "import sys, holdfast; assert not [name for name in sys.modules if name.startswith('holdfast.testing')]"
    assert _python("-c", program, folder=tmp_path).returncode == 0


def test_the_testing_kit_does_not_import_pytest(tmp_path: Path) -> None:
    program = "import sys, holdfast.testing; assert 'pytest' not in sys.modules and '_pytest' not in sys.modules"
    assert _python("-c", program, folder=tmp_path).returncode == 0
