"""EC2's request throttling: one token bucket per action, account and Region, shared by all nodes.

Capacities and refill rates are those of "Request throttling for the Amazon EC2 API" (API rate
limits), as far as the lab's clients reach. What else can refuse a call does not belong here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Limit:
    """A bucket's size in tokens and its refill in tokens per second."""

    capacity: float
    refill: float


READING = Limit(100, 20)
# These cost more when neither a filter nor MaxResults is given; a list of ids does not count.
READING_ALL = Limit(50, 10)
COSTLY_UNBOUNDED = frozenset(
    {"DescribeInstances", "DescribeNetworkInterfaces", "DescribeSecurityGroups"}
)
CHANGING = Limit(50, 5)
PUBLISHED: Mapping[str, Limit] = {
    "AssignPrivateIpAddresses": Limit(100, 5),
    "UnassignPrivateIpAddresses": Limit(100, 5),
    "AssignIpv6Addresses": Limit(100, 5),
    "CreateNetworkInterface": Limit(100, 5),
    "DeleteNetworkInterface": Limit(100, 5),
    "ModifyNetworkInterfaceAttribute": Limit(100, 5),
    "TerminateInstances": Limit(100, 5),
    "CreateTags": Limit(100, 10),
    "DeleteTags": Limit(100, 10),
    "RunInstances": Limit(5, 2),
    "CreateSubnetCidrReservation": Limit(5, 1),
    "DeleteSubnetCidrReservation": Limit(5, 1),
}
INSTANCES_LAUNCHED = Limit(1000, 2)


class Buckets:
    """The buckets of one account in one Region. Not thread-safe: used under the cloud's lock.

    `scale` multiplies size and refill alike; None switches throttling off and 0 refuses all.
    """

    def __init__(self, scale: float | None = 1.0) -> None:
        self.scale = scale
        self._levels: dict[str, tuple[float, float]] = {}  # name -> (tokens, as of)

    def take(self, action: str, params: Mapping[str, Any], now: float) -> bool:
        """Take what a call costs, or nothing and return False. `now`: seconds since the epoch."""
        if self.scale is None:
            return True
        left = {}
        for name, limit, cost in _costs(action, params):
            size = limit.capacity * self.scale
            tokens, at = self._levels.get(name, (math.inf, now))
            tokens = min(size, tokens + (now - at) * limit.refill * self.scale)
            self._levels[name] = (tokens, now)
            left[name] = tokens - cost
        if min(left.values()) < 0:
            return False
        self._levels.update((name, (tokens, now)) for name, tokens in left.items())
        return True

    def fill(self) -> None:
        """Fill every bucket to the brim."""
        self._levels.clear()


def _costs(action: str, params: Mapping[str, Any]) -> list[tuple[str, Limit, float]]:
    if action in COSTLY_UNBOUNDED and not ("Filters" in params or "MaxResults" in params):
        return [(f"{action} unbounded", READING_ALL, 1)]
    if action == "RunInstances":
        launched = params.get("MaxCount", 1)
        return [
            (action, PUBLISHED[action], 1),
            ("instances launched", INSTANCES_LAUNCHED, launched),
        ]
    reads = action.startswith(("Describe", "Get", "List", "Search"))
    return [(action, PUBLISHED.get(action, READING if reads else CHANGING), 1)]
