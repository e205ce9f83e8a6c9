"""Is a file sound; a damaged one is set aside with all that belongs to it, and a new one can begin."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ledger import database, errors, integrity, migrate, model, reads, writes
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


def test_a_sound_ledger_stays_where_it_is(path: Path) -> None:
    """Also one whose writer was killed: its -wal is there, its -shm may not be."""
    ledger = database.Ledger.open(path)
    with ledger.write() as tx:
        writes.note_late_delete(tx, "c1", "eth0", 1)
    killed = path.with_name("killed.db")
    for suffix in ("", "-wal"):
        killed.with_name(killed.name + suffix).write_bytes(
            path.with_name(path.name + suffix).read_bytes()
        )
    ledger.close()

    assert integrity.make_sound(killed) is None
    with database.Ledger.open(killed) as opened, opened.read() as look:
        assert reads.late_delete(look, "c1", "eth0") == 1


def test_no_ledger_is_no_damage(tmp_path: Path) -> None:
    assert integrity.make_sound(tmp_path / "none.db") is None
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_ledger_is_set_aside_at_the_start_and_told_of(path: Path) -> None:
    damage(path)
    aside = integrity.make_sound(path)
    assert aside is not None
    assert not path.exists()
    assert integrity.lying_aside(path) == (aside,)


def test_rubbish_is_damage(path: Path) -> None:
    path.write_bytes(b"rubbish" * 4096)
    assert integrity.make_sound(path) is not None


def test_a_file_cut_short_is_damage(path: Path) -> None:
    with database.Ledger.open(path) as ledger:
        node.add_eni(ledger, 1, 200)
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)
    assert integrity.make_sound(path) is not None


def test_a_file_that_may_not_be_read_is_not_damage(path: Path) -> None:
    """A folder in its place cannot be opened; setting that aside would hide what is wrong."""
    path.unlink()
    path.mkdir()
    with pytest.raises(errors.NotALedger, match="is a folder"):
        integrity.make_sound(path)
    assert path.is_dir()


def test_a_newer_schema_is_left_to_the_byte(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
        raw.commit()
    before = path.read_bytes()
    assert integrity.make_sound(path) is None
    with pytest.raises(errors.NewerSchema):
        migrate.bring_to_head(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("cut", [None, 0, 20, 32, 5_000, 0.5, 0.9])
def test_a_wal_cut_short_loses_the_end_and_nothing_else(path: Path, cut: float | None) -> None:
    """Also an empty or a missing one: what is left is what was true at some commit."""
    ledger = database.Ledger.open(path)
    for moment in range(50):
        with ledger.write() as tx:
            writes.note_late_delete(tx, f"c{moment}", "eth0", moment)
    torn = path.with_name("torn.db")
    torn.write_bytes(path.read_bytes())
    wal = path.with_name(path.name + "-wal").read_bytes()
    ledger.close()
    if cut is not None:
        left = wal[: int(cut * len(wal)) if 0 < cut < 1 else int(cut)]
        torn.with_name("torn.db-wal").write_bytes(left)

    assert integrity.make_sound(torn) is None
    assert integrity.check(torn) == integrity.SOUND
    with database.Ledger.open(torn) as opened, opened.read() as look:
        rows = look.dicts("SELECT at FROM late_deletes ORDER BY at", {})
    assert [row["at"] for row in rows] == list(range(len(rows)))
    assert len(rows) < 50


@contextmanager
def killed(path: Path) -> Iterator[database.Ledger]:
    """A ledger whose writer dies at the block's end: its -wal stays as it is."""
    ledger = database.Ledger.open(path)
    yield ledger
    kept = {part: (path.with_name(path.name + part)).read_bytes() for part in ("", "-wal")}
    ledger.close()
    for part, data in kept.items():
        path.with_name(path.name + part).write_bytes(data)


def pods(ledger: database.Ledger, name: str, count: int) -> None:
    for number in range(count):
        with ledger.write() as tx:
            node.claim(tx, f"{name}{number}", number + 1, pod=f"{name}-{number}")


def open_in(ledger: database.Ledger) -> tuple[model.Lease, ...]:
    with ledger.read() as tx:
        return reads.open_leases(tx)


def held(path: Path) -> set[str]:
    with database.Ledger.open(path, read_only=True) as book, book.read() as tx:
        return {lease.container_id for lease in reads.open_leases(tx)}


def test_a_copy_put_back_over_a_later_wal_is_that_wals_state_or_damage(path: Path) -> None:
    """With all pages that changed since in the log it is what the dead daemon knew, and no worse."""
    copy = path.with_name("copy.db")
    with killed(path) as ledger:
        node.add_eni(ledger, 1, 40)
        pods(ledger, "before", 10)
        ledger.backup(copy)
        pods(ledger, "after", 20)
        now = {lease.container_id for lease in open_in(ledger)}
    path.write_bytes(copy.read_bytes())
    assert integrity.make_sound(path) is None
    assert integrity.check(path) == integrity.SOUND
    assert held(path) == now


def test_a_copy_put_back_over_a_wal_that_lacks_pages_is_found(path: Path) -> None:
    """Each page is whole, and they are of two states: quick_check says ok, and the first question fails."""
    copy = path.with_name("copy.db")
    with killed(path) as ledger:
        node.add_eni(ledger, 1, 60)
        pods(ledger, "before", 10)
        ledger.checkpoint()
        ledger.backup(copy)
        pods(ledger, "between", 30)
        ledger.checkpoint()  # the log begins anew with the next commit
        pods(ledger, "after", 3)
    path.write_bytes(copy.read_bytes())
    assert integrity.quick_check(path) == integrity.SOUND
    aside = integrity.make_sound(path)
    assert aside is not None
    assert integrity.check(aside) != integrity.SOUND
    assert migrate.bring_to_head(path) == "created"


def test_the_wal_of_another_node_never_mixes_with_this_ones_rows(
    path: Path, tmp_path: Path
) -> None:
    """What comes out of it is one ledger or the other, or damage; whose it is the daemon sees."""
    other = tmp_path / "other.db"
    migrate.bring_to_head(other)
    with killed(other) as ledger:
        node.add_eni(ledger, 3, 60)
        pods(ledger, "theirs", 40)
    with database.Ledger.open(path) as ledger:
        node.add_eni(ledger, 1, 60)
        pods(ledger, "ours", 40)
    path.with_name(path.name + "-wal").write_bytes(
        other.with_name(other.name + "-wal").read_bytes()
    )
    if integrity.make_sound(path) is None:
        names = {name.rstrip("0123456789") for name in held(path)}
        assert len(names) == 1
    else:
        assert not path.exists()


def test_the_thorough_check_finds_an_index_that_lies_and_a_reference_to_nothing(path: Path) -> None:
    with database.Ledger.open(path) as ledger:
        node.add_eni(ledger, 1, 3)
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("DROP TRIGGER leased_eni_is_never_removed")
        raw.execute("DELETE FROM enis")
        raw.commit()
    assert integrity.quick_check(path) == integrity.SOUND
    assert "references lead nowhere" in integrity.check(path)


SECOND = """
import sys
from pathlib import Path
from ledger import database, errors
try:
    database.Ledger.open(Path(sys.argv[1]))
except errors.Locked:
    print("refused")
"""


@pytest.mark.parametrize("part", ["", "-wal", "-shm"])
def test_posix_locks_that_are_lost_let_no_second_writer_in(path: Path, part: str) -> None:
    """A stray open and close of the file drops SQLite's own locks, and a second writer's acknowledged
    commit would vanish without a word; the flock on a file beside it stays, and refuses that one.
    """
    with database.Ledger.open(path) as ledger:
        with ledger.write() as tx:
            writes.note_late_delete(tx, "c1", "eth0", 1)
        with ledger.write() as tx:
            writes.note_late_delete(tx, "c2", "eth0", 2)
            path.with_name(path.name + part).read_bytes()  # what nothing in the daemon may do
            second = subprocess.run(
                [sys.executable, "-c", SECOND, str(path)],
                cwd=Path(__file__).parents[2],
                capture_output=True,
                text=True,
                check=True,
            )
            assert second.stdout == "refused\n"
    with database.Ledger.open(path) as ledger, ledger.read() as look:
        assert [reads.late_delete(look, f"c{n}", "eth0") for n in (1, 2)] == [1, 2]
    assert integrity.check(path) == integrity.SOUND
