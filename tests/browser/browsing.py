"""What the browser's tests share: Chromium, the page, the processes that serve it, and gates where jobs wait.

python tests/browser/browsing.py missing     names what is not on this machine, one on a line
"""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urljoin

import httpx

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

HERE = Path(__file__).resolve().parent
MODULES = HERE / "node_modules"
#: Seconds until a test that waits for something gives up. Never reached by a test that passes.
PATIENCE = 30.0
VARIABLE = "HOLDFAST_TEST_CHROMIUM"
_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


def chromium() -> str | None:
    """The path of the browser."""
    return os.environ.get(VARIABLE) or next(filter(None, map(shutil.which, _NAMES)), None)


def esbuild() -> str | None:
    """The path of the program that makes one file of the page: the one for this machine, without Node."""
    return next(iter(glob.glob(str(MODULES / "@esbuild" / "*" / "bin" / "esbuild"))), None)


def packages() -> bool:
    """Whether the packages of npm are those that `package-lock.json` names."""
    try:
        wanted = json.loads((HERE / "package-lock.json").read_bytes())["packages"]
        found = json.loads((MODULES / ".package-lock.json").read_bytes())["packages"]
    except (OSError, ValueError):
        return False
    return esbuild() is not None and all(wanted.get(name) == package for name, package in found.items())


def missing() -> list[str]:
    """What the tests can't do without, and is not here."""
    lacks = []
    if chromium() is None:
        lacks.append("chromium")
    if not packages():
        lacks.append("npm")
    if importlib.util.find_spec("playwright") is None:
        lacks.append("playwright")
    return lacks


def bundle(folder: Path) -> Path:
    """The page as one script."""
    made = folder / "page.js"
    program = esbuild()
    assert program is not None
    # React's development build: it says on the console what it finds wrong.
    options = ["--bundle", "--jsx=automatic", '--define:process.env.NODE_ENV="development"', "--log-level=warning"]
    subprocess.run([program, "page.tsx", *options, f"--outfile={made}"], cwd=HERE, check=True, timeout=PATIENCE)
    return made


@contextmanager
def browsing() -> Iterator[Browser]:
    """Chromium without a window."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as driver:
        # As root it has no sandbox; and a container's /dev/shm may be small.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = driver.chromium.launch(executable_path=chromium(), args=arguments)
        yield browser
        browser.close()


class Gates:
    """Where jobs of any process wait until the test lets them go on."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._changed = threading.Condition()
        self._waiting: dict[str, list[socket.socket]] = {}
        self.came: list[str] = []
        """All that ever came, in this order."""
        self._is_open = False
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                one, _ = self._server.accept()
            except OSError:
                return
            with one.makefile() as lines:
                name = lines.readline().strip()
            with self._changed:
                self._waiting.setdefault(name, []).append(one)
                self.came.append(name)
                if self._is_open:
                    one.close()
                self._changed.notify_all()

    def let_go(self, name: str) -> None:
        """Wait until a job is at this gate, and let it go on. Processes that died there are forgotten."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._waiting.get(name), PATIENCE), f"nobody came to {name}"
            for one in self._waiting.pop(name):
                one.close()

    def wait(self, name: str, times: int = 1) -> None:
        """Wait until jobs have been at this gate so many times."""
        with self._changed:
            there = self._changed.wait_for(lambda: self.came.count(name) >= times, PATIENCE)
        assert there, f"nobody came to {name}, but to {self.came}"

    def open(self) -> None:
        """From now on nobody waits any more."""
        with self._changed:
            self._is_open = True
            for waiting in self._waiting.values():
                for one in waiting:
                    one.close()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(PATIENCE)
        self.open()


class Process:
    """A process of ours that says in JSON where it is, once it is there."""

    def __init__(self, *command: str, database: str, gates: Gates, script: Path) -> None:
        env = {
            **os.environ,
            "PAGE_DATABASE": database,
            "PAGE_GATES": str(gates.port),
            "PAGE_SCRIPT": str(script),
        }
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "holdfast", *command, "--json"],
            cwd=HERE, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip
        self._asked = False
        assert self._popen.stdout is not None
        text = ""
        for line in self._popen.stdout:
            text += line
            if line == "}\n":
                break
        else:
            code = self._popen.wait(PATIENCE)
            raise AssertionError(f"it ended with {code} before it said where it is: {text}{self.errors()}")
        self.told: dict[str, Any] = json.loads(text)
        if "url" in self.told:  # that of the routes; the page is at the root
            self.told["url"] = urljoin(self.told["url"], "/").rstrip("/")

    def errors(self) -> str:
        """What it has written to its standard error."""
        self._errors.seek(0)
        return self._errors.read().decode()

    def kill(self) -> None:
        self._popen.kill()
        self._end()
        self._errors.close()

    def ask_to_stop(self) -> None:
        """Once: a second time would end it at once."""
        if not self._asked:
            self._asked = True
            self._popen.terminate()

    def stop(self) -> None:
        """As an operator stops it. It has to end soon, although pages have streams open, and without a complaint."""
        if self._errors.closed:
            return  # it has ended before
        self.ask_to_stop()
        code = self._end()
        said = self.errors()
        self._errors.close()
        assert (code, said) == (0, ""), f"it ended with {code}, and said: {said}"

    def _end(self) -> int:
        try:
            self._popen.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.communicate()
            raise
        return self._popen.returncode


Serve = Callable[..., Process]
"""Starts `holdfast serve page_server:web`, or what is given instead, on the house's database."""


class Panel:
    """One part of the page, and what it shows."""

    def __init__(self, page: Page, id: str) -> None:
        self.place: Locator = page.locator(f"#{id}")

    def shows(self, **told: Any) -> None:
        """Wait until it shows these values."""
        from playwright.sync_api import expect

        for name, value in told.items():
            text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
            expect(self.place.locator(f".{name}").first).to_have_text(text)

    def read(self, name: str) -> Any:
        """What it shows now."""
        return json.loads(self.place.locator(f".{name}").first.inner_text())

    def press(self, name: str) -> None:
        self.place.get_by_role("button", name=name, exact=True).click()

    def fill(self, name: str, value: Any) -> None:
        self.place.locator(f"input.{name}").fill(value if isinstance(value, str) else json.dumps(value))

    def logs(self, *lines: str) -> None:
        """Wait until it shows these lines of the log, and no others."""
        from playwright.sync_api import expect

        expect(self.place.locator(".logs li")).to_have_text(list(lines))

    def do(self, action: str, run_id: str) -> None:
        """Press a button of the list's actions for a run."""
        self.fill("id", run_id)
        self.press(action)

    def ids(self, *ids: str) -> None:
        """Wait until the list has these runs, in this order."""
        from playwright.sync_api import expect

        expect(self.place.locator("tr td:first-child")).to_have_text(list(ids))

    def row(self, run_id: str) -> Locator:
        return self.place.locator(f"tr[data-id='{run_id}']")


class Visitor:
    """One who looks at the page, in a browser without memory."""

    def __init__(self, browser: Browser) -> None:
        self.context = browser.new_context()
        self.page: Page = self.context.new_page()
        self.url = ""
        self.trouble: list[str] = []
        """What the browser's console said that is no mere information, and errors nobody caught."""
        self.borne: list[str] = []
        self.requests: list[str] = []
        """Method and path of all that the page asked its server for."""
        self.job, self.run, self.runs, self.runs_of_job = (
            Panel(self.page, id) for id in ("job", "run", "runs", "runs-of-job")
        )
        self.page.on("console", lambda said: said.type in ("warning", "error") and self.trouble.append(said.text))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("request", lambda request: self._asks(request))
        self._live: set[Any] = set()
        self._streams = 0
        self._reads: set[Any] = set()
        self.page.on("response", lambda response: self._answered(response))
        for over in ("requestfailed", "requestfinished"):
            self.page.on(over, lambda request: self._over(request))

    def _asks(self, request: Any) -> None:
        self.requests.append(f"{request.method} {request.url}")
        if "/runs?" in request.url:
            self._reads.add(request)

    def _over(self, request: Any) -> None:
        self._live.discard(request)
        self._reads.discard(request)

    def _answered(self, response: Any) -> None:
        if response.ok and "/runs/subscribe" in response.url:
            self._live.add(response.request)

    def open(self, url: str, **query: Any) -> Visitor:
        """The page with this query, once its streams of all runs are open: what happens before, it never hears of."""
        self.url = url
        shows = query.get("show", "job,runs").split(",")
        self._streams = ("job" in shows and query.get("follow") != "no") + (
            "runs" in shows and query.get("realtime") != "no"
        )
        self._live.clear()
        self._reads.clear()
        self.page.goto(f"{url}/?{urlencode(query, doseq=True)}")
        return self.is_live()

    def reload(self) -> Visitor:
        """The page once more, as it was opened."""
        self._live.clear()
        self._reads.clear()
        self.page.reload()
        return self.is_live()

    def is_live(self) -> Visitor:
        """Wait until its streams of all runs are open."""
        self.until(lambda: len(self._live) >= self._streams)
        return self

    def is_quiet(self) -> None:
        """Wait until no list is under way. One that was asked for before a change of pages may come after it."""
        self.until(lambda: not self._reads)

    def asked(self, what: str) -> int:
        """So many requests of the page with this in them."""
        return sum(what in request for request in self.requests)

    def expect(self, place: Locator) -> Any:
        """Playwright's assertions about a place of the page."""
        from playwright.sync_api import expect

        return expect(place)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until it is true of what the page has asked for, and was answered."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"it never came to be; the page has asked for {self.requests}"
            self.page.wait_for_timeout(10)  # it is a loop: what the browser tells comes in only while somebody waits

    def bears(self, *texts: str) -> None:
        """Complaints of the browser with one of these in them are what the test wants."""
        self.borne += texts

    def complaints(self) -> list[str]:
        return [said for said in self.trouble if not any(text in said for text in self.borne)]

    def api(self, method: str, path: str, **more: Any) -> Any:
        """What a route answers to somebody else: not a request of the page."""
        answer = httpx.request(method, f"{self.url}/api/durably{path}", timeout=PATIENCE, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def trigger(self, rows: int, job: str = "import-rows", **more: Any) -> str:
        """A run that somebody else triggers; its id."""
        body = {"jobName": job, "input": {"rows": rows, **more.pop("input", {})}, **more}
        return str(self.api("POST", "/trigger", json=body)["runId"])

    def ended(self, run_id: str) -> str:
        """Its status, once it has ended."""
        with httpx.stream(
            "GET", f"{self.url}/api/durably/subscribe", params={"runId": run_id}, timeout=PATIENCE
        ) as events:
            events.read()
        return str(self.api("GET", f"/run?runId={run_id}")["status"])


if __name__ == "__main__":
    if sys.argv[1:] != ["missing"]:
        raise SystemExit(__doc__)
    print("\n".join(missing()))
