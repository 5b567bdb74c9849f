"""Moving house: all runs of one database into another, whole or not at all.

The source is held still for as long as it takes (others wait, or are refused), and nothing is written into it before
the copy is committed and was read back. The target has a mark from the first row on, with which nobody may use it.

What a power cut leaves, and what the same call makes of it:

* before the source has its mark: the source as it was, a target that nobody can use. It starts over.
* after it: neither can be used, each says why, and the target is whole. It takes the target's mark away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

from ..basis.errors import ConflictError, SchemaError, StoreError, ValidationError
from ..basis.text import error_text
from .base import Tx
from .movable import TABLES, Holder, Mark, Movable, Sum, Table

#: Bounds of one insertion: its values (databases have limits), and its bytes (for memory).
_VALUES = 20_000
_BYTES = 4 << 20
#: Bytes of one transaction of the target.
_COMMITTED = 64 << 20

Told = Callable[[str, str, int, int], None]
"""Called with what is done, to which table, how many rows of it are done, and how many there are."""


@dataclass(slots=True)
class Moved:
    """What was moved, or would be."""

    source: str
    target: str
    sums: dict[str, Sum] = field(default_factory=dict)
    """By the name of the table, without its prefix. In a dry run only counted."""
    resumed: bool = False
    """All had been copied by an earlier call; only the last mark was still to be taken away."""


class _Side:
    """One of the two databases, with a connection of its own."""

    def __init__(self, store: Movable) -> None:
        self.store = store
        self.connection: Any = store.connect()

    def close(self) -> None:
        self.store.disconnect(self.connection)

    @contextmanager
    def held_still(self) -> Iterator[Tx]:
        """Nobody else writes. What was not committed in it has not happened."""
        tx = self.store.hold_still(self.connection)
        try:
            yield tx
        finally:
            self.store.rollback(tx)
            self.store.let_go(tx)

    def commit(self, tx: Tx) -> None:
        self.store.commit(tx)
        if self.store.needs_upkeep:
            self.store.upkeep(self.connection)

    @property
    def id(self) -> str:
        return self.store.database_id(self.connection)


def move(source: Movable, target: Movable, *, dry_run: bool = False, told: Told = lambda *_: None) -> Moved:
    """Move all runs of `source` to `target`, with all that belongs to them; blocks until it is done.

    When it returns, the target is whole and durable, and who opens the source is told where it went. `ConflictError`
    while leases are held in the source (says who) or if the target has runs; `SchemaError` between tables of different
    versions, or if one of them was moved elsewhere. A call that was broken off is made up for by the same call again.
    With `dry_run` everything is checked and counted, and nothing is written.
    """
    try:
        return _Move(source, target, told).run(dry_run=dry_run)
    except Exception as error:
        # The driver's, of one of the two: only one of them knows it.
        meant = source.translate(error)
        meant = target.translate(error) if meant is error else meant
        if meant is error:
            raise
        raise meant from error


class _Move:
    def __init__(self, source: Movable, target: Movable, told: Told) -> None:
        self._source_store, self._target_store = source, target
        self._told = told
        self._moved = Moved(source.name, target.name)

    def run(self, *, dry_run: bool) -> Moved:
        source = _Side(self._source_store)
        try:
            _need_tables(source)
            self._refuse_same(source)
            with source.held_still() as tx:
                if dry_run:
                    self._look(source, tx)
                else:
                    self._move(source, tx)
        finally:
            source.close()
        return self._moved

    def _look(self, source: _Side, tx: Tx) -> None:
        """All refusals, and how much there is."""
        target = self._looked_at()
        try:
            if target is not None and target.store.version(target.connection):
                self._refuse(source, tx, target)
            else:
                self._refuse_source(source, tx, None)
        finally:
            if target is not None:
                target.close()
        for table in TABLES:
            self._moved.sums[_short(table)] = Sum(source.store.count(source.connection, table))

    def _move(self, source: _Side, tx: Tx) -> None:
        self._make_tables(self._refuse_source(source, tx, None))
        target = _Side(self._target_store)
        try:
            if self._refuse(source, tx, target) == "whole":
                self._moved.resumed = True
            else:
                self._copy(source, tx, target)
            self._open(target)
        finally:
            target.close()

    # -- refusals ----------------------------------------------------------------------------------------------

    def _refuse_same(self, source: _Side) -> None:
        """Before anything is locked: it would wait for itself."""
        target = self._looked_at()
        if target is not None:
            with closing(target):
                if target.store.version(target.connection) and target.id == source.id:
                    raise ValidationError(f"{source.store.name} and {target.store.name} are the same database.")

    def _looked_at(self) -> _Side | None:
        try:
            return _Side(self._target_store)
        except SchemaError:
            return None  # there is no such file yet

    def _refuse_source(self, source: _Side, tx: Tx, target_id: str | None) -> Mark | None:
        name, mark = source.store.name, source.store.mark_of(source.connection)
        if mark is not None and mark.state == "moving_from":
            raise SchemaError(f"{name}: a move from {mark.url} into this database is not complete.")
        if mark is not None:
            if target_id is not None and mark.database_id != target_id:
                raise _already(source.store, mark)
            return mark
        _need_version(source)
        if holders := source.store.holders(tx):
            raise ConflictError(
                f"{name}: workers hold runs: {_listed(holders)}. Stop them first; what a dead one held is free when "
                "its lease is over."
            )
        return None

    def _refuse(self, source: _Side, tx: Tx, target: _Side) -> str:
        """Whether the target is "empty", was filled in "part" by an earlier call, or is "whole" and only marked."""
        left = self._refuse_source(source, tx, target.id)
        name, mark = target.store.name, target.store.mark_of(target.connection)
        if mark is not None and mark.state == "moved_to":
            raise SchemaError(f"{name}: this database was itself moved, to {mark.url}.")
        if mark is not None and mark.database_id != source.id:
            raise SchemaError(f"{name}: a move from {mark.url} into this database is not complete.")
        if left is not None:
            if mark is None:
                raise _already(source.store, left)
            return "whole"
        if mark is not None:
            found, needed = target.store.tables_version(target.connection), target.store.schema.newest
            if found != needed:
                raise SchemaError(
                    f"{name}: an earlier move has made tables of version {found}, this code needs {needed}. Move into "
                    "an empty database."
                )
            return "part"
        _need_version(target)
        if target.store.count(target.connection, TABLES[0]):
            raise ConflictError(f"{name}: there are runs in this database. Move into an empty one.")
        return "empty"

    # -- copying -----------------------------------------------------------------------------------------------

    def _make_tables(self, left: Mark | None) -> None:
        target = self._looked_at()
        if target is not None:
            with closing(target):
                if target.store.version(target.connection):
                    return
        if left is not None:
            raise _already(self._source_store, left)
        self._target_store.migrate()

    def _copy(self, source: _Side, tx: Tx, target: _Side) -> None:
        at = tx.now
        with target.held_still() as begun:
            # Once more: nobody else writes now.
            self._refuse(source, tx, target)
            target.store.set_mark(begun, Mark("moving_from", source.store.whereabouts, source.id, at))
            target.store.clear(begun)
            target.commit(begun)
        for table in TABLES:
            self._moved.sums[_short(table)] = self._copy_table(source, target, table)
        with target.held_still() as last:
            target.store.settle(last)
            target.commit(last)
        self._verify(source, target)
        source.store.set_mark(tx, Mark("moved_to", target.store.whereabouts, target.id, at))
        source.store.commit(tx)

    def _copy_table(self, source: _Side, target: _Side, table: Table) -> Sum:
        total = source.store.count(source.connection, table)
        sum = Sum()
        batches = _batches(source.store.rows_of(source.connection, table), table)
        while (first := next(batches, None)) is not None:
            with target.held_still() as tx:
                written = 0
                for rows, said in chain([first], batches):
                    self._insert(target, tx, table, rows)
                    sum.add(len(rows), said)
                    self._told("copying", _short(table), sum.rows, total)
                    written += len(said)
                    if written >= _COMMITTED:
                        break
                target.commit(tx)
        return sum

    def _insert(self, target: _Side, tx: Tx, table: Table, rows: list[tuple[Any, ...]]) -> None:
        try:
            target.store.insert(tx, table, rows)
        except Exception as error:
            meant = target.store.translate(error)
            if not isinstance(meant, ValidationError | UnicodeError):
                raise
            raise ValidationError(
                f"{target.store.name} can't keep {_which(table, rows)}: {error_text(meant)}. Nothing was moved."
            ) from error

    def _verify(self, source: _Side, target: _Side) -> None:
        """Read back what was written, all of it."""
        with target.held_still():
            for table in TABLES:
                name = _short(table)
                written, found = self._moved.sums[name], Sum()
                for rows, said in _batches(target.store.rows_of(target.connection, table), table):
                    found.add(len(rows), said)
                    self._told("verifying", name, found.rows, written.rows)
                if not found.is_same(written):
                    raise StoreError(
                        f"{target.store.name}: {table.name} has {found.rows} rows ({found.digest[:12]}), not the "
                        f"{written.rows} ({written.digest[:12]}) of {source.store.name}. Nothing was moved: go on with "
                        "the old database."
                    )

    def _open(self, target: _Side) -> None:
        with target.held_still() as tx:
            target.store.drop_mark(tx)
            target.commit(tx)


class _Batch(NamedTuple):
    """Some rows, and what they say, as bytes: told apart by that, and measured by it."""

    rows: list[tuple[Any, ...]]
    said: bytes


def _batches(rows: Iterator[tuple[Any, ...]], table: Table) -> Iterator[_Batch]:
    """The rows, so many of them at once as one statement takes, or so many bytes."""
    most = _VALUES // len(table.columns)
    gathered: list[tuple[Any, ...]] = []
    said: list[str] = []
    size = 0
    for row in rows:
        gathered.append(row)
        said.append(text := repr(row))
        size += len(text)
        if len(gathered) == most or size >= _BYTES:
            yield _Batch(gathered, "".join(said).encode("utf-8", "surrogatepass"))
            gathered, said, size = [], [], 0
    if gathered:
        yield _Batch(gathered, "".join(said).encode("utf-8", "surrogatepass"))


def _which(table: Table, rows: list[tuple[Any, ...]]) -> str:
    """The row that is to blame, if that can be seen; else between which two it is."""
    strange = [row for row in rows if any(isinstance(value, str) and not _is_plain(value) for value in row)]
    keys = [
        ", ".join(f"{key} {value!r}" for key, value in zip(table.key, row, strict=False))
        for row in (strange[:1] or [rows[0], rows[-1]])
    ]
    return (
        f"the row of {table.name} with {keys[0]}"
        if keys[:1] == keys[-1:]
        else (f"a row of {table.name} between {keys[0]} and {keys[1]}")
    )


def _is_plain(text: str) -> bool:
    try:
        text.encode()
    except UnicodeError:
        return False
    return "\0" not in text


def _need_tables(side: _Side) -> None:
    if not side.store.version(side.connection):
        side.store.check_schema(side.connection)  # says that there are none


def _need_version(side: _Side) -> None:
    """`SchemaError` unless its tables are those of this code: so both sides have the same."""
    side.store.check_schema(side.connection)


def _already(source: Movable, mark: Mark) -> SchemaError:
    return SchemaError(f"{source.name}: this database was moved already, to {mark.url}.")


def _short(table: Table) -> str:
    return table.name.removeprefix("holdfast_")


def _listed(holders: list[Holder]) -> str:
    shown = ", ".join(map(str, holders[:5]))
    return f"{shown} and {len(holders) - 5} more" if len(holders) > 5 else shown
