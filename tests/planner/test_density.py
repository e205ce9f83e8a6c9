"""Pods are packed, so that whole prefixes stay free: the story of `make churn`, told for a few days."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from statistics import fmean

import pytest

from ledger import database, migrate, model, writes
from reconciler import ideal
from reconciler.planner import limits
from tests.bench import churn
from tests.ledger import node


def test_a_week_of_churn_leaves_more_prefixes_free_than_random_choice_does() -> None:
    """The same pods, by the same planner: fewer prefixes held, and nearly always one to give back."""
    limit = limits.lookup(churn.TYPE)
    assert limit is not None
    pods = churn.story(days=6)
    dense = churn.live(ideal.World(churn.SETTINGS, limit), pods, days=6)
    scattered = churn.live(churn.Scattered(churn.SETTINGS, limit), pods, days=6)
    assert [hour.pods for hour in dense] == [hour.pods for hour in scattered]
    assert fmean(h.prefixes for h in dense) < fmean(h.prefixes for h in scattered)
    assert fmean(h.free for h in dense) > fmean(h.free for h in scattered) + 0.5


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_picture_of_thirty_days_is_what_make_churn_draws() -> None:
    """So it is told again alike: the pods and the random choice come from seeds."""
    assert churn.PICTURE.read_text() == churn.picture(*churn.tell())


class WithLedger(ideal.World):
    """The same node beside a ledger that is told what comes and goes, and chooses each pod's address."""

    ledger: database.Ledger
    leases: dict[int, int]
    """Each pod's lease."""
    prefixes_told: set[str]
    enis_told: set[str]
    chosen = 0

    def _serve(self) -> None:
        with self.ledger.write(durable=True) as tx:
            self._tell(tx)
            for number, lease in sorted(self.pods.items()):
                best = self._free() if lease.address is None else None
                if best is None:
                    continue
                claimed = node.claim(tx, f"c{number}", self.now, prefixes=True)
                assert claimed.address is not None
                row = self.rows[claimed.address]
                assert alike(row) == alike(best)
                self.chosen += 1
                self.leases[number] = claimed.id
                self.pods[number] = dataclasses.replace(
                    lease, state="active", address=row.address, eni_id=row.eni_id
                )

    def _tell(self, tx: database.Write) -> None:
        for number in set(self.leases) - set(self.pods):
            lease = self.leases.pop(number)
            writes.end(tx, lease, "deleted", self.now, self.settings.ip_cooldown_ms)
        for eni_id in self.enis_told - set(self.enis):
            writes.eni_gone(tx, eni_id, "deleted", self.now)
        for eni_id, eni in self.enis.items():
            if eni_id not in self.enis_told:
                writes.eni_created(tx, dataclasses.replace(eni, state="attached"), (), self.now)
                writes.eni_state(tx, eni_id, "usable", self.now)
        for prefix in self.prefixes.values():
            if prefix.cidr not in self.prefixes_told:
                writes.prefixes_assigned(tx, prefix.eni_id, [prefix.cidr], "assign", self.now)
        gone = self.prefixes_told - set(self.prefixes)
        for eni_id in self.enis_told & set(self.enis):
            writes.given_back(tx, eni_id, self.now, cidrs=gone)
        self.enis_told, self.prefixes_told = set(self.enis), set(self.prefixes)


def alike(row: model.Address) -> tuple[str, str | None, int]:
    """All by which one address is preferred to another."""
    return row.eni_id, row.prefix, row.rested_since


def test_the_ledger_chooses_as_the_picture_says_it_does(tmp_path: Path) -> None:
    """Two days of it: each address is on the same interface, in the same prefix, and has rested as long."""
    limit = limits.lookup(churn.TYPE)
    assert limit is not None
    path = tmp_path / "ledger.db"
    migrate.bring_to_head(path)
    world = WithLedger(churn.SETTINGS, limit)
    world.leases, world.enis_told, world.prefixes_told = {}, set(), set()
    with database.Ledger.open(path) as world.ledger:
        churn.live(world, churn.story(days=2), days=2)
    assert world.chosen > 100
