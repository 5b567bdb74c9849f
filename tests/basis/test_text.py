"""Text that every database can store."""

from __future__ import annotations

import pytest

from holdfast.basis.text import clean, error_text, masked, storable


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


@pytest.mark.parametrize("text", ["", "plain", "\uffff", "\ufeffBOM", "\u202eright to left", "😀", "a\tb\n"])
def test_text_that_databases_take_is_left_as_it_is(text: str) -> None:
    assert clean(text) == text
    assert storable(text) is None


@pytest.mark.parametrize("bad", ["\0", "\ud800", "\udfff"])  # noqa: PT014
def test_nul_and_lone_surrogates_become_the_replacement_character(bad: str) -> None:
    assert clean(f"a{bad}b") == "a\ufffdb"
    assert "position 1" in str(storable(f"a{bad}b"))


def test_long_text_is_cut_and_says_by_how_much() -> None:
    assert clean("x" * 10_000_000, 10) == "xxxxxxxxxx… (9999990 more characters)"


def test_cleaning_never_raises() -> None:
    assert clean(Unprintable()) == "<unprintable Unprintable>"
    assert error_text(Unprintable()) == "Unprintable: <unprintable Unprintable>"


def test_the_text_of_an_error_begins_with_its_class() -> None:
    assert error_text(ValueError("a\0b")) == "ValueError: a\ufffdb"
    assert error_text(ValueError()) == "ValueError"


def test_a_subclass_of_str_can_not_change_what_is_stored() -> None:
    class Sly(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "other"

        def __getitem__(self, key: object) -> str:
            return "\0"

    assert type(clean(Sly("real"))) is str
    assert clean(Sly("real"), 2) == "re… (2 more characters)"


def test_a_long_secret_is_masked_wherever_it_is() -> None:
    assert masked("bad token s3cret! in s3cret!", "s3cret!") == "bad token *** in ***"


@pytest.mark.parametrize("secret", ["a", "shop-admin"])
def test_a_secret_that_is_part_of_words_is_masked_where_passwords_stand(secret: str) -> None:
    """A short one, and one that is the name of the user."""
    told = "postgresql://shop-admin@host/shop"
    said = 'permission denied for user "shop-admin" of schema'
    assert masked(said, secret, told) == said
    for stands in ("postgresql://me:{}@host", "dbname=x password={}", "password = '{}'", "sslpassword={} x=1"):
        assert masked(stands.format(secret), secret, told) == stands.format("***")


def test_no_secret_masks_nothing() -> None:
    assert masked("password= :@", "") == "password= :@"
