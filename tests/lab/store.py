"""The simulator's memory: what is, what was, and what is due.

Items are plain dicts in wire shape and never changed in place: a change puts a new dict, so the
past costs one reference and a reader `ago` seconds back finds exactly what was true then.
Does not belong here: any rule of EC2.
"""

from __future__ import annotations

import bisect
import collections
import heapq
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.lab.clock import Clock

Item = dict[str, Any]

MEMORY_SECONDS = 600.0
"""How far back the past is kept; lags beyond it see the oldest state that is left."""


def copied(value: Any) -> Any:
    """A deep copy of a tree of dicts and lists (a fifth of copy.deepcopy's time)."""
    if type(value) is dict:
        return {key: copied(inner) for key, inner in value.items()}
    if type(value) is list:
        return [copied(inner) for inner in value]
    return value


class Timeline:
    """The versions of one item: times ascending, None for "did not exist"."""

    __slots__ = ("times", "versions")

    def __init__(self) -> None:
        self.times: list[float] = []
        self.versions: list[Item | None] = []

    def add(self, moment: float, item: Item | None) -> None:
        if self.times and self.times[-1] >= moment:
            self.versions[-1] = item  # same instant: the later word counts
            return
        self.times.append(moment)
        self.versions.append(item)
        stale = bisect.bisect_right(self.times, moment - MEMORY_SECONDS) - 1
        if stale > 0:
            del self.times[:stale], self.versions[:stale]

    def at(self, moment: float) -> Item | None:
        index = bisect.bisect_right(self.times, moment) - 1
        return self.versions[index] if index >= 0 else None


class Store:
    """Items by kind and id, with their past, their order of birth, and timers on one clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._present: dict[str, dict[str, Item]] = collections.defaultdict(dict)
        self._past: dict[str, dict[str, Timeline]] = collections.defaultdict(dict)
        self._gone: collections.deque[tuple[float, str, str]] = collections.deque()
        self._births: dict[str, int] = {}
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._sequence = itertools.count(1)
        self._firing: float | None = None

    def moment(self) -> float:
        """Now, in seconds since the epoch; while a timer fires, the time it was due."""
        return self.clock.now() if self._firing is None else self._firing

    def put(self, kind: str, identifier: str, item: Item) -> Item:
        """Make `item` the present state; the caller must not change it afterwards."""
        if identifier not in self._births:
            self._births[identifier] = next(self._sequence)
        self._present[kind][identifier] = item
        self._past[kind].setdefault(identifier, Timeline()).add(self.moment(), item)
        return item

    def change(self, kind: str, identifier: str, **members: Any) -> Item:
        """Put a version of an existing item with some members replaced."""
        return self.put(kind, identifier, {**self._present[kind][identifier], **members})

    def drop(self, kind: str, identifier: str) -> None:
        """The item is no more; its past stays readable for a while."""
        del self._present[kind][identifier]
        moment = self.moment()
        self._past[kind][identifier].add(moment, None)
        self._gone.append((moment, kind, identifier))
        while self._gone and self._gone[0][0] < moment - MEMORY_SECONDS:
            _, old_kind, old = self._gone.popleft()
            self._past[old_kind].pop(old, None)
            self._births.pop(old, None)

    def get(self, kind: str, identifier: str, ago: float = 0.0) -> Item | None:
        """One item as it was `ago` seconds ago, or None."""
        if ago <= 0:
            return self._present[kind].get(identifier)
        timeline = self._past[kind].get(identifier)
        return timeline.at(self.moment() - ago) if timeline else None

    def scan(self, kind: str, ago: float = 0.0) -> list[Item]:
        """Every item of a kind as of `ago` seconds ago, oldest first."""
        if ago <= 0:
            return list(self._present[kind].values())
        moment = self.moment() - ago
        seen = (timeline.at(moment) for timeline in self._past[kind].values())
        return [item for item in seen if item is not None]

    def birth(self, identifier: str) -> int:
        """A number that grows in the order in which things were created."""
        return self._births.get(identifier, 0)

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Run `action` that many seconds from now, by the clock."""
        heapq.heappush(self._timers, (self.moment() + seconds, next(self._sequence), action))

    def next_due(self) -> float | None:
        """When the earliest timer is due, in seconds since the epoch."""
        return self._timers[0][0] if self._timers else None

    def run_due(self) -> None:
        """Fire every timer that is due, in order, each at its own moment."""
        if self._firing is not None:
            return  # a hook called back into us; the outer loop goes on
        now = self.clock.now()
        try:
            while self._timers and self._timers[0][0] <= now:
                self._firing, _, action = heapq.heappop(self._timers)
                action()
        finally:
            self._firing = None
