"""Who gets which address, and what becomes of it: claim, activate, end, in doubt."""

from __future__ import annotations

import pytest

from ledger import database, model, reads, writes
from tests.ledger import node


def test_asking_twice_gives_the_same_lease_unchanged(ledger: database.Ledger) -> None:
    """Also after it became active, and without another journal line."""
    node.add_eni(ledger, 1, 3)
    with ledger.write() as tx:
        first = node.claim(tx, "c1", 10)
        assert first.state == "reserved"
        writes.activate(tx, first.id, 11)
    before = ledger.revision()
    with ledger.write() as tx:
        second = node.claim(tx, "c1", 12)
    assert (second.id, second.address, second.state) == (first.id, first.address, "active")
    assert ledger.revision() == before


def test_a_pod_of_the_same_name_gets_another_lease(ledger: database.Ledger) -> None:
    """The sandbox is the key; names are attributes."""
    node.add_eni(ledger, 1, 3)
    with ledger.write() as tx:
        old, new = node.claim(tx, "c1", 10), node.claim(tx, "c2", 10)
    assert old.pod_name == new.pod_name
    assert old.address != new.address


def test_the_longest_rested_address_is_taken(ledger: database.Ledger) -> None:
    """Never used ones first, then by the end of the last lease."""
    node.add_eni(ledger, 1, 3)
    taken = []
    with ledger.write() as tx:
        leases = [node.claim(tx, f"c{n}", 10) for n in range(3)]
        for lease, moment in zip(leases, (30, 20, 40), strict=True):
            writes.end(tx, lease.id, "deleted", moment, cooling_ms=0)
        taken = [node.claim(tx, f"d{n}", 50).address for n in range(3)]
    assert taken == [leases[1].address, leases[0].address, leases[2].address]


def test_a_cooling_address_is_not_taken_before_its_time(ledger: database.Ledger) -> None:
    """At the very millisecond it is."""
    node.add_eni(ledger, 1, 1)
    with ledger.write() as tx:
        lease = node.claim(tx, "c1", 10)
        writes.end(tx, lease.id, "deleted", 100, cooling_ms=30_000)
        assert node.claim(tx, "c2", 30_099).state == "waiting"
        assert reads.next_cooled_at(tx, 30_099) == 30_100
        assert node.claim(tx, "c2", 30_100).address == lease.address


def test_the_fullest_interface_with_room_is_used(ledger: database.Ledger) -> None:
    """So that others empty and can be given back; a full one is passed over."""
    for device in (1, 2, 3):
        node.add_eni(ledger, device, 2)
    with ledger.write() as tx:
        leases = [node.claim(tx, f"c{n}", 10) for n in range(4)]
        writes.end(tx, leases[0].id, "deleted", 11, cooling_ms=0)
        writes.end(tx, leases[1].id, "deleted", 11, cooling_ms=0)
        writes.end(tx, leases[3].id, "deleted", 11, cooling_ms=0)
        held = leases[2].eni_id
        assert node.claim(tx, "d", 20).eni_id == held
        assert node.claim(tx, "e", 20).eni_id != held


def with_prefixes(ledger: database.Ledger) -> None:
    """One interface with two /28s and one single address, all of them free since the same moment."""
    made = node.add_eni(ledger, 1, 1)
    with ledger.write(durable=True) as tx:
        writes.prefixes_assigned(tx, made.eni_id, ["10.1.0.0/28", "10.1.0.16/28"], "assign", 1)


def in_which(lease: model.Lease) -> str:
    """The /28 a lease is in, or empty for a single address."""
    assert lease.address is not None
    network, last = lease.address.rsplit(".", 1)
    return f"{network}.{int(last) // 16 * 16}/28" if network == "10.1.0" else ""


def test_the_fullest_prefix_is_used_before_the_longest_rested_address(
    ledger: database.Ledger,
) -> None:
    """So that whole prefixes empty: the other one has rested longer and stays free."""
    with_prefixes(ledger)
    with ledger.write() as tx:
        leases = [node.claim(tx, f"c{n}", 10, prefixes=True) for n in range(20)]
        first, second = leases[0], leases[16]
        assert in_which(first) != in_which(second)
        for n, lease in enumerate(leases[:14]):  # two are left there, four in the second
            writes.end(tx, lease.id, "deleted", 20 + n, cooling_ms=0)
        again = [node.claim(tx, f"d{n}", 50, prefixes=True) for n in range(12)]
        assert {in_which(lease) for lease in again} == {in_which(second)}
        assert in_which(node.claim(tx, "e", 50, prefixes=True)) == in_which(first)


def test_the_kind_that_counts_is_used_first_and_the_other_before_nothing(
    ledger: database.Ledger,
) -> None:
    """Singly: the one single address, then the prefixes' thirty-two. By prefixes: the other way round."""
    with_prefixes(ledger)
    with ledger.write() as tx:
        singly = [node.claim(tx, f"c{n}", 10) for n in range(33)]
        assert [bool(in_which(lease)) for lease in singly] == [False] + [True] * 32
        for lease in singly:
            writes.end(tx, lease.id, "deleted", 20, cooling_ms=0)
        blocks = [node.claim(tx, f"d{n}", 30, prefixes=True) for n in range(33)]
        assert [bool(in_which(lease)) for lease in blocks] == [True] * 32 + [False]
        assert node.claim(tx, "e", 30, prefixes=True).state == "waiting"


def _not_wired(tx: database.Write) -> None:
    writes.eni_state(tx, node.eni(1).eni_id, "attached", 2)


def _draining(tx: database.Write) -> None:
    writes.eni_state(tx, node.eni(1).eni_id, "draining", 2)


def _quarantined(tx: database.Write) -> None:
    writes.address_quarantine(tx, "10.0.1.10", "doubtful", 2)


def _leaving(tx: database.Write) -> None:
    writes.addresses_releasing(tx, node.eni(1).eni_id, ["10.0.1.10"], 2)


def _gone(tx: database.Write) -> None:
    writes.addresses_released(tx, ["10.0.1.10"], 2)


def _missed(tx: database.Write) -> None:
    shown = model.ObservedEni(node.eni(1))
    writes.adopt(tx, model.ObservedCloud(10**7, "ec2", (shown,)), 10**7)


@pytest.mark.parametrize("change", [_not_wired, _draining, _quarantined, _leaving, _gone, _missed])
def test_an_address_that_cannot_be_relied_on_is_not_given(
    change: object, ledger: database.Ledger
) -> None:
    """Interface not wired or draining; address doubtful, leaving, gone, or missed by EC2's picture."""
    node.add_eni(ledger, 1, 1)
    assert callable(change)
    with ledger.write(durable=True) as tx:
        change(tx)
        lease = node.claim(tx, "c1", 10**7)
    assert (lease.state, lease.address, lease.reason) == ("waiting", None, "growing")


def test_an_interface_that_is_not_ours_is_not_used(ledger: database.Ledger) -> None:
    foreign = node.eni(1, managed=False)
    with ledger.write(durable=True) as tx:
        writes.eni_created(tx, foreign, node.addresses(1, 2), 1)
        writes.eni_state(tx, foreign.eni_id, "usable", 1)
        assert node.claim(tx, "c1", 10).state == "waiting"


def test_a_waiting_lease_gets_an_address_by_asking_again(ledger: database.Ledger) -> None:
    """It keeps its number and its place; what the runtime says anew is taken over."""
    with ledger.write() as tx:
        first = node.claim(tx, "c1", 10)
        second = node.claim(tx, "c2", 11)
        assert node.claim(tx, "c1", 12) == first
        assert [lease.id for lease in reads.waiting(tx)] == [first.id, second.id]
    node.add_eni(ledger, 1, 1)
    with ledger.write() as tx:
        served = node.claim(tx, "c1", 20)
        assert (served.id, served.state, served.reason) == (first.id, "reserved", "")
        assert served.created_at == 10
        assert reads.lease(tx, served.id) == served
        assert reads.waiting(tx) == (second,)


def test_the_claimed_lease_is_the_row(ledger: database.Ledger) -> None:
    """What claim returns without reading is what a read returns."""
    node.add_eni(ledger, 1, 1)
    with ledger.write() as tx:
        reserved, waiting = node.claim(tx, "c1", 10), node.claim(tx, "c2", 10)
        assert reads.lease(tx, reserved.id) == reserved
        assert reads.lease(tx, waiting.id) == waiting


def test_ending_is_done_once_and_says_why(ledger: database.Ledger) -> None:
    node.add_eni(ledger, 1, 1)
    with ledger.write() as tx:
        lease = node.claim(tx, "c1", 10)
        ended = writes.end(tx, lease.id, "deleted", 20, cooling_ms=5)
        assert ended is not None
        assert (ended.state, ended.ended_at, ended.reason) == ("ended", 20, "deleted")
        assert writes.end(tx, lease.id, "gc", 30, cooling_ms=5) is None
        assert reads.open_lease(tx, "c1", "eth0") is None
        assert reads.lease(tx, lease.id) == ended
        (address,) = reads.desired(tx, 20).addresses
        assert (address.rested_since, address.cooling_until, address.leased) == (20, 25, False)


def test_a_lease_in_doubt_keeps_its_address_and_may_be_found_alive(
    ledger: database.Ledger,
) -> None:
    """Only an active one is doubted, and once: what is reserved is an addition that goes on."""
    node.add_eni(ledger, 1, 2)
    with ledger.write() as tx:
        held, reserved = node.claim(tx, "c1", 10), node.claim(tx, "c2", 10)
        writes.activate(tx, held.id, 11)
        for at in (20, 21):
            writes.doubt(tx, held.id, at)
            writes.doubt(tx, reserved.id, at)
        told = tx.dicts("SELECT lease_id FROM journal WHERE kind = 'lease.in_doubt'", {})
        assert [row["lease_id"] for row in told] == [held.id]
        doubtful = reads.lease(tx, held.id)
        assert doubtful is not None
        assert (doubtful.state, doubtful.address) == ("in_doubt", held.address)
        assert node.claim(tx, "c4", 22).state == "waiting", "a doubtful address is not given away"
        writes.activate(tx, held.id, 23)
        alive = reads.lease(tx, held.id)
        assert alive is not None
        assert alive.state == "active"


def test_every_change_of_a_lease_has_its_line(ledger: database.Ledger) -> None:
    """The journal tells a lease's whole story, in order, with its address."""
    with ledger.write() as tx:
        lease = node.claim(tx, "c1", 10)
    node.add_eni(ledger, 1, 1)
    with ledger.write() as tx:
        node.claim(tx, "c1", 20)
        writes.activate(tx, lease.id, 21)
        writes.end(tx, lease.id, "deleted", 30, cooling_ms=0)
        lines = tx.dicts(
            "SELECT kind, at, address, text FROM journal WHERE lease_id = :id ORDER BY id",
            {"id": lease.id},
        )
    assert [(line["kind"], line["at"], line["address"], line["text"]) for line in lines] == [
        ("lease.waiting", 10, None, "growing"),
        ("lease.claimed", 20, "10.0.1.10", ""),
        ("lease.active", 21, "10.0.1.10", ""),
        ("lease.ended", 30, "10.0.1.10", "deleted"),
    ]


def test_a_late_deletion_is_remembered(ledger: database.Ledger) -> None:
    with ledger.write() as tx:
        writes.note_late_delete(tx, "c1", "eth0", 10)
        writes.note_late_delete(tx, "c1", "eth0", 20)
        assert reads.late_delete(tx, "c1", "eth0") == 20
        assert reads.late_delete(tx, "c1", "eth1") is None


def test_a_claim_finds_its_rows_by_index(ledger: database.Ledger) -> None:
    """No step of the choice scans a table that grows with history; the referee's index is used."""
    from ledger.writes import choice, leases

    plans: list[str] = []
    given = {"eni_id": "", "family": 4, "now": 0, "of_prefix": "", "container_id": "", "ifname": ""}
    with ledger.read() as tx:
        for statement in (
            leases._OPEN,
            choice._FULLEST,
            choice._HAS_ROOM,
            choice._STARTED,
            choice._OF_NO_PREFIX,
            choice._OF_ANY_PREFIX,
            choice._OF_THIS_PREFIX,
        ):
            given_so = statement.in_order(given)
            rows = tx.dicts(f"EXPLAIN QUERY PLAN {statement.sql}", given_so)
            plans += [str(row["detail"]) for row in rows]
    few = {"SCAN enis", "SCAN CONSTANT ROW"}
    assert [plan for plan in plans if plan.startswith("SCAN") and plan not in few] == []
    used = " ".join(plans)
    for index in (
        "one_address_per_interface",
        "one_open_lease_per_address",
        "live_addresses_of_eni",
        "open_leases_of_eni",
        "addresses_by_rest",
        "addresses_of_prefix",
    ):
        assert index in used, index
