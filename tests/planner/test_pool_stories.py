"""Over any story the pool stays within its limits, comes to rest and undoes nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as some

from reconciler import ideal
from reconciler import settings as knobs
from reconciler.planner import actions
from tests.planner.rows import BY_ENI, BY_IP, MINUTE, small


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (BY_IP, {0: [1], 5: [3, 3], 9: [3, 3, 3]}),
        (BY_ENI, {0: [3], 5: [3, 3, 3], 9: [3, 3, 3]}),
        (knobs.Settings(warm_eni_target=0), {0: [3], 3: [3, 3], 5: [3, 3], 6: [3, 3, 3]}),
        (knobs.Settings(warm_ip_target=2, minimum_ip_target=5), {0: [3, 2], 4: [3, 3], 9: [3] * 3}),
        (knobs.Settings(minimum_ip_target=4), {0: [3, 1], 4: [3, 1], 5: [3, 2]}),
        (knobs.Settings(warm_eni_target=1, max_eni=2), {0: [3], 5: [3, 3], 6: [3, 3]}),
    ],
)
def test_golden_vectors(settings: knobs.Settings, expected: dict[int, list[int]]) -> None:
    """Addresses per interface on a type of 3 interfaces with 3 slots, growing and shrinking again."""
    world = ideal.World(settings, small())
    world.settle()
    for pods in [*expected, *reversed(expected)]:
        while len(world.pods) < pods:
            world.add()
            world.settle()
        while len(world.pods) > pods:
            world.remove(-1)
        for _ in range(8):
            world.pass_time(MINUTE)
            world.settle()
        assert (pods, expected[pods]) == (pods, sorted(world.per_eni(), reverse=True))


TARGETS = some.builds(
    knobs.Settings,
    warm_eni_target=some.integers(0, 3),
    warm_ip_target=some.integers(0, 8),
    minimum_ip_target=some.integers(0, 8),
    max_eni=some.none() | some.integers(1, 5),
)
EVENTS = some.lists(
    some.one_of(
        some.tuples(some.just("add"), some.integers(1, 6)),
        some.tuples(some.just("remove"), some.integers(0, 30)),
        some.tuples(some.just("pass"), some.sampled_from([1_000, 20_000, 61_000, 200_000])),
    ),
    max_size=25,
)
TAKES = actions.UnassignAddresses | actions.DetachEni
GIVES = actions.AssignAddresses | actions.CreateEni


@given(TARGETS, some.integers(1, 5), some.integers(1, 6), EVENTS)
@effort(max_examples=300, deadline=None)
def test_every_story_comes_to_rest_and_stays_within_limits(
    settings: knobs.Settings, enis: int, slots: int, events: list[tuple[str, int]]
) -> None:
    """Never a call on a leased address, never beyond the type; afterwards no call undoes another."""
    world = ideal.World(settings, small(enis, slots))
    most = min(enis, settings.max_eni or enis)
    for what, number in [("pass", 0), *events]:
        if what == "add":
            for _ in range(number):
                world.add()
        elif what == "remove":
            world.remove(number)
        else:
            world.pass_time(number)
        for step in world.plan():
            taken = (
                step.action.addresses if isinstance(step.action, actions.UnassignAddresses) else ()
            )
            leased = {lease.address for lease in world.pods.values()}
            on = {lease.eni_id for lease in world.pods.values()}
            assert not leased & set(taken)
            assert not (isinstance(step.action, actions.DetachEni) and step.action.eni_id in on)
        world.settle()
        assert len(world.enis) <= most
        assert max(world.per_eni()) <= slots
        served = sum(lease.address is not None for lease in world.pods.values())
        cooling = sum(a.cooling_until > world.now for a in world.rows.values())
        assert served >= min(len(world.pods), most * slots - cooling)
    quiet: list[actions.CloudAction] = []
    for _ in range(2 * enis + 4):
        world.pass_time(MINUTE)
        quiet += world.settle()
    first_take = next((n for n, a in enumerate(quiet) if isinstance(a, TAKES)), len(quiet))
    assert not [a for a in quiet[first_take:] if isinstance(a, GIVES)]
    world.pass_time(10 * MINUTE)
    assert world.settle() == []
