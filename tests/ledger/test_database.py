"""The door: one writer, snapshots, durability where it was asked for."""

from __future__ import annotations

import contextlib
import errno
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import insert, literal, literal_column, select, update

from ledger import database, errors, integrity, migrate, reads, schema, writes
from ledger import file as files
from tests.ledger import node

DIRTY_PAGES = """
import ctypes, sys
file = open(sys.argv[1], "rb")
whole, answer = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
libc = ctypes.CDLL(None, use_errno=True)
if libc.syscall(451, file.fileno(), whole, answer, 0):
    sys.exit(ctypes.get_errno())
print(answer[1] + answer[2])
"""
"""Pages of a file that the disk does not have yet, by cachestat(2): in a process of its own, for a plain
open and close in ours would drop SQLite's locks."""


def unwritten_pages(file: Path) -> int:
    """Dirty or being-written pages of the file; skips the test where the kernel cannot tell."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", DIRTY_PAGES, str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode in {errno.ENOSYS, errno.EOPNOTSUPP}:
        pytest.skip("cachestat(2) needs Linux 6.5 and a disk file system")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def synchronous(tx: database.Write) -> int:
    row = tx.dicts("PRAGMA synchronous", {})
    return int(row[0]["synchronous"])


def test_a_durable_commit_is_full_and_others_are_normal(ledger: database.Ledger) -> None:
    """SQLite itself says in the transaction which one it is (1 NORMAL, 2 FULL), in any order."""
    seen = []
    for durable in (False, True, False, False, True):
        with ledger.write(durable=durable) as tx:
            seen.append(synchronous(tx))
    assert seen == [1, 2, 1, 1, 2]


def test_the_disk_has_a_durable_commit_when_it_returns(ledger: database.Ledger) -> None:
    """After FULL no page of the WAL is dirty, also those of NORMAL commits before; after NORMAL some are."""
    wal = ledger.path.with_name(ledger.path.name + "-wal")
    with ledger.write() as tx:
        writes.note_late_delete(tx, "a" * 64, "eth0", 1)
    lazy = unwritten_pages(wal)
    with ledger.write(durable=True) as tx:
        writes.note_late_delete(tx, "b" * 64, "eth0", 1)
    assert unwritten_pages(wal) == 0
    assert lazy > 0, "a NORMAL commit was written through; this test sees no difference"


def test_what_ec2_remembers_is_refused_in_a_commit_that_a_power_cut_may_lose(
    ledger: database.Ledger,
) -> None:
    """Every change to intents, interfaces and addresses asks for durable=True."""
    node.add_eni(ledger, 1, 2)
    with ledger.write(durable=True) as tx:
        intent = writes.plan_intent(tx, "AttachEni", "eni-1", {}, "pod", "a pod waits", 1)
    an_eni, address = node.eni(1).eni_id, node.addresses(1, 1)
    changes = (
        lambda tx: writes.plan_intent(tx, "CreateEni", "subnet-1", {}, "pod", "why", 1),
        lambda tx: writes.intent_sent(tx, intent.id, 1),
        lambda tx: writes.intent_unknown(tx, intent.id, "timeout", "no reply", 2, 1),
        lambda tx: writes.intent_failed(tx, intent.id, "Throttling", "slow down", 2, 1),
        lambda tx: writes.intent_done(tx, intent.id, 1),
        lambda tx: writes.eni_created(tx, node.eni(2), (), 1),
        lambda tx: writes.eni_attaching(tx, an_eni, 1, 0, "eni-attach-1", 1),
        lambda tx: writes.eni_dot(tx, an_eni, 1),
        lambda tx: writes.eni_gone(tx, an_eni, "deleted", 1),
        lambda tx: writes.addresses_assigned(tx, an_eni, ["10.0.1.99"], "assign", 1),
        lambda tx: writes.addresses_releasing(tx, an_eni, address, 1),
        lambda tx: writes.addresses_released(tx, address, 1),
    )
    for change in changes:
        with pytest.raises(RuntimeError, match="durable=True"), ledger.write() as tx:
            change(tx)


def test_an_exception_undoes_the_whole_change(ledger: database.Ledger) -> None:
    before = ledger.revision()

    def refused_halfway() -> None:
        with ledger.write() as tx:
            writes.note_late_delete(tx, "a", "eth0", 1)
            writes.record_request(tx, command="ADD", code=11, reason="", now=1)

    with pytest.raises(sqlite3.IntegrityError):
        refused_halfway()
    with ledger.read() as tx:
        assert reads.late_delete(tx, "a", "eth0") is None
    assert ledger.revision() == before
    assert not ledger.in_transaction()


def test_the_revision_grows_with_changes_only(ledger: database.Ledger) -> None:
    """A commit that changed nothing is no news."""
    start = ledger.revision()
    with ledger.write():
        pass
    assert ledger.revision() == start
    with ledger.write() as tx:
        writes.note_late_delete(tx, "a", "eth0", 1)
    assert ledger.revision() == start + 1


def test_a_read_only_ledger_notices_the_commits_of_another_process(
    ledger: database.Ledger,
) -> None:
    with database.Ledger.open(ledger.path, read_only=True) as watcher:
        before = watcher.revision()
        assert watcher.revision() == before
        with ledger.write() as tx:
            writes.note_late_delete(tx, "a", "eth0", 1)
        assert watcher.revision() != before


def test_a_read_is_a_snapshot_beside_an_open_write(ledger: database.Ledger) -> None:
    """Neither waits for the other, and the reader sees one moment from its first question on."""
    with ledger.write() as change:
        writes.note_late_delete(change, "a", "eth0", 1)
        with ledger.read() as tx:
            assert reads.late_delete(tx, "a", "eth0") is None
    with ledger.read() as tx:
        assert reads.late_delete(tx, "a", "eth0") == 1
        with ledger.write() as change:
            writes.note_late_delete(change, "a", "eth0", 2)
        assert reads.late_delete(tx, "a", "eth0") == 1
    with ledger.read() as tx:
        assert reads.late_delete(tx, "a", "eth0") == 2


def test_nesting_is_refused_at_once_instead_of_waiting_for_itself(ledger: database.Ledger) -> None:
    with ledger.write(), pytest.raises(RuntimeError, match="writing already"), ledger.write():
        pass
    with ledger.read(), pytest.raises(RuntimeError, match="reading already"), ledger.read():
        pass


def test_in_transaction_is_told_per_thread(ledger: database.Ledger) -> None:
    elsewhere: list[bool] = []
    with ledger.write():
        assert ledger.in_transaction()
        thread = threading.Thread(target=lambda: elsewhere.append(ledger.in_transaction()))
        thread.start()
        thread.join()
    assert elsewhere == [False]
    with ledger.read():
        assert ledger.in_transaction()
    assert not ledger.in_transaction()


def test_connections_of_ended_threads_are_closed(ledger: database.Ledger) -> None:
    """Threads come and go; their readers must not pile up."""

    def look() -> None:
        with ledger.read() as tx:
            reads.node(tx)

    for _ in range(5):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    look()
    assert len(ledger._readers) == 1


def test_a_second_writer_is_refused_and_told_who_writes(ledger: database.Ledger) -> None:
    """Also from another process, and also for a migration."""
    with pytest.raises(errors.Locked, match=r"process \d+"):
        database.Ledger.open(ledger.path)
    with pytest.raises(errors.Locked):
        migrate.bring_to_head(ledger.path)
    program = (
        "import sys, pathlib; from ledger import database;"
        "database.Ledger.open(pathlib.Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(ledger.path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert "errors.Locked" in done.stderr
    assert done.returncode != 0


KILLED_WRITER = """
import itertools, pathlib, sys
from ledger import database, writes
with database.Ledger.open(pathlib.Path(sys.argv[1])) as ledger:
    for moment in itertools.count(1):
        with ledger.write(durable=moment % 7 == 0) as tx:
            writes.note_late_delete(tx, f"c{moment}", "eth0", moment)
        print(moment, flush=True)
"""


def test_every_acknowledged_commit_is_there_after_a_kill(path: Path) -> None:
    """SIGKILL while it writes (I8): what it said to be committed is there, at most one more is."""
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert writer.stdout is not None
    with writer.stdout as said:
        for _ in range(200):
            assert said.readline(), "the writer ended by itself"
        writer.kill()
        acknowledged = 200 + len(said.readlines())
    assert writer.wait() == -signal.SIGKILL
    assert integrity.quick_check(path) == integrity.SOUND
    with database.Ledger.open(path) as ledger, ledger.read() as tx:
        (kept,) = tx.dicts("SELECT count(*) AS n, max(at) AS newest FROM late_deletes", {})
    assert kept["n"] == kept["newest"]
    assert acknowledged <= kept["n"] <= acknowledged + 1


def test_the_writers_place_is_free_again_after_close(path: Path) -> None:
    database.Ledger.open(path).close()
    database.Ledger.open(path).close()


def test_a_read_only_ledger_refuses_to_write(path: Path) -> None:
    with database.Ledger.open(path, read_only=True) as ledger:
        with pytest.raises(RuntimeError, match="read-only"), ledger.write():
            pass
        with ledger.read() as tx, pytest.raises(sqlite3.OperationalError):
            tx.dicts("DELETE FROM journal", {})


def test_a_backup_is_one_file_with_everything_committed(
    ledger: database.Ledger, tmp_path: Path
) -> None:
    """Also what is still in the WAL, and while the writer goes on; it opens read-only anywhere."""
    with ledger.write() as tx:
        writes.note_late_delete(tx, "a", "eth0", 7)
    copy = tmp_path / "copies" / "copy.db"
    copy.parent.mkdir()
    with ledger.write() as tx:
        writes.note_late_delete(tx, "b", "eth0", 8)
        ledger.backup(copy)
    copy.parent.chmod(0o555)
    with database.Ledger.open(copy, read_only=True) as opened, opened.read() as tx:
        assert reads.late_delete(tx, "a", "eth0") == 7
        assert reads.late_delete(tx, "b", "eth0") is None
    copy.parent.chmod(0o755)
    assert sorted(file.name for file in copy.parent.iterdir()) == ["copy.db"]


def test_the_wal_is_carried_over_by_checkpoint_and_never_by_a_commit(
    ledger: database.Ledger,
) -> None:
    """2000 commits stay in the WAL (SQLite by itself would carry them over every 1000 pages)."""
    size = ledger.path.stat().st_size
    for moment in range(2000):
        with ledger.write() as tx:
            writes.note_late_delete(tx, str(moment % 50), "eth0", moment)
    assert ledger.path.stat().st_size == size
    in_wal, carried = ledger.checkpoint()
    assert in_wal == carried > 2000
    wal = ledger.path.with_name(ledger.path.name + "-wal")
    full = wal.stat().st_size
    for moment in range(100):
        with ledger.write() as tx:
            writes.note_late_delete(tx, str(moment % 50), "eth0", moment)
    assert wal.stat().st_size == full, "the WAL is reused from its start, not grown"


def test_a_missing_or_foreign_file_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(errors.NotALedger, match="does not exist"):
        database.Ledger.open(tmp_path / "nowhere.db", read_only=True)
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE mine(x)")
    text = tmp_path / "text.db"
    text.write_text("not a database at all, but long enough to have a header" * 20)
    for file in (other, text):
        with pytest.raises(errors.NotALedger):
            database.Ledger.open(file)
        with pytest.raises(errors.NotALedger):
            database.Ledger.open(file, read_only=True)
    assert text.read_text().startswith("not a database"), "it is left as it was"


def test_a_statement_with_a_bound_constant_is_refused_when_it_is_written() -> None:
    """A partial index cannot see a bound constant, and the hot path would scan."""
    with pytest.raises(ValueError, match="bound, not written"):
        database.Statement(select(schema.leases.c.id).where(schema.leases.c.state == "ended"))
    with pytest.raises(ValueError, match="bound, not written"):
        database.Statement(insert(schema.journal).values(at=literal(1)))


def test_the_wal_stays_short_under_steady_writing(
    ledger: database.Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints that never find all of it carried over would let it grow for ever."""
    monkeypatch.setattr(files, "WAL_MOST_PAGES", 64)
    written = threading.Event()

    def write() -> None:
        for n in range(3000):
            with ledger.write() as tx:
                writes.line(tx, n, "test", "steady writing")
        written.set()

    writer = threading.Thread(target=write)
    writer.start()
    longest = 0
    while not written.is_set():
        longest = max(longest, ledger.checkpoint()[0])
    writer.join()

    assert 64 < longest < 1500


def test_a_parameter_that_would_never_be_given_is_refused() -> None:
    """Written as text it is none of the statement's, and SQLite would ask for it when it is too late."""
    with pytest.raises(ValueError, match="':at'"):
        database.Statement(update(schema.leases).values(claimed_at=literal_column(":at")))
