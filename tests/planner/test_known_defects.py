"""Defects of the VPC CNI's pool that this one does not have, each by its symptom (v1.23.1).

What both do alike is in test_golden.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

from ledger import model
from reconciler import ideal
from reconciler import settings as knobs
from reconciler.planner import actions, limits, stock
from tests.planner.rows import MINUTE, START, UNKNOWN, addresses, desired, eni, small, steps, verbs

SIZE = 16
HOUR = 60 * MINUTE


def block(number: int, on: int, leased: int = 0) -> tuple[model.Prefix, list[model.Address]]:
    cidr = f"10.1.{number}.0/28"
    rows = [
        model.Address(f"10.1.{number}.{n}", f"eni-{on}", prefix=cidr, leased=n < leased)
        for n in range(SIZE)
    ]
    return model.Prefix(cidr, f"eni-{on}"), rows


def test_w12_one_free_prefix_is_not_given_back_and_asked_for_again() -> None:
    """There the surplus of a further card was counted in addresses and taken for prefixes, every 35 s.

    Here a further card is another's: it counts neither as stock nor as surplus, whatever it holds.
    """
    near, first = block(1, on=0)
    far, other = block(2, on=1)
    enis = [eni(0), eni(1, card=1)]
    rows = dataclasses.replace(desired(enis=enis, rows=first + other), prefixes=(near, far))
    shown = model.ObservedCloud(
        START,
        "ec2",
        tuple(model.ObservedEni(e, (), (p.cidr,)) for e, p in zip(enis, (near, far), strict=True)),
    )
    one = knobs.Settings(prefix_delegation=True, warm_ip_target=1, minimum_ip_target=1)
    assert steps(rows, one, small(3, 9), shown) == []

    world = ideal.World(one, small(3, 9))
    world.settle()
    before = list(world.calls)
    for _ in range(HOUR // 5_000):  # the pool's loop there
        world.pass_time(5_000)
        world.settle()
    assert world.calls == before


def test_w12_the_cards_are_accounted_for_one_by_one() -> None:
    """A further card's interfaces take no place on the default card, and its indexes are free there."""
    limit = limits.Limits(2, 4, (2, 2), "nitro")
    enis = [eni(0), eni(1, card=1), eni(2, card=1)]
    found = verbs(steps(desired(enis=enis, rows=addresses(0, 3, 3)), limit=limit))
    assert [type(each) for each in found] == [actions.CreateEni]
    full = [eni(0), eni(1), eni(2, card=1)]
    rows = addresses(0, 3, 3) + addresses(1, 3, 3) + addresses(2, 3)
    assert steps(desired(enis=full, rows=rows), limit=limit) == []


def test_w19_an_interface_lost_with_its_pods_is_subtracted_once() -> None:
    """There its prefixes went twice from a running counter, and the node never gave one back again."""
    settings = knobs.Settings(prefix_delegation=True, warm_ip_target=2, ip_cooldown_ms=0)
    world = ideal.World(settings, small(3, 2))
    for _ in range(80):
        world.add()
    world.rest()
    assert [each.prefixes for each in world.held()] == [2, 2, 2]
    lost = next(e.eni_id for e in world.enis.values() if e.device == 2)
    world.pods = {n: pod for n, pod in world.pods.items() if pod.eni_id != lost}
    world.enis.pop(lost)
    world.prefixes = {c: p for c, p in world.prefixes.items() if p.eni_id != lost}
    world.rows = {a: row for a, row in world.rows.items() if row.eni_id != lost}
    counted = stock.count(world.desired, UNKNOWN, world.now, prefixed=True)
    assert (counted.total, counted.leased) == (64, len(world.pods))
    while len(world.pods) > 3:
        world.remove(-1)
    world.rest()
    assert sum(each.prefixes for each in world.held()) == 1


def test_w23_cooling_addresses_do_not_keep_a_pod_waiting() -> None:
    """There they count as available: the pool looks full while ADDs fail for 30 s."""
    settings = knobs.Settings(warm_ip_target=1, minimum_ip_target=3)
    world = ideal.World(settings, small(1, 9))
    for _ in range(3):
        world.add()
    world.rest()
    for _ in range(3):
        world.remove(0)
    for _ in range(3):
        world.add()
    world.settle()
    cooling = [a for a in world.rows.values() if a.cooling_until > world.now]
    assert len(cooling) == 3
    assert all(pod.address is not None for pod in world.pods.values())


def test_w23_at_the_most_pods_too() -> None:
    """There a pool of maxPods addresses is never low, though some of them cool."""
    cooling = addresses(0, 3, 2)
    cooling[2] = dataclasses.replace(cooling[2], cooling_until=START + 1)
    waits = [model.Lease(9, "c9", "eth0", "net", "/ns", "waiting")]
    found = steps(
        desired(rows=cooling, leases=waits),
        knobs.Settings(warm_ip_target=1, max_pods=3),
        small(3, 9),
    )
    assert verbs(found) == [actions.AssignAddresses("eni-0", 1)]


def churned(settings: knobs.Settings, limit: limits.Limits, most: int, rest: int) -> ideal.World:
    """Up to `most` pods and down again by every third, then each one replaced, until `rest` are left."""
    world = ideal.World(settings, limit)
    for _ in range(most):
        world.add()
        world.settle()
    while len(world.pods) > rest:
        world.remove(7 * len(world.pods))
        world.pass_time(1_000)
        world.settle()
    for _ in range(3 * rest):  # a rollout: the youngest takes the place of the eldest
        world.add()
        world.settle()
        world.remove(0)
        world.pass_time(2 * MINUTE)
        world.settle()
    world.rest()
    return world


def test_w26_replaced_pods_are_packed_so_that_interfaces_go() -> None:
    """There the choice is random: pods lie on every interface and none can be given back."""
    world = churned(knobs.Settings(warm_ip_target=1), small(4, 6), most=24, rest=5)
    on_fullest = Counter(pod.eni_id for pod in world.pods.values()).most_common()[0][1]
    assert on_fullest >= 4  # of the six that fit, for addresses cool for a while
    assert len(world.enis) <= 2


def test_w26_replaced_pods_are_packed_so_that_prefixes_go() -> None:
    settings = knobs.Settings(prefix_delegation=True, warm_ip_target=1)
    world = churned(settings, small(3, 5), most=120, rest=9)
    in_prefix = Counter(world.rows[p.address].prefix for p in world.pods.values() if p.address)
    assert len(in_prefix) == 1
    assert len(world.prefixes) == 1
