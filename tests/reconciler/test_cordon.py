"""A cordoned node's warm pool rests, an API server that is down harms nobody: daemons on the lab."""

from __future__ import annotations

import time

import pytest

from tests.bench import rivals
from tests.lab import spaces
from tests.lab.node import Node
from tests.lab.whole import Lab
from tests.reconciler import live

pytestmark = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))


def held(lab: Lab) -> int:
    """Secondary addresses that EC2 has assigned to the first node."""
    with lab.cloud.lock:
        enis = lab.cloud.interfaces_of(lab.nodes[0].instance)
        return sum(len(eni["PrivateIpAddresses"]) - 1 for eni in enis)


def interfaces(lab: Lab) -> int:
    with lab.cloud.lock:
        return len(lab.cloud.interfaces_of(lab.nodes[0].instance))


def age(node: Node) -> int:
    """Milliseconds since the API's last answer."""
    [row] = live.rows(node, "SELECT seen_at FROM scheduling")
    return time.time_ns() // 1_000_000 - int(row["seen_at"])


def said(node: Node, code: str) -> bool:
    """Has the daemon written a plan's note with this code into its log?"""
    return f"cloud: {code}:" in node.log.read_text()


def test_a_cordoned_node_adds_nothing_says_so_and_goes_on_when_it_is_back(lab: Lab) -> None:
    api = lab.kubernetes()
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    lab.start(WARM_IP_TARGET="2")
    live.settle(node)
    before = held(lab)
    api.cordon(node.name)
    asked = api.asked  # an answer of the last second would still be believed
    live.until(lambda: age(node) > 1_500, "the last answer is old")
    pods = [kubelet.start("one"), kubelet.start("two")]
    told = live.refused(kubelet, "three")
    assert (told.code, "node_unschedulable" in f"{told.message}{told.details}") == (11, True)
    assert held(lab) == before == 2
    [row] = live.rows(node, "SELECT schedulable, max_pods FROM scheduling")
    assert row == {"schedulable": 0, "max_pods": 29}
    api.uncordon(node.name)
    pods.append(kubelet.start("three"))
    live.until(lambda: held(lab) == 5, "three pods and two spare")
    assert api.asked > asked
    kubelet.stop_all(pods)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_without_an_answer_or_cordoned_addresses_go_and_interfaces_stay(lab: Lab) -> None:
    """Unknown, never a default: pods and growth as ever, but nothing is detached. Cordoned: the same."""
    api = lab.kubernetes()
    api.down = True
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    lab.start(WARM_IP_TARGET="1", IP_COOLDOWN_PERIOD="0", VPCLEDGER_CLOUD_INTERVAL="1")
    pods = kubelet.start_all(f"web-{n}" for n in range(12))
    assert interfaces(lab) == 2
    assert "api_server_down" in live.findings(node)
    kubelet.stop_all(pods)
    # What was free for a minute is given back.
    live.until(lambda: held(lab) == 1, "the addresses are given back", patience=120)
    live.until(lambda: said(node, "api_server_down"), "the interface would go")
    api.cordon(node.name)
    api.down = False
    live.until(lambda: said(node, "node_unschedulable"), "a reason of its own")
    live.until(lambda: "api_server_down" not in live.findings(node), "the finding is closed")
    assert interfaces(lab) == 2
    assert live.changes(lab)["DetachNetworkInterface"] == 0
    api.uncordon(node.name)
    live.until(lambda: interfaces(lab) == 1, "the interface goes once the node is back")


def test_told_not_to_care_a_cordoned_node_grows(lab: Lab) -> None:
    api = lab.kubernetes()
    node = lab.nodes[0]
    api.cordon(node.name)
    lab.start(WARM_IP_TARGET="2", AWS_MANAGE_ENIS_NON_SCHEDULABLE="true")
    live.settle(node)
    assert held(lab) == 2


def test_no_more_addresses_than_pods_fit(lab: Lab) -> None:
    """kubelet's capacity.pods, which the VPC CNI heeds too."""
    api = lab.kubernetes()
    node = lab.nodes[0]
    api.join(node.name, max_pods=4)
    lab.start(WARM_IP_TARGET="6")
    live.settle(node)
    assert held(lab) == 4


def test_an_idle_node_asks_the_api_server_nothing(lab: Lab) -> None:
    """A tick a second, and no question: only a plan that a cordon would change is worth one."""
    api = lab.kubernetes()
    node = lab.nodes[0]
    lab.start(WARM_IP_TARGET="1", VPCLEDGER_CLOUD_INTERVAL="1")
    live.settle(node)
    live.until(lambda: age(node) > 1_500, "the last answer is old")
    asked = api.asked
    assert asked >= 1
    live.until(lambda: age(node) > 5_000, "several ticks")
    assert api.asked == asked
    assert node.daemon is not None
    assert rivals.resident_mib(node.daemon.pid) < 120, "the child with boto3 and this client in it"
