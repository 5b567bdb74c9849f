"""Finding the user's app: `module:app`, as uvicorn and gunicorn name theirs; and the one of a database URL."""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
import urllib.parse
from pathlib import Path
from typing import Any

from ..app import Holdfast
from ..basis.errors import NotFoundError, StoreUnavailable, ValidationError
from ..basis.text import error_text

_LIBRARY = {Path(importlib.__file__).parents[1], Path(__file__).parents[1]}


def app_at(place: str) -> Holdfast:
    """The app that `module:name` names, imported from the current directory or from what is installed."""
    found, hint = named(place)
    if not isinstance(found, Holdfast):
        raise ValidationError(f"{place!r} is no Holdfast app but of type {type(found).__name__}.{hint}")
    return found


def named(place: str, *kinds: type) -> tuple[object, str]:
    """What `module:name` names, and what to say if it is the wrong thing: of these kinds, the best first."""
    module_name, _, attribute = place.partition(":")
    if module_name.endswith(".py") or "/" in module_name or "\\" in module_name:
        guess = module_name.removesuffix(".py").strip("./\\").replace("/", ".").replace("\\", ".")
        raise ValidationError(f"{place!r} is a file; name the module: {guess}:{attribute or 'app'}")
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise ValidationError(f"{place!r} names no app. Write module:app, e.g. shop.jobs:app")
    module = found = _import(module_name)
    values = vars(module).items()
    others = [name for kind in (*kinds, Holdfast) for name, value in values if isinstance(value, kind)]
    hint = f" Did you mean {module_name}:{others[0]}?" if others else ""
    for part in (attribute or "app").split("."):
        if not hasattr(found, part):
            raise NotFoundError(f"The module {module_name!r} has no {attribute or 'app'!r}.{hint}")
        found = getattr(found, part)
    return found, hint


def _import(name: str) -> Any:
    # As `python -m` does: a console script has its own folder on the path instead.
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise NotFoundError(f"There is no module {error.name!r} in {here} or among what is installed.") from error
        raise _unimportable(name, error) from error
    except (Exception, SystemExit) as error:
        raise _unimportable(name, error) from error


def _unimportable(name: str, error: BaseException) -> ValidationError:
    frames = traceback.extract_tb(error.__traceback__)
    # A KeyError of os.environ comes from Python's own files: what helps is the line that asked for it.
    theirs = [frame for frame in frames if not _is_library(frame.filename)]
    last = (theirs or frames)[-1]
    # What Python can't read has not run: it is in no frame.
    where = f"{error.filename}:{error.lineno}" if isinstance(error, SyntaxError) else f"{last.filename}:{last.lineno}"
    return ValidationError(f"The module {name!r} can't be imported: {error_text(error)} ({where})")


def _is_library(path: str) -> bool:
    """Whether it is a file of Python, of what is installed, or of ours."""
    folders = Path(path).parents
    return (
        path.startswith("<")
        or any(folder.name in ("site-packages", "dist-packages") for folder in folders)
        or not _LIBRARY.isdisjoint(folders)
    )


def app_for(url: str | None, *, new: bool = False) -> Holdfast:
    """An app that looks at this database and executes nothing. Unless `new`, the database must exist."""
    if not url:
        raise ValidationError("Which database? Give its URL (--url sqlite:///path/to/file.db), or set HOLDFAST_URL.")
    if "://" not in url:
        if re.fullmatch(r"[\w.-]+:\d{1,5}(/.*)?", url):
            raise ValidationError(f"{url!r} is no URL. For a server write http://{url}")
        path = url.removeprefix("sqlite:").removeprefix("/") if url.startswith("sqlite:") else url
        raise ValidationError(f"{url!r} is no URL. For a file write sqlite:///{path}")
    if url.rstrip("/") == "sqlite:" or url.endswith(":memory:"):
        raise ValidationError(f"{url} is private to the process that uses it. Name a file: sqlite:///path/to/file.db")
    app = Holdfast(url, worker=False)
    path = urllib.parse.unquote(url.partition("://")[2][1:])
    if not new and url.startswith("sqlite:") and not os.path.exists(path):
        # SQLite would make an empty one, and a typing error would look like a database without runs.
        path = os.path.abspath(path)  # who is in another directory than they think sees it here
        raise StoreUnavailable(f"{url}: there is no file {path}. (`holdfast migrate {url}` makes a new database.)")
    return app
