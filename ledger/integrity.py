"""Is the file sound; and set a damaged one aside.

Both look at a file that this process has not open as a ledger: before the start, or in another
process. Rebuilding from what the world shows does not belong here yet.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from ledger import file, lock

SOUND = "ok"
FAMILY = ("", "-wal", "-shm", "-journal")
"""The files that SQLite makes of one database, the database itself first."""


def quick_check(path: Path) -> str:
    """'ok', or what SQLite finds wrong with the file (at most ten lines). Changes nothing."""
    if not path.exists():
        return f"{path} does not exist"
    try:
        with contextlib.closing(file.reading(path.absolute())) as connection:
            found = connection.execute("PRAGMA quick_check(10)").fetchall()
    except sqlite3.DatabaseError as error:
        return str(error)
    return "\n".join(line for (line,) in found)


def set_aside(path: Path, what: str = "damaged") -> Path:
    """Rename a ledger with all that belongs to it, so that a new one can begin; its new name ends in `what`.

    The database goes first: what a crash in between leaves behind belongs to no file, and SQLite
    discards it when the new one begins. The other order could lose commits without a trace. Raises
    errors.Locked while a process writes it.
    """
    path = path.absolute()
    aside = file.name_aside(path, what)
    with lock.held(path):
        for suffix in FAMILY:
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        file.sync_folder(path.parent)
    return aside
