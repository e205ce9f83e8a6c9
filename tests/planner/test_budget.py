"""This node's share of EC2's token buckets, the distance between lanes, and the freeze."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.planner import actions, budget

CREATE = "CreateNetworkInterface"
LANES: tuple[actions.Lane, ...] = ("pod", "warm", "tidy")
HOUR = 3_600_000


def made(*times: int, operation: str = CREATE) -> list[budget.Made]:
    return [budget.Made(operation, at) for at in times]


def test_a_fresh_node_fills_its_largest_type_in_one_go() -> None:
    """24 interfaces are the most of any instance type: no pod of it waits for the budget."""
    calls = made(*range(HOUR, HOUR + budget.CHANGES.capacity - 1))
    assert budget.free_at(CREATE, "pod", calls, HOUR + 100) <= HOUR + 100


def test_the_next_call_waits_for_a_token_and_no_longer() -> None:
    calls = made(*[HOUR] * budget.CHANGES.capacity)

    at = budget.free_at(CREATE, "pod", calls, HOUR)

    assert at == HOUR + budget.CHANGES.every_ms
    assert budget.free_at(CREATE, "pod", calls, at) <= at


@pytest.mark.parametrize(
    ("operation", "most"),
    [
        (CREATE, {"tidy": 16, "warm": 20, "pod": 24}),
        ("AttachNetworkInterface", {"tidy": 1, "warm": 1, "pod": 24}),
        ("DescribeNetworkInterfaces", {"tidy": 4, "warm": 8, "pod": 12}),
    ],
)
def test_lanes_stop_one_after_the_other(operation: str, most: dict[str, int]) -> None:
    """Housekeeping first, then the warm pool; a pod gets the last token."""
    stopped: dict[str, int] = {}
    for count in range(budget.CHANGES.capacity + 1):
        for lane in LANES:
            calls = made(*[HOUR] * count, operation=operation)
            if budget.free_at(operation, lane, calls, HOUR) > HOUR:
                stopped.setdefault(lane, count)
    assert stopped == most


def test_forty_nodes_warm_pools_leave_room_for_as_many_pods() -> None:
    """Of EC2's smaller buckets, 50 and 5 a second (Request throttling for the Amazon EC2 API, API rate limits)."""
    for operation in budget.SMALL:
        assert 40 * budget.at_once(operation, "warm") <= 0.8 * 50
        assert 40 * 1000 / budget.CHANGES.every_ms < 5, (
            "and their drip is less than what is refilled"
        )


def test_actions_have_buckets_of_their_own() -> None:
    calls = made(*[HOUR] * 100, operation="AttachNetworkInterface")
    assert budget.free_at(CREATE, "tidy", calls, HOUR) == HOUR


@given(
    gaps=st.lists(st.integers(0, 60_000), max_size=200),
    lanes=st.lists(st.sampled_from(LANES), min_size=200, max_size=200),
)
def test_who_keeps_to_it_stays_within_the_bucket_in_every_window(
    gaps: list[int], lanes: list[actions.Lane]
) -> None:
    """I6: however calls arrive, no window holds more than the capacity and its refill."""
    now = HOUR
    calls: list[budget.Made] = []
    for gap, lane in zip(gaps, lanes, strict=False):
        now += gap
        if budget.free_at(CREATE, lane, calls, now) <= now:
            calls.append(budget.Made(CREATE, now))
    times = [call.at for call in calls]
    for first, start in enumerate(times):
        for last in range(first, len(times)):
            refilled = (times[last] - start) // budget.CHANGES.every_ms
            assert last - first + 1 <= budget.CHANGES.capacity + refilled + 1


# ------------------------------------------------------------------------------- the freeze

GIVE = actions.CloudStep(actions.DeleteEni("eni-1"), "tidy", "idle")
TAKE = actions.CloudStep(actions.AssignAddresses("eni-1", 3), "pod", "a pod waits")
BOTH = actions.Plan(cloud=(TAKE, GIVE))


@pytest.mark.parametrize(
    ("frozen", "left"), [("none", (TAKE, GIVE)), ("release", (TAKE,)), ("cloud", ())]
)
def test_a_freeze_leaves_out_what_it_names_and_says_so(
    frozen: budget.Freeze, left: tuple[actions.CloudStep, ...]
) -> None:
    plan = budget.thawed(BOTH, frozen)

    assert plan.cloud == left
    assert [note.code for note in plan.notes] == ([] if frozen == "none" else ["frozen"])


def test_a_sick_ec2_freezes_what_is_given_back() -> None:
    sick = [budget.Made(CREATE, HOUR, ok=n % 4 == 0) for n in range(12)]
    well = [budget.Made(CREATE, HOUR, ok=n % 4 != 0) for n in range(12)]

    assert budget.freeze("none", sick) == "release"
    assert budget.freeze("none", well) == "none"
    assert budget.freeze("none", sick[: budget.JUDGED - 1]) == "none"
    assert budget.freeze("cloud", well) == "cloud"
