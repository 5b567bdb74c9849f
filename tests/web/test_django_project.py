"""What the page on Django says of projects: models in jobs, a worker that sets Django up, triggers after the commit."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.sampled("web servers: the same on every Python", every=4)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "django.md"
LONG = 60

SHOP = {
    "__init__.py": "",
    "models.py": """
from django.db import models


class Parcel(models.Model):
    state = models.CharField(max_length=20, default="new")
""",
    "jobs.py": """
from asgiref.sync import sync_to_async
from django.db import connections

from holdfast import Holdfast, Step, SyncStep
from shop.models import Parcel

app = Holdfast("sqlite:///runs.db", worker=False)


def send(number: int) -> str:
    try:
        Parcel.objects.filter(pk=number, state="new").update(state="sent")
        return Parcel.objects.get(pk=number).state
    finally:
        connections.close_all()


async def look(number: int) -> str:
    try:
        return (await Parcel.objects.aget(pk=number)).state
    finally:
        await sync_to_async(connections.close_all)()


@app.job
def deliver(step: SyncStep, number: int) -> str:
    return step.run("send", send, number)


@app.job
async def deliver_async(step: Step, number: int) -> list[str]:
    return [await step.run("send", send, number), await step.run("look", look, number)]
""",
}
ASK = """
import os

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
django.setup()

from django.db import transaction

from shop.jobs import app, deliver, deliver_async
from shop.models import Parcel

app.init().wait()
runs = []
for job in (deliver, deliver_async):
    with transaction.atomic():
        parcel = Parcel.objects.create()
        transaction.on_commit(lambda: runs.append(job.trigger(parcel.pk).wait(30)))
for run in runs:
    print(run.result(timeout=30).wait())
app.stop().wait()
"""


def python(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LONG, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def test_jobs_use_models_in_a_worker_that_sets_django_up_as_the_page_says(tmp_path: Path) -> None:
    python(tmp_path, "-m", "django", "startproject", "mysite", ".")
    settings = tmp_path / "mysite" / "settings.py"
    settings.write_text(settings.read_text("utf-8") + '\nINSTALLED_APPS.append("shop")\n', "utf-8")
    for name, text in SHOP.items():
        (tmp_path / "shop" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "shop" / name).write_text(text, "utf-8")
    shown = re.search(r"^```python file=runs.py\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert shown is not None
    (tmp_path / "mysite" / "runs.py").write_text(shown[1], "utf-8")
    (tmp_path / "ask.py").write_text(ASK, "utf-8")
    python(tmp_path, "manage.py", "migrate", "--run-syncdb", "--verbosity", "0")

    command = [sys.executable, "-W", "error", "-m", "holdfast", "worker", "mysite.runs:app", "--with-stdin"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as worker:
        try:
            printed = python(tmp_path, "ask.py")
        finally:
            _, complained = worker.communicate(timeout=LONG)  # closes its stdin, at which it stops
    assert printed.splitlines() == ["sent", "['sent', 'sent']"]
    assert (worker.returncode, complained) == (0, "")
