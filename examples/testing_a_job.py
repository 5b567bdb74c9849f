"""How to test a job: the functions of its steps alone, and the job on a database that is gone afterwards.

`process_until_idle` executes what was triggered, here and now: no worker in the background, nothing to wait for.
pytest finds the functions below; run as a program, this calls them.
"""

from holdfast import Holdfast, SyncStep

app = Holdfast("sqlite://")  # a temporary file
called: list[str] = []


def deliver(address: str) -> str:
    called.append(address)
    if "@" not in address:
        raise ValueError(f"{address} is no address")
    return f"delivered to {address}"


@app.job
def send(step: SyncStep, address: str) -> str:
    return step.run("deliver", deliver, address)


def setup_module() -> None:
    app.migrate().wait()


def teardown_module() -> None:
    app.stop().wait()


def test_a_message_is_delivered_once() -> None:
    called.clear()
    run = send.trigger("ada@example.org").wait()
    assert app.process_until_idle().wait() == 1
    assert run.result().wait() == "delivered to ada@example.org"
    assert called == ["ada@example.org"]


def test_a_wrong_address_fails_the_run() -> None:
    run = send.trigger("ada").wait()
    app.process_until_idle().wait()
    ended = run.refresh().wait()
    assert (ended.status, ended.error_type) == ("failed", "ValueError")
    assert ended.error == "ada is no address"


def test_the_function_of_a_step_is_a_plain_function() -> None:
    assert deliver("bob@example.org") == "delivered to bob@example.org"


if __name__ == "__main__":
    setup_module()
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()
            print("passed:", name)
    teardown_module()
