"""What the tests about the second ancestor share: jobs that run below others, and a run brought to its end."""

from __future__ import annotations

from typing import Any

from holdfast import Children, Holdfast, Run, job
from holdfast.testing import drain


@job
async def double(n: int) -> int:
    if n < 0:
        raise ValueError(f"{n} is negative")
    return 2 * n


@job
async def family(numbers: list[int]) -> Children[str]:
    """A parent without a finalize."""
    return Children("family", [double.bind(n) for n in numbers], on_failure="collect")


def ended(app: Holdfast, run: Run[Any], *, until: str = "2d") -> Any:
    """The run at its end, with everything below it; time passes as far as it must."""
    drain(app, until=until).wait()
    run = run.refresh().wait()
    assert run.is_terminal, run
    return run


def told(run: Any) -> tuple[str, str | None, str | None]:
    """How it ended."""
    return str(run.status), run.error_type, run.error
