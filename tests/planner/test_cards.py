"""Several network cards: each is counted for itself, and only those that are meant to be carry pods."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as some

from ledger import model
from reconciler import ideal
from reconciler import settings as knobs
from reconciler.planner import actions, cards, limits, pool, stock, targets
from tests.planner.rows import (
    CREATED,
    MINUTE,
    START,
    UNKNOWN,
    addresses,
    desired,
    eni,
    intent,
    shown,
    steps,
    verbs,
    waiting,
)

TWO = limits.Limits(2, 4, (2, 2), "nitro")
ON = knobs.Settings(warm_ip_target=2, multi_nic=True)
OFF = knobs.Settings(warm_ip_target=2)


def test_a_types_limit_is_each_cards_own() -> None:
    """p4d.24xlarge has 15 interfaces on each of 4 cards; a card that it has not takes none (W27)."""
    p4d = limits.lookup("p4d.24xlarge")
    assert p4d is not None
    assert [p4d.on(card) for card in (0, 3, 4, 99, -1)] == [15, 15, 0, 0, 0]
    few = dataclasses.replace(ON, max_eni=2)
    assert [targets.most_enis(few, p4d, card) for card in range(5)] == [2, 2, 2, 2, 0]


@pytest.mark.parametrize("device", [0, 1, 100, 255])
def test_an_interface_at_an_unusual_place_is_counted_where_it_is(device: int) -> None:
    """Cards that the type has not, and indexes above 99, crash the VPC CNI (W27)."""
    strange = eni(1, card=7, device=device)
    rows = desired(enis=[eni(0), strange], rows=addresses(0, 3, 1))
    assert steps(rows, OFF, TWO) == []
    assert (
        steps(rows, dataclasses.replace(ON, max_eni=1), TWO)[0].action
        == verbs(steps(desired(rows=addresses(0, 3, 1)), dataclasses.replace(ON, max_eni=1), TWO))[
            0
        ]
    )


def test_cards_after_the_first_are_used_if_the_setting_says_so() -> None:
    """A card for RDMA alone is left to it; one with an interface of ours besides, or with none, is used."""
    five = limits.Limits(2, 4, (2,) * 5, "nitro")
    enis = [
        eni(0),
        eni(1, card=1, kind="efa-only"),
        eni(2, card=2, kind="efa-only"),
        eni(3, card=2),
        eni(4, card=3, kind="efa-only"),
        eni(5, card=3, managed=False),
    ]
    rows = desired(enis=enis)
    assert cards.used(rows, ON, five) == (0, 2, 4)
    assert cards.used(rows, OFF, five) == (0,)


def test_each_card_keeps_one_address_and_the_first_what_the_settings_say() -> None:
    """Upstream's targets: 1 and 1 after the first card. One interface is made for the second, and attached there."""
    rows = desired(rows=addresses(0, 2))
    [made] = verbs(steps(rows, ON, TWO))
    assert isinstance(made, actions.CreateEni)
    assert (made.card, made.secondaries) == (1, 1)
    loose = dataclasses.replace(CREATED, card=1)
    rows = desired(enis=[eni(0), loose], rows=[*addresses(0, 2), *addresses(5, 1)])
    assert verbs(steps(rows, ON, TWO)) == [actions.AttachEni("eni-5", "i-1", 1, 1)]


def test_pods_that_find_no_room_on_the_first_card_get_it_on_the_next() -> None:
    """With one address to keep besides; none while the first card can grow."""
    there = [eni(0), eni(1), eni(2, card=1, device=1)]
    held = [*addresses(0, 3, 3), *addresses(1, 3, 3), *addresses(2, 1, 1)]
    found = steps(desired(enis=there, rows=held, leases=waiting(2)), ON, TWO)
    assert verbs(found)[0] == actions.AssignAddresses("eni-2", 2)
    made = found[1].action
    assert isinstance(made, actions.CreateEni)
    assert (made.card, made.secondaries) == (1, 1)
    assert [step.lane for step in found] == ["pod", "warm"]
    grows = desired(enis=[eni(0), there[2]], rows=held[:3] + held[6:], leases=waiting(2))
    assert [getattr(a, "card", None) for a in verbs(steps(grows, ON, TWO))] == [0, None]


@pytest.mark.parametrize("settings", [ON, OFF], ids=["used", "not used"])
def test_what_is_on_one_card_neither_fills_nor_blocks_another(settings: knobs.Settings) -> None:
    """Places, device indexes, calls on their way and lost replies are the card's own."""
    enis = [eni(0), eni(1, card=1, device=1), eni(2, card=1, device=2)]
    create = dataclasses.replace(actions.CreateEni("subnet-1", ("sg-1",), "d", 1), card=1)
    rows = desired(enis=enis, rows=addresses(0, 3, 3), intents=[intent(create, "unknown")])
    first = [a for a in verbs(steps(rows, settings, TWO)) if getattr(a, "card", 0) == 0]
    assert [type(a) for a in first if isinstance(a, actions.CreateEni)] == [actions.CreateEni]
    counted = stock.count(rows, UNKNOWN, START)
    assert (counted.enis, counted.devices, counted.coming) == (1, frozenset({0}), 0)
    counted = stock.count(rows, UNKNOWN, START, card=1)
    assert (counted.enis, counted.devices, counted.coming) == (3, frozenset({1, 2}), 1)


def test_what_was_meant_for_a_card_that_is_not_used_any_more_is_not_forgotten() -> None:
    """The setting was taken back: a made interface serves the first card, a detached one is deleted."""
    loose = dataclasses.replace(CREATED, card=1)
    gone = eni(6, card=1, state="detaching")
    rows = desired(enis=[eni(0), loose, gone], rows=addresses(0, 2))
    seen = model.ObservedCloud(START, "ec2", shown(desired(enis=[eni(0)])).enis)
    assert verbs(steps(rows, OFF, TWO, seen)) == [
        actions.AttachEni("eni-5", "i-1", 1, 0),
        actions.DeleteEni("eni-6"),
    ]


def test_the_nodes_capacity_is_that_of_all_its_cards() -> None:
    """2 interfaces of 3 addresses on each of two cards, one of which somebody else has."""
    rows = desired(enis=[eni(0), eni(1, card=1, managed=False)])
    assert pool.capacity(rows, OFF, TWO).max_addresses == 6
    both = pool.capacity(rows, ON, TWO)
    assert (both.enis, both.max_addresses, both.could_grow) == (3, 9, True)


@given(
    some.booleans(), some.integers(0, 20), some.sampled_from([0, 30_000]),
    some.lists(some.tuples(some.integers(0, 30), some.integers(0, 30)), max_size=6),
)  # fmt: skip
@effort(max_examples=40, deadline=None)
def test_no_demand_makes_a_card_flap(
    prefixed: bool, warm: int, cooling: int, demand: list[tuple[int, int]]
) -> None:
    """W12: with prefixes on several cards one is given back and taken again every 35 seconds, for ever."""
    settings = knobs.Settings(
        multi_nic=True, prefix_delegation=prefixed, warm_ip_target=warm, minimum_ip_target=1,
        ip_cooldown_ms=cooling,
    )  # fmt: skip
    world = ideal.World(settings, limits.Limits(2, 3, (2, 2, 1), "nitro"))
    world.settle()
    takes = (actions.UnassignAddresses, actions.UnassignPrefixes, actions.DetachEni)
    gives = (actions.AssignAddresses, actions.AssignPrefixes, actions.CreateEni)
    for come, go in [*demand, (0, 0)]:
        for _ in range(min(go, len(world.pods))):
            world.remove(0)
        for _ in range(come):
            world.add()
        quiet = world.settle()
        for _ in range(20):
            world.pass_time(10_000)
            quiet += world.settle()
        first = next((n for n, call in enumerate(quiet) if isinstance(call, takes)), len(quiet))
        assert not [call for call in quiet[first:] if isinstance(call, gives)]
    world.pass_time(10 * MINUTE)
    assert world.settle() == []
    served = [lease for lease in world.pods.values() if lease.address]
    room = 5 * 2 * (16 if prefixed else 1)
    assert len(served) == min(len(world.pods), room), "a pod finds room on any card"
