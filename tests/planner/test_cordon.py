"""What a cordoned node's plan leaves out, by itself."""

from __future__ import annotations

import dataclasses

import pytest

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import actions, cordon

NOW = 1_700_000_000_000
ASKED = knobs.Settings(node_name="node1", kubernetes_host="172.20.0.1")
ADDS = (
    actions.CreateEni("subnet-1", ("sg-1",), "d", 1),
    actions.AssignAddresses("eni-1", 1),
    actions.AssignPrefixes("eni-1", 1),
)
DETACH = actions.DetachEni("eni-1", "eni-attach-1")
REST = (
    actions.AttachEni("eni-1", "i-1", 1),
    actions.SetDeleteOnTermination("eni-1", "eni-attach-1"),
    actions.UnassignAddresses("eni-1", ("10.0.0.5",)),
    actions.UnassignPrefixes("eni-1", ("10.0.0.16/28",)),
    actions.DeleteEni("eni-1"),
)
WHOLE = actions.Plan(
    cloud=tuple(actions.CloudStep(each, "warm", "because") for each in (*ADDS, DETACH, *REST))
)


def left(said: model.Scheduling | None, settings: knobs.Settings = ASKED) -> set[object]:
    desired = model.Desired(None, scheduling=said)
    return {step.action for step in cordon.held_back(WHOLE, desired, settings, NOW).cloud}


def said(*, schedulable: bool, age: int = 0) -> model.Scheduling:
    return model.Scheduling(schedulable, 29, NOW - age)


def test_a_cordoned_node_grows_not_and_detaches_nothing_and_finishes_what_was_begun() -> None:
    assert left(said(schedulable=False)) == {*REST}
    assert left(said(schedulable=True)) == {*ADDS, DETACH, *REST}


@pytest.mark.parametrize(
    "unsure",
    [
        None,
        said(schedulable=False, age=cordon.FRESH_MS + 1),
        said(schedulable=True, age=cordon.FRESH_MS + 1),
        said(schedulable=True, age=-1),  # from a clock that has been set back since
    ],
)
def test_without_a_fresh_answer_a_plan_may_add_and_must_not_detach(
    unsure: model.Scheduling | None,
) -> None:
    assert left(unsure) == {*ADDS, *REST}


@pytest.mark.parametrize(
    "changes",
    [{"manage_unschedulable": True}, {"kubernetes_host": ""}, {"node_name": ""}],
    ids=["told not to care", "no API server", "no name"],
)
def test_nothing_is_held_back_where_nobody_is_asked(changes: dict[str, object]) -> None:
    settings = dataclasses.replace(ASKED, **changes)  # type: ignore[arg-type]  # fields by name
    assert left(said(schedulable=False), settings) == {*ADDS, DETACH, *REST}


def test_a_note_says_why_and_only_where_something_is_left_out() -> None:
    desired = model.Desired(None, scheduling=said(schedulable=False))
    held = cordon.held_back(WHOLE, desired, ASKED, NOW)
    assert [note.code for note in held.notes] == ["node_unschedulable"]
    idle = actions.Plan(cloud=held.cloud)
    assert cordon.held_back(idle, desired, ASKED, NOW) is idle


def test_an_answer_is_wanted_for_what_a_cordon_would_hold_back_or_did() -> None:
    for each in (*ADDS, DETACH):
        plan = actions.Plan(cloud=(actions.CloudStep(each, "warm", "because"),))
        assert cordon.wants_an_answer(plan)
    for other in REST:
        plan = actions.Plan(cloud=(actions.CloudStep(other, "warm", "because"),))
        assert not cordon.wants_an_answer(plan)
    for unsure in (None, said(schedulable=False)):
        desired = model.Desired(None, scheduling=unsure)
        detaching = actions.Plan(cloud=(actions.CloudStep(DETACH, "tidy", "because"),))
        held = cordon.held_back(detaching, desired, ASKED, NOW)
        assert (held.cloud, cordon.wants_an_answer(held)) == ((), True)
    assert not cordon.wants_an_answer(actions.Plan())
