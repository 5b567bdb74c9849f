"""The same in code without `async`: a `def` job takes a `SyncStep`, and replies are waited for with `.wait()`."""

from holdfast import Holdfast, SyncStep

app = Holdfast("sqlite:///letters.db")


def write(name: str) -> str:
    return f"Dear {name}, thank you for flying with us."


def sign(text: str) -> str:
    return f"{text} Yours, the airline"


@app.job
def send_letter(step: SyncStep, name: str) -> str:
    letter = step.run("sign", sign, step.run("write", write, name))
    step.log.info("sent", characters=len(letter))
    return letter


with app:
    print(send_letter.run("Amelia").wait())  # trigger and wait for the output, in one

    run = send_letter.trigger("Charles").wait()  # or one after the other
    print(run.status, "->", run.wait().wait().status)
    for step in app.get_steps(run.id).wait():
        print(step.index, step.name, step.status, repr(step.output))
