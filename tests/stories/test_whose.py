"""Whose an interface is: what others attached is left alone, or used and given up as ours, as the settings say.

Told on the stories' stage: the daemon's own ledger, planner and providers, EC2 by its wire format.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from reconciler import settings as knobs
from tests.stories.scene import Scene
from tests.stories.test_found import told

TAG = "node.k8s.amazonaws.com/instance_id"


def attach(node: Scene, device: int, card: int = 0, *, plain: bool = True, **more: Any) -> str:
    """Somebody attaches an interface, with one secondary address if it is a plain one: its id."""
    asked = {"SecondaryPrivateIpAddressCount": 1} if plain else {}
    return node.attached(device, card, **asked | more)


def named(node: Scene, eni: str) -> list[str]:
    """The daemon's changes that named this interface."""
    rows = node.ec2.journal.rows(who=node.ec2.node)
    return [
        row.action
        for row in rows
        if not row.action.startswith("Describe") and eni in str(row.params)
    ]


@pytest.mark.parametrize("manage", [False, True])
def test_an_untagged_interface_is_used_and_given_up_only_if_the_setting_says_so(
    manage: bool,
) -> None:
    """MANAGE_UNTAGGED_ENI: as the VPC CNI by default, pods, tags and in the end its removal; or nothing at all."""
    settings = knobs.Settings(warm_ip_target=1, ip_cooldown_ms=0, manage_untagged=manage)
    with told(instance_type="t3.small", settings=settings) as node:
        theirs = attach(node, device=1)
        node.machine.cloud_loop.look_again()
        node.machine.rung.add("cloud")
        node.pass_(10)
        node.runtime.want(5)
        node.settle()
        on_it = [lease for lease in node.machine.desired().leases if lease.eni_id == theirs]
        shown = node.cloud.get("interface", theirs)
        assert shown is not None
        tags = {tag["Key"] for tag in shown["TagSet"]}
        assert (bool(on_it), TAG in tags) == (manage, manage)
        node.runtime.drop(5)
        node.settle()
        assert (node.cloud.get("interface", theirs) is None) == manage
        if not manage:
            assert named(node, theirs) == []


@pytest.mark.parametrize("lost", ["DetachNetworkInterface", "DeleteNetworkInterface"])
def test_a_removal_that_was_begun_is_ended_where_somebody_else_provides_now(lost: str) -> None:
    """DISABLE_NETWORK_RESOURCE_PROVISIONING: the VPC CNI would leave it, detached, for ever (W9). Nothing else is done."""
    settings = knobs.Settings(warm_ip_target=1, ip_cooldown_ms=0)
    with told(instance_type="t3.small", settings=settings) as node:
        node.runtime.want(5)
        node.settle()
        second = next(eni.eni_id for eni in node.machine.desired().enis if not eni.primary)
        node.ec2.faults.add(op=lost, who=node.ec2.node, drop=True, error="InternalError")
        node.runtime.drop(5)
        while "DetachNetworkInterface" not in node.calls():
            node.pass_(30)
        node.pass_(10)
        node.kill()
        node.ec2.faults.clear()
        node.machine.settings = dataclasses.replace(settings, no_provisioning=True)
        begun = len(node.calls())
        theirs = attach(node, device=2)
        node.start()
        node.pass_(1_000)
        assert node.cloud.get("interface", second) is None
        made = {call for call in node.calls()[begun:] if not call.startswith("Describe")}
        assert made <= {"DetachNetworkInterface", "DeleteNetworkInterface"}
        assert node.cloud.get("interface", theirs) is not None


def test_pods_of_an_interface_that_changes_hands_keep_their_way() -> None:
    """no_manage appears while pods live on it: no new pod, no call, and its routes stay until they are gone."""
    settings = knobs.Settings(warm_ip_target=1, ip_cooldown_ms=0)
    with told(instance_type="t3.small", settings=settings) as node:
        node.runtime.want(5)
        node.settle()
        second = next(eni for eni in node.machine.desired().enis if not eni.primary)
        before = {str(t) for t in node.machine.kernel.things.values() if "table=2" in str(t)}
        assert before
        node.operator(
            "CreateTags",
            Resources=[second.eni_id],
            Tags=[{"Key": "node.k8s.amazonaws.com/no_manage", "Value": "true"}],
        )
        node.machine.cloud_loop.look_again()
        node.machine.rung.add("cloud")
        node.pass_(60)
        assert not next(e for e in node.machine.desired().enis if not e.primary).managed
        assert {
            str(t) for t in node.machine.kernel.things.values() if "table=2" in str(t)
        } == before
