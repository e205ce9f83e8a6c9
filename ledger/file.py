"""How a ledger's file is opened, recognised and copied: always through SQLite, never by hand.

A plain open and close of the database or its -shm file drops every POSIX lock this process has on it,
and an acknowledged commit can then vanish. Who may write when does not belong here.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from ledger import errors, schema

WAL_LIMIT_BYTES = 64 * 1024 * 1024
WAL_MOST_PAGES = 4_096
"""From this length on a checkpoint sees to it that the WAL begins anew: 16 MiB."""
BUSY_S = 5.0
READER_CACHE_KIB = 256
"""Pages a reader keeps (each thread has one): the operating system keeps the file as well."""


def connect(path: Path, mode: Literal["ro", "rw", "rwc"], **query: str) -> sqlite3.Connection:
    """A plain connection without implicit transactions; whoever asks closes it."""
    options = "".join(f"&{name}={value}" for name, value in query.items())
    uri = f"file:{quote(os.fspath(path))}?mode={mode}{options}"
    return sqlite3.connect(
        uri,
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
        timeout=BUSY_S,
    )


def reading(path: Path) -> sqlite3.Connection:
    """A connection that cannot write, also for a copy in a folder that cannot be written."""
    connection = connect(path, "ro")
    try:
        connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.OperationalError:
        connection.close()
        wal = path.with_name(path.name + "-wal")
        if not path.exists() or wal.exists():
            raise
        connection = connect(path, "ro", immutable="1")
    connection.execute("PRAGMA query_only=ON")
    connection.execute(f"PRAGMA cache_size=-{READER_CACHE_KIB}")
    connection.execute("PRAGMA trusted_schema=OFF")
    return connection


def stamp(connection: sqlite3.Connection) -> str | None:
    """The file's schema revision; None for a file without any table.

    Raises errors.NotALedger for somebody else's file.
    """
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    mark = connection.execute("PRAGMA application_id").fetchone()[0]
    if tables == 0 and mark in {0, schema.APPLICATION_ID}:
        return None
    if mark != schema.APPLICATION_ID:
        raise errors.NotALedger("an SQLite file, but not a ledger (its application_id is not ours)")
    try:
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError:
        row = None
    if row is None:
        raise errors.NotALedger("a ledger without its revision stamp")
    return str(row[0])


def revision(path: Path) -> str | None:
    """The revision of the file at `path`, read without changing a byte of it; None if it is empty."""
    try:
        with contextlib.closing(reading(path)) as connection:
            return stamp(connection)
    except (errors.NotALedger, sqlite3.DatabaseError) as error:
        raise errors.NotALedger(f"{path}: {error}") from error


def check(path: Path) -> None:
    """Raise NotALedger or WrongSchema unless the file at `path` has this program's schema."""
    if not path.exists():
        raise errors.NotALedger(f"{path} does not exist")
    found = revision(path)
    if found is None:
        raise errors.NotALedger(f"{path} is empty; migrate.bring_to_head makes a ledger of it")
    if found not in schema.REVISIONS:
        raise errors.NewerSchema(newer(path, found))
    if found != schema.REVISIONS[-1]:
        raise errors.WrongSchema(
            f"{path} has the older schema {found}; starting the daemon brings it up"
        )


def newer(path: Path, found: str) -> str:
    """The sentence for a file with an unknown revision."""
    return (
        f"{path} has schema {found}, which this program does not know (its newest is "
        f"{schema.REVISIONS[-1]}). Run the newer program, or put back the copy made before it."
    )


def copy(source: sqlite3.Connection, to: Path) -> None:
    """Copy a whole database by the backup API into one file without a WAL, then put it in place."""
    partial = to.with_name(to.name + ".partial")
    _forget(partial)
    try:
        with contextlib.closing(connect(partial, "rwc")) as target:
            source.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")
        partial.replace(to)
    except BaseException:
        _forget(partial)  # half a copy would only take the room that was missing
        raise
    sync_folder(to.parent)


def _forget(partial: Path) -> None:
    """Also its journal, which SQLite would carry out on the next file of that name."""
    for suffix in ("", "-journal"):
        partial.with_name(partial.name + suffix).unlink(missing_ok=True)


def name_aside(path: Path, what: str) -> Path:
    """A name beside `path` for what is kept of it: the time sorts, so the last is the newest."""
    when = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")[:-3]
    return path.with_name(f"{path.name}.{when}Z.{what}")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def writing(path: Path) -> sqlite3.Connection:
    """A connection that may write; checkpoints are left to `Ledger.checkpoint`."""
    connection = connect(path, "rw")
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "foreign_keys=ON",
        "wal_autocheckpoint=0",
        f"journal_size_limit={WAL_LIMIT_BYTES}",
        "temp_store=MEMORY",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection
