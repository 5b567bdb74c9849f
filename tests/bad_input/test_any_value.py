"""Any JSON-like value, with any text in it: what comes out is what went in, or it was refused and nothing written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import databases
from holdfast import Holdfast, HoldfastError, Job, Step
from holdfast.basis.exact import difference
from holdfast.basis.values import shape_of

#: Every character that there is, also NUL and the halves of surrogate pairs.
texts = st.text(st.characters(exclude_categories=()), max_size=20)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts, st.binary(max_size=20), st.decimals())
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.one_of(texts, st.integers(), st.booleans()), inner, max_size=4),
    ),
    max_leaves=10,
)


class Echo:
    def __init__(self, folder: Path) -> None:
        self.app = app = Holdfast(databases.url(folder / "any.db"), inline=True)
        self.seen: list[Any] = []
        app.migrate().wait()
        self.connection = databases.Shell(folder / "any.db")

        def same(value: Any) -> Any:
            return value

        @app.job
        async def echo(step: Step, value: Any) -> Any:
            self.seen = [value, await step.run("same", same, value)]
            return value

        self.job: Job[[Any], Any] = echo

    def rows(self) -> int:
        return int(self.connection.execute("select count(*) from holdfast_runs").fetchone()[0])

    def tried(self, value: Any, labels: Any, key: Any) -> str:
        """What became of it; asserts that it is one of the two."""
        before = self.rows()
        labels = {name: text for name, text in labels.items() if name.isascii() and name.isalnum()} or labels
        try:
            run = self.job.options(labels=labels, idempotency_key=key).trigger(value).wait()
        except HoldfastError:
            assert self.rows() == before
            return "refused"
        assert run.idempotency_key == (key or None)
        if run.disposition == "idempotent":
            return "known key"  # the run that has it keeps the labels that it was triggered with
        assert run.labels == labels
        assert self.app.process_until_idle().wait() == 1
        ended = run.refresh().wait()
        assert (ended.status, ended.error) == ("completed", None)
        for after in (*self.seen, ended.output):
            opaque: list[Any] = []
            assert difference(value, after, opaque) is None
            assert opaque == []
        return "kept"


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Echo]:
    echo = Echo(tmp_path_factory.mktemp("any"))
    with closing(echo.connection):
        yield echo
    echo.app.stop().wait()


def test_what_goes_in_comes_out_or_is_refused(echo: Echo) -> None:
    counted: Counter[str] = Counter()

    @settings(
        max_examples=400,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(value=values, labels=st.dictionaries(texts, texts, max_size=2), key=st.none() | texts)
    def tried(value: Any, labels: Any, key: Any) -> None:
        counted[echo.tried(value, labels, key)] += 1

    tried()
    # Refusing everything would be no art.
    assert counted["kept"] > 50
    assert counted["refused"] > 50


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(value=values)
def test_only_half_characters_are_refused(value: Any) -> None:
    try:
        shape_of().keep(value)
    except HoldfastError as error:
        assert "surrogate" in str(error)  # noqa: PT017
