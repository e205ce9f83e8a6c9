"""A lane ticks when rung or due, once for many rings, and goes on after a tick that failed."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from reconciler import lanes

PATIENCE = 5.0


def clock() -> int:
    return time.time_ns() // 1_000_000


class Told:
    """What a lane did and said, to be waited for."""

    def __init__(self) -> None:
        self.ticks: queue.Queue[int] = queue.Queue()
        self.failed: queue.Queue[str] = queue.Queue()
        self.worked: queue.Queue[bool] = queue.Queue()


@contextmanager
def lane(told: Told, tick: lanes.Tick) -> Iterator[lanes.Lane]:
    made = lanes.Lane("test", tick, told.failed.put, lambda: told.worked.put(True), clock)
    made.start()
    yield made
    assert made.stop(PATIENCE)


def test_it_waits_for_its_bell() -> None:
    told = Told()
    with lane(told, lambda: told.ticks.put(clock())) as made:
        assert told.ticks.empty()
        made.ring()
        told.ticks.get(timeout=PATIENCE)


def test_many_rings_during_a_tick_are_one_more_tick() -> None:
    told, go = Told(), queue.Queue[None]()

    def tick() -> None:
        told.ticks.put(clock())
        go.get(timeout=PATIENCE)

    with lane(told, tick) as made:
        made.ring()
        told.ticks.get(timeout=PATIENCE)
        for _ in range(10):
            made.ring()
        go.put(None)
        told.ticks.get(timeout=PATIENCE)
        go.put(None)
    assert told.ticks.empty()


def test_it_runs_at_the_time_it_was_told_and_not_before() -> None:
    told = Told()
    with lane(told, lambda: told.ticks.put(clock())) as made:
        due = clock() + 60
        made.ring_at(due + 10_000)
        made.ring_at(due)
        assert told.ticks.get(timeout=PATIENCE) >= due


def test_a_tick_says_when_it_wants_to_run_again() -> None:
    told, wanted = Told(), iter([1, None])

    def tick() -> int | None:
        told.ticks.put(clock())
        pause = next(wanted)
        return None if pause is None else clock() + pause

    with lane(told, tick) as made:
        made.ring()
        told.ticks.get(timeout=PATIENCE)
        told.ticks.get(timeout=PATIENCE)


def test_a_failed_tick_is_told_and_tried_again_until_it_works() -> None:
    told, tries = Told(), itertools.count()

    def tick() -> None:
        if next(tries) == 0:
            raise ValueError("the first time")

    with lane(told, tick) as made:
        made.ring()
        assert told.failed.get(timeout=PATIENCE) == "ValueError: the first time"
        assert told.worked.get(timeout=PATIENCE)


def test_a_report_that_fails_too_does_not_end_the_lane() -> None:
    told, tries = Told(), itertools.count()

    def tick() -> None:
        if next(tries) == 0:
            raise ValueError("the first time")
        told.ticks.put(clock())

    def refuses(_: str) -> None:
        raise OSError("the disk is full")

    made = lanes.Lane("test", tick, refuses, lambda: None, clock)
    made.start()
    made.ring()
    told.ticks.get(timeout=PATIENCE)
    assert made.stop(PATIENCE)


def test_it_ends_although_something_is_due() -> None:
    told = Told()
    with lane(told, lambda: None) as made:
        made.ring_at(clock() + 3_600_000)


def test_news_do_not_make_it_take_the_processor_from_others() -> None:
    """What a tick computed is followed by a rest that is a multiple of it; a bell is heard at once."""
    told = Told()

    def tick() -> None:
        until = time.thread_time() + 0.03
        while time.thread_time() < until:
            pass
        told.ticks.put(clock())

    with lane(told, tick) as made:
        made.ring_soon()
        first = told.ticks.get(timeout=PATIENCE)
        made.await_tick(made.ring_soon())
        second = told.ticks.get(timeout=PATIENCE)
        assert second - first >= 0.9 * lanes.PACE * 30
        made.ring()
        assert told.ticks.get(timeout=PATIENCE) - second < 0.9 * lanes.PACE * 30


def test_a_tick_for_news_waits_until_they_settle_but_not_for_ever() -> None:
    told = Told()
    with lane(told, lambda: told.ticks.put(clock())) as made:
        began = clock()
        made.ring_soon()
        while told.ticks.empty():  # as a door that is never at rest
            made.put_off()
        late = told.ticks.get(timeout=PATIENCE) - began
        assert late >= 0.9 * lanes.PACE_MOST_MS


def test_a_tick_that_is_due_or_rung_for_is_not_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "SETTLE_MS", 2 * lanes.PACE_MOST_MS)
    told = Told()
    with lane(told, lambda: told.ticks.put(clock())) as made:
        made.put_off()
        made.ring_soon()
        made.ring_at(clock() + 20)
        made.put_off()
        began = clock()
        assert told.ticks.get(timeout=PATIENCE) - began < lanes.SETTLE_MS
        made.ring_soon()
        made.put_off()
        made.ring()
        assert told.ticks.get(timeout=PATIENCE) - began < lanes.SETTLE_MS
    assert told.ticks.empty()


def test_whoever_waits_for_a_tick_is_let_go_when_the_lane_ends() -> None:
    told = Told()
    with lane(told, lambda: None) as made:
        waiting = threading.Thread(target=made.await_tick, args=(0,))
        waiting.start()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()


def test_a_lane_that_was_never_started_has_ended() -> None:
    """The daemon's start may fail before it comes to its lanes."""
    made = lanes.Lane("test", lambda: None, Told().failed.put, lambda: None, clock)
    assert made.stop(1)


def test_a_clock_that_is_set_back_does_not_hold_up_what_was_due() -> None:
    told, skew = Told(), 0

    def set_back() -> int:
        return clock() - skew

    made = lanes.Lane(
        "test", lambda: told.ticks.put(clock()), told.failed.put, lambda: None, set_back
    )
    made.start()
    made.ring_at(set_back() + 200)
    skew = 3_600_000
    assert told.ticks.get(timeout=PATIENCE)
    assert made.stop(PATIENCE)
