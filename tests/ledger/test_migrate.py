"""Bring a file to head: made, kept, migrated with a copy, or refused untouched; killed anywhere."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from ledger import database, errors, file, migrate, reads, schema, writes

TREE = Path(__file__).parents[2]
SHIPPED = migrate.shipped()
SECOND = '''
"""One more revision, for this test."""
import os, signal
from alembic import op
import sqlalchemy as sa
revision, down_revision = "9999", "{head}"
def upgrade():
    op.add_column("boots", sa.Column("kernel", sa.Text, nullable=True))
    op.get_bind().exec_driver_sql("DELETE FROM late_deletes")
{then}
'''


def history(tmp_path: Path, then: str = "") -> migrate.History:
    """The shipped scripts and one more that adds a column, empties a table, and does `then`."""
    scripts = tmp_path / "migrations"
    shutil.copytree(SHIPPED.scripts, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (scripts / "versions" / "9999_test.py").write_text(
        SECOND.format(then=f"    {then}", head=SHIPPED.revisions[-1])
    )
    return migrate.History(scripts, (*SHIPPED.revisions, "9999"))


def dump(path: Path) -> list[tuple[str, str, str]]:
    """Every object of the schema, with the layout of its text taken out."""

    def plain(text: str) -> str:
        return re.sub(r"\s*([(),])\s*", r"\1", re.sub(r"\s+", " ", text)).strip()

    with contextlib.closing(file.reading(path)) as connection:
        rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        return sorted((kind, name, plain(text)) for kind, name, text in rows)


def state(path: Path) -> tuple[int, int, list[str]]:
    """Rows of late_deletes, columns of boots, revision."""
    with contextlib.closing(file.reading(path)) as connection:
        (rows,) = connection.execute("SELECT count(*) FROM late_deletes").fetchone()
        columns = connection.execute("PRAGMA table_info(boots)").fetchall()
        stamps = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    return rows, len(columns), [stamp for (stamp,) in stamps]


def remember(path: Path) -> None:
    """One row by which a file is told from an empty one."""
    with database.Ledger.open(path) as ledger, ledger.write(durable=True) as tx:
        writes.note_late_delete(tx, "c1", "eth0", 1)


def copies(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.*.copy"))


def test_a_new_file_equals_one_that_went_through_every_migration(
    path: Path, tmp_path: Path
) -> None:
    """The short way (today's schema at once) and the long way (all scripts) end in the same place."""
    long_way = tmp_path / "long.db"
    with contextlib.closing(file.connect(long_way, "rwc")) as connection:
        connection.execute("PRAGMA journal_mode=WAL").fetchone()
    migrate._migrate(long_way, SHIPPED, SHIPPED.revisions[-1])
    assert dump(long_way) == dump(path)


def test_the_revisions_are_the_scripts(tmp_path: Path) -> None:
    """schema.REVISIONS lists them all, oldest first, so that no alembic is needed to know one."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(SHIPPED.scripts)).walk_revisions()
    assert tuple(script.revision for script in scripts)[::-1] == schema.REVISIONS


def test_a_new_file_and_one_at_head_need_no_alembic(tmp_path: Path) -> None:
    """The door opens first: importing alembic takes longer than all the rest of a start."""
    program = (
        "import sys, pathlib; from ledger import migrate, database, reads, writes\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "print(migrate.bring_to_head(path), migrate.bring_to_head(path))\n"
        "with database.Ledger.open(path) as ledger, ledger.write() as tx: reads.node(tx)\n"
        "print(sorted(m for m in sys.modules if m.startswith('alembic')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "ledger.db")],
        capture_output=True,
        text=True,
        check=True,
        cwd=TREE,
    )
    assert done.stdout.split("\n")[:2] == ["created unchanged", "[]"]


def test_an_older_file_is_copied_and_migrated(path: Path, tmp_path: Path) -> None:
    """The copy is the old ledger, whole; the new one has the script's work and today's views."""
    remember(path)
    longer = history(tmp_path)
    assert migrate.bring_to_head(path, longer) == "migrated"
    assert state(path) == (0, 6, ["9999"])
    (copy,) = copies(path)
    assert f".{SHIPPED.revisions[-1]}." in copy.name
    assert state(copy) == (1, 5, [SHIPPED.revisions[-1]])
    assert migrate.bring_to_head(path, longer) == "unchanged"
    views = {name for kind, name, _ in dump(path) if kind == "view"}
    assert views == {view.name for view in schema.VIEWS}


def test_the_three_newest_copies_are_kept(path: Path, tmp_path: Path) -> None:
    old = [path.with_name(f"{path.name}.2020010{n}T000000.000Z.0000.copy") for n in range(1, 5)]
    for each in old:
        each.touch()
    migrate.bring_to_head(path, history(tmp_path))
    assert len(copies(path)) == migrate.COPIES_KEPT == 3
    assert copies(path)[:2] == old[2:]


def test_a_newer_file_is_refused_and_not_a_byte_of_it_changes(path: Path, tmp_path: Path) -> None:
    """Neither by migrating nor by opening; also not what is still in its WAL."""
    remember(path)
    migrate.bring_to_head(path, history(tmp_path))
    keeper = file.writing(path)
    keeper.execute("INSERT INTO late_deletes VALUES ('c9', 'eth0', 9)")
    # Copied as a dead writer leaves them: by hand, which is allowed here because nobody goes on writing.
    newer = tmp_path / "newer.db"
    for suffix in ("", "-wal"):
        shutil.copy(path.with_name(path.name + suffix), newer.with_name(newer.name + suffix))
    keeper.close()

    def family() -> dict[str, str]:
        parts = [newer, newer.with_name(newer.name + "-wal")]
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in parts}

    before = family()
    for attempt in (
        lambda: migrate.bring_to_head(newer),
        lambda: database.Ledger.open(newer),
        lambda: database.Ledger.open(newer, read_only=True),
    ):
        with pytest.raises(errors.NewerSchema, match="9999"):
            attempt()
        assert family() == before
    assert copies(newer) == []


@pytest.mark.parametrize("where", ["in the script", "after the script"])
def test_a_migration_killed_halfway_leaves_the_old_file_usable(
    where: str, path: Path, tmp_path: Path
) -> None:
    """SIGKILL in the middle of the transaction, or just before its commit: the file is as it was."""
    remember(path)
    then = "os.kill(os.getpid(), signal.SIGKILL)" if where == "in the script" else ""
    longer = history(tmp_path, then)
    program = (
        "import os, signal, sys, pathlib; from ledger import migrate\n"
        "def killed(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "if sys.argv[3] == 'after the script': migrate._lay_views = killed\n"
        "history = migrate.History(pathlib.Path(sys.argv[2]), (*migrate.shipped().revisions, '9999'))\n"
        "migrate.bring_to_head(pathlib.Path(sys.argv[1]), history)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), str(longer.scripts), where],
        cwd=TREE,
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert state(path) == (1, 5, [SHIPPED.revisions[-1]])
    assert len(copies(path)) == 1
    assert migrate.bring_to_head(path) == "unchanged"
    with database.Ledger.open(path) as ledger, ledger.read() as tx:
        assert reads.late_delete(tx, "c1", "eth0") == 1


ORPHAN = (
    "INSERT INTO addresses (address, eni_id, family, state, source, assigned_at, rested_since,"
    " cooling_until, reason) VALUES ('10.0.0.1', 'eni-x', 4, 'assigned', 'assign', 1, 0, 0, '')"
)


@pytest.mark.parametrize(
    "fault", ["raise OSError('the disk is full')", f"op.get_bind().exec_driver_sql({ORPHAN!r})"]
)
def test_a_failing_migration_says_where_the_copy_is_and_changes_nothing(
    fault: str, path: Path, tmp_path: Path
) -> None:
    """By itself, or because it would leave an address without its interface."""
    remember(path)
    with pytest.raises(
        errors.MigrationError, match=f"stays at schema {SHIPPED.revisions[-1]}"
    ) as refused:
        migrate.bring_to_head(path, history(tmp_path, fault))
    (copy,) = copies(path)
    assert str(copy) in str(refused.value)
    assert state(path) == (1, 5, [SHIPPED.revisions[-1]])
    assert migrate.bring_to_head(path) == "unchanged"


def test_a_file_without_a_stamp_is_not_stamped(path: Path) -> None:
    """Never re-stamp: what is in it is not known, so it is refused."""
    with contextlib.closing(file.connect(path, "rw")) as connection:
        connection.execute("DELETE FROM alembic_version")
    with pytest.raises(errors.NotALedger, match="without its revision stamp"):
        migrate.bring_to_head(path)


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE mine(x)")
    before = other.read_bytes()
    with pytest.raises(errors.NotALedger, match="not a ledger"):
        migrate.bring_to_head(other)
    assert other.read_bytes() == before


def test_views_are_laid_anew_where_they_differ(path: Path) -> None:
    """They belong to the program, so a change of one needs no migration."""
    with contextlib.closing(file.connect(path, "rw")) as connection:
        connection.execute("DROP VIEW v_pods")
        connection.execute("CREATE VIEW v_pods AS SELECT 1 AS old")
        connection.execute("CREATE VIEW v_forgotten AS SELECT 1 AS old")
    assert migrate.bring_to_head(path) == "unchanged"
    views = {name: text for kind, name, text in dump(path) if kind == "view"}
    assert set(views) == {view.name for view in schema.VIEWS}
    assert "old" not in views["v_pods"]


def test_an_empty_file_becomes_a_ledger(tmp_path: Path) -> None:
    """A start killed while it made the file leaves an empty one."""
    empty = tmp_path / "ledger.db"
    empty.touch()
    assert migrate.bring_to_head(empty) == "created"
    database.Ledger.open(empty).close()
