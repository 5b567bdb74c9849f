"""Django with our routes beside its own, for whoever is logged in to it. `uvicorn django_mounted:application`."""

import json
from typing import Any

import django
from django.conf import settings
from django.contrib.auth import authenticate, get_user, login
from django.contrib.sessions.backends.db import SessionStore
from django.core.asgi import get_asgi_application
from django.core.management import execute_from_command_line
from django.db import close_old_connections
from django.http import HttpRequest, JsonResponse, parse_cookie
from django.urls import path
from django.views.decorators.http import require_POST

from holdfast import Holdfast, Step
from holdfast.http import Auth, Reject, Request

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "site.db"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"],
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="not much of a secret",
)
django.setup()
app = Holdfast("sqlite:///shop.db")  # a file of its own


@app.job
async def import_rows(step: Step, rows: int) -> int:
    for row in range(rows):
        await step.run(f"row-{row}", str, row)
        step.progress(row + 1, rows)
    return rows


def user_of_session(request: Request) -> Any:
    """Whoever has logged in to Django. It is called in a thread, so it may use models."""
    asked = HttpRequest()
    cookies = parse_cookie(request.header("cookie") or "")
    asked.session = SessionStore(cookies.get(settings.SESSION_COOKIE_NAME))
    try:
        user = get_user(asked)
    finally:
        close_old_connections()  # Django does so at the end of its own requests
    if not user.is_authenticated:
        raise Reject(401, "Log in first.")
    return user


def log_in(request: HttpRequest) -> JsonResponse:
    user = authenticate(request, **json.loads(request.body))
    if user is None:
        return JsonResponse({"error": "Wrong name or password."}, status=401)
    login(request, user)
    return JsonResponse({"name": user.get_username()})


urlpatterns = [path("login", require_POST(log_in))]
auth = Auth(authenticate=user_of_session, tenant=lambda user: {"user": str(user.pk)})
web, runs = get_asgi_application(), app.asgi(auth=auth, base_path="/api/durably")


async def application(scope: Any, receive: Any, send: Any) -> None:
    # Django has no lifespan. With ours the tables are made, and the worker starts and stops with the server.
    is_ours = scope["type"] == "lifespan" or scope["path"].startswith("/api/durably/")
    await (runs if is_ours else web)(scope, receive, send)


if __name__ == "__main__":
    execute_from_command_line()
