"""What the browser's tests serve: the page and the routes, on one origin. `holdfast serve page_server:web`.

For those with a cookie: `page_server:guarded`. Another process may execute the runs: `holdfast worker page_server:app`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from http.cookies import SimpleCookie
from pathlib import Path

from holdfast import Holdfast, Step
from holdfast.http import AsgiApp, Auth, Request
from holdfast.http.asgi import Receive, Scope, Send

# Some of its runs fail on purpose, and what a server complains of is a failure of the test.
logging.getLogger("holdfast.runs").setLevel(logging.ERROR)

app = Holdfast(os.environ["PAGE_DATABASE"], lease="2s")

SCRIPT = Path(os.environ["PAGE_SCRIPT"]).read_bytes()
HTML = b'<!doctype html><meta charset="utf-8"><title>Runs</title><div id="root"></div><script src="/page.js"></script>'


async def gate(name: str) -> None:
    """Tell the test that we are here, and wait until it lets us go."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(os.environ["PAGE_GATES"]))
    writer.write(f"{name}\n".encode())
    await reader.read()
    writer.close()
    await writer.wait_closed()


async def save(row: int, held: bool) -> int:
    if held:
        await gate(f"row {row}")
    return row


@app.job(name="import-rows")
async def import_rows(step: Step, rows: int, held: bool = False, fail_at: int | None = None) -> dict[str, int]:
    for row in range(rows):
        if row == fail_at:
            raise ValueError(f"row {row} has no name")
        await step.run(f"row-{row}", save, row, held)
        step.progress(row + 1, rows, f"{row + 1} of {rows}")
        step.log.info(f"saved row {row}", row=row, at=time.time() * 1000)
    return {"rows": rows}


@app.job(name="give-nothing")
async def give_nothing(step: Step) -> None:
    step.log.warning("nothing to do")


@app.job(name="tick")
async def tick(step: Step, times: int) -> dict[str, int]:
    for number in range(times):
        await gate(f"tick {number}")
        at = time.time() * 1000
        step.progress(number + 1, times, str(at))
        step.log.info(f"tick {number}", at=at)
    return {"times": times}


class Site(AsgiApp):
    """The routes, and beside them the page."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else None
        if path == "/":
            await _send(send, 200, b"text/html; charset=utf-8", HTML)
        elif path == "/page.js":
            await _send(send, 200, b"text/javascript; charset=utf-8", SCRIPT)
        elif path == "/over-at-once":
            await _send(send, 200, b"text/event-stream", b": a stream that any browser asks for again\n\n")
        elif path == "/favicon.ico":
            await _send(send, 204, b"image/x-icon", b"")
        else:
            await super().__call__(scope, receive, send)


async def _send(send: Send, status: int, kind: bytes, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    await send({"type": "http.response.body", "body": body})


def by_cookie(request: Request) -> str | None:
    cookies: SimpleCookie = SimpleCookie(request.header("cookie") or "")
    return cookies["who"].value if "who" in cookies else None


web = Site(app.handler(base_path="/api/durably"))
auth = Auth(authenticate=by_cookie, tenant=lambda who: {"who": who})
guarded = Site(app.handler(base_path="/api/durably", auth=auth))
