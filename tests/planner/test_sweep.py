"""Which leases are over: two witnesses in two passes, none against; a lying runtime is not believed."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from ledger import model
from reconciler.planner import sweep, takeover, wiring

NOW = 1_800_000_000_000
LATER = NOW + sweep.BETWEEN_MS
OLD = NOW - 2 * sweep.LISTED_AFTER_MS


def lease(number: int, state: model.LeaseState = "active", **more: object) -> model.Lease:
    fields: dict[str, object] = {
        "address": None if state == "waiting" else f"10.0.0.{number}",
        "eni_id": None if state == "waiting" else "eni-1",
        "host_ifname": wiring.host_ifname("eni", "default", f"web-{number}"),
        "host_mac": f"02:00:00:00:00:{number:02x}",
        "pod_namespace": "default",
        "pod_name": f"web-{number}",
        "created_at": OLD,
    }
    return model.Lease(
        number, f"box-{number}", "eth0", "aws-cni", f"/run/netns/{number}", state,
        **(fields | more),  # type: ignore[arg-type] # the fields of a Lease, by name
    )  # fmt: skip


def look(
    leases: list[model.Lease],
    link: dict[int, bool] | None = None,
    name: dict[int, bool | None] | None = None,
    listed: dict[int, bool] | None = None,
    *,
    runtime: bool = True,
) -> sweep.Witnesses:
    """What is not told otherwise lives; `listed` False is a sandbox that is not ready."""
    link, name = link or {}, name or {}
    alive = {each.id: True for each in leases} | link
    boxes = {each.id: True for each in leases} if listed is None else listed
    return sweep.Witnesses(
        model.ObservedKernel(
            NOW,
            links=tuple(
                model.Link(each.host_ifname, mac=each.host_mac) for each in leases if alive[each.id]
            ),
        ),
        {each.netns: name.get(each.id, True) for each in leases},
        model.ObservedRuntime(
            NOW,
            tuple(
                model.Sandbox(f"box-{n}", "default", f"web-{n}", ready=ready)
                for n, ready in boxes.items()
            ),
        )
        if runtime
        else model.Unknown("nobody is home", NOW),
    )


def twice(leases: list[model.Lease], seen: sweep.Witnesses) -> sweep.Judgement:
    first = sweep.judge(leases, seen, {}, takeover.NAMELESS, NOW)
    assert not [each for each, why in first.over if why == "swept"], "one pass ends nothing"
    return sweep.judge(leases, seen, first.suspects, takeover.NAMELESS, LATER)


@pytest.mark.parametrize(
    "said",
    list(itertools.product([True, False, None], repeat=3)),
    ids=lambda said: "-".join({True: "alive", False: "gone", None: "unsaid"}[s] for s in said),
)
def test_over_means_two_against_and_none_for(said: tuple[bool | None, ...]) -> None:
    """All that link, name and runtime can say together."""
    link, name, listed = said
    one = lease(1)
    seen = look(
        [one],
        link={1: link is True},
        name={1: name},
        listed={} if listed is False else {1: listed is True},
    )
    if link is None:
        seen = sweep.Witnesses(model.Unknown("deaf", NOW), seen.names, seen.runtime)

    judged = twice([one], seen)

    believed = [s for s in (link, name, listed) if s is not None]
    if link and name and listed is False:
        believed.remove(False)  # the runtime contradicts what is plainly alive
    over = believed.count(False) > 1 and True not in believed
    assert bool(judged.over) == over
    assert bool(judged.doubts) == (False in believed and not over)
    assert bool(judged.fine) == (False not in believed and True in believed)


def test_two_looks_in_one_moment_are_one() -> None:
    one = lease(1)
    seen = look([one], {1: False}, {1: False}, {})
    first = sweep.judge([one], seen, {}, takeover.NAMELESS, NOW)
    again = sweep.judge([one], seen, first.suspects, takeover.NAMELESS, NOW + 1)
    assert again.over == ()
    assert again.suspects == {1: NOW}


def test_a_suspect_that_was_seen_alive_begins_anew() -> None:
    one = lease(1)
    dead, alive = look([one], {1: False}, {1: False}, {}), look([one])
    first = sweep.judge([one], dead, {}, takeover.NAMELESS, NOW)
    second = sweep.judge([one], alive, first.suspects, takeover.NAMELESS, LATER)
    third = sweep.judge([one], dead, second.suspects, takeover.NAMELESS, LATER + 60_000)
    assert (second.suspects, third.over) == ({}, ())


def test_a_young_lease_is_left_alone() -> None:
    one = lease(1, created_at=NOW - 1)
    assert twice([one], look([one], {1: False}, {1: False}, {})) == sweep.Judgement()


def test_a_runtime_that_lists_nothing_while_pods_live_ends_nobody() -> None:
    """Pod 3 has lost its link, and nobody can say of its name: the empty list must not be the second."""
    leases = [lease(n) for n in (1, 2, 3)]
    judged = twice(leases, look(leases, {3: False}, {3: None}, {}))
    assert judged.over == ()
    assert [each.id for each, _ in judged.doubts] == [3]


def test_a_runtime_that_is_slow_to_list_is_no_liar() -> None:
    """containerd lists a sandbox once its network is there; the dead one beside it is ended."""
    leases = [lease(1, created_at=NOW - sweep.YOUNG_MS), lease(2)]
    judged = twice(leases, look(leases, {2: False}, {2: None}, {}))
    assert [each.id for each, _ in judged.over] == [2]


def test_a_sandbox_that_is_not_ready_may_still_be_deleted() -> None:
    one = lease(1)
    judged = twice([one], look([one], {1: False}, {1: None}, {1: False}))
    assert judged.over == ()


def test_a_namesakes_link_is_another_pods() -> None:
    """The StatefulSet's pod is back under its name: its link does not keep the last sandbox's lease."""
    old, new = lease(1), lease(2)
    new = lease(2, host_ifname=old.host_ifname)
    seen = look([old, new], {1: False}, {1: False}, {2: True})
    assert [each.id for each, _ in twice([old, new], seen).over] == [1]


def test_one_that_waits_for_nobody_is_forgotten() -> None:
    fresh, stale = lease(1, "waiting"), lease(2, "waiting", created_at=NOW - sweep.WAITED_MS)
    judged = sweep.judge([fresh, stale], look([]), {}, takeover.NAMELESS, NOW)
    assert judged.over == ((stale, "gave_up_waiting"),)


def test_a_made_up_container_id_gets_its_name_from_the_runtime() -> None:
    """It cannot be missing from a list that never could have it."""
    one = lease(1)
    made_up = f"{takeover.NAMELESS}{one.host_ifname}"
    unnamed = dataclasses.replace(one, netns="", container_id=made_up)
    judged = twice([unnamed], look([one]))
    assert judged.over == judged.doubts == ()
    assert [(x.id, box.id) for x, box in judged.named] == [(1, "box-1")]
