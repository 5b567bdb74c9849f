"""`holdfast signal` and `holdfast wake`: what they send arrives as it was meant, and what is refused says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from console_script import Cli, Shop, parsed

from holdfast import Holdfast, Run, Step

pytestmark = pytest.mark.sampled("commands: what they print is the same on every Python", every=8)

MODULE = """
from pydantic import BaseModel
from holdfast import Holdfast

class Decision(BaseModel):
    yes: bool
    by: str = "nobody"

app = Holdfast("sqlite:///runs.db", worker=False)
approval = app.sleeping("approval", output=Decision)
word = app.sleeping("word")

@app.job
def other() -> None: ...
"""


class Desk:
    """Runs that wait for a word."""

    def __init__(self, url: str) -> None:
        self.app = Holdfast(url)

        @self.app.job
        async def ask(step: Step) -> Any:
            return await step.wait_for_signal("answer")

        self.ask = ask
        self.word = self.app.sleeping("word")

    def waiting(self) -> Run[Any]:
        run = self.ask.trigger().wait()
        self.work()
        assert run.refresh().wait().waiting_for == "signal"
        return run

    def work(self) -> None:
        self.app.process_until_idle().wait()


@pytest.fixture
def desk(shop: Shop, tmp_path: Path) -> Iterator[Desk]:
    (tmp_path / "desk_jobs.py").write_text(MODULE, encoding="utf-8")
    desk = Desk(shop.url)
    yield desk
    desk.app.stop().wait()


# -- signal ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "received"),
    [
        (['{"yes": true, "by": ["Ada", null]}'], {"yes": True, "by": ["Ada", None]}),
        (['"a text"'], "a text"),
        (["-7.5", "--key", "k"], -7.5),
        ([], None),
    ],
    ids=["object", "text", "number", "nothing"],
)
def test_a_signal_arrives_as_the_value_that_its_json_says(
    cli: Cli, shop: Shop, desk: Desk, given: list[str], received: Any
) -> None:
    run = desk.waiting()
    done = cli("signal", run.id, "answer", *given, "-u", shop.url)
    assert (done.returncode, done.stdout) == (0, f"Sent answer to {run.id}\n")
    desk.work()
    ended = run.refresh().wait()
    assert (ended.status, ended.output) == ("completed", received)


def test_a_signal_with_a_key_counts_once(cli: Cli, shop: Shop, desk: Desk) -> None:
    run = desk.waiting()
    for value in ("1", "2"):
        document = parsed(cli("signal", run.id, "answer", value, "--key", "k", "-u", shop.url, "--json"))
        assert document == {"run_id": run.id, "name": "answer", "value": int(value), "key": "k"}
    desk.work()
    assert run.refresh().wait().output == 1


def test_a_signal_may_go_by_the_app_of_a_module(cli: Cli, desk: Desk) -> None:
    run = desk.waiting()
    assert cli("signal", run.id, "answer", "true", "--app", "desk_jobs:app").returncode == 0
    desk.work()
    assert run.refresh().wait().output is True


def test_to_a_run_that_has_ended_there_are_no_signals(cli: Cli, shop: Shop, desk: Desk) -> None:
    run = desk.ask.trigger().wait()
    run.cancel().wait()
    done = cli("signal", run.id, "answer", "1", "-u", shop.url)
    assert (done.returncode, done.stdout) == (6, "")
    assert "cancelled" in done.stderr


# -- wake --------------------------------------------------------------------------------------------------------


def test_wake_gives_a_sleeping_run_its_output(cli: Cli, desk: Desk) -> None:
    run = desk.word.trigger("order-7").wait()
    desk.work()
    done = cli("wake", "word", "order-7", "--output", '{"paid": [1, 2]}', "--app", "desk_jobs:app")
    assert (done.returncode, done.stdout) == (0, f"Woke word {run.id}\n")
    desk.work()
    assert run.refresh().wait().output == {"paid": [1, 2]}
    again = cli("wake", "word", "order-7", "--output", "3", "--app", "desk_jobs:app")
    assert (again.returncode, again.stdout) == (0, f"word {run.id} has ended before: completed\n")


def test_wake_takes_the_id_of_a_run_in_place_of_its_key(cli: Cli, desk: Desk) -> None:
    run = desk.word.trigger("order-7").wait()
    done = cli("wake", run.id, "--output", "[7]", "--app", "desk_jobs:app")
    assert (done.returncode, done.stdout) == (0, f"Woke word {run.id}\n")
    desk.work()
    assert run.refresh().wait().output == [7]
    other = desk.ask.trigger().wait()
    refused = cli("wake", other.id, "--output", "1", "--app", "desk_jobs:app")
    assert refused.returncode == 2
    assert "is one of 'ask', which is no sleeping job. Its sleeping jobs: approval, word." in refused.stderr


def test_wake_by_the_id_of_a_run_wakes_that_one_whosever_it_is(cli: Cli, desk: Desk) -> None:
    theirs = desk.word.options(tenant={"user": "ada"}).trigger("order-7").wait()
    ours = desk.word.trigger("order-7").wait()
    assert cli("wake", theirs.id, "--output", "1", "--app", "desk_jobs:app").stdout == f"Woke word {theirs.id}\n"
    desk.work()
    assert (theirs.refresh().wait().status, ours.refresh().wait().status) == ("completed", "waiting")


def test_wake_gives_a_sleeping_run_its_error(cli: Cli, desk: Desk) -> None:
    run = desk.word.trigger("order-7").wait()
    desk.work()
    document = parsed(cli("wake", "word", "order-7", "--error", "out of stock", "-a", "desk_jobs:app", "--json"))
    assert (document["run"]["id"], document["run"]["job_name"]) == (run.id, "word")
    desk.work()
    ended = run.refresh().wait()
    assert (ended.status, ended.error) == ("failed", "out of stock")


def test_wake_before_the_trigger_is_kept(cli: Cli, desk: Desk) -> None:
    document = parsed(cli("wake", "word", "early", "--output", "null", "-a", "desk_jobs:app", "--json"))
    run = desk.word.trigger("early").wait()
    assert (run.id, run.disposition) == (document["run"]["id"], "idempotent")
    desk.work()
    assert run.refresh().wait().status == "completed"


def test_wake_takes_the_output_as_the_type_of_the_job(cli: Cli, shop: Shop, desk: Desk) -> None:
    done = cli("wake", "approval", "k", "--output", '{"yes": true}', "-a", "desk_jobs:app", "--json")
    run = parsed(done)["run"]
    approval = desk.app.sleeping("approval")
    approval.trigger("k").wait()
    desk.work()
    (ended,) = [one for one in desk.app.get_runs(job="approval").wait() if one.id == run["id"]]
    assert ended.output == {"yes": True, "by": "nobody"}


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["signal", "NONE", "go", "1", "-u", "{url}"], 4, "Run not found: NONE"),
        (["signal", "01M7XTWB", "go", "1", "-u", "{url}"], 4, "Give the whole id: it has 26 characters"),
        (["signal", "NONE", "go", "yes", "-u", "{url}"], 2, "VALUE-JSON: 'yes' is no JSON"),
        (["signal", "NONE", "go", "NaN", "-u", "{url}"], 2, "VALUE-JSON: 'NaN' is no JSON"),
        (["signal", "NONE", "", "1", "-u", "{url}"], 2, "NAME"),
        (["signal", "NONE", "go", "1", "--key", "", "-u", "{url}"], 4, "Run not found"),
        (["signal", "NONE", "go"], 2, "HOLDFAST_URL"),
        (["signal", "NONE", "go", "--app", "desk_jobs:app", "-u", "sqlite:///x.db"], 2, "not sqlite:///x.db"),
        (["wake", "word", "k", "--output", "1"], 2, "--app yourmodule:app"),
        (["wake", "NONE", "-a", "desk_jobs:app", "-o", "1"], 4, "Run not found: NONE"),
        (["wake", "word", "k", "-a", "desk_jobs:app"], 2, "--output or --error"),
        (["wake", "word", "k", "-a", "desk_jobs:app", "-o", "1", "-e", "no"], 2, "--output or --error"),
        (["wake", "word", "k", "-a", "desk_jobs:app", "-o", "{yes"], 2, "--output: '{yes' is no JSON"),
        (["wake", "word", "", "-a", "desk_jobs:app", "-o", "1"], 2, "key"),
        (["wake", "none", "k", "-a", "desk_jobs:app", "-o", "1"], 4, "JOB: desk_jobs:app has no job 'none'"),
        (["wake", "none", "k", "-a", "desk_jobs:app", "-o", "1"], 4, "Its sleeping jobs: approval, word."),
        (["wake", "other", "k", "-a", "desk_jobs:app", "-o", "1"], 2, "JOB: 'other' is no sleeping job"),
        (["wake", "approval", "k", "-a", "desk_jobs:app", "-o", '{"yes": 7}'], 2, "--output: $.yes: "),
        (["wake", "approval", "k", "-a", "desk_jobs:app", "-o", "{}"], 2, "--output: $.yes: Field required"),
        (["wake", "word", "k", "-a", "no_such:app", "-o", "1"], 4, "There is no module 'no_such'"),
    ],
)
def test_what_can_not_be_sent_is_one_line_that_names_the_field(
    cli: Cli, shop: Shop, desk: Desk, arguments: list[str], code: int, said: str
) -> None:
    done = cli(*[argument.replace("{url}", shop.url) for argument in arguments])
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert done.stdout == ""
