"""Bring a file to head: copy first, refuse a newer schema, never re-stamp.

A new file and one already at head need no alembic, which is imported only to carry an older one over.
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
            copy = _copy_aside(path, found)
            try:
                _upgrade(path, history or shipped())
            except Exception as error:
                raise errors.MigrationError(
                    f"{path} stays at schema {found}: {error}. A copy made before is {copy}."
                ) from error
            return "migrated"
        _lay_views_if_changed(path)
        return "unchanged"


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


def _upgrade(path: Path, history: History) -> None:
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
            command.upgrade(config, history.revisions[-1])
            _lay_views(raw)
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
