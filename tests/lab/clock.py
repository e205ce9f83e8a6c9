"""The lab's time: the machine's own, or one that moves only when a test says so.

Timers live in the cloud (`next_due`, `run_due`); a clock only knows what time it is. Nothing about
what happens at a given time belongs here.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the lab asks of time; seconds since the Unix epoch."""

    def now(self) -> float:
        """Return the current time in seconds since the Unix epoch."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass for the caller."""
        ...


class RealClock:
    """The machine's wall clock."""

    def now(self) -> float:
        """Return `time.time()`."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Block the calling thread."""
        time.sleep(seconds)


class VirtualClock:
    """A clock that stands still until it is moved, so that a story takes no real time.

    The default start is a round moment (2026-01-01T00:00:00Z); no lab rule depends on it.
    """

    def __init__(self, start: float = 1_767_225_600.0) -> None:
        self._now = start

    def now(self) -> float:
        """Return the time the clock was last moved to."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Move the clock, for whoever would have waited."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move `seconds` forward. Raises ValueError for a step back: time never runs backwards."""
        if seconds < 0:
            raise ValueError(f"a clock cannot go back; advance by 0 or more, not {seconds}")
        self._now += seconds
