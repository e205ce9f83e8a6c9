"""What EC2 answers and what it shows: granted, taken back, doubted; never at a lease's cost."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import pytest

from ledger import database, model, reads, writes
from ledger.writes import adoption
from tests.ledger import node

LAG = adoption.ADOPTION_LAG_MS
LONG = 10 * LAG


def picture(at: int, *shown: model.ObservedEni) -> model.ObservedCloud:
    return model.ObservedCloud(at, "ec2", shown)


def states(tx: database.Read) -> dict[str, str]:
    """Every address row as the file has it, tombstones too; the newest row of each."""
    rows = tx.dicts("SELECT address, state FROM addresses ORDER BY id", {})
    return {row["address"]: row["state"] for row in rows}


def absent(tx: database.Read) -> dict[str, int]:
    rows = tx.dicts("SELECT * FROM v_addresses WHERE absent_since IS NOT NULL", {})
    return {row["address"]: row["absent_since"] for row in rows}


def test_an_interface_moves_through_its_states(ledger: database.Ledger) -> None:
    """Created, attaching, usable, detaching, gone; as nouns at each step, and every step in the journal."""
    made = model.Eni("eni-1", "0e:00:00:00:00:01", node.SUBNET, "10.0.1.0/24", "10.0.1.4")
    with ledger.write(durable=True) as tx:
        writes.eni_created(tx, made, ("10.0.1.10",), 10)
        assert reads.eni(tx, "eni-1") == made
        assert reads.free_count(tx, 10).free == 0, "not wired yet"
        writes.eni_attaching(tx, "eni-1", 1, 0, "eni-attach-1", 20)
        writes.eni_dot(tx, "eni-1", 21)
        writes.eni_state(tx, "eni-1", "usable", 30)
        usable = reads.eni(tx, "eni-1")
        assert usable is not None
        assert (usable.state, usable.device, usable.attachment_id) == ("usable", 1, "eni-attach-1")
        assert usable.delete_on_termination
        assert reads.free_count(tx, 30).free == 1
        writes.eni_state(tx, "eni-1", "detaching", 40)
        writes.eni_gone(tx, "eni-1", "deleted", 50)
        assert reads.desired(tx, 50) == model.Desired(None)
        assert states(tx) == {"10.0.1.10": "released"}
        kinds = tx.dicts("SELECT kind FROM v_journal WHERE eni_id = 'eni-1' ORDER BY id", {})
    assert [row["kind"] for row in kinds] == [
        "eni.known",
        "address.assigned",
        "eni.attaching",
        "eni.delete_on_termination",
        "eni.usable",
        "eni.detaching",
        "eni.gone",
    ]


def test_a_repeated_answer_changes_nothing(ledger: database.Ledger) -> None:
    """A ClientToken sent twice is answered with the same interface twice."""
    made = node.add_eni(ledger, 1, 2)
    with ledger.read() as tx:
        before = reads.desired(tx, 1)
    with ledger.write(durable=True) as tx:
        writes.eni_created(tx, made, node.addresses(1, 2), 5)
        assert writes.addresses_assigned(tx, made.eni_id, node.addresses(1, 2), "assign", 5) == 0
        assert reads.desired(tx, 1) == before


def test_a_release_that_ec2_refused_is_undone_by_confirming_again(ledger: database.Ledger) -> None:
    made = node.add_eni(ledger, 1, 1)
    with ledger.write(durable=True) as tx:
        writes.addresses_releasing(tx, made.eni_id, ["10.0.1.10"], 5)
        assert states(tx) == {"10.0.1.10": "releasing"}
        writes.addresses_assigned(tx, made.eni_id, ["10.0.1.10"], "assign", 6)
        assert states(tx) == {"10.0.1.10": "assigned"}


def test_an_address_under_a_lease_is_not_released(ledger: database.Ledger) -> None:
    """Also not when the plan to release it is older than the lease; the whole intention is refused."""
    made = node.add_eni(ledger, 1, 1)
    with ledger.write() as tx:
        node.claim(tx, "c1", 5)
    refused = pytest.raises(sqlite3.IntegrityError, match="leased_address_is_never_released")
    with refused, ledger.write(durable=True) as tx:
        writes.addresses_releasing(tx, made.eni_id, ["10.0.1.10"], 6)
    refused = pytest.raises(sqlite3.IntegrityError, match="leased_eni_is_never_removed")
    with refused, ledger.write() as tx:
        writes.eni_state(tx, made.eni_id, "detaching", 6)
    refused = pytest.raises(sqlite3.IntegrityError, match="never_released")
    with refused, ledger.write(durable=True) as tx:
        writes.eni_gone(tx, made.eni_id, "deleted", 6)


def test_an_address_ec2_gives_to_another_interface_moves_unless_a_pod_holds_it(
    ledger: database.Ledger,
) -> None:
    """Somebody moved it outside: a free one is ours there now, a held one is doubtful."""
    one, two = node.add_eni(ledger, 1, 2), node.add_eni(ledger, 2, 1)
    with ledger.write(durable=True) as tx:
        held = node.claim(tx, "c1", 5)
        assert held.eni_id == one.eni_id
        free = next(a for a in node.addresses(1, 2) if a != held.address)
        assert writes.addresses_assigned(tx, two.eni_id, [free], "assign", 6) == 1
        assert writes.addresses_assigned(tx, two.eni_id, [held.address or ""], "assign", 6) == 0
        rows = {each.address: each for each in reads.desired(tx, 6).addresses}
        assert rows[free].eni_id == two.eni_id
        assert rows[held.address or ""].state == "quarantine"
        assert reads.lease(tx, held.id) == held


def test_a_quarantined_address_stays_so_whatever_ec2_says_of_it(ledger: database.Ledger) -> None:
    made = node.add_eni(ledger, 1, 1)
    with ledger.write(durable=True) as tx:
        writes.address_quarantine(tx, "10.0.1.10", "seen in an unknown pod", 5)
        assert writes.addresses_assigned(tx, made.eni_id, ["10.0.1.10"], "assign", 6) == 0
        assert states(tx) == {"10.0.1.10": "quarantine"}
        assert reads.free_count(tx, 6) == reads.Counts(1, 0, 0, 0, 1)


def test_ec2s_own_picture_brings_in_what_was_never_known(ledger: database.Ledger) -> None:
    """Interfaces and their addresses; of a foreign interface only that it is there."""
    ours = model.ObservedEni(node.eni(1), node.addresses(1, 2))
    foreign = model.ObservedEni(node.eni(9, managed=False), node.addresses(9, 2))
    with ledger.write(durable=True) as tx:
        assert writes.adopt(tx, picture(10, ours, foreign), 11)
        known = reads.desired(tx, 11)
        assert known.enis == (node.eni(1), node.eni(9, managed=False))
        assert [each.address for each in known.addresses] == list(node.addresses(1, 2))
        assert not writes.adopt(tx, picture(20, ours, foreign), 21), "nothing is new any more"
        assert reads.desired(tx, 21) == known


def test_imds_grants_nothing(ledger: database.Ledger) -> None:
    shown = model.ObservedCloud(10, "imds", (model.ObservedEni(node.eni(1), ("10.0.1.10",)),))
    with ledger.write(durable=True) as tx:
        assert not writes.adopt(tx, shown, 11)
        assert reads.desired(tx, 11) == model.Desired(None)


def test_a_tombstone_is_believed_more_than_an_old_picture(ledger: database.Ledger) -> None:
    """EC2 may show for a while what it has just taken back; only a much newer picture revives it."""
    made = node.add_eni(ledger, 1, 1)
    shown = model.ObservedEni(made, ("10.0.1.10",))
    with ledger.write(durable=True) as tx:
        writes.addresses_released(tx, ["10.0.1.10"], 1000)
        for at in (500, 1000, 1000 + LAG):
            assert not writes.adopt(tx, picture(at, shown), at)
            assert reads.desired(tx, at).addresses == ()
        assert writes.adopt(tx, picture(1001 + LAG, shown), 1001 + LAG)
        assert [each.state for each in reads.desired(tx, 0).addresses] == ["assigned"]


def test_a_deleted_interface_is_not_revived(ledger: database.Ledger) -> None:
    """EC2 never gives an id twice, so a picture that shows it is old, however young it claims to be."""
    made = node.add_eni(ledger, 1, 1)
    with ledger.write(durable=True) as tx:
        writes.eni_gone(tx, made.eni_id, "deleted", 1000)
        assert not writes.adopt(tx, picture(LONG, model.ObservedEni(made, ("10.0.1.10",))), LONG)
        assert reads.desired(tx, LONG) == model.Desired(None)


def test_what_a_picture_misses_is_doubted_and_no_lease_ends(ledger: database.Ledger) -> None:
    """A leased and a free address go missing: both are marked, the pod keeps its own, nobody gets one."""
    made = node.add_eni(ledger, 1, 2)
    empty, full = model.ObservedEni(made), model.ObservedEni(made, node.addresses(1, 2))
    with ledger.write(durable=True) as tx:
        lease = node.claim(tx, "c1", 10)
        writes.adopt(tx, picture(LONG, empty), LONG)
        assert absent(tx) == dict.fromkeys(node.addresses(1, 2), LONG)
        assert reads.lease(tx, lease.id) == lease
        assert node.claim(tx, "c2", LONG).state == "waiting"
        writes.adopt(tx, picture(LONG + 1, empty), LONG + 1)
        assert set(absent(tx).values()) == {LONG}, "since when, not when last"
        writes.adopt(tx, picture(LONG + 2, full), LONG + 2)
        assert absent(tx) == {}
        assert node.claim(tx, "c2", LONG + 3).state == "reserved"


def test_a_picture_older_than_our_own_answer_doubts_nothing(ledger: database.Ledger) -> None:
    """EC2's read side lags: what it was just asked for it may not show for a while."""
    made = node.add_eni(ledger, 1, 1, now=1000)
    with ledger.write(durable=True) as tx:
        for at in (999, 1000, 999 + LAG):
            writes.adopt(tx, picture(at, model.ObservedEni(made)), at)
            assert absent(tx) == {}
        writes.adopt(tx, picture(1000 + LAG, model.ObservedEni(made)), 1000 + LAG)
        assert list(absent(tx)) == ["10.0.1.10"]


def test_a_missing_interface_is_marked_with_the_same_patience(ledger: database.Ledger) -> None:
    node.add_eni(ledger, 1, 0, now=1000)
    with ledger.write(durable=True) as tx:
        since = "SELECT absent_since FROM v_enis"
        writes.adopt(tx, picture(999 + LAG), 999 + LAG)
        assert tx.dicts(since, {}) == [{"absent_since": None}]
        writes.adopt(tx, picture(1000 + LAG), 1000 + LAG)
        assert tx.dicts(since, {}) == [{"absent_since": 1000 + LAG}]
        writes.adopt(tx, picture(LONG, model.ObservedEni(node.eni(1))), LONG)
        assert tx.dicts(since, {}) == [{"absent_since": None}]


def test_an_attachment_whose_reply_was_lost_is_learnt_from_a_picture(
    ledger: database.Ledger,
) -> None:
    made = model.Eni("eni-1", "0e:00:00:00:00:01", node.SUBNET, "10.0.1.0/24", "10.0.1.4")
    shown = model.Eni(
        "eni-1", "0e:00:00:00:00:01", node.SUBNET, "10.0.1.0/24", "10.0.1.4",
        device=2, attachment_id="eni-attach-1", state="attached", delete_on_termination=True,
    )  # fmt: skip
    with ledger.write(durable=True) as tx:
        writes.eni_created(tx, made, (), 10)
        assert writes.adopt(tx, picture(20, model.ObservedEni(shown)), 20)
        known = reads.eni(tx, "eni-1")
        assert known is not None
        assert (known.state, known.device, known.attachment_id) == ("attaching", 2, "eni-attach-1")
        assert known.delete_on_termination


def test_an_address_shown_on_another_interface_is_doubtful(ledger: database.Ledger) -> None:
    one, two = node.add_eni(ledger, 1, 1), node.add_eni(ledger, 2, 1)
    crossed = model.ObservedEni(one), model.ObservedEni(two, ("10.0.1.10", "10.0.2.10"))
    with ledger.write(durable=True) as tx:
        writes.adopt(tx, picture(LONG, *crossed), LONG)
        assert states(tx) == {"10.0.1.10": "quarantine", "10.0.2.10": "assigned"}
        (row,) = tx.dicts("SELECT reason FROM v_addresses WHERE address = '10.0.1.10'", {})
    assert one.eni_id in row["reason"]
    assert two.eni_id in row["reason"]


def test_an_address_that_ec2_makes_a_primary_one_was_not_ours_any_more(
    ledger: database.Ledger,
) -> None:
    """A lost call had given it back. Free it ends; with a pod on it, it is doubtful from now on."""
    node.add_eni(ledger, 1, 2)
    free, held = node.addresses(1, 2)
    with ledger.write() as tx:
        first = node.claim(tx, "c1", 2)
    assert first.address is not None
    other = held if first.address == free else free
    for device, address in ((2, first.address), (3, other)):
        made = replace(node.eni(device), primary_ip=address)
        with ledger.write(durable=True) as tx:
            writes.eni_created(tx, made, (), 3)
    with ledger.read() as tx:
        live = {a.address: a.state for a in reads.desired(tx, 4).addresses}
    assert live == {first.address: "quarantine"}


def test_what_came_back_by_name_is_confirmed_anew(ledger: database.Ledger) -> None:
    """A picture older than the answer misses it still, and is not believed; its free neighbours stay away."""
    made = node.add_eni(ledger, 1, 2)
    kept, other = node.addresses(1, 2)
    with ledger.write(durable=True) as tx:
        lease = node.claim(tx, "c1", 10)
        assert lease.address == kept
        writes.adopt(tx, picture(LONG, model.ObservedEni(made)), LONG)
        assert {*absent(tx)} == {kept, other}
        writes.addresses_regained(tx, made.eni_id, [kept], LONG + 1)
        assert {*absent(tx)} == {other}
        writes.adopt(tx, picture(LONG + LAG, model.ObservedEni(made)), LONG + LAG)
        assert {*absent(tx)} == {other}
        writes.adopt(tx, picture(LONG + LAG + 2, model.ObservedEni(made)), LONG + LAG + 2)
        assert {*absent(tx)} == {kept, other}


def test_a_prefix_comes_back_with_all_of_its_addresses(ledger: database.Ledger) -> None:
    made = node.add_eni(ledger, 1, 0)
    with ledger.write(durable=True) as tx:
        writes.prefixes_assigned(tx, made.eni_id, ["10.0.1.16/28"], "assign", 1)
        writes.adopt(tx, picture(LONG, model.ObservedEni(made)), LONG)
        assert len(absent(tx)) == 16
        writes.prefixes_regained(tx, made.eni_id, ["10.0.1.16/28"], LONG + 1)
        assert absent(tx) == {}


def test_no_pod_is_put_into_an_excluded_subnet(ledger: database.Ledger) -> None:
    """From the transaction that says so until the one that takes it back; each change has its line once."""
    made = node.add_eni(ledger, 1, 2)
    with ledger.write() as tx:
        assert writes.record_excluded(tx, {made.subnet_id: "role/cni=0"}, 5)
        assert not writes.record_excluded(tx, {made.subnet_id: "role/cni=0"}, 6)
        assert reads.free_count(tx, 7).free == 0
        assert reads.desired(tx, 7).excluded == {made.subnet_id}
        assert node.claim(tx, "c1", 7).state == "waiting"
        shown = tx.dicts("SELECT DISTINCT state FROM v_addresses", {})
        assert shown == [{"state": "unusable"}]
    with ledger.write() as tx:
        assert writes.record_excluded(tx, {}, 8)
        assert node.claim(tx, "c2", 9).state == "reserved"
        lines = tx.dicts("SELECT kind FROM v_journal WHERE kind LIKE 'subnet.%' ORDER BY id", {})
    assert [line["kind"] for line in lines] == ["subnet.excluded", "subnet.allowed"]
