"""What is no HTTP, or too much of it, on a real socket: 4xx or a closed connection, and nothing has changed."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest

from asking import PATIENCE, serving
from holdfast import Step, job
from house import House

pytestmark = pytest.mark.sampled("web servers: the same on every Python", every=4)

TABLES = ("runs", "labels", "steps", "logs", "signals", "waits", "progress", "keys")


@job
async def number(step: Step, n: int) -> int:
    return n


@job
async def anything(step: Step, value: Any) -> Any:
    return value


class Served(NamedTuple):
    house: House
    url: str
    run_id: str

    def ask(self, sent: bytes, *, is_whole: bool = True) -> list[int]:
        """The statuses that were answered until the connection was closed; none: it was closed without a word.

        `is_whole`: the server needs nothing more to answer; else it is told that nothing more comes.
        """
        place = urlsplit(self.url)
        with closing(socket.create_connection((place.hostname, place.port), PATIENCE)) as client:
            told = b""
            try:
                client.sendall(sent)
                if is_whole:
                    told += client.recv(1 << 16)
                client.shutdown(socket.SHUT_WR)
                while part := client.recv(1 << 16):
                    told += part
            except (ConnectionError, BrokenPipeError):
                pass  # it has closed while something was still being sent
            except OSError as error:
                if error.errno != 107:  # not connected: closed before the shutdown
                    raise
        return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", told)]

    def rows(self) -> list[Any]:
        return [self.house.sql(f"select * from holdfast_{table}") for table in TABLES]


@pytest.fixture
def served(house: House) -> Iterator[Served]:
    web = house.app(number, anything, worker=False).asgi()
    with serving(web) as url:
        run_id = httpx.post(f"{url}/trigger", json={"jobName": "number", "input": {"n": 1}}).json()["runId"]
        yield Served(house, url, run_id)


GOOD = b'{"jobName": "number", "input": {"n": 1}}'


def post(*headers: bytes, body: bytes = GOOD, path: bytes = b"/trigger") -> bytes:
    return b"\r\n".join([b"POST " + path + b" HTTP/1.1", b"Host: localhost", *headers, b"", b""]) + body


LENGTH = b"Content-Length: %d" % len(GOOD)
CHUNKED = b"Transfer-Encoding: chunked"
GOOD_CHUNK = b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD)
SMUGGLED = post(LENGTH)

MALFORMED: dict[str, bytes] = {
    "garbage": b"GARBAGE\r\n\r\n",
    "nothing but a line": b"\r\n\r\n\r\n",
    "a request of HTTP 0.9": b"GET /runs\r\n\r\n",
    "a preface of HTTP 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": bytes.fromhex("160301020001fc0303") + b"\0" * 64 + b"\r\n\r\n",
    "no path": b"POST  HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a space in the path": b"GET /ru ns HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a NUL in the path": b"GET /ru\0ns HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an encoded NUL in the path": b"GET /runs%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bytes that are no UTF-8 in the path": b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "encoded bytes that are no UTF-8 in the path": b"GET /%ff%fe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a whole URL of another host": b"POST http://evil.example/trigger HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "an asterisk": b"POST * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "CONNECT": b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no host": b"POST /trigger HTTP/1.1\r\n" + LENGTH + b"\r\n\r\n" + GOOD,
    "two hosts": post(LENGTH, b"Host: evil.example"),
    "a NUL in a header": post(LENGTH, b"X-A: a\0b"),
    "a header without a colon": post(LENGTH, b"X-A"),
    "a header without a name": post(LENGTH, b": a"),
    "a space before the colon": post(b"Content-Length : %d" % len(GOOD)),
    "a header over two lines": post(LENGTH, b"Transfer-Encoding:\r\n chunked"),
    "a bare return in a header": post(LENGTH, b"X-A: a\rTransfer-Encoding: chunked"),
    "a header of 100 KB": post(LENGTH, b"X-A: " + b"a" * 100_000),
    "a header of 40 KB": post(LENGTH, b"X-A: " + b"a" * 40_000),
    "a thousand headers": post(LENGTH, *(b"X-%d: a" % n for n in range(1000))),
    "a path of 100 KB": post(LENGTH, path=b"/trigger" + b"a" * 100_000),
    "a query of 20 KB": post(LENGTH, path=b"/trigger?x=" + b"a" * 20_000),
    "a length that is no number": post(b"Content-Length: x"),
    "a length below zero": post(b"Content-Length: -1"),
    "a length with a sign": post(b"Content-Length: +%d" % len(GOOD)),
    "a length in hexadecimal": post(b"Content-Length: 0x28"),
    "a length of 400 digits": post(b"Content-Length: " + b"9" * 400),
    "two lengths": post(LENGTH, b"Content-Length: 5"),
    "two lengths in one header": post(b"Content-Length: %d, 5" % len(GOOD)),
    "a length of a terabyte": post(b"Content-Length: 1099511627776"),
    "a chunk of no length": post(CHUNKED, body=b"\r\n" + GOOD_CHUNK),
    "a chunk whose length is no number": post(CHUNKED, body=b"xyz\r\n" + GOOD + b"\r\n0\r\n\r\n"),
    "a chunk below zero": post(CHUNKED, body=b"-28\r\n" + GOOD + b"\r\n0\r\n\r\n"),
    "a chunk with a prefix": post(CHUNKED, body=b"0x28\r\n" + GOOD + b"\r\n0\r\n\r\n"),
    "a chunk that is longer than it says": post(CHUNKED, body=b"5\r\n" + GOOD + b"\r\n0\r\n\r\n"),
    "a chunk whose length has 40 digits": post(CHUNKED, body=b"f" * 40 + b"\r\n" + GOOD),
    "an encoding that is not known": post(b"Transfer-Encoding: xchunked", body=GOOD_CHUNK),
    "two encodings": post(b"Transfer-Encoding: chunked, identity", body=GOOD_CHUNK),
    "an encoding twice": post(CHUNKED, CHUNKED, body=GOOD_CHUNK),
    "a length and an encoding": post(LENGTH, CHUNKED, body=GOOD_CHUNK),
    "an encoding and a length": post(CHUNKED, LENGTH, body=GOOD_CHUNK),
    "a compressed body": post(LENGTH, b"Content-Encoding: gzip", body=b"\x1f\x8b\x08\0" + b"\0" * (len(GOOD) - 4)),
}  # fmt: skip

#: A second request in what one reader takes for the body of the first, and another for a request.
SMUGGLING: dict[str, bytes] = {
    "CL.TE": post(b"Content-Length: %d" % (5 + len(SMUGGLED)), CHUNKED, body=b"0\r\n\r\n" + SMUGGLED),
    "TE.CL": post(CHUNKED, b"Content-Length: 4", body=b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)),
    "CL.CL": post(b"Content-Length: 0", b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED),
    "TE.TE": post(CHUNKED, b"Transfer-Encoding: cow", body=b"0\r\n\r\n" + SMUGGLED),
    "a space before the colon": post(
        b"Content-Length: 5", b"Transfer-Encoding : chunked", body=b"0\r\n\r\n" + SMUGGLED
    ),
    "a tab in the name": post(b"Content-Length: 5", b"Transfer-Encoding\t: chunked", body=b"0\r\n\r\n" + SMUGGLED),
    "a vertical tab": post(b"Content-Length: 5", b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n" + SMUGGLED),
    "a header that ends in a bare line feed": post(
        b"Content-Length: 5", b"X: y\nTransfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED
    ),
}  # fmt: skip

#: Bodies that are JSON for some, and not what a run can be made of.
BODIES: dict[str, bytes] = {
    "bytes that are no UTF-8": b'{"jobName": "number", "input": {"n": "\xff\xfe"}}',
    "overlong UTF-8": b'{"jobName": "number\xc0\x80", "input": {"n": 1}}',
    "UTF-16": '{"jobName": "number", "input": {"n": 1}}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "half a surrogate pair": b'{"jobName": "anything", "input": {"value": "\\ud800"}}',
    "surrogates the wrong way round": b'{"jobName": "anything", "input": {"value": "\\udc00\\ud800"}}',
    "encoded surrogates": b'{"jobName": "anything", "input": {"value": "\xed\xa0\x80"}}',
    "NaN": b'{"jobName": "anything", "input": {"value": NaN}}',
    "Infinity": b'{"jobName": "anything", "input": {"value": -Infinity}}',
    "an integer of 5,000 digits": b'{"jobName": "anything", "input": {"value": ' + b"9" * 5000 + b"}}",
    "an integer where a small one is meant": b'{"jobName": "number", "input": {"n": "' + b"9" * 5000 + b'"}}',
    "a hundred thousand lists": b'{"jobName": "anything", "input": {"value": ' + b"[" * 10**5 + b"]" * 10**5 + b"}}",
    "a hundred thousand lists without an end": b'{"jobName": "anything", "input": {"value": ' + b"[" * 100_000,
    "a thousand objects": b'{"jobName": "anything", "input": {"value": ' + b'{"a":' * 1000 + b"1" + b"}" * 1002,
    "a NUL after the end": GOOD + b"\0",
    "two documents": GOOD + GOOD,
    "a comment": GOOD[:-1] + b"/* */}",
    "a comma too many": GOOD[:-1] + b",}",
    "single quotes": GOOD.replace(b'"', b"'"),
    "a list": b"[" + GOOD + b"]",
    "a text": json.dumps(GOOD.decode()).encode(),
    "nothing": b"",
    "the name a second time, of no job": b'{"jobName": "number", "input": {"n": 1}, "jobName": "nobody"}',
    "the input a second time, as a list": b'{"jobName": "number", "input": {"n": 1}, "input": [1]}',
    "labels that are no texts": b'{"jobName": "number", "input": {"n": 1}, "labels": {"a": {"$ne": null}}}',
    "a label with a NUL": b'{"jobName": "number", "input": {"n": 1}, "labels": {"a\\u0000": "x"}}',
    "a key with a NUL": b'{"jobName": "number", "input": {"n": 1}, "idempotencyKey": "a\\u0000b"}',
    "a key of 10 KB": b'{"jobName": "number", "input": {"n": 1}, "idempotencyKey": "' + b"k" * 10_000 + b'"}',
    "a name of 100 KB": b'{"jobName": "' + b"n" * 100_000 + b'"}',
    "a constructor of JavaScript": b'{"__proto__": {"jobName": "number"}, "input": {"n": 1}}',
}  # fmt: skip

#: What one can only wait for: the server waits, too, until nothing more comes.
UNFINISHED: dict[str, bytes] = {
    "half a method": b"PO",
    "half a header": b"POST /trigger HTTP/1.1\r\nHost: local",
    "half a body": post(LENGTH, body=GOOD[:10]),
    "no body": post(LENGTH, body=b""),
    "chunks without a last one": post(CHUNKED, body=b"%x\r\n%s\r\n" % (len(GOOD), GOOD)),
    "half a chunk": post(CHUNKED, body=b"%x\r\n%s" % (len(GOOD) + 10, GOOD)),
    "a promise of a body": post(LENGTH, b"Expect: 100-continue", body=b""),
}


def check(served: Served, before: list[Any], statuses: list[int]) -> None:
    assert all(400 <= status < 500 for status in statuses if status != 100), statuses
    assert served.rows() == before
    assert httpx.get(f"{served.url}/run", params={"runId": served.run_id}).status_code == 200, "it goes on answering"


def test_malformed_http_is_refused_and_changes_nothing(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    before = served.rows()
    for name, sent in MALFORMED.items():
        statuses = served.ask(sent)
        try:
            check(served, before, statuses)
        except AssertionError as error:
            error.add_note(name)
            raise
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_no_request_is_smuggled_in_by_another(served: Served) -> None:
    before = served.rows()
    for name, sent in SMUGGLING.items():
        statuses = served.ask(sent)
        try:
            check(served, before, statuses)
        except AssertionError as error:
            error.add_note(name)
            raise


def test_a_body_that_is_no_json_to_us_is_refused_and_changes_nothing(served: Served) -> None:
    before = served.rows()
    for name, body in BODIES.items():
        answer = httpx.post(f"{served.url}/trigger", content=body)
        try:
            assert answer.headers["content-type"] == "application/json"
            check(served, before, [answer.status_code])
        except AssertionError as error:
            error.add_note(name)
            raise


def test_what_never_comes_to_its_end_changes_nothing(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    before = served.rows()
    for sent in UNFINISHED.values():
        check(served, before, served.ask(sent, is_whole=False))
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_what_is_well_formed_is_taken(served: Served) -> None:
    """So that the others are not refused for something else."""
    parts = b"5;x=y\r\n%s\r\n%x\r\n%s\r\n0\r\nX: y\r\n\r\n" % (GOOD[:5], len(GOOD) - 5, GOOD[5:])
    for sent in (post(LENGTH), post(CHUNKED, body=GOOD_CHUNK), post(CHUNKED, body=parts)):
        assert served.ask(sent) == [200]
    assert len(served.rows()[0]) == 4


@pytest.mark.parametrize(
    "value",
    ["\0", "a\0b", "🌊", "\u202e", 2**53 + 1, -(2**63), 10**300, 1e308, -0.0, "'; drop table holdfast_runs"],
    ids=lambda value: ascii(value)[:30],
)
def test_what_json_can_say_comes_back_as_it_was_sent(value: Any, served: Served) -> None:
    body = {"jobName": "anything", "input": {"value": value}, "labels": {"ord": "x"}}
    made = httpx.post(f"{served.url}/trigger", json=body)
    assert made.status_code == 200
    shown = httpx.get(f"{served.url}/run", params={"runId": made.json()["runId"]}).json()
    assert shown["input"] == {"value": value}


def test_of_a_key_that_is_said_twice_the_last_counts(served: Served) -> None:
    made = httpx.post(
        f"{served.url}/trigger",
        content=b'{"jobName": "nobody", "jobName": "anything", "input": {"value": 1, "value": 2}}',
    )
    shown = httpx.get(f"{served.url}/run", params={"runId": made.json()["runId"]}).json()
    assert shown["input"] == {"value": 2}
