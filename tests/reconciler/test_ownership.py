"""Which interfaces are ours, what becomes of them in EC2, and whom we never touch, by a daemon on the lab."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ledger import database, migrate, writes
from tests.lab import spaces
from tests.lab.node import Node
from tests.lab.whole import Lab
from tests.reconciler import live

pytestmark = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))
INSTANCE = "node.k8s.amazonaws.com/instance_id"
NO_MANAGE = "node.k8s.amazonaws.com/no_manage"


def attach(lab: Lab, **labels: str) -> str:
    """An interface with two secondary addresses that somebody attaches to the first node; its id."""
    primary = lab.fabric.primary(lab.nodes[0].instance)
    made = lab.ec2.create_network_interface(
        SubnetId=primary["SubnetId"],
        Groups=[group["GroupId"] for group in primary["Groups"]],
        SecondaryPrivateIpAddressCount=2,
        TagSpecifications=[
            {
                "ResourceType": "network-interface",
                "Tags": [{"Key": key, "Value": value} for key, value in labels.items()],
            }
        ]
        if labels
        else [],
    )["NetworkInterface"]["NetworkInterfaceId"]
    lab.ec2.attach_network_interface(
        NetworkInterfaceId=made, InstanceId=lab.nodes[0].instance, DeviceIndex=1
    )
    return str(made)


def interface(lab: Lab, eni: str) -> dict[str, Any]:
    found = lab.ec2.describe_network_interfaces(NetworkInterfaceIds=[eni])["NetworkInterfaces"]
    return dict(found[0])


def labels(lab: Lab, eni: str) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in interface(lab, eni)["TagSet"]}


def named(lab: Lab, eni: str) -> list[str]:
    """EC2 mutations by the daemon that named this interface."""
    rows = lab.front.journal.rows(who=lab.nodes[0].instance)
    return [
        row.action
        for row in rows
        if eni in json.dumps(row.params, default=str) and not row.action.startswith("Describe")
    ]


@pytest.mark.parametrize(
    "tagged", [{}, {NO_MANAGE: "true", INSTANCE: "mine"}], ids=["bare", "no_manage"]
)
def test_somebody_elses_interface_takes_a_place_and_gets_no_call(
    lab: Lab, tagged: dict[str, str]
) -> None:
    """The VPC CNI adopts, empties and deletes one without tags (its W44)."""
    mine = {
        key: lab.nodes[0].instance if value == "mine" else value for key, value in tagged.items()
    }
    theirs = attach(lab, **mine)
    live.until(lambda: interface(lab, theirs)["Attachment"]["Status"] == "attached", "attached")
    before = interface(lab, theirs)
    lab.start(WARM_IP_TARGET="1")
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    pods = kubelet.start_all(f"web-{n}" for n in range(12))
    live.settle(node)
    taken = {each["PrivateIpAddress"] for each in before["PrivateIpAddresses"]}
    assert not {pod.address for pod in pods} & taken
    kubelet.stop_all(pods)
    assert named(lab, theirs) == []
    assert interface(lab, theirs) == before
    [row] = live.rows(node, f"SELECT managed, device FROM v_enis WHERE eni_id = '{theirs}'")
    assert row == {"managed": 0, "device": 1}
    table = node.netns.command("ip", "rule")
    assert before["PrivateIpAddress"] not in table


def test_an_interface_changes_hands_by_its_tag(lab: Lab) -> None:
    """no_manage appears: no new pod, the old one stays; it disappears: pods again."""
    ours = attach(lab, **{INSTANCE: lab.nodes[0].instance})
    lab.start(WARM_IP_TARGET="1", MAX_ENI="2")
    node = lab.nodes[0]

    def managed() -> int:
        [row] = live.rows(node, f"SELECT managed FROM v_enis WHERE eni_id = '{ours}'")
        return int(row["managed"])

    live.until(lambda: live.rows(node, f"SELECT 1 FROM v_enis WHERE eni_id = '{ours}'"), "known")
    assert managed() == 1
    lab.ec2.create_tags(Resources=[ours], Tags=[{"Key": NO_MANAGE, "Value": "true"}])
    node.stop_daemon()
    node.start_daemon()
    live.until(lambda: managed() == 0, "it is somebody else's")
    lab.ec2.delete_tags(Resources=[ours], Tags=[{"Key": NO_MANAGE}])
    node.stop_daemon()
    node.start_daemon()
    live.until(lambda: managed() == 1, "it is ours again")


def test_tags_and_security_groups_are_set_right_and_stay_right(lab: Lab) -> None:
    """The cluster's and additional tags on all of ours, the primary too; groups follow the primary's."""
    ours = attach(lab, **{INSTANCE: lab.nodes[0].instance})
    lab.start(WARM_IP_TARGET="1", CLUSTER_NAME="blue", ADDITIONAL_ENI_TAGS='{"team": "net"}')
    node = lab.nodes[0]
    live.settle(node)
    primary = lab.fabric.primary(node.instance)["NetworkInterfaceId"]
    for eni in (ours, primary):
        there = labels(lab, eni)
        assert there[INSTANCE] == node.instance
        assert there["cluster.k8s.amazonaws.com/name"] == "blue"
        assert (there["eks:eni:owner"], there["team"]) == ("amazon-vpc-cni", "net")
    vpc = interface(lab, primary)["VpcId"]
    other = lab.ec2.create_security_group(GroupName="g2", Description="another", VpcId=vpc)[
        "GroupId"
    ]
    lab.ec2.modify_network_interface_attribute(NetworkInterfaceId=primary, Groups=[other])
    node.stop_daemon()
    before = live.changes(lab)
    node.start_daemon()
    live.until(
        lambda: [g["GroupId"] for g in interface(lab, ours)["Groups"]] == [other], "the new group"
    )
    live.settle(node)
    assert live.changes(lab) - before == {"ModifyNetworkInterfaceAttribute": 1}


def test_what_a_node_that_is_gone_left_behind_is_swept_and_a_look_alike_is_not(lab: Lab) -> None:
    """Ours by the cluster's tag and the description; the look-alikes differ in one thing each."""
    subnet = lab.fabric.primary(lab.nodes[0].instance)["SubnetId"]

    def lone(description: str = "aws-K8S-i-gone", **changes: str) -> str:
        tags = {
            INSTANCE: "i-0gone",
            "cluster.k8s.amazonaws.com/name": "blue",
            "node.k8s.amazonaws.com/createdAt": "2026-01-01T00:00:00Z",
            **changes,
        }
        made = lab.ec2.create_network_interface(
            SubnetId=subnet,
            Description=description,
            TagSpecifications=[
                {
                    "ResourceType": "network-interface",
                    "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
                }
            ],
        )
        return str(made["NetworkInterface"]["NetworkInterfaceId"])

    leaked = lone()
    alike = [
        lone("somebody's"),
        lone(**{"cluster.k8s.amazonaws.com/name": "green"}),
        lone(**{NO_MANAGE: "true"}),
        lone(**{"node.k8s.amazonaws.com/createdAt": "2999-01-01T00:00:00Z"}),
    ]
    ageless = lone(**{"node.k8s.amazonaws.com/createdAt": "yesterday"})
    with lab.cloud.lock:  # the first try is throttled for longer than a call is repeated
        lab.front.faults.add(op="DeleteNetworkInterface", error="RequestLimitExceeded", times=3)
    lab.start(WARM_IP_TARGET="1", CLUSTER_NAME="blue", VPCLEDGER_SWEEP_INTERVAL="1")

    def there() -> set[str]:
        found = lab.ec2.describe_network_interfaces()["NetworkInterfaces"]
        return {eni["NetworkInterfaceId"] for eni in found}

    live.until(lambda: leaked not in there(), "the leaked interface is gone")
    assert set(alike) <= there()
    assert all(named(lab, eni) == [] for eni in alike)
    live.until(lambda: named(lab, ageless) == ["CreateTags"], "it is given an age and waits")
    assert ageless in there()


def test_without_provisioning_ec2_is_only_looked_at(lab: Lab) -> None:
    """Pods are served from what somebody else assigned; the pool never grows and nothing is tagged."""
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    primary = lab.fabric.primary(node.instance)["NetworkInterfaceId"]
    lab.ec2.assign_private_ip_addresses(
        NetworkInterfaceId=primary, SecondaryPrivateIpAddressCount=2
    )
    lab.start(DISABLE_NETWORK_RESOURCE_PROVISIONING="true", VPCLEDGER_ADD_WAIT="0")
    pods = [kubelet.start("one"), kubelet.start("two")]
    assert pods[0].ping(pods[1].address)
    assert live.refused(kubelet, "three").code == 11
    assert live.changes(lab) == {}
    assert live.calls(lab)["DescribeNetworkInterfaces"] >= 1


def leave_a_lost_call(node: Node, eni: str) -> None:
    """A ledger of before the mode was switched on, with a call whose reply was lost."""
    migrate.bring_to_head(node.ledger)
    with database.Ledger.open(node.ledger) as ledger, ledger.write(durable=True) as tx:
        tags = {"eni_id": eni, "tags": [["team", "net"]]}
        lost = writes.plan_intent(tx, "TagEni", eni, tags, "tidy", "before", 1)
        writes.intent_sent(tx, lost.id, 1)
        writes.intent_unknown(tx, lost.id, "ReadTimeout", "no reply", 1, 1)


def test_imds_only_makes_no_call_to_ec2_at_all(lab: Lab) -> None:
    """Pods on the primary and on an interface that somebody gave addresses to; counted over the wire."""
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    attach(lab)
    primary = lab.fabric.primary(node.instance)["NetworkInterfaceId"]
    lab.ec2.assign_private_ip_addresses(
        NetworkInterfaceId=primary, SecondaryPrivateIpAddressCount=1
    )
    live.until(lambda: "eth1" in node.netns.command("ip", "link"), "the second interface")
    leave_a_lost_call(node, primary)
    lab.start(ENABLE_IMDS_ONLY_MODE="true", VPCLEDGER_ADD_WAIT="20")
    pods = [kubelet.start(f"web-{n}") for n in range(3)]
    assert pods[0].ping(pods[2].address)
    assert lab.fabric.drops() == {}
    for pod in pods:
        kubelet.check(pod)
    kubelet.stop_all(pods)
    assert live.calls(lab) == {}
    assert live.rows(node, "SELECT state FROM v_intents") == [{"state": "unknown"}]
