"""What a node would hold under some settings: with so many pods, or with the pods that a ledger remembers.

`forecast` and `replay` answer `vpcledger whatif`, by the planner that the daemon runs, in an ideal world.
EC2 is asked nothing; how long a pod waits is what EC2 usually takes (refusals.ASSIGN_MS, ATTACH_MS).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Collection, Iterable

from reconciler import ideal, refusals
from reconciler import settings as knobs
from reconciler.planner import actions, limits
from reconciler.providers import ec2

_AT_ONCE_MS = refusals.ASSIGN_MS
"""Pods that come within the time of one call find what was there before it."""
_STEP_MS = 60_000
"""Between two pods the pool is looked at so often, as the daemon does."""


@dataclasses.dataclass(frozen=True, slots=True)
class Forecast:
    """A node at rest with `pods` pods, the last `waiting` of which find no room.

    `enis` are in the order of their device indexes, the primary interface first. `ec2_calls` counts, by
    EC2's action, the changes asked of EC2 since the node's first start.
    """

    pods: int
    enis: tuple[ideal.Held, ...]
    waiting: int
    ec2_calls: dict[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Demand:
    """A pod that came at `came` and went at `went` (ms since the epoch; None if it is still there)."""

    came: int
    went: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Replay:
    """What a recorded demand would have met.

    `waits` pods found no free address; together they would have waited `waited_ms`, the longest
    `longest_wait_ms`, had EC2 taken its usual time; `unserved` found no room at all. `held_mean` and
    `held_most` are addresses for pods on the node, over the time from the first pod to the last change.
    """

    pods: int
    hours: float
    waits: int
    waited_ms: int
    longest_wait_ms: int
    unserved: int
    held_mean: float
    held_most: int
    ec2_calls: dict[str, int]


def forecast(
    settings: knobs.Settings, limit: limits.Limits, pods: Collection[int]
) -> list[Forecast]:
    """One for each of `pods`, in that order.

    A fresh node comes to rest, then pods come one after another, each when the pool rests again; so a
    count's forecast does not depend on which others are asked for.
    """
    world = ideal.World(settings, limit)
    world.rest()
    found = {0: _forecast(world)}
    for count in range(1, max(pods, default=0) + 1):
        world.add()
        world.rest()
        if count in pods:
            found[count] = _forecast(world)
    return [found[count] for count in pods]


def _forecast(world: ideal.World) -> Forecast:
    return Forecast(
        pods=len(world.pods),
        enis=tuple(world.held()),
        waiting=sum(lease.address is None for lease in world.pods.values()),
        ec2_calls=_calls(world),
    )


def _calls(world: ideal.World) -> dict[str, int]:
    return dict(Counter(ec2.ACTION[type(call)] for call in world.calls))


def replay(settings: knobs.Settings, limit: limits.Limits, demand: Iterable[Demand]) -> Replay:
    """The same pods at the same times on a fresh node that had come to rest before the first."""
    pods = sorted(demand, key=lambda each: each.came)
    if not pods:
        return Replay(0, 0.0, 0, 0, 0, 0, 0.0, 0, {})
    world = ideal.World(settings, limit)
    world.rest()
    start, told = pods[0].came, _Told()
    story = sorted(
        [(each.came, 1, nth) for nth, each in enumerate(pods)]
        + [(each.went, 0, nth) for nth, each in enumerate(pods) if each.went is not None]
    )
    zero, numbers = world.now, dict[int, int]()
    for at, together in itertools.groupby(story, key=lambda each: each[0] - each[0] % _AT_ONCE_MS):
        _until(world, zero + max(at - start, 0), told)
        for _, comes, nth in together:
            if comes:
                numbers[nth] = world.add()
            elif nth in numbers:
                world.end(numbers[nth])
        _settle(world, told)
    span = max(story[-1][0] - start, 1)
    return Replay(
        pods=len(pods),
        hours=round(span / 3_600_000, 2),
        waits=len(told.waits),
        waited_ms=sum(told.waits),
        longest_wait_ms=max(told.waits, default=0),
        unserved=len(told.unserved),
        held_mean=round(told.area / span, 1),
        held_most=told.most,
        ec2_calls=_calls(world),
    )


@dataclasses.dataclass(slots=True)
class _Told:
    """What is added up on the way."""

    waits: list[int] = dataclasses.field(default_factory=list)
    unserved: set[int] = dataclasses.field(default_factory=set)
    area: int = 0
    most: int = 0

    def held(self, world: ideal.World) -> None:
        self.most = max(self.most, sum(world.per_eni()))


def _until(world: ideal.World, then: int, told: _Told) -> None:
    """Let time go by, the pool looked at every minute until it rests."""
    rests = False
    while world.now < then:
        step = then - world.now if rests else min(_STEP_MS, then - world.now)
        told.area += sum(world.per_eni()) * step
        world.pass_time(step)
        rests = not world.settle()
        told.held(world)


def _settle(world: ideal.World, told: _Told) -> None:
    """The pool has its calls made; pods that had found nothing free wait for as long as these take."""
    without = {n for n, lease in world.pods.items() if lease.address is None} - told.unserved
    made = world.settle()
    grew = any(isinstance(call, actions.CreateEni) for call in made)
    still = {n for n in without if world.pods[n].address is None}
    told.waits += [refusals.ATTACH_MS if grew else refusals.ASSIGN_MS] * len(without - still)
    told.unserved |= still
    told.held(world)
