"""Our interfaces' tags and security groups in EC2, asked for until EC2 shows them."""

from __future__ import annotations

from dataclasses import replace

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import actions, pool, tags, upkeep
from tests.planner.rows import NODE, START, UNKNOWN, addresses, desired, eni, intent, small

CLUSTER = knobs.Settings(
    warm_ip_target=1, cluster_name="blue", additional_eni_tags=(("team", "net"),)
)
LABELS = upkeep.labels(NODE, CLUSTER)


def shown(*enis: model.Eni, **more: object) -> model.ObservedCloud:
    """EC2's picture of these, as they should be unless said otherwise."""
    seen = [model.ObservedEni(each, tags=LABELS, security_groups=("sg-1",)) for each in enis]
    changed = [replace(each, **more) for each in seen]  # type: ignore[arg-type]  # fields by name
    return model.ObservedCloud(START - 1_000_000, "ec2", tuple(changed))


def asked(
    rows: model.Desired, last: model.ObservedCloud | None, settings: knobs.Settings = CLUSTER
) -> list[actions.CloudAction]:
    steps, _ = pool.cloud_steps(rows, UNKNOWN, settings, small(), START, last=last)
    return [step.action for step in steps]


def rows(*enis: model.Eni, intents: tuple[model.Intent, ...] = ()) -> model.Desired:
    """A pool that wants nothing else."""
    return desired(enis=[eni(0), *enis], rows=addresses(0, 1), intents=list(intents))


def test_labels_are_upstreams() -> None:
    assert LABELS == {
        "node.k8s.amazonaws.com/instance_id": "i-1",
        "cluster.k8s.amazonaws.com/name": "blue",
        "eks:eni:owner": "amazon-vpc-cni",
        "team": "net",
    }
    assert upkeep.labels(NODE, knobs.Settings()) == {tags.INSTANCE: "i-1"}


def test_what_is_as_it_should_be_gets_no_call() -> None:
    """However old the picture: nothing is given back on it."""
    assert asked(rows(eni(1)), shown(eni(0), eni(1))) == []
    assert asked(rows(eni(1)), None) == []


def test_missing_and_different_tags_are_written_and_no_others() -> None:
    """Of the primary too; tags that somebody else put there stay."""
    there = {**LABELS, "team": "ops", "owner": "alice"}
    del there[tags.OWNER]
    wanted = (("eks:eni:owner", "amazon-vpc-cni"), ("team", "net"))
    assert asked(rows(eni(1)), shown(eni(0), eni(1), tags=there)) == [
        actions.TagEni("eni-0", wanted),
        actions.TagEni("eni-1", wanted),
    ]


def test_security_groups_follow_the_nodes_and_the_primary_keeps_its_own() -> None:
    last = shown(eni(0), eni(1), security_groups=("sg-9",))
    assert asked(rows(eni(1)), last) == [actions.SetSecurityGroups("eni-1", ("sg-1",))]
    nobody_knows = replace(rows(eni(1)), node=replace(NODE, security_groups=()))
    assert asked(nobody_knows, last) == []


def test_a_refusal_is_not_repeated_before_its_time() -> None:
    action = actions.SetSecurityGroups("eni-1", ("sg-1",))
    refused = intent(action, "failed", "InvalidGroup.NotFound: it does not exist")
    last = shown(eni(0), eni(1), security_groups=("sg-9",))
    assert asked(rows(eni(1), intents=(refused,)), last) == []


def test_what_is_not_ours_is_left_alone() -> None:
    """Somebody else's, a trunk, and one on its way out."""
    others = (eni(1, managed=False), eni(2, kind="trunk"), eni(3, state="detaching", device=-1))
    last = shown(*others, tags={}, security_groups=("sg-9",))
    assert not {action.eni_id for action in asked(rows(*others), last) if action.eni_id} - {"eni-3"}  # type: ignore[union-attr]  # none makes one
    assert all(isinstance(action, actions.DeleteEni) for action in asked(rows(*others), last))


def test_what_ec2_confirmed_counts_before_its_picture_shows_it() -> None:
    last = shown(eni(0), eni(1), security_groups=("sg-9",), tags={})
    done = upkeep.shown(last, actions.SetSecurityGroups("eni-1", ("sg-1",)))
    done = upkeep.shown(done, actions.TagEni("eni-1", tuple(LABELS.items())))
    assert asked(rows(eni(1)), done) == [actions.TagEni("eni-0", tuple(sorted(LABELS.items())))]
