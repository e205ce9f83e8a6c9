"""Which of the interfaces attached to nothing were left behind by nodes of this cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import actions, leaks, tags
from tests.planner.rows import NODE, eni

NOW = 1_800_000_000_000
BLUE = knobs.Settings(cluster_name="blue")


def left(
    labels: dict[str, str | None] | None = None, minutes_ago: float | None = 60
) -> model.ObservedEni:
    """One that another node of the cluster left behind; a tag given as None is missing."""
    usual: dict[str, str | None] = {tags.INSTANCE: "i-gone", tags.CLUSTER: "blue"}
    there = {key: value for key, value in (usual | (labels or {})).items() if value is not None}
    lone = eni(7, device=-1, attachment_id=None, state="created", managed=False)
    born = None if minutes_ago is None else NOW - int(minutes_ago * 60_000)
    return model.ObservedEni(lone, tags=there, description="aws-K8S-i-gone", created_at=born)


def asked(each: model.ObservedEni, settings: knobs.Settings = BLUE) -> list[actions.CloudAction]:
    seen = model.ObservedCloud(NOW, "ec2", (each,))
    return [step.action for step in leaks.leaked(seen, NODE, settings, NOW)]


def test_what_a_node_of_the_cluster_left_behind_is_deleted() -> None:
    assert asked(left()) == [actions.DeleteEni("eni-7")]


@pytest.mark.parametrize(
    "each",
    [
        left({tags.CLUSTER: "green"}),
        left({tags.CLUSTER: None}),
        left({tags.INSTANCE: None}),
        left({tags.INSTANCE: NODE.instance_id}),
        left({tags.NO_MANAGE: "true"}),
        left(minutes_ago=29),
        replace(left(), description="somebody's"),
        replace(left(), eni=replace(left().eni, kind="trunk")),
        replace(left(), eni=replace(left().eni, device=2, attachment_id="attach-1")),
    ],
    ids=[
        "another cluster's", "no cluster's", "no node's", "our own", "not to be managed", "young",
        "described otherwise", "a trunk", "attached",
    ],
)  # fmt: skip
def test_nothing_else_is(each: model.ObservedEni) -> None:
    assert asked(each) == []


def test_one_whose_age_nobody_can_tell_is_tagged_and_waits() -> None:
    """The VPC CNI deletes one with an unreadable tag at once (its W11)."""
    assert asked(left(minutes_ago=None)) == [actions.TagEni("eni-7", ((tags.CREATED, str(NOW)),))]


@pytest.mark.parametrize(
    "settings",
    [
        knobs.Settings(),
        replace(BLUE, no_leak_cleanup=True),
        replace(BLUE, no_provisioning=True),
    ],
)
def test_it_can_be_off(settings: knobs.Settings) -> None:
    """Without a cluster's name nobody can tell whose an interface is (its W11 again)."""
    assert asked(left(), settings) == []
