"""How many EC2 calls this node may make: a token bucket per action, filled by time, emptied by calls.

EC2 throttles per account, Region and action (EC2 Developer Guide, "Request throttling"), so all nodes share
one bucket of, say, 100 calls and 5 a second. A node takes a small share: enough to fill its largest
instance type in one go while a pod waits, and a slow drip after that. Lanes keep distance: the warm pool
leaves tokens for pods, housekeeping leaves more, and of the smaller buckets neither takes more than a token at
once, for another node's pod may wait for it. The buckets are computed from the calls' own rows, so a restart forgets nothing. What is to be called, and the back-off after a refusal, do not belong here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from reconciler.planner import actions

Freeze = Literal["none", "release", "cloud"]


@dataclass(frozen=True, slots=True)
class Bucket:
    """`capacity` calls at once, then one every `every_ms`."""

    capacity: int
    every_ms: int


CHANGES: Final = Bucket(24, 10_000)
LOOKS: Final = Bucket(12, 10_000)
"""A node's share of EC2's 100 calls and 5 (mutating) or 20 (describing) a second."""

BURST: Final[dict[actions.Lane, int]] = {"pod": CHANGES.capacity, "warm": 20, "tidy": 16}
"""Changes of one kind that a lane makes at once while the bucket is full; each leaves some to those before it."""
SMALL: Final = frozenset({"AttachNetworkInterface", "DetachNetworkInterface"})
"""EC2 gives 50 at once of these, as of every change it does not list, and 100 of the others. A pool that wants two
interfaces more on each of forty nodes would take all of it, so a lane in which nobody waits makes one."""
LOOKS_AT_ONCE: Final[dict[actions.Lane, int]] = {"pod": LOOKS.capacity, "warm": 8, "tidy": 4}
"""The same for what only looks, of which EC2 gives four times as many a second."""

WINDOW_MS: Final = CHANGES.capacity * CHANGES.every_ms
"""Calls older than this have no effect on any bucket."""

JUDGED: Final = 10
"""Fewer calls than this say nothing about EC2's health."""
FROZEN_ABOVE: Final = 0.5
"""The share of failed calls above which nothing is given back (throttles count: EC2 is in trouble)."""


@dataclass(frozen=True, slots=True)
class Made:
    """A call that was made: which action, when (ms), and whether EC2 carried it out."""

    operation: str
    at: int
    ok: bool = True


def free_at(operation: str, lane: actions.Lane, calls: Iterable[Made], now: int) -> int:
    """When (ms) this lane may make this call; `now` or earlier if it may now."""
    bucket = LOOKS if operation.startswith("Describe") else CHANGES
    # As a leaky bucket: each call fills one step, which drains in `every_ms`.
    level, last = 0, 0
    for call in sorted(c.at for c in calls if c.operation == operation):
        level = max(level - (call - last), 0) + bucket.every_ms
        last = call
    level = max(level - (now - last), 0)
    room = at_once(operation, lane) * bucket.every_ms
    return now + max(level + bucket.every_ms - room, 0)


def at_once(operation: str, lane: actions.Lane) -> int:
    """How many of these calls the lane makes at once while the node's bucket is full."""
    if operation.startswith("Describe"):
        return LOOKS_AT_ONCE[lane]
    return 1 if operation in SMALL and lane != "pod" else BURST[lane]


def freeze(setting: Freeze, calls: Sequence[Made]) -> Freeze:
    """What must not be done now: the setting, or `release` while EC2 mostly fails."""
    if setting != "none" or len(calls) < JUDGED:
        return setting
    failed = sum(not call.ok for call in calls)
    return "release" if failed > FROZEN_ABOVE * len(calls) else "none"


def thawed(plan: actions.Plan, frozen: Freeze) -> actions.Plan:
    """The plan without what is frozen, with a note that says so."""
    if frozen == "none" or not plan.cloud:
        return plan
    kept = tuple(s for s in plan.cloud if frozen == "release" and not gives_back(s.action))
    if len(kept) == len(plan.cloud):
        return plan
    left = ", ".join(type(s.action).__name__ for s in plan.cloud if s not in kept)
    note = actions.Note("frozen", f"freeze is {frozen!r}, so not now: {left}")
    return actions.Plan(plan.kernel, kept, (*plan.notes, note))


def gives_back(action: actions.CloudAction) -> bool:
    """Does it return something to EC2?"""
    return isinstance(
        action,
        actions.UnassignAddresses
        | actions.UnassignPrefixes
        | actions.DetachEni
        | actions.DeleteEni,
    )
