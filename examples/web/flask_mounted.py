"""Flask with our routes beside its views. `gunicorn -c gunicorn_mounted.py flask_mounted:web`."""

from typing import Any

from flask import Flask, abort, request, session
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from holdfast import Holdfast, SyncStep
from holdfast.http import Auth, Reject, Request

app = Holdfast("sqlite:///shop.db")
web = Flask(__name__)
web.secret_key = "not much of a secret"


@app.job
def import_rows(step: SyncStep, rows: int) -> int:
    for row in range(rows):
        step.run(f"row-{row}", str, row)
        step.progress(row + 1, rows)
    return rows


@web.post("/login/<name>")
def log_in(name: str) -> Any:  # stands for however you know your users
    session["user"] = name
    return {"name": name}


@web.post("/imports")
def start() -> Any:
    user = session.get("user") or abort(401)
    run = import_rows.options(tenant={"user": user}).trigger(request.args.get("rows", 3, int)).wait()
    return {"runId": run.id}, 202


@web.get("/imports/<run_id>")
def show(run_id: str) -> Any:  # for pages that ask again and again
    run = import_rows.get_run(run_id).wait()
    if run is None or run.labels.get("user") != session.get("user"):
        abort(404)
    return {"status": run.status, "progress": run.progress, "output": run.output}


def user_of_session(request: Request) -> str:
    """Whoever has logged in to Flask: `scope` is what WSGI calls the environment."""
    opened = web.session_interface.open_session(web, web.request_class(request.scope))
    if not opened or "user" not in opened:
        raise Reject(401, "Log in first.")
    return str(opened["user"])


auth = Auth(authenticate=user_of_session, tenant=lambda name: {"user": name})
runs = app.wsgi(auth=auth, max_streams=6)  # each holds a thread of the server
web.wsgi_app = DispatcherMiddleware(web.wsgi_app, {"/api/durably": runs})  # type: ignore[method-assign]
