"""The lab's memory: the past as it was, timers in order, nothing kept for ever."""

from __future__ import annotations

import pytest

from tests.lab.clock import VirtualClock
from tests.lab.store import MEMORY_SECONDS, Store


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(1000.0)


@pytest.fixture
def store(clock: VirtualClock) -> Store:
    return Store(clock)


def test_a_reader_sees_what_was_true_then(store: Store, clock: VirtualClock) -> None:
    """Before, between and after each change."""
    store.put("thing", "a", {"n": 1})
    clock.advance(10)
    store.change("thing", "a", n=2)
    clock.advance(10)
    store.drop("thing", "a")
    clock.advance(10)
    seen = [store.get("thing", "a", ago) for ago in (31, 30, 21, 20, 11, 10, 0)]
    assert seen == [None, {"n": 1}, {"n": 1}, {"n": 2}, {"n": 2}, None, None]


def test_a_list_is_as_of_one_moment(store: Store, clock: VirtualClock) -> None:
    store.put("thing", "a", {"n": 1})
    clock.advance(5)
    store.put("thing", "b", {"n": 2})
    store.drop("thing", "a")
    assert store.scan("thing") == [{"n": 2}]
    assert store.scan("thing", ago=2.0) == [{"n": 1}]


def test_of_two_changes_at_one_instant_the_later_counts(store: Store, clock: VirtualClock) -> None:
    store.put("thing", "a", {"n": 1})
    store.put("thing", "a", {"n": 2})
    clock.advance(1)
    assert store.get("thing", "a", ago=1.0) == {"n": 2}


def test_the_past_is_forgotten_after_a_while(store: Store, clock: VirtualClock) -> None:
    """But never the version that is true."""
    store.put("thing", "a", {"n": 1})
    store.put("thing", "gone", {})
    store.drop("thing", "gone")
    for n in range(2, 6):
        clock.advance(MEMORY_SECONDS)
        store.change("thing", "a", n=n)
    store.put("thing", "b", {})
    store.drop("thing", "b")
    assert store.get("thing", "a", ago=10 * MEMORY_SECONDS) is None
    assert store.get("thing", "a") == {"n": 5}
    assert store.birth("gone") == 0


def test_timers_fire_in_order_each_at_its_moment(store: Store, clock: VirtualClock) -> None:
    """Also those that a timer sets, when they fall into the same leap."""
    fired: list[tuple[str, float]] = []

    def first() -> None:
        fired.append(("first", store.moment()))
        store.after(1, lambda: fired.append(("chained", store.moment())))

    store.after(5, lambda: fired.append(("second", store.moment())))
    store.after(2, first)
    store.after(90, lambda: fired.append(("late", store.moment())))
    assert store.next_due() == 1002.0
    clock.advance(60)
    store.run_due()
    assert fired == [("first", 1002.0), ("chained", 1003.0), ("second", 1005.0)]
    assert store.next_due() == 1090.0


def test_what_a_timer_changes_is_dated_when_it_was_due(store: Store, clock: VirtualClock) -> None:
    store.put("thing", "a", {"n": 1})
    store.after(10, lambda: store.change("thing", "a", n=2))
    clock.advance(60)
    store.run_due()
    assert store.get("thing", "a", ago=49.0) == {"n": 2}
    assert store.get("thing", "a", ago=51.0) == {"n": 1}
