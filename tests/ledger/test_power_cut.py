"""The power goes at any write, the disk runs full at any write: what was promised is there, the file sound.

I8, with the disk as it is: what was synced stays, of the rest any sectors or none. How a commit that EC2
remembers differs from one that it does not is decision 5.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import pytest

from ledger import database, integrity, migrate
from tests.ledger import disk

STORY = """
import ctypes
from pathlib import Path
from ledger import database, migrate, writes
from tests.ledger import node

path = Path({path!r})
note = lambda text: ctypes.CDLL(None).disk_note(text.encode())
migrate.bring_to_head(path)
note("made")
with database.Ledger.open(path) as book:
    for number in range({commits}):
        durable = number % 3 == 0
        with book.write(durable=durable) as tx:
            writes.note_late_delete(tx, f"c{{number}}", "eth0", number)
            for filler in range(number % 4):
                writes.line(tx, number, "filler", "x" * 1500)
        note(f"{{'durable' if durable else 'normal'}} {{number}}")
        if number % 6 == 5:
            book.checkpoint()
note("closed")
"""
VARIANTS = 2
"""Images a point: nothing that was not synced, and what a draw leaves."""


@pytest.mark.slow
def test_the_power_may_go_at_any_write(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> None:
    """Every write of making a ledger, committing to it, checkpointing and closing it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    story = STORY.format(path=str(folder / "ledger.db"), commits=16)
    records = disk.run(story, folder, tmp_path / "log", tmp_path_factory.getbasetemp())
    assert {"W", "S", "N"} <= {record.kind for record in records}
    points = [n for n, record in enumerate(records, 1) if record.kind != "N"]
    assert len(points) > 60, "the disk was not heard"
    made, promised, begun = False, -1, -1
    memory = Path("/dev/shm")  # noqa: S108 - rebuilt files need no disk
    cut = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else tmp_path))
    request.addfinalizer(lambda: shutil.rmtree(cut))
    for point in range(1, len(records) + 1):
        last = records[point - 1]
        if last.kind == "N":
            made = made or last.name == "made"
            word, _, number = last.name.partition(" ")
            if number:
                begun = int(number)
                promised = begun if word == "durable" else promised
            continue
        for variant in range(VARIANTS):
            keep = random.Random(1000 * point + variant) if variant else None
            _lay(cut, disk.image(records[:point], keep))
            _expect(cut / "ledger.db", made=made, promised=promised, begun=begun + 1)


def _lay(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def _expect(path: Path, *, made: bool, promised: int, begun: int) -> None:
    """A sound file whose commits are all of them up to one, and that one no earlier than promised."""
    aside = integrity.make_sound(path)
    if not made:  # nobody has used it: a half-made ledger is finished or made anew
        migrate.bring_to_head(path)
        assert integrity.check(path) == integrity.SOUND
        return
    assert aside is None
    assert integrity.check(path) == integrity.SOUND
    with database.Ledger.open(path) as book, book.read() as tx:
        rows = [row["at"] for row in tx.dicts("SELECT at FROM late_deletes ORDER BY at", {})]
    assert rows == list(range(len(rows)))
    assert promised < len(rows) <= begun + 1


FULL = """
import ctypes, shutil, sqlite3
from pathlib import Path
from ledger import database, integrity, migrate, writes

folder = Path({folder!r})
full_after = ctypes.CDLL(None).disk_full_after
refused, n = 1, 0
while refused:
    n += 1
    path = folder / f"{{n}}.db"
    migrate.bring_to_head(path)
    told, refused = [], 0
    with database.Ledger.open(path) as book:
        full_after(n)
        for number in range(6):
            try:
                with book.write(durable=number % 2 == 0) as tx:
                    writes.note_late_delete(tx, f"c{{number}}", "eth0", number)
                    writes.line(tx, number, "filler", "x" * 3000)
                told.append(number)
                if number % 3 == 2:
                    book.checkpoint()
            except sqlite3.Error:
                refused += 1
        full_after(0)
        with book.write(durable=True) as tx:
            writes.note_late_delete(tx, "after", "eth0", 99)
        book.checkpoint()
        with book.read() as tx:
            kept = [r["at"] for r in tx.dicts("SELECT at FROM late_deletes ORDER BY at", {{}})]
    assert kept == [*told, 99], (n, kept, told)
    assert integrity.check(path) == "ok", n
    for part in folder.glob(f"{{n}}.db*"):
        part.unlink()
assert n > 10, n
print(n)
"""


@pytest.mark.slow
def test_the_disk_may_run_full_at_any_write(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What was refused is not there, what was told is, and with room again it goes on."""
    folder = tmp_path / "disk"
    folder.mkdir()
    disk.run(
        FULL.format(folder=str(folder)), folder, tmp_path / "log", tmp_path_factory.getbasetemp()
    )
