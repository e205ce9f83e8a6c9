"""The one door for transactions: open, pragmas, `write()`, `read()`, revision number, backup.

Statements are SQLAlchemy Core, compiled once when their module is imported and run on the standard
library's connection (the engine costs twice as much on the hot path). Nothing but SQLite opens the
ledger's files in this process, for a plain open and close of them would drop SQLite's locks.
What any statement says does not belong here.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement

from ledger import errors, file
from ledger.lock import Lock

Row = tuple[Any, ...]
Refusal = sqlite3.IntegrityError
"""What the schema's referee raises: the change would break a rule; nothing of it was done."""
Failure = sqlite3.Error
"""What a transaction may raise when the disk or the schema refuses; for those who may not say SQL."""
LedgerError = errors.LedgerError
is_of_the_disk = errors.is_of_the_disk


class Statement:
    """One statement, compiled once to SQLite's SQL with parameters by position, which cost less to bind.

    For an INSERT, `columns` names those that are bound. Constants have to be written into the text
    (`schema.word`), where partial indexes can see them; a constant that would be bound is refused.
    `in_order` puts parameters given by name into their places; KeyError if one is missing.
    """

    __slots__ = ("in_order", "sql")

    def __init__(self, clause: ClauseElement, columns: Sequence[str] | None = None) -> None:
        dialect = sqlite.dialect(paramstyle="qmark")
        compiled = clause.compile(dialect=dialect, column_keys=columns)
        assert isinstance(compiled, SQLCompiler)
        constants = [name for name, bind in compiled.binds.items() if not bind.required]
        if constants:
            raise ValueError(f"constants {constants} are bound, not written: {compiled}")
        self.sql = str(compiled)
        if unbound := re.findall(r"(?<![\w:']):[a-z]\w*", self.sql):
            raise ValueError(f"{unbound} are written, not bound: {self.sql}")
        self.in_order = _in_order(tuple(compiled.positiontup or ()))


def _in_order(names: tuple[str, ...]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    if len(names) > 1:
        return itemgetter(*names)
    if names:
        (name,) = names
        return lambda params: (params[name],)
    return lambda _: ()


class Read:
    """A snapshot of the ledger: the same answers until the block ends."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def all(self, statement: Statement, **params: Any) -> list[Row]:
        """Every row."""
        return self._connection.execute(statement.sql, statement.in_order(params)).fetchall()

    def one(self, statement: Statement, **params: Any) -> Row | None:
        """The first row, or None."""
        row: Row | None = self._connection.execute(
            statement.sql, statement.in_order(params)
        ).fetchone()
        return row

    def dicts(
        self, sql: str, params: Mapping[str, Any] | Sequence[Any], most: int | None = None
    ) -> list[dict[str, Any]]:
        """The rows of a SELECT given as text, by column name; for what is printed, not for nouns."""
        cursor = self._connection.execute(sql, params)
        names = [column[0] for column in cursor.description or ()]
        found = cursor.fetchall() if most is None else cursor.fetchmany(most)
        return [dict(zip(names, row, strict=True)) for row in found]

    @contextlib.contextmanager
    def only(self, codes: frozenset[int], pragmas: frozenset[str]) -> Iterator[None]:
        """Within the block SQLite refuses all but these authorizer codes and these pragmas."""

        def allowed(code: int, what: str | None, *_: str | None) -> int:
            known = what in pragmas if code == sqlite3.SQLITE_PRAGMA else code in codes
            return sqlite3.SQLITE_OK if known else sqlite3.SQLITE_DENY

        self._connection.set_authorizer(allowed)
        try:
            yield
        finally:
            self._connection.set_authorizer(None)


class Write(Read):
    """An open change: all of it becomes true, or none."""

    __slots__ = ("counted", "durable")

    def __init__(self, connection: sqlite3.Connection, durable: bool) -> None:
        super().__init__(connection)
        self.durable = durable
        self.counted: dict[tuple[object, ...], Any] = {}
        """What its writes have counted for those that follow in the same transaction."""

    def run(self, statement: Statement, **params: Any) -> sqlite3.Cursor:
        """Carry out a change; the cursor knows `rowcount` and `lastrowid`.

        Raises sqlite3.IntegrityError where the schema refuses it.
        """
        return self._connection.execute(statement.sql, statement.in_order(params))

    def many(self, statement: Statement, rows: Iterable[Mapping[str, Any]]) -> None:
        """Carry out a change once for each row of parameters."""
        self._connection.executemany(statement.sql, map(statement.in_order, rows))

    def must_outlive_power(self) -> None:
        """Refuse a change that EC2 will remember in a commit that a power cut may lose (decision 5)."""
        if not self.durable:
            raise RuntimeError("EC2 remembers this change: use ledger.write(durable=True)")


class Ledger:
    """An open ledger. Any thread may read and write; there is one writer connection and one lock.

    sqlite3.Error passes through: a full or failing disk is for the caller to report.
    """

    def __init__(self, path: Path, lock: Lock | None) -> None:
        """Use `open`."""
        self.path = path
        self._lock = lock
        self._turn = threading.Lock()
        self._here = threading.local()
        self._readers: dict[threading.Thread, sqlite3.Connection] = {}
        self._readers_turn = threading.Lock()
        self._revision = 0
        self._full = False
        if lock is None:
            self._writer = self._checkpointer = None
        else:
            self._writer = file.writing(path)
            self._checkpointer = file.writing(path)
            self._checkpoint_turn = threading.Lock()

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> Self:
        """Open a ledger that `migrate.bring_to_head` has made or brought up.

        Raises errors.Locked if another process writes it, errors.NotALedger, errors.WrongSchema.
        """
        path = path.absolute()
        if read_only:
            file.check(path)
            return cls(path, None)
        lock = Lock(path)
        try:
            file.check(path)
            return cls(path, lock)
        except BaseException:
            lock.release()
            raise

    @contextlib.contextmanager
    def write(self, durable: bool = False) -> Iterator[Write]:
        """Change the ledger: commits at the block's end, rolls back on an exception.

        `durable` waits until the disk has it (synchronous=FULL), and with it all commits before.
        """
        if self._writer is None:
            raise RuntimeError(f"{self.path} was opened read-only")
        if getattr(self._here, "writing", False):
            raise RuntimeError("this thread is writing already; pass its tx on instead")
        with self._turn:
            connection = self._writer
            if durable != self._full:  # cannot be changed inside a transaction
                connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                self._full = durable
            before = connection.total_changes
            connection.execute("BEGIN IMMEDIATE")
            self._here.writing = True
            try:
                yield Write(connection, durable)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            finally:
                self._here.writing = False
            if connection.total_changes != before:
                self._revision += 1

    @contextlib.contextmanager
    def read(self) -> Iterator[Read]:
        """A snapshot, also while this or another thread writes; what an open write did is not in it."""
        if getattr(self._here, "reading", False):
            raise RuntimeError("this thread is reading already; pass its tx on instead")
        connection = self._reader()
        connection.execute("BEGIN")
        self._here.reading = True
        try:
            yield Read(connection)
        finally:
            self._here.reading = False
            connection.execute("ROLLBACK")

    def in_transaction(self) -> bool:
        """Whether this thread has a transaction open, so that nothing outside may be touched now."""
        here = self._here
        return bool(getattr(here, "writing", False) or getattr(here, "reading", False))

    def revision(self) -> int:
        """A number that grows with every commit that changed something; equal means nothing is new.

        Read-only: SQLite's data_version, so that another process's commits are noticed.
        """
        if self._writer is not None:
            return self._revision
        return int(self._reader().execute("PRAGMA data_version").fetchone()[0])

    def checkpoint(self) -> tuple[int, int]:
        """Carry the WAL's pages into the file, without stopping readers or the writer.

        Returns pages in the WAL and pages carried over. The writer never does this in a commit. A WAL can
        begin anew only when all of it was carried over, which under steady writing never happens by
        itself; so once it is long, writers wait for the few pages that came meanwhile.
        """
        if self._checkpointer is None:
            raise RuntimeError(f"{self.path} was opened read-only")
        with self._checkpoint_turn:
            row = self._checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if row[1] > file.WAL_MOST_PAGES:
                with self._turn:
                    self._checkpointer.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        return int(row[1]), int(row[2])

    def backup(self, to: Path) -> None:
        """A consistent copy in one file, by SQLite's backup API; `to` is replaced when it is whole."""
        file.copy(self._reader(), to)

    def close(self) -> None:
        """Close every connection, then let another process write."""
        with self._readers_turn:
            for reader in self._readers.values():
                reader.close()
            self._readers.clear()
        for connection in (self._checkpointer, self._writer):
            if connection is not None:
                connection.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reader(self) -> sqlite3.Connection:
        """This thread's own connection; those of threads that have ended are closed on the way."""
        mine: sqlite3.Connection | None = getattr(self._here, "reader", None)
        if mine is None:
            mine = self._here.reader = file.reading(self.path)
            with self._readers_turn:
                for thread in [thread for thread in self._readers if not thread.is_alive()]:
                    self._readers.pop(thread).close()
                self._readers[threading.current_thread()] = mine
        return mine
