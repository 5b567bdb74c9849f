"""`holdfast runs show` and `runs watch` of a run with others below it, with waits, and with failed tries."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from console_script import LONG, Cli, Shop, Spawn, parsed

from holdfast import Children, ChildResult, Holdfast, Retry, Step

pytestmark = pytest.mark.sampled("commands: what they print is the same on every Python", every=8)


class Family:
    """An app whose jobs put runs below theirs, wait and fail."""

    def __init__(self, url: str) -> None:
        self.gate = threading.Event()
        self.app = Holdfast(url, worker="thread", polling_interval=0.1)

        @self.app.job
        async def page(number: int) -> int:
            if number < 0:
                raise ValueError("no such page")
            return number

        @self.app.job
        def held(number: int) -> int:
            self.gate.wait(LONG)
            return number

        @self.app.job
        async def chapter(numbers: list[int]) -> Children[int]:
            return Children(len(numbers), [page.bind(number) for number in numbers], on_failure="collect")

        @self.app.job
        async def book(title: str) -> Children[str]:
            return Children(title, [page.bind(1), chapter.bind([2, -3])])

        @self.app.job
        async def bound(output: str, children: list[ChildResult]) -> str:
            return f"{output}: {len(children)}"

        @self.app.job
        async def leaflet() -> Children[None]:
            return Children(None, [])

        @leaflet.finalize
        async def folded(output: None, children: list[ChildResult]) -> str:
            return "folded"

        @self.app.job
        async def wide(step: Step, count: int, slow: bool = False) -> int:
            step.log.info("spreading out")
            return len(await step.map(held if slow else page, range(count), on_failure="collect"))

        @self.app.job
        async def asks(step: Step) -> str:
            await step.run("think", str.upper, "hm")
            return await step.wait_for_signal("answer", type=str, timeout="7d")

        @self.app.job
        async def crowd(step: Step) -> None:
            await asyncio.gather(*[step.sleep(f"rest-{n}", "1d") for n in range(7)])

        @self.app.job
        async def deep(step: Step, left: int) -> int:
            return 1 + await step.call(deep.bind(left - 1)) if left else 0

        failures = iter(["first \x1b[2Jno", "second no"])

        def flaky() -> str:
            if (why := next(failures, None)) is not None:
                raise RuntimeError(why)
            return "at last"

        @self.app.job
        async def stubborn(step: Step) -> str:
            often = step.options(retry=Retry(max_retries=3, delay=0.2))
            return await often.run("flaky", flaky)

        self.book, self.leaflet, self.wide, self.asks = book.finalize_with(bound), folded, wide, asks
        self.deep, self.stubborn, self.crowd = deep, stubborn, crowd

    def work(self) -> None:
        self.app.migrate().wait()
        self.app.process_until_idle().wait(LONG)


@pytest.fixture
def family(shop: Shop) -> Iterator[Family]:
    family = Family(shop.url)
    yield family
    family.gate.set()
    family.app.stop().wait()


def below_the_facts(shown: str) -> str:
    return shown.split("\n\n")[1]


# -- show --------------------------------------------------------------------------------------------------------


def test_show_draws_the_tree_of_runs(cli: Cli, shop: Shop, family: Family) -> None:
    run = family.book.trigger("Dune").wait()
    family.work()
    drawn = below_the_facts(cli("runs", "show", run.id, "-u", shop.url).stdout)
    members = {one.job_name: one.id for one in family.app.get_runs(parent=run.id).wait()}
    lines = [re.sub(r"  [\d.]+m?s  ", "  ", line) for line in drawn.splitlines()]
    assert [re.sub(r" +[0-9A-Z]{26}$", "", line) for line in lines] == [
        "book  completed",
        "├── page  completed",
        "├── chapter  completed",
        "│   ├── page  completed",
        "│   └── page  failed  ValueError: no such page",
        "└── bound (finalize)  completed",
    ]
    assert all(one in drawn for one in (run.id, *members.values()))
    assert "\x1b" not in drawn


def test_a_finalize_whose_name_says_so_is_not_marked_twice(cli: Cli, shop: Shop, family: Family) -> None:
    run = family.leaflet.trigger().wait()
    family.work()
    assert "└── leaflet.finalize  completed" in cli("runs", "show", run.id, "-u", shop.url).stdout


def test_show_of_a_member_says_what_it_is_below(cli: Cli, shop: Shop, family: Family) -> None:
    run = family.book.trigger("Dune").wait()
    family.work()
    (chapter,) = family.app.get_runs(parent=run.id, job="chapter").wait()
    (page, _) = family.app.get_runs(parent=chapter.id).wait()
    (finalize,) = [one for one in family.app.get_runs(parent=run.id).wait() if one.is_finalize]
    shown = cli("runs", "show", page.id, "-u", shop.url).stdout
    assert re.search(rf"^below +{chapter.id}, in the tree of {run.id}$", shown, re.MULTILINE)
    assert re.search(rf"^below +{run.id}$", cli("runs", "show", chapter.id, "-u", shop.url).stdout, re.MULTILINE)
    assert f"finalize of  {run.id}" in cli("runs", "show", finalize.id, "-u", shop.url).stdout


def test_show_as_json_has_all_runs_below_each_after_the_one_above_it(cli: Cli, shop: Shop, family: Family) -> None:
    run = family.book.trigger("Dune").wait()
    family.work()
    document = parsed(cli("runs", "show", run.id, "-u", shop.url, "--json"))
    assert document["below_is_whole"] is True
    seen = [run.id]
    for one in document["below"]:
        assert (one["parent_id"] in seen, one["root_id"]) == (True, run.id)
        seen.append(one["id"])
    assert [one["is_finalize"] for one in document["below"]] == [False, False, False, False, True]
    assert [one["status"] for one in document["below"]].count("failed") == 1
    leaf = parsed(cli("runs", "show", seen[1], "-u", shop.url, "--json"))
    assert (leaf["below"], leaf["run"]["is_finalize"]) == ([], False)


def test_of_many_runs_below_the_ones_that_failed_are_drawn_unless_all_are_asked_for(
    cli: Cli, shop: Shop, family: Family
) -> None:
    run = family.wide.trigger(30).wait()
    family.work()
    drawn = below_the_facts(cli("runs", "show", run.id, "-u", shop.url).stdout)
    assert drawn.count("page") == 19
    assert "└── … and 11 runs more: 11 completed" in drawn
    every = below_the_facts(cli("runs", "show", run.id, "-u", shop.url, "--all").stdout)
    assert (every.count("page"), "more" in every) == (30, False)


def test_a_deep_tree_is_drawn_as_far_as_there_are_columns(cli: Cli, shop: Shop, family: Family) -> None:
    run = family.deep.trigger(15).wait()
    family.work()
    shown = below_the_facts(cli("runs", "show", run.id, "-u", shop.url, COLUMNS="60").stdout)
    assert shown.count("deep") == 4
    assert "… and 1 run below, with what is below them" in shown
    assert max(map(len, shown.splitlines())) <= 60
    assert below_the_facts(cli("runs", "show", run.id, "-u", shop.url, COLUMNS="120").stdout).count("deep") == 13
    assert len(parsed(cli("runs", "show", run.id, "-u", shop.url, "--json"))["below"]) == 15


def test_the_timeline_shows_a_wait_as_a_wait(cli: Cli, shop: Shop, family: Family) -> None:
    run = family.asks.trigger().wait()
    family.work()
    shown = cli("runs", "show", run.id, "-u", shop.url).stdout
    assert re.search(r"^waits for +signal answer, until 20\d\d-\S+ \S+ UTC$", shown, re.MULTILINE)
    assert re.search(r"^think +completed +━+ +\d+ms +\"HM\"$", shown, re.MULTILINE)
    assert re.search(r"^answer +waiting +╌+ +\S+ +waits for signal, until 20\d\d-", shown, re.MULTILINE)
    assert "(now)" in shown
    family.app.send_signal(run.id, "answer", "yes").wait()
    family.work()
    shown = cli("runs", "show", run.id, "-u", shop.url).stdout
    assert re.search(r"^answer +completed +╌+ +\S+ +\"yes\"$", shown, re.MULTILINE)
    assert "(now)" not in shown
    steps = parsed(cli("runs", "show", run.id, "-u", shop.url, "--json"))["steps"]
    assert [(step["name"], step["wait"], step["until"]) for step in steps] == [
        ("think", None, None),
        ("answer", "signal", None),
    ]


def test_in_eighty_columns_a_wait_says_how_long_it_may_go_on(cli: Cli, shop: Shop, family: Family) -> None:
    run = family.asks.trigger().wait()
    family.work()
    shown = cli("runs", "show", run.id, "-u", shop.url, COLUMNS="80").stdout
    # Within the first half second 7d are left, rounded.
    assert re.search(r"^answer +waiting +╌+ +\S+ +signal, (6d 23h|7d 0h) left$", shown, re.MULTILINE)


def test_of_many_waits_at_once_five_are_told(cli: Cli, shop: Shop, family: Family) -> None:
    run = family.crowd.trigger().wait()
    family.work()
    shown = cli("runs", "show", run.id, "-u", shop.url).stdout
    assert len(re.findall(r"^waits for +timer rest-\d, until ", shown, re.MULTILINE)) == 5
    assert re.search(r"^ +… and 2 more$", shown, re.MULTILINE)


def test_the_timeline_shows_each_failed_try(cli: Cli, shop: Shop, family: Family) -> None:
    run = family.stubborn.trigger().wait()
    family.work()
    shown = cli("runs", "show", run.id, "-u", shop.url, "--logs", "0").stdout
    assert re.search(r"^flaky +completed +━*×·+━*×·+━+ +\S+ +\"at last\"$", shown, re.MULTILINE)
    assert re.search(r"^  try 1 +failed +━*× +\S+ +RuntimeError: first no$", shown, re.MULTILINE)
    assert re.search(r"^  try 2 +failed +━*× +\S+ +RuntimeError: second no$", shown, re.MULTILINE)
    (step,) = parsed(cli("runs", "show", run.id, "-u", shop.url, "--json"))["steps"]
    assert [(one["number"], one["run_attempt"], one["error"] is None) for one in step["attempts"]] == [
        (0, 0, False),
        (1, 0, False),
        (2, 0, True),
    ]


def test_where_there_is_little_room_the_bars_give_way(cli: Cli, shop: Shop, family: Family) -> None:
    run = family.book.trigger("Dune").wait()
    family.work()
    for columns, bars in (("40", False), ("80", True)):
        shown = cli("runs", "show", run.id, "-u", shop.url, COLUMNS=columns).stdout
        assert max(map(len, shown.splitlines())) <= int(columns)
        assert bool(re.search("[━╌]", shown)) is bars
        assert "└── " in shown


def test_a_stream_that_knows_only_ascii_gets_a_tree_and_bars_all_the_same(cli: Cli, shop: Shop, family: Family) -> None:
    run = family.asks.trigger().wait()
    book = family.book.trigger("Dune").wait()
    family.work()
    shown = cli("runs", "show", run.id, "-u", shop.url, PYTHONIOENCODING="ascii").stdout
    assert re.search(r"^answer +waiting +-+ +\S+ +waits for signal", shown, re.MULTILINE)
    assert "+-- page" in cli("runs", "show", book.id, "-u", shop.url, PYTHONIOENCODING="ascii").stdout


# -- watch -------------------------------------------------------------------------------------------------------


def read_until(process: Any, *parts: str) -> str:
    seen = ""
    while not all(part in seen for part in parts):  # ends with the process, if not by this
        line = process.stdout.readline()
        assert line, seen
        seen += line
    return seen


def test_watch_follows_the_runs_below(shop: Shop, family: Family, spawn: Spawn) -> None:
    with family.app:
        run = family.wide.trigger(2, True).wait()
        watching = spawn("runs", "watch", run.id, "-u", shop.url)
        seen = read_until(watching, "held leased", f"{run.id}  wide waiting  waits for children", "spreading out")
        family.gate.set()
        rest = watching.stdout.read()  # type: ignore[union-attr]
        assert watching.wait(LONG) == 0
        for one in family.app.get_runs(parent=run.id).wait():
            assert f"{one.id}  held completed" in seen + rest
    assert re.search(r"^status +completed", rest, re.MULTILINE)
    assert "\x1b" not in seen + rest


def test_watch_ends_with_the_run_and_says_what_goes_on_below(cli: Cli, shop: Shop, family: Family) -> None:
    @family.app.job
    async def lets_go(step: Step) -> None:
        await step.spawn(family.asks.bind())

    run = lets_go.trigger().wait()
    family.work()
    done = cli("runs", "watch", run.id, "-u", shop.url)
    assert done.returncode == 0
    assert "asks waiting  waits for signal" in done.stdout
    assert "1 run below it has not ended yet." in done.stdout


def test_watch_as_json_gives_the_run_and_all_below_it_at_the_end(cli: Cli, shop: Shop, family: Family) -> None:
    run = family.wide.trigger(3).wait()
    family.work()
    document = parsed(cli("runs", "watch", run.id, "-u", shop.url, "--json"))
    assert set(document) == {"run", "below", "below_is_whole"}
    assert (document["run"]["output"], [one["output"] for one in document["below"]]) == (3, [0, 1, 2])


def test_a_terminal_shows_the_tree_on_one_board(cli: Cli, shop: Shop, family: Family) -> None:
    run = family.book.trigger("Dune").wait()
    family.work()
    done = cli("runs", "watch", run.id, "-u", shop.url, FORCE_COLOR="1", TERM="xterm", COLUMNS="120", LINES="30")
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", done.stdout)
    assert done.returncode == 0
    assert re.search(r"[0-9A-Z]{26} +book +completed", plain)
    assert re.search(r"[0-9A-Z]{26} +└ chapter +completed", plain)
    assert re.search(r"[0-9A-Z]{26} +  └ page +failed", plain)
    assert re.search(r"[0-9A-Z]{26} +└ bound \(finalize\) +completed", plain)
    assert "6 of 6 runs ended" in plain


def test_the_document_of_a_run_is_json_to_the_last_line(cli: Cli, shop: Shop, family: Family) -> None:
    run = family.deep.trigger(2).wait()
    family.work()
    assert json.loads(cli("runs", "show", run.id, "-u", shop.url, "--json").stdout)["run"]["output"] == 2
