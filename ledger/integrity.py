"""Is the file sound; and set a damaged one aside.

Both look at a file that this process has not open as a ledger: before the start, or in another
process. Knowing again what a lost file knew does not belong here: the kernel, EC2 and the runtime
show it, and the reconciler writes it down.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from ledger import errors, file, lock

SOUND = "ok"
DAMAGED = "damaged"
"""The last part of the name of a file set aside for that."""
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
"""Primary result codes that speak of the file's content; all others speak of the disk or of rights."""
FAMILY = ("", "-wal", "-shm", "-journal")
"""The files that SQLite makes of one database, the database itself first."""


def quick_check(path: Path) -> str:
    """'ok', or what SQLite finds wrong with the file (at most ten lines). Changes nothing."""
    if not path.exists():
        return f"{path} does not exist"
    try:
        with contextlib.closing(file.reading(path.absolute())) as connection:
            return _check(connection)
    except sqlite3.DatabaseError as error:
        return str(error)


def check(path: Path) -> str:
    """'ok', or what is wrong: pages, every index against its table, and every reference.

    Slower than `quick_check` (it reads everything twice) and, like it, harmless beside a daemon.
    """
    found = quick_check(path)
    if found != SOUND:
        return found
    try:
        with contextlib.closing(file.reading(path.absolute())) as connection:
            return _check_all(connection)
    except sqlite3.DatabaseError as error:
        return str(error)


def make_sound(path: Path) -> Path | None:
    """Set the ledger aside if it is damaged; where it lies now, None for a sound one or none at all.

    Everything is looked at (21 ms for 8 MB): a write-ahead log that belongs to another file, or to an
    earlier state of this one, leaves pages of which each is whole. Only what SQLite calls damage is taken for it: a disk that cannot be read or a file that may not be
    passes through as sqlite3.OperationalError. Raises errors.Locked while a process writes it.
    """
    path = path.absolute()
    if not path.exists():
        return None
    if path.is_dir():
        raise errors.NotALedger(f"{path} is a folder; remove it and start again")
    with lock.held(path):
        try:
            sound = _is_sound(path)
        except sqlite3.OperationalError:
            _recover(path)
            sound = _is_sound(path)
        if sound:
            return None
        return _rename(path, DAMAGED)


def set_aside(path: Path, what: str = DAMAGED) -> Path:
    """Rename a ledger with all that belongs to it, so that a new one can begin; its new name ends in `what`.

    The database goes first: what a crash in between leaves behind belongs to no file, and SQLite
    discards it when the new one begins. The other order could lose commits without a trace. Raises
    errors.Locked while a process writes it.
    """
    path = path.absolute()
    with lock.held(path):
        return _rename(path, what)


def lying_aside(path: Path) -> tuple[Path, ...]:
    """The damaged ledgers beside the one at `path`, the oldest first, until somebody takes them away."""
    return tuple(sorted(path.parent.glob(f"{path.name}.*.{DAMAGED}")))


def _check(connection: sqlite3.Connection) -> str:
    found = connection.execute("PRAGMA quick_check(10)").fetchall()
    return "\n".join(line for (line,) in found)


def _check_all(connection: sqlite3.Connection) -> str:
    lines = [line for (line,) in connection.execute("PRAGMA integrity_check(10)")]
    broken = connection.execute("PRAGMA foreign_key_check").fetchall()
    if broken:
        table, row, parent, _ = broken[0]
        lines.append(
            f"{len(broken)} references lead nowhere, such as row {row} of {table} to {parent}"
        )
    return "\n".join(line for line in lines if line != SOUND or len(lines) == 1)


def _is_sound(path: Path) -> bool:
    try:
        with contextlib.closing(file.reading(path)) as connection:
            return _check_all(connection) == SOUND
    except sqlite3.DatabaseError as error:
        # The low byte is the primary code (SQLite, "Result and Error Codes").
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE:
            return False
        raise


def _recover(path: Path) -> None:
    """Let SQLite undo what a power cut left half done in a rollback journal: only a writer can."""
    with (
        contextlib.closing(file.connect(path, "rw")) as connection,
        contextlib.suppress(sqlite3.DatabaseError),
    ):
        connection.execute("SELECT count(*) FROM sqlite_master")


def _rename(path: Path, what: str) -> Path:
    aside = file.name_aside(path, what)
    for suffix in FAMILY:
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    file.sync_folder(path.parent)
    return aside
