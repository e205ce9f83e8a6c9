"""SQLite held rightly: nothing but SQLite opens the ledger's files in the process that writes them.

POSIX locks belong to a process, and closing any descriptor of a file drops all it has there. One plain
open and close of the -shm file, and a second writer gets in, both commits are acknowledged, and one is
lost with the integrity check still saying ok. So we never do it, and if somebody does, the flock on the
lock file still keeps the second writer out.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TREE = Path(__file__).parents[2]

WORKLOAD = """
import pathlib, sys, threading

opened = []

def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        name = arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0]
        opened.append(name)

path = pathlib.Path(sys.argv[1])
sys.addaudithook(watch)
from ledger import database, integrity, migrate, reads, writes
from tests.ledger import node

migrate.bring_to_head(path)
with database.Ledger.open(path) as ledger:
    node.add_eni(ledger, 1, 30)
    def caller(number):
        for turn in range(10):
            with ledger.write() as tx:
                lease = node.claim(tx, f"{number}-{turn}", 10)
                writes.plan_installed(tx, "lease", str(lease.id), node.wiring(lease), 10)
            with ledger.read() as tx:
                reads.desired(tx, 10)
                reads.show(tx, "pods")
                reads.explain_address(tx, lease.address)
                reads.query(tx, "SELECT * FROM v_leases", limit=5)
            with ledger.write(durable=True) as tx:
                writes.end(tx, lease.id, "deleted", 10, 0)
                writes.forget_owner_installed(tx, "lease", str(lease.id), 10)
                writes.prune(tx, 10)
            ledger.checkpoint()
    threads = [threading.Thread(target=caller, args=(n,)) for n in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    ledger.backup(path.with_name("backup.db"))
    assert integrity.quick_check(path) == "ok"
    {extra}
with database.Ledger.open(path, read_only=True) as ledger, ledger.read() as tx:
    reads.desired(tx, 10)
ours = [name for name in opened if name.startswith(str(path)) and not name.endswith(".lock")]
print(len(opened) > 50, ours)
"""

SECOND_WRITER = """
import pathlib, sys
from ledger import database
with database.Ledger.open(pathlib.Path(sys.argv[1])): print("got in")
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=TREE,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_writing_process_never_opens_the_ledgers_files_itself(tmp_path: Path) -> None:
    """Every open() of a whole life is heard by an audit hook: start, load, backup, check, close."""
    done = run(WORKLOAD.replace("{extra}", "pass"), str(tmp_path / "ledger.db"))
    assert (done.stdout, done.stderr) == ("True []\n", "")


def test_the_watch_hears_a_plain_open(tmp_path: Path) -> None:
    """The mutation: the very line that loses commits is noticed."""
    careless = 'open(f"{path}-shm", "rb").close()'
    done = run(WORKLOAD.replace("{extra}", careless), str(tmp_path / "ledger.db"))
    assert done.stdout == f"True ['{tmp_path / 'ledger.db'}-shm']\n", done.stderr


def test_even_with_sqlites_locks_lost_a_second_writer_stays_out(tmp_path: Path) -> None:
    """First the loss is shown with SQLite alone, then that the lock file is not part of it.

    The process holds an open write and drops its locks by a plain open and close of -shm: another
    process writes through plain SQLite at once, but cannot open the ledger.
    """
    program = """
import pathlib, subprocess, sys
from ledger import database, migrate, writes
path = pathlib.Path(sys.argv[1])
plain = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=0.2, isolation_level=None);" \
    "c.execute('BEGIN IMMEDIATE'); c.execute('ROLLBACK'); print('got in')"
def attempt(program):
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    print(done.stdout.strip() or done.stderr.strip().splitlines()[-1].split(":")[0])
migrate.bring_to_head(path)
with database.Ledger.open(path) as ledger, ledger.write() as tx:
    writes.note_late_delete(tx, "c1", "eth0", 1)
    attempt(plain)
    open(f"{path}-shm", "rb").close()
    attempt(plain)
    attempt(sys.argv[2])
"""
    done = run(program, str(tmp_path / "ledger.db"), SECOND_WRITER)
    assert done.stdout.splitlines() == [
        "sqlite3.OperationalError",
        "got in",
        "ledger.errors.Locked",
    ], done.stderr
