"""The app as a place where jobs are defined and found (S10)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

import databases
from holdfast import Holdfast, ValidationError, job
from holdfast.basis.errors import DefinitionError

LONG = 20.0


@job
def alone(n: int) -> int:
    return n + 1


@job(name="other-name")
def other(n: int) -> int:
    return n + 2


def test_the_plain_function_stays_at_hand(tmp_path: Path) -> None:
    app = Holdfast(databases.fresh())

    @app.job
    def double(n: int) -> int:
        return n * 2

    assert double.fn(4) == 8
    assert alone.fn(1) == 2


def test_a_job_is_found_by_its_name_and_by_its_key() -> None:
    app = Holdfast(databases.fresh())

    @app.job(name="import-airports")
    def import_airports() -> None: ...

    assert app.jobs.import_airports.name == "import-airports"
    found = [app.get_job("import-airports"), app.get_job("import_airports")]
    assert [one and one.name for one in found] == ["import-airports"] * 2
    assert app.get_job("nothing") is None
    assert "import_airports" in dir(app.jobs)
    with pytest.raises(AttributeError, match="nothing"):
        _ = app.jobs.nothing


def test_register_gives_one_handle_or_a_tuple_of_several() -> None:
    app = Holdfast(databases.fresh())
    assert app.register(alone).name == "alone"
    first, second = app.register(alone, other)
    assert (first.name, second.name) == ("alone", "other-name")
    assert app.register() == ()
    with pytest.raises(ValidationError, match="not a job"):
        app.register(len)  # type: ignore[call-overload]


def test_jobs_may_be_given_as_a_list_or_under_keys(tmp_path: Path) -> None:
    listed = Holdfast(databases.fresh(), jobs=[alone, other])
    assert (listed.jobs.alone.name, listed.jobs.other.name) == ("alone", "other-name")
    keyed = Holdfast(databases.url(tmp_path / "app.db"), jobs={"plus_one": alone, "again": alone})
    assert keyed.jobs.plus_one.name == keyed.jobs.again.name == keyed.jobs.alone.name == "alone"
    keyed.migrate().wait(LONG)
    run = keyed.jobs.plus_one.trigger(1).wait(LONG)
    assert keyed.process_until_idle().wait(LONG) == 1
    assert run.result().wait(LONG) == 2
    keyed.stop().wait(LONG)


def test_a_job_without_an_app_says_how_to_get_one() -> None:
    with pytest.raises(DefinitionError, match=r"app.register\(alone\)"):
        alone.trigger(1)


def test_one_definition_serves_several_apps(tmp_path: Path) -> None:
    for name in ("a", "b"):
        app = Holdfast(databases.url(f"{tmp_path / name}.db"))
        handle = app.register(alone)
        with app:
            assert handle.run(1).wait(LONG) == 2


def _cell(app: Holdfast, add: int) -> Any:
    """What running a notebook cell again does: the same module and qualified name, another function."""

    @app.job
    def cell(n: int) -> int:
        return n + add

    return cell


def test_s10_a_function_defined_again_at_the_same_place_replaces_the_old_one_with_a_warning(tmp_path: Path) -> None:
    app = Holdfast(databases.url(tmp_path / "app.db"))
    first = _cell(app, 1)
    app._engine.registry.add(first._definition, key="by_another_key", replace=False)
    with pytest.warns(UserWarning, match=r"'cell' was defined again") as caught:
        second = _cell(app, 2)
    assert caught[0].filename == __file__
    assert app.jobs.by_another_key.fn is app.jobs.cell.fn is second.fn
    with app:
        assert first.run(1).wait(LONG) == 3
        with pytest.raises(DefinitionError, match="stop the app first"):
            _cell(app, 3)
    with pytest.warns(UserWarning, match="again"):
        _cell(app, 4)


def test_s10_another_definition_under_a_used_name_is_an_error_that_names_both_places() -> None:
    app = Holdfast(databases.fresh())

    @app.job
    def cell(n: int) -> int:
        return n

    with pytest.raises(DefinitionError) as caught:
        _cell(app, 1)
    text = str(caught.value)
    assert f"{__name__}.{cell.fn.__qualname__}" in text
    assert f"{__name__}._cell.<locals>.cell" in text
    assert app.jobs.cell.fn is cell.fn


def test_the_same_definition_twice_is_fine_even_while_a_worker_runs(tmp_path: Path) -> None:
    app = Holdfast(databases.url(tmp_path / "app.db"), jobs=[alone])
    with app, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert app.register(alone).run(1).wait(LONG) == 2
