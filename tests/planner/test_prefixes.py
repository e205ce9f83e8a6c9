"""Prefix delegation: upstream's numbers, what it gives back, the switch both ways, subnets without blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as some

from ledger import model
from reconciler import ideal, whatif
from reconciler import settings as knobs
from reconciler.planner import actions, limits, stock
from tests.planner.rows import (
    MINUTE,
    START,
    desired,
    eni,
    intent,
    notes,
    small,
    steps,
    verbs,
    waiting,
)

SIZE = 16


def on(warm: int = 0, least: int = 0, whole: int = 0, **more: int) -> knobs.Settings:
    return knobs.Settings(
        prefix_delegation=True,
        warm_ip_target=warm,
        minimum_ip_target=least,
        warm_prefix_target=whole,
        **more,  # type: ignore[arg-type]  # fields by name
    )


def upstream(settings: knobs.Settings, pods: int, most: int) -> int:
    """Prefixes the VPC CNI ends with when pods come one by one: its counters, "too low" and increase step."""
    warm, least = settings.warm_ip_target, settings.minimum_ip_target
    target, held = settings.warm_prefix_target, 0
    for assigned in range(pods + 1):
        while held < most:
            total = SIZE * held
            available = total - assigned  # below 0 pods wait, and those are served besides
            if warm or least:
                short = max(warm - available, least - total)
                want = -(-short // SIZE)
            else:
                low = available < max(target * SIZE, 1)
                used = min(-(-assigned // SIZE), held)  # packed: the VPC CNI's own choice is random
                want = max(1, target - (held - used), -(available // SIZE)) if low else 0
            if want <= 0:
                break
            held = min(held + want, most)
    return held


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (on(whole=1), {0: 1, 1: 2, 16: 2, 17: 3}),
        (on(whole=2), {0: 2, 1: 3, 17: 4}),
        (on(warm=5), {0: 1, 11: 1, 12: 2, 27: 2, 28: 3}),
        (on(warm=16), {0: 1, 1: 2, 16: 2, 17: 3}),
        (on(least=20), {0: 2, 32: 2, 33: 3}),
        (on(warm=1, least=40), {0: 3, 47: 3, 48: 4}),
    ],
)
def test_golden_table_of_prefixes(settings: knobs.Settings, expected: dict[int, int]) -> None:
    """On m5.large, 9 slots an interface; equal to the sums of the VPC CNI."""
    limit = limits.lookup("m5.large")
    assert limit is not None
    found = whatif.forecast(settings, limit, list(expected))
    held = {each.pods: sum(eni.prefixes for eni in each.enis) for each in found}
    waits = {each.pods: each.waiting for each in found}
    assert held == expected
    assert held == {pods: upstream(settings, pods, 27) for pods in expected}
    assert waits == {pods: max(pods - SIZE * held[pods], 0) for pods in expected}


TARGETS = some.builds(
    on, warm=some.integers(0, 40), least=some.integers(0, 70), whole=some.integers(1, 3)
)


@given(TARGETS, some.integers(1, 4), some.integers(1, 5), some.integers(0, 90))
@effort(max_examples=150, deadline=None)
def test_any_targets_lead_where_upstreams_sums_lead(
    settings: knobs.Settings, enis: int, slots: int, pods: int
) -> None:
    """As long as pods only come; the most the type can carry is the end."""
    limit = limits.Limits(enis, slots + 1, (enis,), "nitro")
    [found] = whatif.forecast(settings, limit, [pods])
    assert sum(eni.prefixes for eni in found.enis) == upstream(settings, pods, enis * slots)
    assert all(eni.ips == 0 for eni in found.enis)


def test_a_xen_type_goes_on_with_single_addresses() -> None:
    limit = limits.Limits(3, 4, (3,), "xen")
    [found] = whatif.forecast(on(warm=2), limit, [2])
    assert [(eni.ips, eni.prefixes) for eni in found.enis] == [(3, 0), (1, 0)]


EVENTS = some.lists(
    some.one_of(
        some.tuples(some.just("add"), some.integers(1, 20)),
        some.tuples(some.just("remove"), some.integers(0, 60)),
        some.tuples(some.just("switch"), some.just(0)),
        some.tuples(some.just("pass"), some.sampled_from([1_000, 20_000, 61_000, 200_000])),
    ),
    max_size=25,
)
TAKES = (
    actions.UnassignAddresses,
    actions.UnassignPrefixes,
    actions.DetachEni,
)
GIVES = (actions.AssignAddresses, actions.AssignPrefixes, actions.CreateEni)


@given(TARGETS, some.integers(1, 4), some.integers(1, 5), EVENTS)
@effort(max_examples=250, deadline=None)
def test_every_story_of_prefixes_comes_to_rest_without_flapping(
    settings: knobs.Settings, enis: int, slots: int, events: list[tuple[str, int]]
) -> None:
    """Switched on and off under way: nothing leased is given back, and at rest one kind is left."""
    world = ideal.World(settings, small(enis, slots))
    for what, number in [("pass", 0), *events]:
        if what == "add":
            for _ in range(number):
                world.add()
        elif what == "remove":
            world.remove(number)
        elif what == "switch":
            flipped = not world.settings.prefix_delegation
            world.settings = knobs.Settings(
                prefix_delegation=flipped,
                warm_ip_target=settings.warm_ip_target,
                minimum_ip_target=settings.minimum_ip_target,
                warm_prefix_target=settings.warm_prefix_target,
            )
        else:
            world.pass_time(number)
        leased = {lease.address for lease in world.pods.values()}
        for step in world.plan():
            if isinstance(step.action, actions.UnassignAddresses):
                assert not leased & set(step.action.addresses)
            if isinstance(step.action, actions.UnassignPrefixes):
                assert not {world.rows[a].prefix for a in leased if a} & set(step.action.prefixes)
        world.settle()
        assert all(eni.ips + eni.prefixes <= slots for eni in world.held())
        assert len(world.enis) <= enis
    quiet: list[actions.CloudAction] = []
    for _ in range(2 * enis + 6):
        world.pass_time(MINUTE)
        quiet += world.settle()
    first_take = next((n for n, a in enumerate(quiet) if isinstance(a, TAKES)), len(quiet))
    after = [a for a in quiet[first_take:] if isinstance(a, GIVES)]
    assert len(after) <= enis  # what makes room for the kind that is wanted now
    world.pass_time(10 * MINUTE)
    assert world.settle() == []
    while world.pods:
        world.remove(0)
    world.rest()
    kinds = [(bool(eni.ips), bool(eni.prefixes)) for eni in world.held()]
    wanted = world.settings.prefix_delegation
    assert not any(singles if wanted else blocks for singles, blocks in kinds)


def block(
    number: int, on_eni: int = 0, leased: int = 0
) -> tuple[model.Prefix, list[model.Address]]:
    cidr = f"10.1.{number}.0/28"
    rows = [
        model.Address(f"10.1.{number}.{n}", f"eni-{on_eni}", prefix=cidr, leased=n < leased)
        for n in range(SIZE)
    ]
    return model.Prefix(cidr, f"eni-{on_eni}"), rows


def test_one_call_brings_prefixes_for_all_pods_that_wait() -> None:
    rows = desired(leases=waiting(20))
    assert verbs(steps(rows, on(whole=1), small(3, 9))) == [actions.AssignPrefixes("eni-0", 2)]


def test_a_cooling_address_keeps_its_prefix_and_is_not_ready() -> None:
    """The VPC CNI gives the prefix back and counts the address as free (its W5 and W23)."""
    first, rows = block(1)
    cooling = [
        rows[0].__class__(rows[0].address, "eni-0", prefix=first.cidr, cooling_until=START + 1)
    ]
    held = desired(rows=cooling + rows[1:])
    held = model.Desired(held.node, held.enis, (first,), held.addresses)
    counted = stock.count(held, model.Unknown("", 0), START, prefixed=True)
    assert (counted.total, counted.ready) == (16, 15)
    assert counted.holdings[0].rested_prefixes(START) == ()


def no_blocks(count: int) -> model.Intent:
    text = "InsufficientCidrBlocks: The specified subnet does not have enough free cidr blocks"
    return intent(actions.AssignPrefixes("eni-0", count), "failed", text)


def test_without_free_blocks_single_addresses_take_their_place() -> None:
    """One block was refused: pods get single addresses, and the targets count those as well."""
    rows = desired(leases=waiting(3), intents=[no_blocks(1)])
    assert verbs(steps(rows, on(warm=2), small(3, 9))) == [actions.AssignAddresses("eni-0", 5)]
    assert verbs(steps(rows, on(whole=1), small(3, 9))) == [actions.AssignAddresses("eni-0", 4)]


def test_fewer_blocks_are_tried_for_a_pod_before_single_addresses() -> None:
    """Four were refused: for a pod that waits one is asked for, for the warm pool nothing."""
    rows = desired(leases=waiting(3), intents=[no_blocks(4)])
    assert verbs(steps(rows, on(whole=4), small(3, 9))) == [actions.AssignPrefixes("eni-0", 1)]
    calm = desired(intents=[no_blocks(4)])
    assert steps(calm, on(whole=4), small(3, 9)) == []
    assert "subnet_full" in notes(calm, on(whole=4))


def test_when_blocks_come_back_so_do_prefixes_and_the_single_addresses_go() -> None:
    """The pause is over: prefixes are asked for; once they are there what is free of the other kind goes."""
    singles = [model.Address(f"10.0.0.{n}", "eni-0", leased=n == 0) for n in range(3)]
    assert verbs(steps(desired(rows=singles), on(warm=2), small(3, 9))) == [
        actions.AssignPrefixes("eni-0", 1)
    ]
    prefix, rows = block(1)
    both = desired(rows=singles + rows)
    both = model.Desired(both.node, both.enis, (prefix,), both.addresses)
    look = model.ObservedCloud(
        START,
        "ec2",
        (model.ObservedEni(eni(0), ("10.0.0.0", "10.0.0.1", "10.0.0.2"), (prefix.cidr,)),),
    )
    [step] = steps(both, on(warm=2), small(3, 9), look)
    assert step.action == actions.UnassignAddresses("eni-0", ("10.0.0.1", "10.0.0.2"))
    assert step.lane == "tidy"
