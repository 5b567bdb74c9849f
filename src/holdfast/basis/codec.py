"""What stands between a payload and the database: encryption, compression, whatever the user's codec does.

A sealed text is `^name^` and what the codec made of the payload, so every payload says itself who can open it: rows
from before the codec, from another one, and from none lie beside each other in one table. No stored value begins with
`^`; a free text (a log line, an error's message) that does is written as `^^` and itself.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .errors import Outdated, StoreUnavailable, ValidationError
from .text import clean, error_text, shown, storable
from .values import plain

_MARK = "^"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}", re.ASCII)


class Codec(ABC):
    """Turns payloads into what the database keeps, and back: for encryption, or to keep large values small.

    `name` (1 to 40 letters, digits, `_`, `.`, `-`) is written with each payload: keep it for as long as payloads of it
    exist. Both methods may be called from any thread, never inside a transaction; they must not wait for a reply.
    """

    name: str

    @abstractmethod
    def encode(self, text: str) -> str:
        """What is written in place of the text: any text without NUL characters and lone surrogates.

        What it raises is taken for a failure of the moment (a key service that does not answer): a step's result is
        kept and tried again, a trigger is refused with `StoreUnavailable`.
        """

    @abstractmethod
    def decode(self, text: str) -> str:
        """The text that `encode` was given.

        Raise `StoreUnavailable` if it can't be told now: it is tried again later. Whatever else is raised means that
        it never can: a run whose payload that is fails with `Outdated`.
        """


def marked(text: str) -> str:
    """A text that no codec has sealed, as `Payloads.open` expects it."""
    return f"{_MARK}{_MARK}{text}" if text.startswith(_MARK) else text


class Payloads:
    """Seals what is written with the first codec, and opens what any of them has sealed."""

    def __init__(
        self, codecs: Iterable[Codec] = (), calling: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> None:
        self._codecs: dict[str, Codec] = {}
        self._calling = calling
        """Entered while a codec is called."""
        self.codec: str | None = None
        """The name of the codec that seals; None: nothing is sealed."""
        for codec in codecs:
            given: object = codec
            name: object = getattr(codec, "name", None)
            if not isinstance(given, Codec) or not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ValidationError(
                    f"codec: {shown(codec)} is none. Give a holdfast.Codec with a `name` of 1 to 40 letters, digits, "
                    "'_', '.' or '-'."
                )
            if name in self._codecs:
                raise ValidationError(f"codec: two of them are called {name!r}.")
            self._codecs[name] = codec
            self.codec = self.codec or name

    def seal(self, text: str) -> str:
        """The text as it is written. `StoreUnavailable` if the codec can't."""
        if self.codec is None:
            return marked(text)
        try:
            with self._calling():
                sealed = self._codecs[self.codec].encode(text)
            if not issubclass(type(sealed), str):
                raise TypeError(f"encode gave {type(sealed).__name__}, not a str")
            if (why := storable(sealed)) is not None:
                raise ValueError(f"encode gave a {why}")
        except Exception as error:
            raise StoreUnavailable(f"codec {self.codec!r} failed: {error_text(error, 500)}") from error
        return f"{_MARK}{self.codec}{_MARK}{sealed}"

    def seal_some(self, text: str | None) -> str | None:
        """The same; None stays None."""
        return None if text is None else self.seal(text)

    def open(self, text: str) -> str:
        """The text that was sealed. `Outdated` if no codec of this app can open it."""
        if not text.startswith(_MARK):
            return text
        name, _, sealed = text[1:].partition(_MARK)
        if not name:
            return sealed
        if (codec := self._codecs.get(name)) is None:
            raise Outdated(f"It was written by codec {clean(name, 40)!r}, which this app doesn't have (codec=…).")
        try:
            with self._calling():
                opened = codec.decode(sealed)
            if not issubclass(type(opened), str):
                raise TypeError(f"decode gave {type(opened).__name__}, not a str")
        except StoreUnavailable:
            raise
        except Exception as error:
            raise Outdated(f"Codec {name!r} can't open it: {error_text(error, 500)}") from error
        return opened

    def shown(self, text: str) -> Any:
        """A stored payload for those who only look: plain data, or why it can't be opened."""
        try:
            return plain(self.open(text))
        except (Outdated, StoreUnavailable) as error:
            return error.message

    def shown_text(self, text: str) -> str:
        """A stored free text for those who only look."""
        try:
            return self.open(text)
        except (Outdated, StoreUnavailable) as error:
            return error.message

    def open_some(self, text: str | None) -> str | None:
        """The same; None stays None."""
        return None if text is None else self.open(text)
