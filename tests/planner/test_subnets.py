"""Excluded subnets: upstream's rule, and what becomes of the interfaces that are there."""

from __future__ import annotations

import dataclasses

import pytest

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import actions, pool, stock, subnets
from tests.planner.rows import (
    BY_IP,
    CREATED,
    START,
    UNKNOWN,
    addresses,
    desired,
    eni,
    notes,
    shown,
    small,
    steps,
    verbs,
    waiting,
)

ROLE, CLUSTER = "kubernetes.io/role/cni", "cni.networking.k8s.aws/cluster/"
AWAY = "subnet-2"


@pytest.mark.parametrize(
    ("tags", "cluster", "out"),
    [
        ({}, "", False),
        ({ROLE: "0"}, "", True),
        ({ROLE: ""}, "blue", False),
        ({ROLE: "1"}, "blue", False),
        ({ROLE: "yes", f"{CLUSTER}green": "shared"}, "blue", True),
        ({ROLE: "1", f"{CLUSTER}green": "shared"}, "", False),
        ({ROLE: "1", f"{CLUSTER}green": "shared", f"{CLUSTER}blue": "shared"}, "blue", False),
        ({f"{CLUSTER}green": "shared"}, "blue", False),
    ],
)
def test_a_subnets_tags_keep_pods_out_by_upstreams_rule(
    tags: dict[str, str], cluster: str, out: bool
) -> None:
    seen = [model.ObservedSubnet(AWAY, tags)]
    heeds = knobs.Settings(subnet_tags=True, cluster_name=cluster)
    assert ([*subnets.excluded(seen, heeds)] == [AWAY]) == out
    assert subnets.excluded(seen, knobs.Settings(cluster_name=cluster)) == {}


def away(rows: list[model.Address], *enis: model.Eni, **more: object) -> model.Desired:
    """The node's own subnet is as ever; pods are kept out of the other."""
    plain = desired(enis=[eni(0), *enis], rows=rows, **more)  # type: ignore[arg-type]  # lists by name
    return dataclasses.replace(plain, excluded=frozenset({AWAY}))


def test_what_is_there_takes_a_place_and_holds_nothing_for_pods() -> None:
    """The warm target is reached without it, and it is never grown."""
    rows = away([*addresses(0, 1, 1), *addresses(1, 3, 1)], eni(1, subnet_id=AWAY))
    counted = stock.count(rows, UNKNOWN, START)
    assert (counted.enis, counted.total, counted.ready) == (2, 1, 0)
    first = verbs(steps(rows, BY_IP, small(3, 3)))[0]
    assert first == actions.AssignAddresses("eni-0", 1)


def test_free_addresses_and_prefixes_there_are_given_back_and_leased_ones_stay() -> None:
    """W21: the VPC CNI forgets them and leaves them assigned. Also while the pool grows."""
    block = [
        model.Address(f"10.0.9.{n}", "eni-1", prefix="10.0.9.0/28", leased=False) for n in range(16)
    ]
    kept = [
        model.Address(f"10.0.8.{n}", "eni-1", prefix="10.0.8.0/28", leased=n == 5)
        for n in range(16)
    ]
    rows = away(
        [*addresses(0, 1, 1), *addresses(1, 3, 1), *block, *kept],
        eni(1, subnet_id=AWAY),
        leases=waiting(1),
    )
    picture = shown(rows)
    there = tuple(
        dataclasses.replace(each, prefixes=("10.0.9.0/28", "10.0.8.0/28"))
        if each.eni.eni_id == "eni-1"
        else each
        for each in picture.enis
    )
    given = verbs(steps(rows, BY_IP, small(3, 3), dataclasses.replace(picture, enis=there)))
    assert actions.UnassignAddresses("eni-1", ("10.0.1.1", "10.0.1.2")) in given
    assert actions.UnassignPrefixes("eni-1", ("10.0.9.0/28",)) in given


@pytest.mark.parametrize("changes", [{"cooling_until": START + 1}, {"rested_since": START - 1}])
def test_what_has_not_rested_stays_for_now(changes: dict[str, int]) -> None:
    rows = away([*addresses(0, 1), *addresses(1, 1, **changes)], eni(1, subnet_id=AWAY))
    assert steps(rows, BY_IP, small(3, 3)) == []


def test_an_idle_interface_there_goes_and_one_that_was_just_made_is_deleted() -> None:
    rows = away([*addresses(0, 1), *addresses(1, 2)], eni(1, subnet_id=AWAY))
    assert verbs(steps(rows, BY_IP, small(3, 3))) == [actions.DetachEni("eni-1", "attach-1")]
    loose = dataclasses.replace(CREATED, subnet_id=AWAY)
    rows = away(addresses(0, 1), loose)
    assert verbs(steps(rows, BY_IP, small(3, 3))) == [actions.DeleteEni("eni-5")]


def test_the_primary_interface_gives_back_its_addresses_and_stays() -> None:
    """And nothing is made in the node's subnet, for a pod either; the reason is told."""
    home = desired(enis=[eni(0)], rows=addresses(0, 2), leases=waiting(1))
    rows = dataclasses.replace(home, excluded=frozenset({"subnet-1"}))
    assert verbs(steps(rows, BY_IP, small(3, 3))) == [
        actions.UnassignAddresses("eni-0", ("10.0.0.0", "10.0.0.1"))
    ]
    assert "subnet_excluded" in notes(rows, BY_IP)
    found = pool.capacity(rows, BY_IP, small(3, 3))
    assert (found.max_addresses, found.could_grow) == (0, False)


def test_each_card_gives_back_its_own() -> None:
    """W38: the VPC CNI clears the first card's store, whichever card the interface is on."""
    rows = away(
        [*addresses(0, 1), *addresses(1, 2, 1), *addresses(2, 2, 1)],
        eni(1, subnet_id=AWAY),
        eni(2, subnet_id=AWAY, card=1, device=1),
        eni(3, card=1, device=2),
    )
    rows = dataclasses.replace(rows, addresses=(*rows.addresses, *addresses(3, 1)))
    both = dataclasses.replace(BY_IP, multi_nic=True)
    limit = dataclasses.replace(small(3, 3), cards=(3, 3))
    assert verbs(steps(rows, both, limit)) == [
        actions.UnassignAddresses("eni-1", ("10.0.1.1",)),
        actions.UnassignAddresses("eni-2", ("10.0.2.1",)),
    ]
