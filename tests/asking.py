"""What tests of the wire share: requests to a handler without a server, a real server, streams read event by event."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, NamedTuple

import uvicorn

from holdfast import Holdfast
from holdfast.http import AsgiApp, Handler, Request

PATIENCE = 30.0

Params = Mapping[str, Any] | list[tuple[str, str]]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        assert set(self.json) == {"error"}
        return str(self.json["error"])


class Asking:
    """Asks a handler, as its adapters do."""

    def __init__(self, app: Holdfast, **options: Any) -> None:
        self.handler: Handler = app.handler(**options)
        self.headers: dict[str, str] = {}
        self.client: str | None = None

    async def ask(
        self,
        method: str,
        path: str,
        params: Params | str = (),  # type: ignore[assignment]
        body: Any = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        response = await self.handler.handle(self.request(method, path, params, body, headers))
        assert response.stream is None, "a stream: use `stream`"
        return Answer(response.status, dict(response.headers), response.body)

    def request(
        self, method: str, path: str, params: Any = (), body: Any = b"", headers: Mapping[str, str] | None = None
    ) -> Request:
        from urllib.parse import urlencode

        pairs = list(params.items()) if isinstance(params, Mapping) else params
        query = pairs if isinstance(pairs, str) else urlencode(pairs)
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        return Request(method, path, query, {**self.headers, **(headers or {})}, sent, self.client)

    async def get(self, path: str, params: Any = (), **more: Any) -> Answer:
        return await self.ask("GET", path, params, **more)

    async def post(self, path: str, body: Any = b"", params: Any = (), **more: Any) -> Answer:
        return await self.ask("POST", path, params, body, **more)

    async def delete(self, path: str, params: Any = (), **more: Any) -> Answer:
        return await self.ask("DELETE", path, params, **more)

    async def trigger(self, job: str, input: Any = None, **more: Any) -> str:
        answer = await self.post("/trigger", {"jobName": job, "input": {} if input is None else input, **more})
        assert answer.status == 200, answer
        return str(answer.json["runId"])

    @contextlib.asynccontextmanager
    async def stream(self, path: str, params: Any = (), **more: Any) -> AsyncIterator[Stream]:
        response = await self.handler.handle(self.request("GET", path, params, **more))
        assert response.stream is not None, response
        stream = Stream(response.stream)
        stream.headers = dict(response.headers)
        try:
            yield stream
        finally:
            await stream.close()


class Stream:
    """The events of a stream, and what stands between them."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self.headers: dict[str, str] = {}
        self.text = ""
        """Everything that has come."""
        self._chunks = chunks
        self._blocks: list[str] = []
        self._rest = ""

    async def block(self) -> str | None:
        """The next block, whatever it is; None after the last one."""
        while not self._blocks:
            try:
                async with asyncio.timeout(PATIENCE):
                    chunk = await anext(self._chunks)
            except StopAsyncIteration:
                assert self._rest == "", "a block without an end"
                return None
            self.text += chunk.decode()
            *whole, self._rest = (self._rest + chunk.decode()).split("\n\n")
            self._blocks += whole
        return self._blocks.pop(0)

    async def event(self) -> dict[str, Any] | None:
        """The next event; None after the last one."""
        while (block := await self.block()) is not None:
            if block.startswith("data: "):
                assert "\n" not in block
                event: dict[str, Any] = json.loads(block[6:])
                return event
        return None

    async def until(self, type: str, run_id: str | None = None) -> dict[str, Any]:
        """The next event of this type, and run."""
        # Also of the whole: a stream that says nothing but that it is there would be waited for without end.
        try:
            async with asyncio.timeout(PATIENCE):
                while (event := await self.event()) is not None:
                    if event["type"] == type and run_id in (None, event["runId"]):
                        return event
        except TimeoutError:
            raise AssertionError(f"no {type} within {PATIENCE} seconds: {self.text}") from None
        raise AssertionError(f"the stream ended before {type}: {self.text}")

    async def rest(self) -> list[dict[str, Any]]:
        """All events to the end."""
        events = []
        while (event := await self.event()) is not None:
            events.append(event)
        return events

    async def close(self) -> None:
        if (aclose := getattr(self._chunks, "aclose", None)) is not None:
            await aclose()


@contextlib.contextmanager
def serving(web: Any, **options: Any) -> Iterator[str]:
    """A real server in a thread of its own; its URL."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    config = uvicorn.Config(web, log_level="warning", access_log=False, timeout_graceful_shutdown=5, **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        pause = threading.Event()
        for _ in range(round(PATIENCE / 0.01)):
            if server.started or not thread.is_alive():
                break
            pause.wait(0.01)
        assert server.started
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        if isinstance(web, AsgiApp):
            web.handler.close()
        server.should_exit = True
        thread.join(PATIENCE)
        bound.close()
        assert not thread.is_alive()


def asking_of(app: Holdfast, test: Callable[[Asking], Awaitable[None]], **options: Any) -> None:
    """The test, with a handler of this app, in a loop of its own."""

    async def main() -> None:
        async with app:
            await test(Asking(app, **options))

    asyncio.run(main())
