"""No demand makes the pool flap, and what a trace costs in calls is bounded by its demand.

That stories come to rest at all, and within limits, is in test_pool_stories and test_prefixes.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as some

from reconciler import ideal
from reconciler import settings as knobs
from reconciler.planner import actions
from tests.planner.rows import MINUTE, small

TAKES = (actions.UnassignAddresses, actions.UnassignPrefixes, actions.DetachEni)
GIVES = (actions.AssignAddresses, actions.AssignPrefixes, actions.CreateEni)

SETTINGS = some.builds(
    knobs.Settings,
    prefix_delegation=some.booleans(),
    warm_eni_target=some.integers(0, 2),
    warm_prefix_target=some.integers(1, 2),
    warm_ip_target=some.integers(0, 20),
    minimum_ip_target=some.integers(0, 40),
    max_eni=some.none() | some.integers(1, 3),
    max_pods=some.none() | some.integers(1, 40),
    ip_cooldown_ms=some.sampled_from([0, 30_000, 120_000]),
)
DEMAND = some.lists(
    some.tuples(
        some.integers(0, 12), some.integers(0, 12), some.sampled_from([5_000, 40_000, 400_000])
    ),
    max_size=12,
)
"""Per step: pods that come, pods that go, and the time until the next step (ms)."""


@given(SETTINGS, some.integers(1, 4), some.integers(1, 6), DEMAND)
@effort(max_examples=250, deadline=None)
def test_no_demand_makes_the_pool_flap(
    settings: knobs.Settings, enis: int, slots: int, demand: list[tuple[int, int, int]]
) -> None:
    """While demand stands still nothing is asked for after something was given back."""
    world = ideal.World(settings, small(enis, slots))
    world.settle()
    moved = made = 0
    for come, go, pause in [*demand, (0, 0, 20 * MINUTE)]:
        for _ in range(go if len(world.pods) >= go else 0):
            world.remove(0)
            moved += 1
        for _ in range(come):
            world.add()
            moved += 1
        quiet = world.settle()
        for _ in range(max(pause // 20_000, 1)):
            world.pass_time(min(pause, 20_000))
            quiet += world.settle()
        first = next((n for n, call in enumerate(quiet) if isinstance(call, TAKES)), len(quiet))
        assert not [call for call in quiet[first:] if isinstance(call, GIVES)]
        made += len(quiet)
    # An interface takes five calls from being made to being deleted, an address two; and each pod that
    # comes or goes changes by one what the warm targets want, now and once more when it has cooled.
    assert made <= 5 * (enis + 1) + 4 * moved
    world.pass_time(10 * MINUTE)
    assert world.settle() == []
