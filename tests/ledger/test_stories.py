"""Any story of claims, ends, reboots, EC2's answers and pictures keeps the invariants.

Hypothesis invents the stories; a small model of what must be true is kept beside the ledger and
compared after every step: I2 (no address has two open leases), I3 (a free address is backed by our own
confirmed assign and not contradicted by a later release), I4 (every closed lease has a reason).
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ledger import database, migrate, model, reads, writes
from ledger.writes import adoption
from tests.ledger import node

DEVICES = (1, 2)
PER_ENI = 4
COOLING_MS = 30_000

containers = st.sampled_from([f"sandbox-{n}" for n in range(10)])
hosts = st.sampled_from(node.addresses(1, PER_ENI) + node.addresses(2, PER_ENI))
steps_ms = st.sampled_from([1, 1_000, COOLING_MS, adoption.ADOPTION_LAG_MS + 1])


def device_of(address: str) -> int:
    return int(address.split(".")[2])


class Story(RuleBasedStateMachine):
    """One node's life. `ours` is what EC2 has confirmed and not taken back, by our own calls or by a
    picture new enough; `doubtful` are those a pod must not get.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="ledger-story-"))
        path = self.folder / "ledger.db"
        migrate.bring_to_head(path)
        self.ledger = database.Ledger.open(path)
        self.now = 1_000_000
        self.boot = 0
        self.ours: set[str] = set()
        self.released_at: dict[str, int] = {}
        self.given_at: dict[str, int] = {}
        self.doubtful: set[str] = set()
        self.missed: set[str] = set()
        self.cooling: dict[str, int] = {}
        self.held: dict[str, str] = {}
        self.waiting: set[str] = set()
        for device in DEVICES:
            node.add_eni(self.ledger, device, 0, self.now)

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.folder)

    # ------------------------------------------------------------------- steps

    @rule(by=steps_ms)
    def time_passes(self, by: int) -> None:
        self.now += by

    @rule(address=hosts)
    def ec2_gives(self, address: str) -> None:
        """EC2 gives only what it has not given already."""
        if address in self.ours:
            return
        eni_id = node.eni(device_of(address)).eni_id
        with self.ledger.write(durable=True) as tx:
            assert writes.addresses_assigned(tx, eni_id, [address], "assign", self.now) == 1
        self._is_ours(address)

    @rule(address=hosts)
    def ec2_takes_back(self, address: str) -> None:
        """The whole way of a release; refused by the file while a pod holds the address."""
        if address not in self.ours:
            return
        eni_id = node.eni(device_of(address)).eni_id
        try:
            with self.ledger.write(durable=True) as tx:
                writes.addresses_releasing(tx, eni_id, [address], self.now)
                writes.addresses_released(tx, [address], self.now)
        except sqlite3.IntegrityError:
            assert address in self.held.values()
            return
        assert address not in self.held.values()
        self.ours.discard(address)
        self.doubtful.discard(address)
        self.missed.discard(address)
        self.released_at[address] = self.now

    @rule(container=containers, again=st.booleans())
    def runtime_adds(self, container: str, again: bool) -> None:
        with self.ledger.write() as tx:
            lease = self._claim(tx, container)
            if again:
                assert self._claim(tx, container) == lease
        if container in self.held:
            assert lease.address == self.held[container]
            return
        free = self._free()
        if lease.state == "waiting":
            assert not free, f"{free} are free and {container} waits"
            self.waiting.add(container)
            return
        assert lease.address in free
        self.held[container] = lease.address
        self.waiting.discard(container)

    @rule(container=containers)
    def sandbox_is_wired(self, container: str) -> None:
        with self.ledger.write() as tx:
            lease = reads.open_lease(tx, container, "eth0")
            if lease is not None:
                writes.activate(tx, lease.id, self.now)

    @rule(container=containers, reason=st.sampled_from(["deleted", "setup_failed", "gc", "swept"]))
    def runtime_deletes(self, container: str, reason: str) -> None:
        with self.ledger.write() as tx:
            lease = reads.open_lease(tx, container, "eth0")
            if lease is None:
                writes.note_late_delete(tx, container, "eth0", self.now)
                return
            assert writes.end(tx, lease.id, reason, self.now, COOLING_MS) is not None
        self.waiting.discard(container)
        address = self.held.pop(container, None)
        if address is not None:
            self.cooling[address] = self.now + COOLING_MS

    @rule()
    def machine_reboots(self) -> None:
        """Waiting leases end; the others keep their address, in doubt."""
        self.boot += 1
        with self.ledger.write() as tx:
            assert writes.record_boot(tx, self._boot_id(), self.now)
            for lease in reads.open_leases(tx):
                if lease.state == "waiting":
                    writes.end(tx, lease.id, "reboot", self.now, 0)
                else:
                    writes.doubt(tx, lease.id, self.now)
        self.waiting.clear()

    @rule(address=hosts)
    def somebody_doubts(self, address: str) -> None:
        if address in self.ours:
            with self.ledger.write() as tx:
                writes.address_quarantine(tx, address, "seen in an unknown pod", self.now)
            self.doubtful.add(address)

    @rule(shown=st.sets(hosts), age_ms=steps_ms)
    def ec2_shows(self, shown: set[str], age_ms: int) -> None:
        """A picture of any content and age: stale, incomplete, or showing what was taken back."""
        at = self.now - age_ms
        enis = tuple(
            model.ObservedEni(node.eni(d), tuple(sorted(a for a in shown if device_of(a) == d)))
            for d in DEVICES
        )
        with self.ledger.write(durable=True) as tx:
            before = reads.desired(tx, self.now).leases
            writes.adopt(tx, model.ObservedCloud(at, "ec2", enis), self.now)
            assert reads.desired(tx, self.now).leases == before, "a picture touches no lease"
        lag = adoption.ADOPTION_LAG_MS
        for address in sorted(shown - self.ours):
            if at > self.released_at.get(address, -lag) + lag or address not in self.released_at:
                self._is_ours(address)
        for address in self.ours:
            if address in shown:
                self.missed.discard(address)
            elif self.given_at[address] <= at - lag and address not in self.doubtful:
                self.missed.add(address)

    @rule()
    def daemon_restarts(self) -> None:
        """A clean close and a new start; what was committed is there (I8)."""
        path = self.ledger.path
        with self.ledger.read() as tx:
            before = reads.desired(tx, self.now)
        self.ledger.close()
        assert migrate.bring_to_head(path) == "unchanged"
        self.ledger = database.Ledger.open(path)
        with self.ledger.read() as tx:
            assert reads.desired(tx, self.now) == before

    # ------------------------------------------------------------------- what must be true

    @invariant()
    def no_address_has_two_open_leases(self) -> None:
        """I2, and the ledger's leases are the model's."""
        desired = self._desired()
        held = {lease.container_id: lease.address for lease in desired.leases if lease.address}
        assert held == self.held
        assert len(set(held.values())) == len(held)
        asking = {lease.container_id for lease in desired.leases if lease.state == "waiting"}
        assert asking == self.waiting

    @invariant()
    def a_free_address_is_ours(self) -> None:
        """I3: the live rows are exactly what EC2 confirmed last, and a lease has one under it."""
        desired = self._desired()
        assert {address.address for address in desired.addresses} == self.ours
        assert set(self.held.values()) <= self.ours
        leased = {address.address for address in desired.addresses if address.leased}
        assert leased == set(self.held.values())
        doubted = {a.address for a in desired.addresses if a.state == "quarantine"}
        assert doubted == self.doubtful

    @invariant()
    def every_closed_lease_has_its_reason_and_its_line(self) -> None:
        """I4, and the journal has one ending for each."""
        with self.ledger.read() as tx:
            ended = tx.dicts("SELECT id, reason FROM leases WHERE ended_at IS NOT NULL", {})
            lines = tx.dicts("SELECT lease_id FROM journal WHERE kind = 'lease.ended'", {})
        assert all(row["reason"] for row in ended)
        assert sorted(line["lease_id"] for line in lines) == sorted(row["id"] for row in ended)

    @invariant()
    def what_can_be_claimed_is_counted(self) -> None:
        """The sum the reconciler decides by is the number of claims that would succeed."""
        with self.ledger.read() as tx:
            assert reads.free_count(tx, self.now).free == len(self._free())

    # ------------------------------------------------------------------- the model

    def _free(self) -> set[str]:
        resting = {address for address, until in self.cooling.items() if until > self.now}
        return self.ours - set(self.held.values()) - self.doubtful - self.missed - resting

    def _is_ours(self, address: str) -> None:
        self.ours.add(address)
        self.given_at[address] = self.now
        self.cooling.pop(address, None)

    def _boot_id(self) -> str:
        return f"boot-{self.boot}"

    def _claim(self, tx: database.Write, container: str) -> model.Lease:
        return writes.claim(
            tx, container_id=container, ifname="eth0", network="aws-cni", netns="/n",
            pod_namespace="default", pod_name="web-0", pod_uid="", boot_id=self._boot_id(),
            host_ifname="eni0", host_mac="0a:00:00:00:00:01", now=self.now,
        )  # fmt: skip

    def _desired(self) -> model.Desired:
        with self.ledger.read() as tx:
            return reads.desired(tx, self.now)


Story.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestStory = Story.TestCase
