"""A subnet is closed to pods by its tags while pods live there: they stay, the rest goes, and it opens again.

Told on the stories' stage: the daemon's own ledger, planner and providers, EC2 by its wire format.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from reconciler import settings as knobs
from tests.stories import door
from tests.stories.scene import Scene
from tests.stories.test_found import told

HEEDS = knobs.Settings(warm_ip_target=1, ip_cooldown_ms=0, subnet_tags=True)
CLOSED = [{"Key": "kubernetes.io/role/cni", "Value": "0"}]


def elsewhere(node: Scene, card: int = 0) -> tuple[str, str]:
    """An interface of ours in another subnet, with three addresses: its id and the subnet's."""
    primary = node.cloud.interfaces_of(node.ec2.node)[0]
    subnet = node.operator(
        "CreateSubnet",
        VpcId=primary["VpcId"],
        CidrBlock="10.0.240.0/24",
        AvailabilityZone=primary["AvailabilityZone"],
    )["Subnet"]["SubnetId"]
    mine = {"Key": "node.k8s.amazonaws.com/instance_id", "Value": node.ec2.node}
    made = node.attached(
        1,
        card,
        SubnetId=subnet,
        SecondaryPrivateIpAddressCount=3,
        TagSpecifications=[{"ResourceType": "network-interface", "Tags": [mine]}],
    )
    look(node)
    return made, str(subnet)


def with_pods_there(node: Scene, pods: int) -> tuple[str, str]:
    """So many pods, some of them on such an interface, and the node at rest."""
    restart(
        node, dataclasses.replace(HEEDS, freeze="release")
    )  # or what is free there would go first
    eni, subnet = elsewhere(node)
    node.runtime.want(pods)
    node.pass_(10)
    restart(node, HEEDS)
    node.settle()
    assert on(node, eni), "no pod is there, so nothing is shown"
    return eni, subnet


def restart(node: Scene, settings: knobs.Settings) -> None:
    """The daemon is started anew with other settings."""
    node.kill()
    node.machine.settings = settings
    node.start()
    node.pass_(10)


def look(node: Scene) -> None:
    """Have EC2 looked at, as it is once an hour."""
    node.machine.cloud_loop.look_again()
    node.machine.rung.add("cloud")
    node.pass_(10)


def there(node: Scene, eni: str) -> set[str]:
    """The addresses that EC2 has on it."""
    shown: dict[str, Any] | None = node.cloud.get("interface", eni)
    return door.secondaries(shown) if shown else set()


def on(node: Scene, eni: str) -> list[str]:
    """Addresses of the pods on it."""
    return sorted(le.address or "" for le in node.machine.desired().leases if le.eni_id == eni)


@pytest.mark.parametrize("after", ["opened", "emptied", "setting off"])
def test_a_closed_subnet_keeps_its_pods_and_gives_back_the_rest(after: str) -> None:
    """W21: the VPC CNI drops such addresses from its memory, and they stay assigned for ever."""
    with told(instance_type="t3.small", settings=HEEDS) as node:
        eni, subnet = with_pods_there(node, 3)
        before = on(node, eni)
        node.operator("CreateTags", Resources=[subnet], Tags=CLOSED)
        look(node)
        node.pass_(120)
        assert sorted(there(node, eni)) == on(node, eni) == before
        node.runtime.want(3)
        node.settle()
        assert on(node, eni) == before, "no new pod"
        if after == "opened":
            node.operator("DeleteTags", Resources=[subnet], Tags=CLOSED)
            look(node)
        elif after == "setting off":
            restart(node, dataclasses.replace(HEEDS, subnet_tags=False))
        else:
            node.runtime.drop(6)
            node.settle()
            assert node.cloud.get("interface", eni) is None
            return
        node.runtime.want(2)
        node.settle()
        assert len(on(node, eni)) > len(before)


def test_tags_that_cannot_be_asked_for_change_nothing() -> None:
    """W4: in the VPC CNI a refused DescribeSubnets leaves an interface half set up. Here what was said last holds."""
    with told(instance_type="t3.small", settings=HEEDS) as node:
        eni, subnet = with_pods_there(node, 3)
        node.operator("CreateTags", Resources=[subnet], Tags=CLOSED)
        look(node)
        node.ec2.faults.add(op="DescribeSubnets", who=node.ec2.node, error="UnauthorizedOperation")
        before = on(node, eni)
        node.kill()
        node.start()
        look(node)
        node.runtime.want(2)
        node.settle()
        assert on(node, eni) == before
        assert len(node.machine.desired().leases) == 5


def test_a_closed_home_refuses_pods_and_says_why() -> None:
    """Those that live keep their addresses; nothing is made."""
    with told(instance_type="t3.small", settings=HEEDS) as node:
        node.runtime.want(2)
        node.settle()
        [home] = {eni.subnet_id for eni in node.machine.desired().enis}
        node.operator("CreateTags", Resources=[home], Tags=CLOSED)
        look(node)
        node.pass_(120)
        made = len(node.calls("AssignPrivateIpAddresses", "CreateNetworkInterface"))
        node.runtime.want(1)
        node.pass_(30)
        node.runtime.reconcile()
        assert {reason for _, reason in node.runtime.refusals[-1:]} == {"subnet_excluded"}
        assert len(node.machine.desired().leases) == 3
        assert len(node.calls("AssignPrivateIpAddresses", "CreateNetworkInterface")) == made
        node.check()
        node.operator("DeleteTags", Resources=[home], Tags=CLOSED)
        look(node)
        node.settle()
