"""Which names requests may come by, and pages of which sites may ask: what is given where the handler is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from asking import Asking, asking_of
from holdfast import ValidationError, job
from holdfast.http import Insecure
from house import House


@job
async def nothing() -> None: ...


def run(test: Callable[[Asking], Any], house: House, **options: Any) -> None:
    asking_of(house.app(nothing, worker=False), test, **options)


@pytest.mark.parametrize(
    "origin",
    ["ui.example", "*", "https://*", "https://*.example", "https://ui.example/app", "https://", "", "null",
     "https://a@ui.example", "https://ui.example?x", "https://ui.example:port", "//ui.example", "https://b\u00fccher.example"],
)  # fmt: skip
def test_an_origin_that_no_browser_sends_is_refused_where_it_is_given(origin: str, house: House) -> None:
    with pytest.raises(ValidationError, match=r"^origins: .* is no origin\. Write scheme and host"):
        house.app(worker=False).handler(origins=["https://fine.example", origin])


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("HTTPS://UI.Example", "https://ui.example"),
        ("https://ui.example:443", "https://ui.example"),
        ("http://ui.example:80/", "http://ui.example"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
    ],
)
def test_an_origin_is_known_in_the_form_in_which_browsers_send_it(given: str, sent: str, house: House) -> None:
    async def test(ask: Asking) -> None:
        headers = {"Origin": sent, "Sec-Fetch-Site": "cross-site"}
        assert (await ask.post("/trigger", {"jobName": "nothing"}, headers=headers)).status == 200

    run(test, house, origins=[given])


def test_a_page_that_is_refused_is_told_which_option_would_allow_it(house: House) -> None:
    async def test(ask: Asking) -> None:
        ask.headers = {"Host": "localhost:8000"}
        refused = await ask.post("/trigger", {"jobName": "nothing"}, headers={"Origin": "https://ui.example"})
        assert (refused.status, "origins=['https://ui.example']" in refused.error) == (403, True)
        refused = await ask.post("/trigger", {"jobName": "nothing"}, headers={"Sec-Fetch-Site": "cross-site"})
        assert (refused.status, "origins=" in refused.error) == (403, True)

    run(test, house)


@pytest.mark.parametrize(
    "host",
    ["https://api.example", "api.example/runs", "*.example", "", " ", "a b", "a@api.example", "b\u00fccher.example"],
)
def test_a_host_that_no_request_comes_by_is_refused_where_it_is_given(host: str, house: House) -> None:
    with pytest.raises(ValidationError, match=r"^hosts: .* is no name of a host\. Write it without scheme and path"):
        house.app(worker=False).handler(hosts=["api.example", host])


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ("API.example.", "api.example"),
        ("api.example:8000", "api.example:9000"),
        ("10.0.0.7", "10.0.0.7:8000"),
        ("::1", "[::1]:8000"),
        ("[::1]:8000", "[::1]"),
        ("*", "anything.example"),
        ("my_service", "my_service:8000"),
    ],
)
def test_a_host_is_known_by_its_name_whatever_its_port(given: str, host: str, house: House) -> None:
    async def test(ask: Asking) -> None:
        ask.client = "10.0.0.1"
        assert (await ask.get("/runs", headers={"Host": host})).status == 200
        assert (await ask.get("/runs", headers={"Host": "other.example"})).status == (200 if given == "*" else 403)

    run(test, house, auth=Insecure("tests"), hosts=[given])
