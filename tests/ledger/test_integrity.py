"""Is a file sound; a damaged one is set aside with all that belongs to it, and a new one can begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from ledger import database, errors, integrity, migrate, reads, writes
from tests.ledger import node


def test_a_sound_file_is_ok(path: Path) -> None:
    with database.Ledger.open(path) as ledger:
        node.add_eni(ledger, 1, 10)
        assert integrity.quick_check(path) == integrity.SOUND
    assert integrity.quick_check(path) == integrity.SOUND


def damage(path: Path) -> None:
    """Overwrite pages in the middle of the closed file, as a failing disk would."""
    with database.Ledger.open(path) as ledger:
        node.add_eni(ledger, 1, 200)
    with path.open("r+b") as raw:
        raw.seek(4096 * 2)
        raw.write(b"\xa5" * 4096 * 20)


def test_a_damaged_page_is_found(path: Path) -> None:
    damage(path)
    assert integrity.quick_check(path) != integrity.SOUND


def test_a_file_that_cannot_be_read_at_all_is_told_in_words(tmp_path: Path) -> None:
    torn = tmp_path / "torn.db"
    torn.write_bytes(b"\x00" * 8192)
    assert integrity.quick_check(torn) not in {"", integrity.SOUND}
    assert "does not exist" in integrity.quick_check(tmp_path / "none.db")


def test_a_damaged_ledger_goes_aside_whole_and_a_new_one_begins(path: Path) -> None:
    """Its -wal goes with it: the new file must not inherit the old one's commits."""
    damage(path)
    wal = path.with_name(path.name + "-wal")
    wal.write_bytes(b"what the dead writer had not carried over")
    aside = integrity.set_aside(path)
    assert aside.name.endswith(".damaged")
    assert aside.exists()
    assert aside.with_name(aside.name + "-wal").exists()
    assert not path.exists()
    assert not wal.exists()
    assert migrate.bring_to_head(path) == "created"
    assert integrity.quick_check(path) == integrity.SOUND


def test_a_wal_left_behind_by_a_crash_while_setting_aside_is_not_inherited(
    path: Path, tmp_path: Path
) -> None:
    """The database goes first; SQLite discards a WAL that belongs to no database."""
    ledger = database.Ledger.open(path)
    with ledger.write() as tx:
        writes.note_late_delete(tx, "c1", "eth0", 1)
    orphan = tmp_path / "new.db-wal"
    orphan.write_bytes(path.with_name(path.name + "-wal").read_bytes())  # read by a test, then done
    ledger.close()
    fresh = tmp_path / "new.db"
    assert migrate.bring_to_head(fresh) == "created"
    assert integrity.quick_check(fresh) == integrity.SOUND
    with database.Ledger.open(fresh, read_only=True) as opened, opened.read() as look:
        assert reads.late_delete(look, "c1", "eth0") is None


def test_a_ledger_that_is_being_written_is_not_set_aside(path: Path) -> None:
    with database.Ledger.open(path), pytest.raises(errors.Locked):
        integrity.set_aside(path)
    assert path.exists()
