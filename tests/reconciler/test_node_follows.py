"""What of a node may change while the daemon runs is followed: the VPC's networks, asked of metadata."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger import database, migrate, reads
from reconciler import cloud, cloud_loop
from tests.providers import ec2_lab
from tests.providers.ec2_lab import Ec2Lab


class Follower:
    """A cloud's loop on the lab, with a clock that a test turns."""

    def __init__(self, lab: Ec2Lab, book: database.Ledger) -> None:
        self.lab, self.book, self.now = lab, book, 1_700_000_000_000
        settings = lab.settings(log_level="warn", warm_eni_target=0)
        self.cloud = cloud.Cloud(settings)
        self.loop = cloud_loop.CloudLoop(book, self.cloud, settings, lambda: self.now)
        self.rung = 0
        self.loop.capacity_changed = self._ring

    def _ring(self) -> None:
        self.rung += 1

    def tick(self, later_ms: int = 0) -> None:
        self.now += later_ms
        self.loop.tick()

    def cidrs(self) -> tuple[str, ...]:
        with self.book.read() as tx:
            node = reads.node(tx)
        return node.vpc_cidrs if node else ()

    def findings(self) -> set[str]:
        with self.book.read() as tx:
            return {code for code, _ in reads.open_findings(tx)}

    def lines(self) -> int:
        with self.book.read() as tx:
            [row] = reads.query(
                tx, "SELECT count(*) AS n FROM v_journal WHERE kind = 'node.seen'", limit=1
            )
        return int(row["n"])


@pytest.fixture
def follower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Follower]:
    ec2_lab.without_credentials(monkeypatch)
    path = tmp_path / "ledger.db"
    migrate.bring_to_head(path)
    with ec2_lab.opened() as lab, database.Ledger.open(path) as book:
        made = Follower(lab, book)
        yield made
        made.cloud.close()


def test_a_network_that_the_vpc_gets_is_known_half_a_minute_later(follower: Follower) -> None:
    follower.tick()
    assert follower.cidrs() == ("10.0.0.0/16",)
    follower.lab.client.associate_vpc_cidr_block(
        VpcId=follower.lab.built.vpc, CidrBlock="100.64.0.0/16"
    )
    rung = follower.rung
    follower.tick(cloud_loop.IDENTIFY_MS - 1)
    assert follower.cidrs() == ("10.0.0.0/16",)
    assert follower.loop.next_at() == follower.now + 1

    follower.tick(1)

    assert follower.cidrs() == ("10.0.0.0/16", "100.64.0.0/16")
    assert follower.rung == rung + 1


def test_asking_again_for_the_same_is_no_write(follower: Follower) -> None:
    follower.tick()
    before = follower.lines()
    for _ in range(3):
        follower.tick(cloud_loop.IDENTIFY_MS)
    assert follower.lines() == before


def test_metadata_that_is_silent_takes_nothing_away_and_is_asked_seldom(follower: Follower) -> None:
    """The networks known stay, the finding tells, and its end is noticed (upstream's W28: never again)."""
    follower.tick()
    endpoint = follower.cloud
    silent = follower.lab.settings(log_level="warn")
    follower.loop.cloud = cloud.Cloud(
        type(silent)(ec2_endpoint=silent.ec2_endpoint, imds_endpoint="http://127.0.0.1:9"),
    )
    try:
        follower.tick(cloud_loop.IDENTIFY_MS)
        assert follower.cidrs() == ("10.0.0.0/16",)
        assert "imds_down" in follower.findings()
        follower.lab.client.associate_vpc_cidr_block(
            VpcId=follower.lab.built.vpc, CidrBlock="100.64.0.0/16"
        )
    finally:
        follower.loop.cloud.close()
        follower.loop.cloud = endpoint
    follower.tick(cloud_loop.IDENTIFY_MS)
    assert "imds_down" in follower.findings()
    follower.tick(9 * cloud_loop.IDENTIFY_MS)
    assert follower.cidrs() == ("10.0.0.0/16", "100.64.0.0/16")
    assert "imds_down" not in follower.findings()
