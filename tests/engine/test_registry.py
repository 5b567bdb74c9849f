"""The registry: names and keys, and what may be one."""

from __future__ import annotations

import pytest

from holdfast.basis.errors import NotFoundError, ValidationError
from holdfast.engine.registry import Registry, checked_key, checked_labels, checked_name


@pytest.mark.parametrize("name", ["a", "A-1", "import.airports", "a/b:c", "9", "x" * 255])
def test_usable_names_stay_as_they_are(name: str) -> None:
    assert checked_name(name, "job name") == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "ä", "a\n", "a\0", "x" * 256, None, 7, b"a"])
def test_names_that_would_not_survive_urls_and_terminals_are_refused(name: object) -> None:
    with pytest.raises(ValidationError, match="job name"):
        checked_name(name, "job name")


def test_an_unknown_job_is_told_with_the_known_ones() -> None:
    registry = Registry()
    assert registry.get("a") is None
    with pytest.raises(NotFoundError, match=r"Unknown job: a\. Registered: none\."):
        registry.need("a")


@pytest.mark.parametrize(("key", "kept"), [(None, None), ("", None), ("ä 1", "ä 1"), ("x" * 255, "x" * 255)])
def test_keys_are_kept_exactly_and_an_empty_one_is_none(key: str | None, kept: str | None) -> None:
    assert checked_key(key, "idempotency_key") == kept


@pytest.mark.parametrize("key", ["a\0b", "\ud800", "x" * 256, "ä" * 128, 7])
def test_keys_that_can_not_be_kept_are_refused(key: object) -> None:
    with pytest.raises(ValidationError, match="idempotency_key"):
        checked_key(key, "idempotency_key")


@pytest.mark.parametrize(
    "labels",
    [["a"], {"a b": "c"}, {"": "c"}, {"a": 1}, {"a": "x" * 256}, {"a": "\0"}, {"a": "\ud800"}, {1: "a"},
     {f"k{n}": "v" for n in range(33)}],
)  # fmt: skip
def test_labels_that_can_not_be_kept_and_filtered_by_are_refused(labels: object) -> None:
    with pytest.raises(ValidationError):
        checked_labels(labels)
