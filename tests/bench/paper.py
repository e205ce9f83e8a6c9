"""The VPC CNI's address pool on paper: which EC2 calls its loop would make for the same pods.

By the sums and steps of its documentation and source (1.23, one network card, IPv4, subnet discovery on):
every five seconds one step up or one step down, and perhaps one interface less. EC2 does at once what it
is asked, so the number is the least it needs. Its hourly search for leaked interfaces and what a start
costs are not counted. What our own daemon does does not belong here.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter

from reconciler import settings as knobs
from reconciler.planner import limits

PERIOD_S = 5
SHRINK_EVERY_S = 30
COOLING_S = 30
MIN_AGE_S = 60
PREFIX = 16
NEW_INTERFACE = (
    "DescribeSubnets", "DescribeSubnets", "CreateNetworkInterface", "DescribeInstances",
    "AttachNetworkInterface", "ModifyNetworkInterfaceAttribute",
)  # fmt: skip
FREED_INTERFACE = (
    "DescribeNetworkInterfaces", "DetachNetworkInterface", "DeleteNetworkInterface",
)  # fmt: skip


@dataclasses.dataclass(eq=False, slots=True)
class Entry:
    """What is asked for and given back as one: an address, or a prefix of sixteen."""

    size: int
    pods: set[str] = dataclasses.field(default_factory=set)
    cooling: list[float] = dataclasses.field(default_factory=list)
    """Until when each address that a pod has left may not be given again."""

    def free(self, now: float) -> int:
        """Addresses a pod could have now."""
        self.cooling = [until for until in self.cooling if until > now]
        return self.size - len(self.pods) - len(self.cooling)


@dataclasses.dataclass(eq=False, slots=True)
class Interface:
    """One that is attached, and since when."""

    since: float
    entries: list[Entry] = dataclasses.field(default_factory=list)


class Pool:
    """One node's, with no pods at first and settled."""

    def __init__(self, settings: knobs.Settings, limit: limits.Limits, seed: int) -> None:
        self.warm, self.least = settings.warm_ip_target, settings.minimum_ip_target
        self.targets = bool(self.warm or self.least)
        self.unit = PREFIX if settings.prefix_delegation else 1
        self.spare = (
            settings.warm_prefix_target if self.unit == PREFIX else settings.warm_eni_target
        )
        self.enis, self.slots = limit.enis, limit.slots
        self.interfaces = [Interface(-MIN_AGE_S)]
        self.waiting: dict[str, None] = {}
        self.calls: Counter[str] = Counter()
        self._random = random.Random(seed)  # its maps have no order
        self._shrunk = -1e9
        for nth in range(2 * self.enis * self.slots):
            self.step(nth * SHRINK_EVERY_S - 1e6)
        self.calls.clear()

    # ------------------------------------------------------------------ pods

    def add(self, pod: str, now: float) -> None:
        """A pod comes; without an address it is tried again after each step."""
        able = [entry for _, entry in self._all() if entry.free(now) > 0]
        if able:
            self._random.choice(able).pods.add(pod)
        else:
            self.waiting[pod] = None

    def remove(self, pod: str, now: float) -> None:
        """It goes, and its address rests."""
        self.waiting.pop(pod, None)
        for _, entry in self._all():
            if pod in entry.pods:
                entry.pods.remove(pod)
                entry.cooling.append(now + COOLING_S)

    # ------------------------------------------------------------------ its sums

    @property
    def total(self) -> int:
        """Addresses held for pods."""
        return sum(entry.size for _, entry in self._all())

    @property
    def assigned(self) -> int:
        """Of these, how many pods have."""
        return sum(len(entry.pods) for _, entry in self._all())

    def _all(self) -> list[tuple[Interface, Entry]]:
        return [(each, entry) for each in self.interfaces for entry in each.entries]

    def _empty(self) -> list[tuple[Interface, Entry]]:
        return [(each, entry) for each, entry in self._all() if not entry.pods]

    def _wanted(self) -> int:
        """Entries to ask for; 0 is enough. Addresses that cool down count as ready."""
        total, available = self.total, self.total - self.assigned
        if self.targets:
            short = max(self.warm - available, self.least - total, 0)
            return -(-short // self.unit)
        if self.unit == PREFIX:
            low = available < self.spare * PREFIX or (self.spare == 0 and available == 0)
            return max(1, self.spare - len(self._empty())) if low else 0
        low = available < self.spare * self.slots or (self.spare == 0 and available == 0)
        return self.slots if low else 0

    def _superfluous(self) -> int:
        """Entries to give back."""
        total, assigned, empty = self.total, self.assigned, len(self._empty())
        if not self.targets:
            return max(empty - self.spare, 0) if self.unit == PREFIX else 0
        if self.unit == 1:
            return max(min(total - assigned - self.warm, total - self.least), 0)
        held = total // PREFIX
        over = min(empty, held - -(-(assigned + self.warm) // PREFIX))
        return max(min(over, held - -(-self.least // PREFIX)), 0)

    # ------------------------------------------------------------------ its loop

    def step(self, now: float) -> None:
        """What it does every five seconds; then pods that wait are tried again."""
        if wanted := self._wanted():
            self._grow(wanted, now)
        elif (over := self._superfluous()) and now - self._shrunk > SHRINK_EVERY_S:
            self._shrink(over)
            self._shrunk = now
        if self._may_have_one_too_many():
            self._free_one(now)
        waiting, self.waiting = self.waiting, {}
        for pod in waiting:
            self.add(pod, now)

    def _grow(self, wanted: int, now: float) -> None:
        for each in self.interfaces:
            if (room := self.slots - len(each.entries)) > 0:
                each.entries += [Entry(self.unit) for _ in range(min(room, wanted))]
                self.calls["AssignPrivateIpAddresses"] += 1
                return
        if len(self.interfaces) < self.enis:
            made = [Entry(self.unit) for _ in range(min(self.slots, wanted))]
            self.interfaces.append(Interface(now, made))
            self.calls.update(NEW_INTERFACE)

    def _shrink(self, over: int) -> None:
        """Any that no pod has, one call for each interface they are on."""
        empty = self._empty()
        self._random.shuffle(empty)
        empty.sort(
            key=lambda pair: id(pair[0])
        )  # interface by interface, in an order of no meaning
        for each, entry in empty[:over]:
            each.entries.remove(entry)
        self.calls["UnassignPrivateIpAddresses"] += len({id(each) for each, _ in empty[:over]})

    def _may_have_one_too_many(self) -> bool:
        if self.targets:
            return True
        most = self.slots * self.unit
        if self.total - self.assigned >= (self.spare + 1) * most:
            return True
        idle = (not any(entry.pods for entry in each.entries) for each in self.interfaces[1:])
        return self.unit == PREFIX and any(idle)

    def _free_one(self, now: float) -> None:
        able = [each for each in self.interfaces[1:] if self._may_go(each, now)]
        if able:
            self.interfaces.remove(self._random.choice(able))
            self.calls.update(FREED_INTERFACE)

    def _may_go(self, doomed: Interface, now: float) -> bool:
        if now - doomed.since < MIN_AGE_S:
            return False
        if any(entry.pods or entry.free(now) < entry.size for entry in doomed.entries):
            return False
        others = [entry for each, entry in self._all() if each is not doomed]
        total = sum(entry.size for entry in others)
        ready = total - sum(len(entry.pods) for entry in others)
        round_up = -(-self.warm // self.unit) * self.unit, -(-self.least // self.unit) * self.unit
        if ready < round_up[0] or total < round_up[1]:
            return False
        empty = sum(not entry.pods for entry in others)
        return not (self.unit == PREFIX and self.spare and empty < self.spare)


def calls(
    events: list[tuple[float, str, bool]], settings: knobs.Settings, limit: limits.Limits, seed: int
) -> Counter[str]:
    """By action, for pods that come (True) and go at these seconds, in order."""
    pool = Pool(settings, limit, seed)
    steps = itertools.count(0, PERIOD_S)
    due = next(steps)
    for at, pod, comes in events:
        while due <= at:
            pool.step(due)
            due = next(steps)
        (pool.add if comes else pool.remove)(pod, at)
    return pool.calls
