"""Each kind of EC2 call goes wrong once, in a life of growing and shrinking: all agree in the end (I5).

Told on the stories' stage: the daemon's own ledger, planner and providers, EC2 by its wire format, time that
is turned by hand.
"""

from __future__ import annotations

from typing import Any

import pytest

from reconciler import settings as knobs
from tests.stories.scene import Scene
from tests.stories.test_found import told

CALLS = (
    "CreateNetworkInterface",
    "AttachNetworkInterface",
    "ModifyNetworkInterfaceAttribute",
    "CreateTags",
    "AssignPrivateIpAddresses",
    "UnassignPrivateIpAddresses",
    "DetachNetworkInterface",
    "DeleteNetworkInterface",
)
FEW = knobs.Settings(warm_ip_target=1, ip_cooldown_ms=0, cluster_name="blue")
FAULTS: dict[str, dict[str, Any]] = {
    "lost": {"drop": True, "times": 1},
    "denied": {"error": "UnauthorizedOperation", "times": 2},
}


def interfaces(node: Scene) -> list[dict[str, Any]]:
    """The node's, as they are, whatever the lag."""
    with node.cloud.lock:
        return node.cloud.interfaces_of(node.ec2.node)


def live(node: Scene) -> None:
    """Pods come until a second interface is needed, and go."""
    node.runtime.want(4)
    node.settle()
    node.runtime.drop(4)
    node.settle()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("call", CALLS)
def test_it_costs_time_and_nothing_else(call: str, fault: str) -> None:
    """No interface and no address is leaked or given twice, and none outlives the instance."""
    with told(instance_type="t3.small", settings=FEW) as node:
        node.ec2.faults.add(op=call, who=node.ec2.node, **FAULTS[fault])
        # The node's first interface was tagged before the fault came: somebody takes that back.
        primary = interfaces(node)[0]["NetworkInterfaceId"]
        node.operator("DeleteTags", Resources=[primary])
        live(node)
        rows = node.ec2.journal.rows(who=node.ec2.node, action=call)
        met = [row for row in rows if row.lost or row.cause == "fault"]
        assert met, "the fault met nobody, so nothing is shown"
        assert len(interfaces(node)) == 1
        loose = [eni for eni in node.cloud.scan("interface") if eni["Status"] == "available"]
        assert loose == []


def test_groups_that_could_not_be_set_are_set_later() -> None:
    """The VPC CNI remembers the new groups although setting them failed, and never tries again (its W28)."""
    with told(instance_type="t3.small", settings=FEW) as node:
        node.runtime.want(4)
        node.settle()
        primary, second = interfaces(node)
        group = node.operator(
            "CreateSecurityGroup", GroupName="g2", Description="another", VpcId=primary["VpcId"]
        )["GroupId"]
        call = "ModifyNetworkInterfaceAttribute"
        node.ec2.faults.add(op=call, who=node.ec2.node, error="InternalError", times=4)
        node.operator(call, NetworkInterfaceId=primary["NetworkInterfaceId"], Groups=[group])
        node.settle()
        assert [g["GroupId"] for g in interfaces(node)[1]["Groups"]] == [group]
        assert interfaces(node)[1]["NetworkInterfaceId"] == second["NetworkInterfaceId"]
        outcomes = [row.outcome for row in node.ec2.journal.rows(who=node.ec2.node, action=call)]
        assert outcomes[-5:] == ["InternalError"] * 4 + ["ok"]


def test_a_device_index_that_somebody_was_quicker_to_take_costs_one_more_try() -> None:
    """Another controller attaches its trunk; the VPC CNI deletes its own interface and begins anew (W39)."""
    with told(instance_type="t3.small", settings=FEW) as node:
        node.cloud.api_lag = node.cloud.imds_lag = 60
        node.attached(1)
        node.runtime.want(5)
        node.pass_(40)
        node.runtime.reconcile()
        attaches = node.ec2.journal.rows(who=node.ec2.node, action="AttachNetworkInterface")
        assert [row.outcome == "ok" for row in attaches] == [False, True]
        assert node.calls("CreateNetworkInterface") == ["CreateNetworkInterface"]
        assert node.calls("DeleteNetworkInterface") == []
        node.cloud.api_lag = node.cloud.imds_lag = 0


def test_a_cooldown_outlives_a_daemon_that_is_killed() -> None:
    """The VPC CNI keeps it in memory: after a restart the next pod gets the address at once (W6)."""
    cooling = knobs.Settings(
        warm_ip_target=1, minimum_ip_target=3, max_eni=1, ip_cooldown_ms=90_000
    )
    with told(instance_type="t3.small", settings=cooling) as node:
        node.runtime.want(3)
        node.settle()
        [name, *_] = node.runtime.wanted
        box = node.runtime.wanted[name]
        assert box is not None
        node.runtime.drop(3)
        node.kill()
        node.start()
        node.runtime.want(1)
        node.pass_(60)
        node.runtime.reconcile()
        assert [each and each.state for each in node.runtime.wanted.values()] == [None], (
            "every address of the only interface cools"
        )
        assert node.calls("UnassignPrivateIpAddresses") == []
        node.pass_(35)
        node.runtime.reconcile()
        assert [each and each.state for each in node.runtime.wanted.values()] == ["up"]


def test_pods_that_come_and_go_without_end_put_off_no_look_at_ec2() -> None:
    """In the VPC CNI each step of the pool puts off the comparison by a minute, and churn starves it (W25)."""
    settings = knobs.Settings(warm_ip_target=1, minimum_ip_target=6, ip_cooldown_ms=0)
    with told(instance_type="t3.small", settings=settings) as node:
        node.runtime.want(1)
        node.settle()
        held = {lease.address for lease in node.machine.desired().leases}
        primary = interfaces(node)[0]
        taken = next(
            each["PrivateIpAddress"]
            for each in primary["PrivateIpAddresses"]
            if not each["Primary"] and each["PrivateIpAddress"] not in held
        )
        node.operator(
            "UnassignPrivateIpAddresses",
            NetworkInterfaceId=primary["NetworkInterfaceId"],
            PrivateIpAddresses=[taken],
        )
        for _ in range(130):  # an hour, after which EC2 is looked at, and five minutes
            node.runtime.replace(1)
            node.pass_(30)
        believed = {a.address for a in node.machine.desired().addresses if not a.absent_since}
        assert believed
        assert taken not in believed
