"""Payloads say themselves which codec can open them."""

from __future__ import annotations

import pytest

from holdfast.basis.codec import Codec, Payloads
from holdfast.basis.errors import Outdated, StoreUnavailable, ValidationError


class Turned(Codec):
    """Writes texts backwards."""

    def __init__(self, name: str = "turned") -> None:
        self.name = name

    def encode(self, text: str) -> str:
        return text[::-1]

    def decode(self, text: str) -> str:
        return text[::-1]


class Broken(Codec):
    """What a key service that does not answer looks like."""

    name = "broken"

    def __init__(self, gives: object = None) -> None:
        self.gives = gives

    def encode(self, text: str) -> str:
        if self.gives is None:
            raise ConnectionError("no key service")
        return self.gives  # type: ignore[return-value]

    decode = encode


@pytest.mark.parametrize("text", ["", '{"a": 1}', "^", "^turned^x", "^^", "^^^nobody^", "ü^"])
def test_every_text_comes_back_with_and_without_a_codec(text: str) -> None:
    for payloads in (Payloads(), Payloads([Turned()])):
        assert payloads.open(payloads.seal(text)) == text


def test_without_a_codec_json_is_written_as_it_is() -> None:
    assert Payloads().seal('{"a": "^"}') == '{"a": "^"}'
    assert Payloads().codec is None


def test_a_sealed_text_names_its_codec() -> None:
    assert Payloads([Turned()]).seal("abc") == "^turned^cba"


def test_the_first_codec_seals_and_each_one_opens_what_it_has_sealed() -> None:
    both = Payloads([Turned("new"), Turned("old")])
    assert both.seal("abc") == "^new^cba"
    assert both.open(Payloads([Turned("old")]).seal("abc")) == "abc"
    assert both.open("abc") == "abc"


def test_what_no_codec_of_the_app_can_open_is_outdated() -> None:
    with pytest.raises(Outdated, match="written by codec 'turned', which this app doesn't have"):
        Payloads().open("^turned^cba")


def test_what_its_codec_can_not_open_is_outdated() -> None:
    with pytest.raises(Outdated, match="Codec 'broken' can't open it: ConnectionError: no key service"):
        Payloads([Broken()]).open("^broken^abc")


@pytest.mark.parametrize(
    ("gives", "why"),
    [(None, "ConnectionError: no key service"), (b"bytes", "not a str"), ("a\0b", "NUL character at position 1")],
    ids=["raises", "bytes", "nul"],
)
def test_a_codec_that_can_not_seal_is_trouble_of_the_moment(gives: object, why: str) -> None:
    with pytest.raises(StoreUnavailable, match=why):
        Payloads([Broken(gives)]).seal("abc")


@pytest.mark.parametrize("name", ["", "a^b", "a b", "x" * 41, None], ids=["empty", "mark", "blank", "long", "none"])
def test_a_codec_needs_a_name_that_can_be_written(name: str) -> None:
    with pytest.raises(ValidationError, match="codec:"):
        Payloads([Turned(name)])


def test_two_codecs_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="two of them are called 'turned'"):
        Payloads([Turned(), Turned()])


def test_what_is_no_codec_is_refused() -> None:
    with pytest.raises(ValidationError, match="is none"):
        Payloads(["gzip"])  # type: ignore[list-item]


def test_a_codec_that_can_not_open_now_says_so_itself() -> None:
    class Away(Turned):
        def decode(self, text: str) -> str:
            raise StoreUnavailable("the key service is away")

    with pytest.raises(StoreUnavailable, match="is away"):
        Payloads([Away()]).open("^turned^abc")
