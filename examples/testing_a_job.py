"""How to test a job: the functions of its steps alone, the job on a database of its own, and crashes at every step.

`run` executes a job here and now, and gives its output. `crash_at_every_step` kills real processes, and fails if the
job would mail twice. pytest finds the functions below; run as a program, this calls them.
"""

import pytest

from holdfast import Holdfast, RunFailed, SyncStep
from holdfast.testing import crash_at_every_step, effects, run

app = Holdfast("sqlite:///mail.db")  # no test touches it


def deliver(address: str, key: str) -> str:
    """The fake of a mail server that sends a mail once for each key."""
    if "@" not in address:
        raise ValueError(f"{address} is no address")
    effects.record(f"mail to {address}", idempotency_key=key)
    return f"delivered to {address}"


@app.job
def send(step: SyncStep, address: str) -> str:
    return step.run("deliver", deliver, address, step.idempotency_key("deliver"))


def test_a_message_is_delivered_once() -> None:
    with effects.recording() as done:
        assert run(send, "ada@example.org").wait() == "delivered to ada@example.org"
    assert [effect.key for effect in done] == ["mail to ada@example.org"]


def test_a_wrong_address_fails_the_run() -> None:
    with pytest.raises(RunFailed, match="ada is no address"):
        run(send, "ada").wait()


def test_the_function_of_a_step_is_a_plain_function() -> None:
    assert deliver("bob@example.org", "any") == "delivered to bob@example.org"


def test_no_crash_makes_it_deliver_twice() -> None:
    crash_at_every_step(send, "ada@example.org").raise_if_bad()


if __name__ == "__main__":
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()
            print("passed:", name)
