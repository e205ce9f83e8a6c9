"""A lane: a thread that ticks when its bell rings, at a time it was told, and never because it failed.

A tick that raises is logged, becomes a finding and is tried again after a back-off, so that no error
of one lane ends the daemon. What a tick does does not belong here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

BACKOFF_MS = (1_000, 60_000)
"""First and longest pause after a failed tick; it doubles in between."""

SETTLE_MS = 100
"""News come in a burst: how long to let them settle, so that one tick serves all."""
PACE = 50
"""A tick for news comes this many times its own processor time after the last one, for what a lane
computes it takes from the door (one interpreter lock): 2 % at most."""
PACE_MOST_MS = 3_000
"""And no longer than this, however busy the door."""


Tick = Callable[[], int | None]
"""One tick; returns when (ms since the epoch) to run again at the latest, or None."""


class Lane:
    """`tick` runs in its own thread, once for any number of rings that came meanwhile."""

    def __init__(
        self,
        name: str,
        tick: Tick,
        failed: Callable[[str], None],
        worked: Callable[[], None],
        clock: Callable[[], int],
        pace_most_ms: int = PACE_MOST_MS,
    ) -> None:
        """`failed` is told the error of a tick that raised, `worked` that the one after did not.

        News wait no longer than `pace_most_ms`, besides the tick that is at work.
        """
        self._tick, self._clock = tick, clock
        self._failed, self._worked = failed, worked
        self._pace_most_s = pace_most_ms / 1000
        self._condition = threading.Condition()
        self._rung = False
        self._due: float | None = None
        self._news: float | None = None
        self._news_at_last = 0.0
        self._stopping = False
        self._pause = BACKOFF_MS[0]
        self._rest_until = 0.0
        self._ticks = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin; the first tick comes with the first ring."""
        self._thread.start()

    def ring(self) -> None:
        """Ask for a tick as soon as the present one is over."""
        with self._condition:
            self._rung = True
            self._condition.notify_all()

    def ring_at(self, when: int) -> None:
        """Ask for a tick at `when` (ms since the epoch), or earlier if it was asked for before.

        By the time until then, as it is now: a clock that is set meanwhile changes nothing.
        """
        due = time.monotonic() + (when - self._clock()) / 1000
        with self._condition:
            # A thread that is to wake at an earlier time already is not woken for this: that is costly.
            if self._due is None or due < self._due:
                self._due = due
                self._condition.notify_all()

    def ring_soon(self) -> int:
        """Ask for a tick for the sake of news nobody waits for: when they have settled, and not too often.

        Returns the number of ticks begun so far, for `await_tick`.
        """
        with self._condition:
            if self._news is None:
                now = time.monotonic()
                self._news = max(now + SETTLE_MS / 1000, self._rest_until)
                self._news_at_last = max(self._news, now + self._pace_most_s)
                self._condition.notify_all()
            return self._ticks

    def put_off(self) -> None:
        """There will be more news: a tick for their sake, and no other, waits until these settle as well.

        Those who were first wait no longer for that than the lane's longest pace.
        """
        with self._condition:
            if self._news is not None:
                settled = max(self._news, time.monotonic() + SETTLE_MS / 1000)
                self._news = min(settled, self._news_at_last)

    def await_tick(self, begun: int) -> None:
        """Wait until more ticks have begun than that, or the lane ends."""
        with self._condition:
            self._condition.wait_for(lambda: self._ticks > begun or self._stopping)

    def stop(self, timeout: float) -> bool:
        """End after the present tick; False if that took longer than `timeout` seconds.

        One that was never started has ended.
        """
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while self._wait():
            began = time.thread_time_ns()
            try:
                again = self._tick()
                if self._pause != BACKOFF_MS[0]:
                    self._pause = BACKOFF_MS[0]
                    self._worked()
            except Exception as error:
                log.exception("a tick failed")
                self._tell(f"{type(error).__name__}: {error}")
                again = self._clock() + self._pause
                self._pause = min(self._pause * 2, BACKOFF_MS[1])
            used = (time.thread_time_ns() - began) / 1e9
            self._rest_until = time.monotonic() + min(PACE * used, self._pace_most_s)
            if again is not None:
                self.ring_at(again)

    def _tell(self, what: str) -> None:
        """Telling of a failure may fail as well (a full disk); the log has it in any case."""
        try:
            self._failed(what)
        except Exception:
            log.exception("a failed tick could not be reported")

    def _wait(self) -> bool:
        """Until rung, due or stopping; False in the last case."""
        with self._condition:
            while not self._stopping:
                dues = [due for due in (self._due, self._news) if due is not None]
                left = min(dues) - time.monotonic() if dues else None
                if self._rung or (left is not None and left <= 0):
                    self._rung, self._due, self._news = False, None, None
                    self._ticks += 1
                    self._condition.notify_all()
                    return True
                self._condition.wait(left)
        return False
