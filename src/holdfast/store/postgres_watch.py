"""Being told by PostgreSQL (LISTEN) what others have committed, over a connection that is read by, too.

A connection that listens from some moment on knows nothing of what was before. So it listens first, and then everything
is read: after each connecting. Where it can't be told (a pooler gives every transaction another session, or the server
refuses) the tables are looked at instead: slower, and otherwise the same.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
from typing import TYPE_CHECKING

import psycopg

from .announcing import heard
from .postgres_place import Link
from .watch import EVERYTHING, News, Pace, Watch

if TYPE_CHECKING:
    from .postgres_telling import PostgresTelling

#: Of so many runs it is noted that something happened to them; of more it is enough that it was many.
_MOST_NOTED = 1000
#: Words that are taken at once.
_MOST_WORDS = 10_000


class PostgresWatch(Watch):
    """A connection that listens; for one thread, but for `rouse`."""

    connection: Link | None

    def __init__(self, store: PostgresTelling) -> None:
        super().__init__(store)
        self._of = store
        self._bell: tuple[socket.socket, socket.socket] | None = None
        self._news: News | None = None
        self._listens = False

    @property
    def pace(self) -> Pace:  # type: ignore[override]  # only read by who watches
        return "told" if self._listens and self.connection is not None else "looks"

    def changed(self) -> News | None:
        if self.connection is None:
            self._connect()
        elif self.connection.is_lost or not self.connection.is_current():
            # The server was restarted, somebody has ended our session, or others write elsewhere now: that is no
            # trouble if another one can be had.
            self.close()
            self._connect()
        news, self._news = self._news, None
        return news

    def _connect(self) -> None:
        if self._bell is None:
            self._bell = socket.socketpair()
            for end in self._bell:
                end.setblocking(False)
        link = self.connection = self._of.connect(read_only=True)
        self._listen(link)
        # From here on we are told. What was before is read now.
        self._news = EVERYTHING

    def _listen(self, link: Link) -> None:
        self._listens = False
        if (why := self._obstacle(link)) is None:
            link.pg.add_notify_handler(lambda notice: self._hear(notice.payload))
            try:
                link.say(f'listen "{self._of.channel}"')
            except psycopg.Error as error:
                if link.is_lost:
                    raise
                why = self._of.address.hide(" ".join(str(error).split()))
            else:
                self._listens = True
                return
        self._of.say_once(f"not told of what other processes do, looking instead: {why}")

    def _obstacle(self, link: Link) -> str | None:
        """Why nothing would come of listening. Behind such a pooler it would only leave a session that listens."""
        if link.pooled:
            return "a pooler in between gives every transaction another session."
        if self._of.address.pooled is None:
            (pid,) = link.execute("select pg_backend_pid()").fetchone()
            if pid != link.pg.info.backend_pid:
                return (
                    "there is a pooler in between. If it leaves each client its session until the end, "
                    "write pooler=none in the URL; otherwise pooler=transaction."
                )
        return None

    def _hear(self, text: str) -> None:
        news = heard(text, self._of.me)
        if news is None:
            return
        before = self._news
        if before is None:
            self._news = news
        elif before.runs is None or news.runs is None or len(before.runs) > _MOST_NOTED:
            self._news = EVERYTHING if before.claimable or news.claimable else News(claimable=False)
        else:
            self._news = News(before.claimable or news.claimable, before.runs | news.runs)

    def rest(self, seconds: float) -> None:
        if self._news is None:
            if self._bell is None:
                super().rest(seconds)
            else:
                self._sleep(self._bell[1], seconds)

    def _sleep(self, bell: socket.socket, seconds: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(bell, selectors.EVENT_READ)
            if self._listens and self.connection is not None and not self.connection.is_lost:
                selector.register(self.connection.pg.pgconn.socket, selectors.EVENT_READ, self.connection)
            for key, _ in selector.select(seconds):
                if key.data is None:
                    self._quiet()
                else:
                    self._take_in(key.data)

    def _take_in(self, link: Link) -> None:
        """What the server has sent: words, or that it is going away."""
        pgconn = link.pg.pgconn
        try:
            pgconn.consume_input()
            for _ in range(_MOST_WORDS):
                if (notice := pgconn.notifies()) is None:
                    break
                self._hear(notice.extra.decode("utf-8", "replace"))
        except psycopg.Error:
            link.close()

    def _quiet(self) -> None:
        try:
            while self._bell is not None and self._bell[1].recv(4096):
                pass
        except BlockingIOError:
            pass

    def rouse(self) -> None:
        super().rouse()
        bell = self._bell
        if bell is not None:
            with contextlib.suppress(OSError):  # it is full, so it will be seen; or closed, with nobody left to rest
                bell[0].send(b".")

    def close(self) -> None:
        super().close()
        self._listens = False
        bell, self._bell = self._bell, None
        for end in bell or ():
            end.close()
