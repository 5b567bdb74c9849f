"""Gunicorn for `flask_mounted`: threads, of which streams take some, and a worker in each of its processes."""

from typing import Any

from flask_mounted import app, runs

from holdfast.http import close_at_signals

workers = 2
threads = 10  # more than max_streams, so that there are some for everything else


def post_worker_init(_: Any) -> None:
    app.init().wait()
    close_at_signals(runs.handler.close)  # gunicorn would wait for streams


def worker_exit(_: Any, __: Any) -> None:
    app.stop(timeout=20).wait()  # shorter than gunicorn's graceful_timeout (30 s)
