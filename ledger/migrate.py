"""Bring a file to head, or down to an older program's schema: copy first, refuse a newer one, never re-stamp.

A new file and one already at head need no alembic, which is imported only to carry one over.
A migration is one transaction: killed anywhere in it, the file is as it was. What a migration does
does not belong here; it stands in `migrations`.
"""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from ledger import errors, file, lock, schema

COPIES_KEPT = 3
"""Copies made before a migration, the newest ones; older ones are removed."""

MigrationError = errors.MigrationError
Brought = Literal["created", "unchanged", "migrated"]


@dataclass(frozen=True, slots=True)
class History:
    """Where alembic's scripts are, and every revision they make, oldest first."""

    scripts: Path
    revisions: tuple[str, ...]


def shipped() -> History:
    """This program's own history."""
    return History(Path(str(resources.files("migrations"))), schema.REVISIONS)


def bring_to_head(path: Path, history: History | None = None) -> Brought:
    """Make, keep or migrate the ledger at `path`.

    Raises errors.Locked, errors.NotALedger, errors.MigrationError, and errors.NewerSchema with the file
    untouched.
    """
    path = path.absolute()
    revisions = (history or shipped()).revisions
    with lock.held(path):
        found = file.revision(path) if path.exists() else None
        if found is None:
            _create(path)
            return "created"
        if found not in revisions:
            raise errors.NewerSchema(file.newer(path, found))
        if found != revisions[-1]:
            _carry(path, history or shipped(), found, revisions[-1])
            return "migrated"
        _lay_views_if_changed(path)
        return "unchanged"


def take_down(path: Path, to: str, history: History | None = None) -> Path | None:
    """Carry the ledger at `path` to the older schema `to`, for the program that knows no newer one.

    No lease is lost by it; what that schema has no place for is. Its views are laid by that program.
    Returns the copy made before, None if there was nothing to do. Raises as `bring_to_head` does, and
    errors.WrongSchema for a revision that is none, or newer than the file's.
    """
    path = path.absolute()
    revisions = (history or shipped()).revisions
    with lock.held(path):
        found = file.revision(path) if path.exists() else None
        if found is None:
            raise errors.NotALedger(f"{path} does not exist or is empty")
        if found not in revisions:
            raise errors.NewerSchema(file.newer(path, found))
        lower = revisions[: revisions.index(found) + 1]
        if to not in lower:
            raise errors.WrongSchema(
                f"{path} has schema {found}; it can be taken down to {', '.join(lower[:-1]) or 'none'}"
            )
        return None if to == found else _carry(path, history or shipped(), found, to)


def _carry(path: Path, history: History, found: str, to: str) -> Path:
    """Copy, then migrate; the copy's place."""
    copy = _copy_aside(path, found)
    try:
        _migrate(path, history, to)
    except Exception as error:
        raise errors.MigrationError(
            f"{path} stays at schema {found}: {error}. A copy made before is {copy}."
        ) from error
    return copy


def _create(path: Path) -> None:
    with contextlib.closing(file.connect(path, "rwc")) as connection:
        connection.execute("PRAGMA journal_mode=WAL").fetchone()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA application_id={schema.APPLICATION_ID}")
        for statement in schema.ddl():
            connection.execute(statement)
        _lay_views(connection)
        connection.execute("COMMIT")
    file.sync_folder(path.parent)


def _copy_aside(path: Path, found: str) -> Path:
    aside = file.name_aside(path, f"{found}.copy")
    with contextlib.closing(file.reading(path)) as connection:
        file.copy(connection, aside)
    for old in sorted(path.parent.glob(f"{path.name}.*.copy"))[:-COPIES_KEPT]:
        old.unlink()
    return aside


def _migrate(path: Path, history: History, to: str) -> None:
    """Run alembic inside one transaction that also holds the views and the check of references."""
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import create_engine, event, pool

    raw = file.connect(path, "rw")
    engine = create_engine("sqlite://", creator=lambda: raw, poolclass=pool.StaticPool)
    event.listen(engine, "begin", lambda begun: begun.exec_driver_sql("BEGIN IMMEDIATE"))
    config = Config()
    config.set_main_option("script_location", str(history.scripts).replace("%", "%%"))
    try:
        with engine.begin() as connection:
            _drop_views(raw)
            config.attributes["connection"] = connection
            if to == history.revisions[-1]:
                command.upgrade(config, to)
                _lay_views(raw)
            else:
                command.downgrade(config, to)
            broken = raw.execute("PRAGMA foreign_key_check").fetchall()
            if broken:
                raise sqlite3.IntegrityError(f"migration leaves references open: {broken[:5]}")
    finally:
        engine.dispose()
        raw.close()


def _lay_views_if_changed(path: Path) -> None:
    with contextlib.closing(file.reading(path)) as connection:
        there = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'view'"))
    if there == {view.name: view.ddl for view in schema.VIEWS}:
        return
    with contextlib.closing(file.connect(path, "rw")) as connection:
        connection.execute("BEGIN IMMEDIATE")
        _drop_views(connection)
        _lay_views(connection)
        connection.execute("COMMIT")


def _drop_views(connection: sqlite3.Connection) -> None:
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'view'").fetchall()
    for (name,) in names:
        connection.execute(f'DROP VIEW "{name}"')


def _lay_views(connection: sqlite3.Connection) -> None:
    for view in schema.VIEWS:
        connection.execute(view.ddl)
