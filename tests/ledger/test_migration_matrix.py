"""Every schema up and down again, killed at every statement of it, under live leases: none is lost.

That a migration keeps what it should is told by the rows that both schemas have; that of a new one as well, for
the revisions are those that alembic lists.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from ledger import database, errors, file, integrity, migrate, model, reads, schema, writes
from tests.ledger import node, sample

NOW = 1_800_000_000_000
REVISIONS = migrate.shipped().revisions
STEPS = tuple(itertools.pairwise(REVISIONS))
LOST_ON_THE_WAY = {"alembic_version"}
Rows = dict[str, list[dict[str, Any]]]


def rows(path: Path) -> Rows:
    """Every row of every table."""
    with contextlib.closing(file.reading(path)) as connection:
        connection.row_factory = lambda cursor, row: dict(
            zip([column[0] for column in cursor.description], row, strict=True)
        )
        named = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {
            table["name"]: connection.execute(
                f"SELECT * FROM {table['name']} ORDER BY 1, 2"
            ).fetchall()
            for table in named
            if table["name"] not in LOST_ON_THE_WAY
        }


def common(one: Rows, other: Rows) -> tuple[Rows, Rows]:
    """Of both what both schemas have a place for; every table of the older one has to be among it."""

    def of(mine: Rows, theirs: Rows) -> Rows:
        return {
            table: [
                {name: value for name, value in row.items() if name in theirs[table][0]}
                for row in mine[table]
            ]
            if theirs[table]
            else mine[table]
            for table in sorted(set(mine) & set(theirs))
        }

    return of(one, other), of(other, one)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A ledger with hours of a node's life, leases live, waiting, in doubt and adopted, at each schema."""
    folder = tmp_path_factory.mktemp("lived")
    path = folder / "head.db"
    migrate.bring_to_head(path)
    with database.Ledger.open(path) as book:
        sample.fill(book, NOW)
        heir = node.add_eni(book, 6, 2, NOW)
        with book.write(durable=True) as tx:
            allocation = model.Allocation("adopted", "eth0", "aws-cni", "10.0.6.10")
            writes.adopt_lease(
                tx, allocation, eni_id=heir.eni_id, host_ifname="eniadopted",
                host_mac="0a:00:00:00:00:99", boot_id=node.BOOT, in_doubt=False, now=NOW,
            )  # fmt: skip
            writes.open_finding(tx, "ledger_damaged", "x", "y", NOW)
        with book.read() as tx:
            states = {lease.state for lease in reads.open_leases(tx)}
            assert states >= {"active", "waiting"}
            assert [row for row in reads.intents(tx, NOW) if row.state not in {"done", "failed"}]
    found = {}
    for revision in reversed(REVISIONS):
        found[revision] = folder / f"{revision}.db"
        shutil.copyfile(path, found[revision])
        migrate.take_down(found[revision], revision)
        path = found[revision]
    return found


def open_leases(path: Path) -> list[dict[str, Any]]:
    """The rows of the leases that have not ended."""
    return [row for row in rows(path)["leases"] if row["ended_at"] is None]


def up(path: Path, to: str) -> None:
    """As a program of that revision's day would."""
    past = REVISIONS[: REVISIONS.index(to) + 1]
    migrate.bring_to_head(path, migrate.History(migrate.shipped().scripts, past))


def down(path: Path, to: str) -> None:
    migrate.take_down(path, to)


@pytest.mark.parametrize(("lower", "upper"), tuple(itertools.combinations(REVISIONS, 2)))
def test_up_and_down_keep_every_row_that_both_have(
    lived: dict[str, Path], tmp_path: Path, lower: str, upper: str
) -> None:
    """Over any number of revisions, in one go, twice; and today's program takes it from there."""
    path = tmp_path / "ledger.db"
    shutil.copyfile(lived[upper], path)
    before = rows(path)
    for _ in range(2):
        down(path, lower)
        assert file.revision(path) == lower
        at_lower = rows(path)
        mine, kept = common(before, at_lower)
        assert kept == mine
        up(path, upper)
        assert file.revision(path) == upper
        mine, kept = common(at_lower, rows(path))
        assert kept == mine == at_lower
    assert integrity.check(path) == integrity.SOUND
    _opens(path, open_leases(lived[upper]))


def _opens(path: Path, leases: list[dict[str, Any]]) -> None:
    """This program brings the file to head and finds the same leases open."""
    migrate.bring_to_head(path)
    wanted = {(row["id"], row["container_id"], row["address"], row["state"]) for row in leases}
    with database.Ledger.open(path) as book:
        with book.read() as tx:
            found = {(r.id, r.container_id, r.address, r.state) for r in reads.open_leases(tx)}
            assert {view.name for view in schema.VIEWS} == {
                row["name"]
                for row in tx.dicts("SELECT name FROM sqlite_master WHERE type='view'", {})
            }
        assert found == wanted
        assert len(found) > 5
        with book.write() as tx:
            node.claim(tx, "after", NOW + 1, pod="after")
    assert integrity.check(path) == integrity.SOUND


POINTS = {("c_call", "execute"), ("c_call", "executemany"), ("c_return", "commit")}


class Countdown:
    """Kills the process when it is about to run its n-th statement, or has just committed."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, _: FrameType, event: str, what: Any) -> None:
        if (event, getattr(what, "__name__", "")) in POINTS:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def killed(work: Callable[[Path, str], None], path: Path, to: str, statement: int) -> bool:
    """Do it in a process that is killed before this statement; False if it ended before."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            sys.setprofile(Countdown(statement))
            work(path, to)
            status = 0
        finally:
            os._exit(status)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in {0, -signal.SIGKILL}
    return ended != 0


@pytest.mark.slow
@pytest.mark.parametrize("way", [up, down], ids=["up", "down"])
@pytest.mark.parametrize(("lower", "upper"), STEPS)
def test_killed_at_any_statement_it_is_the_old_file_or_the_new_one(
    lived: dict[str, Path], tmp_path: Path, lower: str, upper: str, way: Callable[[Path, str], None]
) -> None:
    """SIGKILL at each in turn; whichever it is, whole, with the same leases, and the next try ends."""
    source, to = (lower, upper) if way is up else (upper, lower)
    path = tmp_path / "ledger.db"
    before = rows(lived[source])
    held = open_leases(lived[source])
    statement, ends = 0, set()
    while True:
        statement += 1
        for part in tmp_path.iterdir():
            part.unlink()
        shutil.copyfile(lived[source], path)
        if not killed(way, path, to, statement):
            break
        found = file.revision(path)
        assert found in {source, to}
        ends.add(found)
        mine, kept = common(before, rows(path))
        assert kept == mine
        if found == source:
            assert rows(path) == before
            way(path, to)
        if statement % 10 == 0:
            _opens(path, held)
    assert ends == {source, to}, "killed before its commit and after it"
    assert statement > 20, "the statements were not heard"
    _opens(path, held)


def test_a_ledger_is_not_taken_down_to_what_is_not_below_it(
    lived: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "ledger.db"
    shutil.copyfile(lived[REVISIONS[1]], path)
    for wrong in (REVISIONS[-1], "9999", ""):
        with pytest.raises(errors.WrongSchema, match=f"can be taken down to {REVISIONS[0]}"):
            migrate.take_down(path, wrong)
    assert migrate.take_down(path, REVISIONS[1]) is None
    with pytest.raises(errors.NotALedger):
        migrate.take_down(tmp_path / "none.db", REVISIONS[0])
    with pytest.raises(errors.Locked), _written(path):
        migrate.take_down(path, REVISIONS[0])


@contextlib.contextmanager
def _written(path: Path) -> Any:
    migrate.bring_to_head(path)
    with database.Ledger.open(path):
        yield
