"""Text that every database can store.

PostgreSQL refuses NUL in text, SQLite cuts `length()` at it, and no driver binds a lone surrogate. Values that
hold such text are refused (see `values`); errors and log lines are cleaned here and never refused, because a run
must reach its end whatever its error says.
"""

from __future__ import annotations

import re
from typing import cast

#: 32 Ki characters: room for any message worth reading, and far below every limit of the databases.
LONGEST = 32768

#: Characters from which on no common word is likely to hold it.
_LONG_SECRET = 6

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def clean(text: object, limit: int = LONGEST) -> str:
    """The text of anything, storable and at most about `limit` characters long.

    NUL and lone surrogates become U+FFFD. Never raises, whatever `__str__` of the object does.
    """
    written = _written(text)
    rest = len(written) - limit
    if rest > 0:
        # Cut first: replacing keeps the length, and 10 MB of log need not be searched for 32 KiB of it.
        written = f"{written[:limit]}… ({rest} more characters)"
    return _UNSTORABLE.sub("\ufffd", written)


def fit(text: object, limit: int = LONGEST) -> str:
    """The text of anything, storable, and in UTF-8 at most `limit` bytes long.

    What is too long is its beginning, and a mark that says how much is missing. No character is cut in two. Never
    raises, as `clean`.
    """
    written = _written(text)
    # A character is a byte at least: more of the text than this can't be of use.
    begin = _UNSTORABLE.sub("\ufffd", written[: limit + 1])
    if len(begin) * 4 <= limit or (len(written) <= limit and len(begin.encode()) <= limit):
        return begin
    room = max(limit - len(f"… ({len(written)} more characters)".encode()), 0)
    begin = begin.encode()[:room].decode(errors="ignore")
    return f"{begin}… ({len(written) - len(begin)} more characters)".encode()[:limit].decode(errors="ignore")


def fit_end(text: str, limit: int) -> str:
    """The same of a storable text whose end tells more."""
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    room = max(limit - len(f"… ({len(text)} characters before)\n".encode()), 0)
    end = encoded[len(encoded) - room :].decode(errors="ignore")
    return f"… ({len(text) - len(end)} characters before)\n{end}".encode()[:limit].decode(errors="ignore")


def error_text(error: BaseException, limit: int = LONGEST) -> str:
    """`ValueError: what it says`, storable; only the class name when it says nothing."""
    name = clean(type(error).__qualname__, 200)
    message = clean(error, limit)
    return f"{name}: {message}" if message else name


def shown(value: object, limit: int = 200) -> str:
    """The `repr` of anything, for a message: short, storable, and without raising."""
    try:
        text = repr(value)
    except Exception:  # also of an int of more digits than Python writes
        return f"<unprintable {type(value).__name__}>"
    return clean(text, limit)


def masked(text: str, secret: str, told: str = "") -> str:
    """The text with `***` in the place of a secret. `told` is what everybody is told anyway.

    A short secret, or one that is also a part of what is told (a password that is the user's name), is masked only
    where passwords stand: `user:secret@`, `password=secret`. Elsewhere it is a part of words, and the stars in them
    would tell what it is.
    """
    if not secret:
        return text
    if len(secret) >= _LONG_SECRET and secret not in told:
        return text.replace(secret, "***")
    return re.sub(rf"(?<=:){re.escape(secret)}(?=@)|(password\s*=\s*['\"]?){re.escape(secret)}", r"\1***", text)


def storable(text: str) -> str | None:
    """None when this text is stored exactly by every database, else why it is not."""
    found = _UNSTORABLE.search(text)
    if found is None:
        return None
    kind = "NUL character" if found[0] == "\0" else "lone surrogate"
    return f"{kind} at position {found.start()}"


def _written(text: object) -> str:
    # `str.__str__` gives an exact str: a subclass may answer to slicing as it likes.
    # Not isinstance: it asks the object for its `__class__`, which may be a property that raises.
    if issubclass(type(text), str):
        return str.__str__(cast("str", text))
    try:
        return str.__str__(str(text))
    except KeyboardInterrupt:
        raise
    except BaseException:  # a SystemExit out of `__str__` must not end the worker
        return f"<unprintable {type(text).__name__}>"
