"""`holdfast runs …` and `holdfast migrate`, as users and scripts meet them."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import threading
from pathlib import Path

import pytest
from console_script import LONG, SCRIPT, Cli, Shop, Spawn, environment, parsed

from holdfast import Holdfast, SyncStep
from holdfast.testing.clock import HandClock

pytestmark = pytest.mark.sampled("commands: what they print is the same on every Python", every=8)

ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
RUN_KEYS = {
    "id", "job_name", "status", "input", "output", "error", "error_type", "progress", "labels", "queue", "priority",
    "idempotency_key", "concurrency_key", "generation", "attempt", "crashes", "lease_owner", "lease_expires_at",
    "run_at", "created_at", "updated_at", "started_at", "completed_at", "parent_id", "root_id",
    "is_finalize", "waiting_for", "completed_step_count", "current_step_index",
}  # fmt: skip


# -- list --------------------------------------------------------------------------------------------------------


def test_list_shows_the_newest_run_first(cli: Cli, shop: Shop) -> None:
    first, second = shop.greet.trigger("Ada").wait(), shop.greet.trigger("Bob").wait()
    done = cli("runs", "list", "--url", shop.url)
    assert done.returncode == 0
    assert done.stdout.index(second.id) < done.stdout.index(first.id)
    assert "greet" in done.stdout
    assert "pending" in done.stdout


def test_list_as_json_is_one_document_with_stable_keys(cli: Cli, shop: Shop) -> None:
    run = shop.greet.options(labels={"team": "red"}, idempotency_key="k1", priority=3).trigger("Ada").wait()
    shop.work()
    document = parsed(cli("runs", "list", "-u", shop.url, "--json"))
    assert set(document) == {"runs", "next_before"}
    (shown,) = document["runs"]
    assert set(shown) == RUN_KEYS
    assert shown["id"] == run.id
    assert (shown["status"], shown["input"], shown["output"]) == ("completed", {"name": "Ada"}, "HELLO ADA")
    assert (shown["labels"], shown["idempotency_key"], shown["priority"]) == ({"team": "red"}, "k1", 3)
    assert shown["progress"] == {"current": 1, "total": 2, "message": "words"}
    assert all(ISO.fullmatch(shown[key]) for key in ("created_at", "started_at", "completed_at", "run_at"))


def test_list_filters_by_job_status_label_and_limit(cli: Cli, shop: Shop) -> None:
    red = shop.greet.options(labels={"team": "red"}).trigger("Ada").wait()
    failed = shop.refuse.trigger("no").wait()
    shop.work()
    waiting = shop.greet.trigger("Bob").wait()

    def ids(*arguments: str) -> list[str]:
        return [run["id"] for run in parsed(cli("runs", "list", "-u", shop.url, "--json", *arguments))["runs"]]

    assert ids("--job", "refuse") == [failed.id]
    assert ids("--status", "pending") == [waiting.id]
    assert ids("--status", "failed", "--status", "pending") == [waiting.id, failed.id]
    assert ids("--label", "team=red") == [red.id]
    assert ids("--limit", "1") == [waiting.id]
    assert ids("--job", "greet", "--status", "completed") == [red.id]


def test_list_takes_groups_of_statuses(cli: Cli, shop: Shop) -> None:
    good, bad = shop.greet.trigger("Ada").wait(), shop.refuse.trigger("no").wait()
    shop.work()
    waiting = shop.greet.trigger("Bob").wait()

    def ids(*statuses: str) -> list[str]:
        arguments = [part for status in statuses for part in ("--status", status)]
        return [run["id"] for run in parsed(cli("runs", "list", "-u", shop.url, "--json", *arguments))["runs"]]

    assert ids("active") == [waiting.id]
    assert ids("terminal") == [bad.id, good.id]
    assert ids("errored") == [bad.id]
    assert ids("errored", "pending") == [waiting.id, bad.id]


def test_a_full_page_says_how_to_get_the_next(cli: Cli, shop: Shop) -> None:
    made = [shop.greet.trigger(str(n)).wait().id for n in range(5)][::-1]
    first = parsed(cli("runs", "list", "-u", shop.url, "-n", "2", "--json"))
    assert [run["id"] for run in first["runs"]] == made[:2]
    assert first["next_before"] == made[1]
    assert f"--before {made[1]}" in cli("runs", "list", "-u", shop.url, "-n", "2").stdout
    rest = parsed(cli("runs", "list", "-u", shop.url, "-n", "3", "--before", made[1], "--json"))
    assert [run["id"] for run in rest["runs"]] == made[2:]
    assert rest["next_before"] is None
    assert "--before" not in cli("runs", "list", "-u", shop.url, "-n", "5").stdout


def test_list_takes_a_period(cli: Cli, shop: Shop) -> None:
    clock = HandClock(1_767_225_600_000_000)  # 2026-01-01
    then = Holdfast(shop.url, clock=clock, worker=False)

    @then.job
    def never() -> None: ...

    ids = []
    for _ in range(4):
        ids.append(never.trigger().wait().id)
        clock.advance(86400)
    then.stop().wait()
    recent = shop.never.trigger().wait().id

    def between(*arguments: str) -> list[str]:
        return [run["id"] for run in parsed(cli("runs", "list", "-u", shop.url, "--json", *arguments))["runs"]]

    assert between("--since", "2026-01-02T00:00Z") == [recent, *ids[:0:-1]]
    assert between("--until", "2026-01-03T00:00Z") == ids[1::-1]
    assert between("--since", "2026-01-02T00:00Z", "--until", "2026-01-04T00:00Z", "-n", "1") == [ids[2]]
    assert between("--until", "2026-01-04T00:00Z", "--before", ids[1]) == [ids[0]]
    assert between("--since", "1h") == [recent]
    assert between("--until", "1h", "-n", "9") == ids[::-1]


def test_list_says_when_there_is_nothing(cli: Cli, shop: Shop) -> None:
    assert "No runs yet" in cli("runs", "list", "-u", shop.url).stdout
    assert "No runs that fit" in cli("runs", "list", "-u", shop.url, "--job", "x").stdout


def test_the_url_may_come_from_the_environment(cli: Cli, shop: Shop) -> None:
    run = shop.greet.trigger("Ada").wait()
    assert run.id in cli("runs", "list", HOLDFAST_URL=shop.url).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["runs", "list"], 2, "HOLDFAST_URL"),
        (["runs", "list", "-u", "runs.db"], 2, "sqlite:///runs.db"),
        (["runs", "list", "-u", "sqlite://"], 2, "private"),
        (["runs", "list", "-u", "sqlite:///nowhere.db"], 5, "nowhere.db"),
        (["runs", "list", "-u", "oracle://me:pa/ss@w@host/db"], 2, "'oracle://…' is the URL of no database"),
        (["runs", "list", "-u", "sqlite://me:pa/ss@w@host/db"], 2, "sqlite://me:***@host/db"),
        (["runs", "list", "-u", "mysql://me:pa/ss@w@host/db"], 2, "Write 'mysql://user:password@host/database'"),
        (["runs", "list", "-u", "{url}", "--status", "running"], 2, "Invalid status: running"),
        (["runs", "list", "-u", "{url}", "--label", "team"], 2, "key=value"),
        (["runs", "list", "-u", "{url}", "--limit", "0"], 2, "--limit"),
        (["runs", "show", "NONE", "-u", "{url}"], 4, "Run not found: NONE"),
        (["runs", "watch", "NONE", "-u", "{url}"], 4, "Run not found: NONE"),
        (["runs", "cancel", "NONE", "-u", "{url}"], 4, "Run not found: NONE"),
        (["runs", "show", "01M7XTWB", "-u", "{url}"], 4, "Give the whole id: it has 26 characters"),
        (["runs", "cancel", "01M7XTWB", "-u", "{url}"], 4, "Give the whole id: it has 26 characters"),
        (["runs", "retrigger", "NONE", "-u", "{url}"], 2, "--app yourmodule:app"),
        (["runs", "delete", "NONE", "-u", "{url}"], 2, "say --yes"),
        (["runs", "delete", "NONE", "-u", "{url}", "--yes"], 4, "Run not found: NONE"),
        (["runs", "purge", "-u", "{url}", "--yes"], 2, "--older-than"),
        (["runs", "purge", "-u", "{url}", "--older-than", "30d"], 2, "say --yes"),
        (["runs", "purge", "-u", "{url}", "--older-than", "soon", "--dry-run"], 2, "write a date"),
        (["runs", "watch", "-u", "{url}"], 2, "--all-active"),
        (["runs", "watch", "NONE", "-u", "{url}", "--all-active"], 2, "not both"),
        (["runs", "watch", "NONE", "NADA", "-u", "{url}"], 4, "Run not found: NONE, NADA"),
        (["runs", "list", "-u", "{url}", "--since", "yesterday"], 2, "--since 'yesterday'"),
        (["runs", "list", "-u", "sqlite:/runs.db"], 2, "write sqlite:///runs.db"),
        (["runs", "dance"], 2, "dance"),
        (["migrate"], 2, "HOLDFAST_URL"),
        (["migrate", "sqlite:///no/such/folder/x.db"], 5, "no/such/folder"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    cli: Cli, shop: Shop, arguments: list[str], code: int, said: str
) -> None:
    done = cli(*[argument.replace("{url}", shop.url) for argument in arguments])
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "pa/ss" not in done.stderr
    assert done.stdout == ""


def test_a_file_that_is_no_database_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear all, this is no database" * 100)
    done = cli("runs", "list", "-u", "sqlite:///letter.txt")
    assert (done.returncode, done.stdout) == (5, "")
    assert "is not an SQLite database" in done.stderr


def test_a_database_without_tables_says_what_to_run(cli: Cli, tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "empty.db").close()
    (tmp_path / "empty.db").touch()
    done = cli("runs", "list", "-u", "sqlite:///empty.db")
    assert done.returncode == 5
    assert "holdfast migrate" in done.stderr


def test_looking_never_makes_a_database(cli: Cli, tmp_path: Path) -> None:
    cli("runs", "list", "-u", "sqlite:///typo.db")
    assert not (tmp_path / "typo.db").exists()


# -- show --------------------------------------------------------------------------------------------------------


def test_show_tells_the_run_its_steps_its_error_and_its_log(cli: Cli, shop: Shop) -> None:
    good, bad = shop.greet.trigger("Ada").wait(), shop.refuse.trigger("out of stock").wait()
    shop.work()
    shown = cli("runs", "show", good.id, "-u", shop.url).stdout
    for part in (good.id, "completed", "HELLO ADA", "greet", "greeting", '"name": "Ada"', "1 / 2 words"):
        assert part in shown
    shown = cli("runs", "show", bad.id, "-u", shop.url).stdout
    assert "failed" in shown
    assert "ValueError: out of stock" in shown


def test_show_as_json_has_run_steps_and_logs(cli: Cli, shop: Shop) -> None:
    good, bad = shop.greet.trigger("Ada").wait(), shop.refuse.trigger("out of stock").wait()
    shop.work()
    shown = parsed(cli("runs", "show", good.id, "-u", shop.url, "--json"))
    assert set(shown) == {"run", "steps", "logs", "below", "below_is_whole"}
    assert [(step["name"], step["status"], step["output"]) for step in shown["steps"]] == [
        ("greet", "completed", "HELLO ADA")
    ]
    assert [(line["level"], line["message"], line["data"]) for line in shown["logs"]] == [
        ("info", "greeting", {"name": "Ada"})
    ]
    assert ISO.fullmatch(shown["steps"][0]["completed_at"])
    assert ISO.fullmatch(shown["logs"][0]["created_at"])
    shown = parsed(cli("runs", "show", bad.id, "-u", shop.url, "--json"))
    assert (shown["run"]["error"], shown["run"]["error_type"]) == ("out of stock", "ValueError")
    assert (shown["steps"][0]["status"], shown["steps"][0]["error"]) == ("failed", "out of stock")


HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31mred \u202egnorw\r\n[bold]not markup[/bold] :smile: \x08end"


def test_what_a_job_saved_can_not_steer_the_terminal(cli: Cli, shop: Shop) -> None:
    good, bad = shop.greet.options(labels={"team": HOSTILE}).trigger(HOSTILE).wait(), shop.refuse.trigger(HOSTILE)
    shop.work()
    for run in (good, bad.wait()):
        done = cli("runs", "show", run.id, "-u", shop.url)
        assert done.returncode == 0
        assert "[bold]not markup[/bold] :smile:" in done.stdout.replace("BOLD", "bold").replace(
            "NOT MARKUP", "not markup"
        )
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", done.stdout)
        assert not re.search("(labels|error).*owned", done.stdout)  # input and output are JSON: escaped, not obeyed
        as_json = cli("runs", "show", run.id, "-u", shop.url, "--json")
        assert as_json.stdout.isascii()
        assert json.loads(as_json.stdout)["run"]["input"] in ({"name": HOSTILE}, {"why": HOSTILE})


def test_colours_are_for_terminals_only(cli: Cli, shop: Shop) -> None:
    shop.greet.trigger("Ada").wait()
    assert "\x1b" not in cli("runs", "list", "-u", shop.url).stdout
    assert "\x1b[" in cli("runs", "list", "-u", shop.url, FORCE_COLOR="1", TERM="xterm").stdout


def test_a_narrow_terminal_still_shows_whole_ids(cli: Cli, shop: Shop) -> None:
    run = shop.greet.trigger("Ada").wait()
    shop.work()
    for command in (["list"], ["show", run.id, "--logs", "0"]):
        done = cli("runs", *command, "-u", shop.url, COLUMNS="40")
        assert done.returncode == 0
        assert max(map(len, done.stdout.splitlines())) <= 40
        assert "completed" in done.stdout
    listed = cli("runs", "list", "-u", shop.url, COLUMNS="40").stdout
    first, rest = [line.split()[0] for line in listed.splitlines()[1:3]]
    assert first + rest == run.id


def test_a_long_output_is_cut_for_people_and_whole_for_programs(cli: Cli, shop: Shop) -> None:
    name = "x" * 100_000
    run = shop.greet.trigger(name).wait()
    shop.work()
    assert len(cli("runs", "show", run.id, "-u", shop.url).stdout) < 5000
    assert parsed(cli("runs", "show", run.id, "-u", shop.url, "--json"))["run"]["input"] == {"name": name}


@pytest.mark.skipif(os.name == "nt", reason="no pipes as here")
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_reader_that_leaves_early_is_no_error(shop: Shop, more: list[str]) -> None:
    for number in range(300):
        shop.greet.trigger("x" * 1000 + str(number)).wait()
    arguments = [str(SCRIPT), "runs", "list", "-u", shop.url, "--limit", "300", *more]
    process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(LONG) in (0, 1)


# -- watch -------------------------------------------------------------------------------------------------------


def test_watch_follows_a_run_that_another_process_executes(shop: Shop, spawn: Spawn) -> None:
    gate = threading.Event()
    app = Holdfast(shop.url, worker="thread", polling_interval=0.1)

    @app.job
    def count(step: SyncStep) -> int:
        step.log.info("first line")
        step.progress(1, 2, "things")
        step.run("wait", lambda: gate.wait(LONG))
        step.progress(2, 2, "things")
        return 2

    with app:
        run = count.trigger().wait()
        watching = spawn("runs", "watch", run.id, "-u", shop.url)
        assert watching.stdout is not None
        seen = ""
        while "1 / 2 things" not in seen:  # ends with the process, if not by this
            line = watching.stdout.readline()
            assert line, seen
            seen += line
        gate.set()
        rest = watching.stdout.read()  # not communicate(): that overlooks what came together with the line above
        assert watching.wait(LONG) == 0
    assert "first line" in seen + rest
    assert "completed" in rest
    assert "output" in rest


@pytest.mark.parametrize(("kind", "code"), [("completed", 0), ("failed", 1), ("cancelled", 3)])
def test_the_exit_code_of_watch_tells_how_the_run_ended(cli: Cli, shop: Shop, kind: str, code: int) -> None:
    job = {"completed": shop.greet, "failed": shop.refuse, "cancelled": shop.greet}[kind]
    run = job.trigger("x").wait()
    if kind == "cancelled":
        run.cancel().wait()
    shop.work()
    assert cli("runs", "watch", run.id, "-u", shop.url).returncode == code
    done = cli("runs", "watch", run.id, "-u", shop.url, "--json")
    assert (done.returncode, parsed(done)["run"]["status"]) == (code, kind)


# -- cancel, retrigger, migrate ----------------------------------------------------------------------------------


def test_cancel_ends_a_run_once(cli: Cli, shop: Shop) -> None:
    run, other = shop.never.trigger().wait(), shop.never.trigger().wait()
    assert run.id in cli("runs", "cancel", run.id, "-u", shop.url).stdout
    assert run.refresh().wait().status == "cancelled"
    again = cli("runs", "cancel", run.id, "-u", shop.url)
    assert again.returncode == 6
    assert "Cannot cancel already cancelled run" in again.stderr
    (shown,) = parsed(cli("runs", "cancel", other.id, "-u", shop.url, "--json"))["runs"]
    assert shown["status"] == "cancelled"


def test_several_runs_are_cancelled_at_once_and_one_refusal_keeps_nothing_from_the_others(cli: Cli, shop: Shop) -> None:
    ids = [shop.never.trigger().wait().id for _ in range(3)]
    shop.app.cancel(ids[1]).wait()
    done = cli("runs", "cancel", *ids, "NONE", "-u", shop.url)
    assert done.returncode == 6, "the first refusal says why"
    assert [line.split()[-1] for line in done.stdout.splitlines()] == [ids[0], ids[2]]
    assert [line.split(":")[1].strip() for line in done.stderr.splitlines()] == [
        "Cannot cancel already cancelled run",
        "Run not found",
    ]
    again = cli("runs", "cancel", "NONE", ids[0], "-u", shop.url, "--json")
    assert again.returncode == 4
    document = parsed(again)
    assert document["runs"] == []
    assert [(error["id"], error["exit_code"]) for error in document["errors"]] == [("NONE", 4), (ids[0], 6)]


def test_several_runs_are_retriggered_at_once(cli: Cli, shop: Shop, shop_module: Path) -> None:
    ids = [shop.greet.trigger(name).wait().id for name in ("Ada", "Bob")]
    shop.work()
    document = parsed(cli("runs", "retrigger", *ids, "--app", "shop_jobs:app", "--json"))
    assert [(run["retriggered_from"], run["input"]["name"]) for run in document["runs"]] == [
        (ids[0], "Ada"),
        (ids[1], "Bob"),
    ]


def test_retrigger_makes_a_fresh_run_by_the_app(cli: Cli, shop: Shop, shop_module: Path) -> None:
    run = shop.greet.trigger("Ada").wait()
    early = cli("runs", "retrigger", run.id, "--app", "shop_jobs:app")
    assert early.returncode == 6
    shop.work()
    (again,) = parsed(cli("runs", "retrigger", run.id, "--app", "shop_jobs:app", "--json"))["runs"]
    assert again["retriggered_from"] == run.id
    assert again["id"] != run.id
    assert (again["status"], again["input"]) == ("pending", {"name": "Ada"})
    assert "Triggered greet again" in cli("runs", "retrigger", run.id, "--app", "shop_jobs:app").stdout


def test_retrigger_refuses_a_url_that_is_not_the_apps(cli: Cli, shop: Shop, shop_module: Path) -> None:
    done = cli("runs", "retrigger", "X", "--app", "shop_jobs:app", "--url", "sqlite:///other.db")
    assert done.returncode == 2
    assert "sqlite:///runs.db, not sqlite:///other.db" in done.stderr


def test_migrate_makes_the_tables_once(cli: Cli, tmp_path: Path) -> None:
    first = parsed(cli("migrate", "sqlite:///new.db", "--json"))
    assert first["applied"]
    assert parsed(cli("migrate", "sqlite:///new.db", "--json"))["applied"] == []
    assert "nothing to do" in cli("migrate", HOLDFAST_URL="sqlite:///new.db").stdout
    assert "nothing to do" in cli("migrate", "--url", "sqlite:///new.db").stdout
    assert cli("runs", "list", "-u", "sqlite:///new.db").returncode == 0


# -- the command itself ------------------------------------------------------------------------------------------


def test_the_help_documents_the_exit_codes(cli: Cli) -> None:
    for arguments in (["--help"], ["runs", "watch", "--help"]):
        done = cli(*arguments, COLUMNS="200")
        assert done.returncode == 0
        assert "Exit codes: 0" in done.stdout


def test_the_version_is_that_of_the_package(cli: Cli) -> None:
    done = cli("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "holdfast")


def test_without_the_extra_it_says_how_to_get_it(tmp_path: Path) -> None:
    import sys

    program = "import sys; sys.modules['typer'] = None; from holdfast.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=LONG, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert 'pip install "holdfast[cli]"' in done.stderr


def test_an_error_nobody_expected_is_one_line_unless_debugging(cli: Cli, shop_module: Path) -> None:
    shop_module.write_text("raise RuntimeError('\x1b[31mboom')", encoding="utf-8")
    done = cli("worker", "shop_jobs:app")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "RuntimeError: boom" in done.stderr
    assert "shop_jobs.py:1" in done.stderr
