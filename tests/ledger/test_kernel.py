"""Kernel objects the ledger vouches for: a row before the object, gone after it."""

from __future__ import annotations

import pytest

from ledger import database, model, reads, rows, writes
from tests.ledger import node

THINGS: tuple[model.KernelObject, ...] = (
    model.Link("eni0a1b", mac="0a:00:00:00:00:01", mtu=1500, up=False, alias="vpcledger"),
    model.InterfaceAddress("eth1", "10.0.1.4/24"),
    model.Route("0.0.0.0/0", "eth1", table=2, via="10.0.1.1", protocol=99),
    model.Route("10.0.1.1/32", "eth1", table=2),
    model.Rule(1536, 2, src="10.0.1.10/32", fwmark=0x80, fwmask=0x80, protocol=99),
    model.Neighbour("eth0", "169.254.1.1", "0a:00:00:00:00:01"),
    model.Sysctl("/proc/sys/net/ipv4/conf/eth1/rp_filter", "2"),
)


def test_every_kind_of_object_comes_back_as_it_was_written(ledger: database.Ledger) -> None:
    with ledger.write() as tx:
        planned = writes.plan_installed(tx, "eni", "eni-1", THINGS, 1)
        assert reads.installed_for(tx, "eni", "eni-1") == planned == reads.desired(tx, 1).installed
    assert tuple(row.thing for row in planned) == THINGS
    assert {row.state for row in planned} == {"pending"}
    assert {type(thing) for thing in THINGS} == set(model.KernelObject.__args__)


def test_an_object_goes_from_pending_over_present_and_removing_to_nothing(
    ledger: database.Ledger,
) -> None:
    def seen(tx: database.Read) -> list[str]:
        return [row.state for row in reads.installed_for(tx, "lease", "7")]

    with ledger.write() as tx:
        rows = writes.plan_installed(tx, "lease", "7", THINGS[:3], 1)
        ids = [row.id for row in rows]
        writes.mark_owner_installed(tx, "lease", "7", 2)
        assert seen(tx) == ["present"] * 3
        writes.mark_owner_removing(tx, "lease", "7", 3)
        assert seen(tx) == ["removing"] * 3
        writes.mark_owner_installed(tx, "lease", "7", 4)
        assert seen(tx) == ["removing"] * 3, "what is to go does not come back by a late success"
        for said, keys in (("EBUSY", ["host eni0a1b"]), ("", [])):
            writes.installed_failed(tx, THINGS[0], said, 4)
            failed = tx.dicts("SELECT key FROM v_objects WHERE error <> ''", {})
            assert [row["key"] for row in failed] == keys
        writes.forget_installed(tx, ids[:1], 5)
        assert seen(tx) == ["removing"] * 2
        writes.forget_owner_installed(tx, "lease", "7", 5)
        assert seen(tx) == []


def test_an_object_has_one_owner(ledger: database.Ledger) -> None:
    """Two open leases cannot both plan one host rule; the same owner may plan it again."""
    rule = model.Rule(1536, 2, src="10.0.1.10/32")
    with ledger.write() as tx:
        (first,) = writes.plan_installed(tx, "lease", "1", (rule,), 1)
        (again,) = writes.plan_installed(tx, "lease", "1", (rule,), 2)
        assert again.id == first.id
    with pytest.raises(writes.Taken, match="lease 2"), ledger.write() as tx:
        writes.plan_installed(tx, "lease", "2", (rule,), 3)


def test_an_object_about_to_go_passes_to_who_wants_it_now(ledger: database.Ledger) -> None:
    """An address used again before its old rule could be removed: the rule is the new lease's."""
    rule = model.Rule(512, 254, dst="10.0.1.10/32")
    with ledger.write() as tx:
        writes.plan_installed(tx, "lease", "1", (rule,), 1)
        writes.mark_owner_removing(tx, "lease", "1", 2)
        writes.plan_installed(tx, "lease", "2", (rule,), 3)
        assert reads.installed_for(tx, "lease", "1") == ()
        (row,) = reads.installed_for(tx, "lease", "2")
    assert (row.thing, row.state) == (rule, "pending")


def test_equal_objects_in_two_pods_are_two_objects(ledger: database.Ledger) -> None:
    """Every pod has the same default route; on the host a key is one object."""
    route = model.Route("0.0.0.0/0", "eth0", via="169.254.1.1", where="pod")
    with ledger.write() as tx:
        writes.plan_installed(tx, "lease", "1", (route,), 1)
        writes.plan_installed(tx, "lease", "2", (route,), 1)
        assert len(reads.desired(tx, 1).installed) == 2


def test_namesakes_are_other_leases_with_the_same_host_link(ledger: database.Ledger) -> None:
    """A StatefulSet's new sandbox finds the old one's link in its way."""
    node.add_eni(ledger, 1, 2)
    link = model.Link("eniweb0")
    with ledger.write() as tx:
        old, new = node.claim(tx, "c1", 1), node.claim(tx, "c2", 2)
        writes.plan_installed(tx, "lease", str(old.id), (link,), 1)
        assert reads.namesakes(tx, "eniweb0", new.id) == (old.id,)
        assert reads.namesakes(tx, "eniweb0", old.id) == ()


def test_what_is_kept_of_objects_follows_how_many_there_are(ledger: database.Ledger) -> None:
    """A node on which ten thousand pods came and went, ten at a time, remembers ten pods' objects."""
    rows.thing.cache_clear()
    most = 0
    for turn in range(50):
        with ledger.write() as tx:
            writes.forget_owner_installed(tx, "lease", str(turn), turn)
            things = [model.Route(f"10.{turn}.0.{n}/32", "eni1") for n in range(30)]
            writes.plan_installed(tx, "lease", str(turn + 1), things, turn)
        with ledger.read() as tx:
            assert len(reads.desired(tx, turn).installed) == 30
        most = max(most, rows.thing.cache_info().currsize)

    assert 30 <= most < 50 * 30 / 2
