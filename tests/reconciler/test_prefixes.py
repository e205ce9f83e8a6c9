"""Prefix delegation by a daemon on the lab: pods out of /28s, the switch both ways, lost replies, full subnets."""

from __future__ import annotations

import ipaddress

import pytest

from tests.lab import spaces
from tests.lab.node import Node
from tests.lab.whole import Lab
from tests.reconciler import live

pytestmark = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))
ON = {"ENABLE_PREFIX_DELEGATION": "true", "WARM_PREFIX_TARGET": "1"}


def delegated(lab: Lab) -> list[ipaddress.IPv4Network]:
    """The /28s that EC2 delegates to the first node."""
    with lab.cloud.lock:
        enis = lab.cloud.interfaces_of(lab.nodes[0].instance)
    blocks = [block["Ipv4Prefix"] for eni in enis for block in eni.get("Ipv4Prefixes", ())]
    return [ipaddress.IPv4Network(block) for block in blocks]


def singles(lab: Lab) -> int:
    """Secondary addresses of the first node's interfaces."""
    with lab.cloud.lock:
        enis = lab.cloud.interfaces_of(lab.nodes[0].instance)
    return sum(len(eni["PrivateIpAddresses"]) - 1 for eni in enis)


def prefixes(node: Node, state: str = "assigned") -> list[str]:
    """The ledger's."""
    found = live.rows(node, f"SELECT cidr FROM prefixes WHERE state = '{state}' ORDER BY id")
    return [row["cidr"] for row in found]


def test_pods_get_all_sixteen_addresses_of_a_prefix_and_packets_reach_them(lab: Lab) -> None:
    """Its first and last too; the seventeenth pod is out of the next one. Nothing is assigned singly."""
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    node.start_daemon(**ON)
    pods = [kubelet.start(f"web-{n}") for n in range(17)]
    blocks = delegated(lab)
    first = ipaddress.IPv4Network(prefixes(node)[0])
    assert {pod.address for pod in pods[:16]} == {str(each) for each in first}
    assert any(ipaddress.IPv4Address(pods[16].address) in block for block in blocks[1:])
    assert all(pod.ping(pods[16].address) for pod in (pods[0], pods[15]))
    assert lab.fabric.drops() == {}
    assert singles(lab) == 0
    live.settle(node)
    assert sorted(map(str, delegated(lab))) == sorted(prefixes(node))


def test_a_restart_knows_its_prefixes_and_takes_none_for_new(lab: Lab) -> None:
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    node.start_daemon(**ON)
    pod = kubelet.start("web")
    live.settle(node)
    before, held = live.changes(lab), prefixes(node)
    node.kill_daemon()
    node.start_daemon()
    live.settle(node)
    assert (live.changes(lab), prefixes(node)) == (before, held)
    kubelet.check(pod)


def test_the_switch_leaves_pods_alone_and_drains_the_other_kind(lab: Lab) -> None:
    """Off to on to off, pods alive: each keeps its address; what is free of the other kind goes."""
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    targets = {
        "WARM_IP_TARGET": "2",
        "IP_COOLDOWN_PERIOD": "0",
        "ENABLE_PREFIX_DELEGATION": "false",
    }
    node.start_daemon(**targets)
    old = kubelet.start("old")
    live.settle(node)
    assert delegated(lab) == []
    node.stop_daemon()
    node.start_daemon(ENABLE_PREFIX_DELEGATION="true")
    live.until(lambda: delegated(lab), "a prefix")
    new = kubelet.start("new")
    assert any(ipaddress.IPv4Address(new.address) in block for block in delegated(lab))
    assert old.ping(new.address)
    kubelet.stop(old)
    node.stop_daemon()
    node.start_daemon(ENABLE_PREFIX_DELEGATION="false")
    live.until(lambda: singles(lab) >= 2, "single addresses again")
    assert len(delegated(lab)) == 1  # a pod lives in it
    newer = kubelet.start("newer")
    assert not any(ipaddress.IPv4Address(newer.address) in block for block in delegated(lab))
    assert newer.ping(new.address)


def test_a_lost_reply_to_an_assign_is_found_by_looking_and_not_asked_twice(lab: Lab) -> None:
    node = lab.nodes[0]
    with lab.cloud.lock:
        lab.front.faults.add(op="AssignPrivateIpAddresses", drop=True, times=1)
    node.start_daemon(**ON)
    live.settle(node)
    assert len(delegated(lab)) == 1
    assert [str(block) for block in delegated(lab)] == prefixes(node)
    assert live.changes(lab)["AssignPrivateIpAddresses"] == 1


def test_a_subnet_without_blocks_still_serves_pods_singly(lab: Lab) -> None:
    """Every /28 of it has somebody in it; the pods that come get single addresses and a finding says why."""
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    subnet = lab.fabric.primary(node.instance)["SubnetId"]
    network = lab.fabric.gateway(subnet).network
    taken = {
        e["PrivateIpAddress"] for e in lab.ec2.describe_network_interfaces()["NetworkInterfaces"]
    }
    for block in network.subnets(new_prefix=28):
        if str(block[7]) not in taken:
            lab.ec2.create_network_interface(SubnetId=subnet, PrivateIpAddress=str(block[7]))
    node.start_daemon(**ON, VPCLEDGER_ADD_WAIT="20")
    pods = [kubelet.start(f"web-{n}") for n in range(3)]
    assert delegated(lab) == []
    assert singles(lab) >= 3
    assert pods[0].ping(pods[2].address)
    assert "subnet_full" in live.findings(node)
