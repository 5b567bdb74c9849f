"""Gunicorn: each of its processes executes runs, too. `gunicorn -c gunicorn_conf.py flask_app:web`."""

from typing import Any

from flask_app import app

preload_app = True  # load once, then fork; without it every process loads by itself, and all else is the same
workers = 2


def post_worker_init(_: Any) -> None:
    app.init().wait()  # in the process that serves, after the fork


def worker_exit(_: Any, __: Any) -> None:
    app.stop(timeout=20).wait()  # runs may finish; shorter than gunicorn's graceful_timeout (30 s)
