"""The benchmarks work, in small, and their tables and pictures say what was measured. DBOS isn't needed here."""

from __future__ import annotations

import ast
import asyncio
import json
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.sampled("the benchmarks: they do the same on every Python", every=8)

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"

if not FOLDER.is_dir():
    pytest.skip("there is no benchmarks folder beside these tests: not a checkout", allow_module_level=True)

sys.path.insert(0, str(FOLDER))
try:
    import delay
    import limit
    import plan
    import report
    import run
    import verbs

    import engine
finally:
    sys.path.remove(str(FOLDER))

SMALL = {
    "drain": (150, 200, 50),
    "busy_drain": (100, 200),
    "checkpoints": (100, 2),
    "busy_checkpoints": (20, 2, 200),
    "triggers": (10,),
    "triggers_together": (200,),
    "latency": (3, 20),
    "family": (20,),
    "fan_out": (20,),
    "chain": (3,),
    "sleepers": (5, 1),
    "tree": (3, 20),
}


def is_left_out(module: ModuleType, work: str) -> bool:
    """Whether the bare loop does not do this: then nothing that is planned asks it to."""
    if hasattr(module, work):
        return False
    assert module is limit
    assert all(call.split()[0] != work for call in _calls(plan.LIMIT))
    return True


@pytest.mark.parametrize("work", SMALL)
@pytest.mark.parametrize("module", [engine, limit], ids=["holdfast", "bare loop"])
def test_each_work_executes_what_it_says_and_gives_figures(module: ModuleType, work: str, tmp_path: Path) -> None:
    if is_left_out(module, work):
        return
    url = f"sqlite:///{tmp_path / 'bench.db'}"
    module.fill(url, work, *SMALL[work])
    figures = asyncio.run(getattr(module, work)(url, *SMALL[work]))
    assert figures
    # Of memory there may be less beside a few sleepers than beside none.
    assert all(value > 0 for name, value in figures.items() if name != "memory" or work == "drain"), figures


ON_A_SERVER = {
    "drain": (50,), "checkpoints": (10, 2), "latency": (2,), "triggers_together": (100,), "fan_out": (20,),
}  # fmt: skip


@pytest.mark.parametrize("work", ON_A_SERVER)
@pytest.mark.parametrize("module", [engine, limit], ids=["holdfast", "bare loop"])
@pytest.mark.parametrize("database", ["postgres", "mariadb"])
def test_the_same_works_run_on_a_server(
    database: str, module: ModuleType, work: str, request: pytest.FixtureRequest
) -> None:
    if is_left_out(module, work):
        return
    url = request.getfixturevalue(f"{database}_url")
    module.fill(url, work, *ON_A_SERVER[work])
    figures = asyncio.run(getattr(module, work)(url, *ON_A_SERVER[work]))
    assert figures
    assert all(value > 0 for value in figures.values()), figures


@pytest.mark.parametrize("database", ["postgres", "mariadb"])
def test_claims_are_timed_in_all_shapes_and_the_fence_by_itself(database: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(f"{database}_url")
    engine.fill(url, "claims", 1200, 100)
    assert set(asyncio.run(engine.claims(url, 1200, 100, 2))) == set(verbs.SHAPES)
    assert asyncio.run(engine.fence(url, 5, 2))["one"] > 0


def test_a_network_of_a_millisecond_takes_at_least_that(postgres_url: str) -> None:
    with delay.far(postgres_url, 1.0) as away:
        assert delay.round_trip(away) >= 1.0


@pytest.mark.parametrize("on", plan.ARMS)
def test_each_target_is_named_once_and_of_who_takes_part(on: str) -> None:
    titles = [target.title for target in plan.ON_TARGETS[on]]
    assert len(set(titles)) == len(titles)
    assert plan.DBOS in plan.ARMS[on] or not [title for title in titles if "DBOS" in title]


def _calls(who: str) -> set[str]:
    return {call for work in plan.WORKS.values() for quick in (True, False) if (call := work.size(who, quick))}


@pytest.mark.parametrize("who", list(plan.NAMES))
def test_all_that_is_planned_can_be_called(who: str) -> None:
    if who in plan.PEERS:
        tree = ast.parse((FOLDER / run.PEERS[who].program).read_text(encoding="utf-8"))
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        names = {node.name.rstrip("_") for node in functions}
    else:
        names = set(vars(limit if who == plan.LIMIT else engine))
    assert {call.split()[0] for call in _calls(who)} <= names


def test_one_command_measures_in_fresh_processes_and_keeps_everything(tmp_path: Path) -> None:
    kept, picture = tmp_path / "samples.json", tmp_path / "chart.svg"
    command = [sys.executable, str(FOLDER / "run.py"), "--quick", "--without-dbos", "--only", "family", "--seed", "7"]
    done = subprocess.run(
        [*command, "--json", str(kept), "--svg", str(picture)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "parent of 1,000 children, per s" in done.stdout
    facts = json.loads(kept.read_text())
    assert facts["seed"] == 7
    assert facts["calls"] == ["again: family 1000", "holdfast: family 1000", "limit: family 1000"]
    assert all(facts["samples"][who]["family"][0]["rate"] > 0 for who in ("holdfast", "again", "limit"))
    assert ET.fromstring(picture.read_text(encoding="utf-8")).tag.endswith("svg")
    assert all(version in done.stdout for version in (facts["database"]["SQLite"], facts["Holdfast"]["Python"]))


def test_the_order_is_by_chance_and_comes_again_with_its_seed() -> None:
    orders = [run.schedule(2, False, [], list(plan.NAMES), random.Random(seed)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


# -- tables of made-up samples ---------------------------------------------------------------------------------------


def _samples(**more: list[plan.Figures | None]) -> plan.Samples:
    """Two rounds: Holdfast 10,000 and 12,000 runs a second, DBOS 500 and 800 in one mode, 400 in the other."""

    def rates(*found: float) -> list[plan.Figures | None]:
        return [{"rate": rate, "memory": 50.0, "cpu": 80.0} for rate in found]

    samples: plan.Samples = {
        plan.OURS: {"drain": rates(10_000, 12_000)},
        plan.AGAIN: {"drain": rates(11_000, 11_000)},
        plan.LIMIT: {"drain": rates(40_000, 40_000)},
        plan.DBOS: {"drain": rates(400, 400)},
        plan.DBOS_WAL: {"drain": rates(500, 800)},
    }
    samples[plan.OURS].update(more)
    return samples


def test_a_line_has_medians_ranges_and_ratios_of_pairs_against_the_better_mode() -> None:
    (line,) = [line for line in report.table(_samples()).splitlines() if line.startswith("drain no-op")]
    cells = re.split(r"\s{2,}", line.strip())
    assert cells == [
        "drain no-op runs, per s",
        "11,000 (10,000-12,000)",
        "40,000 (40,000-40,000)",
        "400 (400-400)",
        "650 (500-800)",
        "17.5 (15.0-20.0)",
        "0.28 (0.25-0.30)",
        "1.00 (0.91-1.09)",
    ]


def test_what_was_not_measured_is_not_in_the_table_and_not_reached() -> None:
    assert "checkpoints" not in report.table(_samples())
    verdicts = {
        line.split("  ")[0]: line.rsplit("  ", 1)[-1].strip() for line in report.targets(_samples()).splitlines()
    }
    assert verdicts["drain, times the better DBOS"] == "yes"
    assert verdicts["drain, part of the bare loop"] == "yes"
    assert verdicts["checkpoints, times the better DBOS"] == "not measured"


def test_a_target_that_is_missed_is_said_so() -> None:
    slow: list[plan.Figures | None] = [{"rate": 1_000.0, "memory": 90.0, "cpu": 900.0}] * 2
    verdicts = {
        line.split("  ")[0]: line.rsplit("  ", 1)[-1].strip()
        for line in report.targets({**_samples(), plan.OURS: {"drain": slow}, plan.AGAIN: {"drain": slow}}).splitlines()
    }
    assert verdicts["drain, times the better DBOS"] == "NO"
    assert verdicts["10,000 pending drained, most memory, MB"] == "NO"


def test_less_is_better_for_times_and_a_measurement_that_failed_has_no_pair() -> None:
    samples: Any = {
        plan.OURS: {"latency": [{"p50": 2.0}, None, {"p50": 2.0}]},
        plan.DBOS: {"latency": [{"p50": 20.0}, {"p50": 20.0}, {"p50": 30.0}]},
        plan.DBOS_WAL: {"latency": [{"p50": 40.0}] * 3},
    }
    row = plan.Row("", "latency", "p50", less=True)
    assert plan.better_peer(samples, row) == plan.DBOS
    assert plan.ratios(samples, row, plan.OURS, plan.DBOS) == [10.0, 15.0]


def test_growth_is_against_the_same_arm_of_the_same_round() -> None:
    grown: list[plan.Figures | None] = [{"rate": 9_000.0}, {"rate": 6_000.0}]
    (target,) = [target for target in plan.TARGETS if target.title.startswith("drain beside 200,000")]
    assert target.found(_samples(grown_drain=grown)) == [0.9, 0.5]
    assert not target.reached([0.9, 0.5])


def test_the_picture_draws_the_medians_to_scale_for_light_and_dark_pages() -> None:
    text = report.chart(_samples(), "Two rounds & a seed")
    root = ET.fromstring(text)
    widths = [float(one.attrib["width"]) for one in root.iter() if one.tag.endswith("rect")]
    holdfast, wal, default, bare = widths
    assert bare / holdfast == pytest.approx(40_000 / 11_000, rel=0.01)
    assert (wal / bare, default / bare) == (
        pytest.approx(650 / 40_000, rel=0.02),
        pytest.approx(400 / 40_000, rel=0.02),
    )
    assert "prefers-color-scheme: dark" in text
    assert any("Two rounds & a seed" in (one.text or "") for one in root.iter())
