"""The daemon as a process on the lab: how the pool grows and shrinks, and what EC2's refusals lead to."""

from __future__ import annotations

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab import spaces
from tests.lab.kubelet import CniError
from tests.lab.whole import Lab
from tests.reconciler import live
from tests.reconciler.live import changes, findings, refused, rows, until

pytestmark = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))

# ------------------------------------------------------------------------------- growth


def test_the_pool_grows_while_pods_wait_and_says_so(lab: Lab) -> None:
    """Twenty pods need three interfaces: 3 calls for each new one, 1 for the first's addresses."""
    lab.start()
    node, kubelet = lab.nodes[0], lab.kubelets[0]

    kubelet.start_all(f"web-{n}" for n in range(20))

    assert changes(lab) == {
        "AssignPrivateIpAddresses": 1,
        "CreateNetworkInterface": 2,
        "AttachNetworkInterface": 2,
        "ModifyNetworkInterfaceAttribute": 2,
        "CreateTags": 1,  # of the primary, which was there before us
    }
    refusals = rows(node, "SELECT command, code FROM v_requests WHERE code <> 0")
    assert refusals == [], "every pod was held until its address came"
    with lab.cloud.lock:
        enis = lab.cloud.interfaces_of(node.instance)
    assert all(eni["Attachment"]["DeleteOnTermination"] for eni in enis)
    assert all(
        {"Key": "node.k8s.amazonaws.com/instance_id", "Value": node.instance} in eni["TagSet"]
        for eni in enis[1:]
    )
    intents = Counter(row["state"] for row in rows(node, "SELECT state FROM v_intents"))
    assert set(intents) == {"done"}


def test_one_pod_more_than_there_are_addresses_is_held_until_ec2_has_answered(lab: Lab) -> None:
    """It has a row that says why it waits; one call later it is served, never having been refused."""
    lab.start(WARM_IP_TARGET="1")
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    live.settle(node)
    lab.front.journal.clear()
    with lab.cloud.lock:
        lab.front.faults.add(op="AssignPrivateIpAddresses", delay=1.0)

    with ThreadPoolExecutor(2) as pool:
        started = [pool.submit(kubelet.add, kubelet.sandbox(name)) for name in ("one", "two")]
        waiting = "SELECT reason FROM v_pods WHERE state = 'waiting'"
        until(lambda: rows(node, waiting) == [{"reason": "growing"}], "the pod that waits")
        assert {len(each.result()["ips"]) for each in started} == {1}

    assert rows(node, "SELECT DISTINCT code, reason FROM v_requests") == [{"code": 0, "reason": ""}]
    live.settle(node)
    assert set(changes(lab)) == {"AssignPrivateIpAddresses"}
    assert changes(lab).total() <= 2, "one for the pod that waits, one for the warm target at most"


def test_a_full_node_says_so_everywhere(lab: Lab) -> None:
    """An m5.large carries 27 pods: the 28th gets one reason in the error, STATUS, rows and explain."""
    lab.start(VPCLEDGER_ADD_WAIT="1")
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    pods = kubelet.start_all(f"web-{n}" for n in range(27))

    told = refused(kubelet, "one-too-many")
    with pytest.raises(CniError) as status:
        kubelet.status()

    assert (told.code, status.value.code) == (11, 50)
    assert told.message.startswith("node_full: 27 addresses on 3 interfaces")
    assert status.value.message == told.message
    asked = "SELECT reason FROM v_requests WHERE pod_name = 'one-too-many' AND command = 'ADD'"
    assert rows(node, asked) == [{"reason": "node_full"}]
    explained = json.loads(node.product("explain", "pod", "one-too-many", "--json").stdout)
    assert "node_full" in {row["reason"] for row in explained["requests"]}
    kubelet.stop(pods[0])
    assert refused(kubelet, "next").message.startswith("cooling:")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("UnauthorizedOperation", "ec2_denied"),
        ("RequestLimitExceeded", "throttled"),
        ("InsufficientFreeAddressesInSubnet", "subnet_full"),
    ],
)
def test_a_refusal_of_ec2_reaches_the_pod(lab: Lab, code: str, reason: str) -> None:
    """The reason is in the CNI error, in STATUS and a finding."""
    lab.start(WARM_IP_TARGET="1", VPCLEDGER_ADD_WAIT="1")
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    with lab.cloud.lock:
        for action in ("Assign*", "Create*"):
            lab.front.faults.add(op=action, error=code, message="the lab says no")
    kubelet.start("first")
    told = Counter[str]()

    def is_told() -> bool:
        told[refused(kubelet, "second").message.partition(":")[0]] += 1
        return reason in told

    until(is_told, f"{reason} in the CNI error, only {told}")
    with pytest.raises(CniError, match=reason):
        kubelet.status()
    assert reason in findings(node)


def test_a_refusal_of_ec2_passes(lab: Lab) -> None:
    """Two kinds of call fail and only one is repeated: when a pod is served again no finding is left."""
    lab.start(WARM_IP_TARGET="1", VPCLEDGER_ADD_WAIT="1")
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    with lab.cloud.lock:
        for action in ("Assign*", "Create*"):
            lab.front.faults.add(op=action, error="InvalidParameterValue", times=2)
    kubelet.start("first")

    kubelet.start("second")

    until(lambda: findings(node) == set(), "the end of all findings")
    assert rows(node, "SELECT DISTINCT code FROM v_findings") == [{"code": "ec2_error"}]


@pytest.mark.parametrize("action", ["Create*", "Attach*", "Assign*", "Modify*"])
@pytest.mark.slow
def test_a_lost_reply_costs_time_and_nothing_else(lab: Lab, action: str) -> None:
    """EC2 did it and nobody heard: no interface or address is leaked or asked for twice."""
    with lab.cloud.lock:
        lab.front.faults.add(op=action, drop=True, times=1)
    lab.start()
    node, kubelet = lab.nodes[0], lab.kubelets[0]

    kubelet.start_all(f"web-{n}" for n in range(12))

    settled = "SELECT count(*) AS n FROM v_intents WHERE state IN ('sent', 'unknown')"
    until(lambda: rows(node, settled)[0]["n"] == 0, "every intent settled")
    live.settle(node)  # warm interfaces are attached one after the other
    known = rows(node, "SELECT eni_id, held FROM v_enis WHERE gone_at IS NULL")
    with lab.cloud.lock:
        enis = [eni for eni in lab.cloud.scan("interface") if eni["Status"] == "in-use"]
        loose = [eni for eni in lab.cloud.scan("interface") if eni["Status"] == "available"]
    assert {row["eni_id"]: row["held"] for row in known} == {
        eni["NetworkInterfaceId"]: len(eni["PrivateIpAddresses"]) - 1 for eni in enis
    }
    assert loose == []
    assert lab.fabric.drops() == {}


# ------------------------------------------------------------------------------- giving back


def test_what_is_too_much_is_given_back_and_never_a_pods(lab: Lab) -> None:
    """Targets shrink: EC2 has what pods hold and one more; no call named a pod's address."""
    lab.start(WARM_IP_TARGET="6", IP_COOLDOWN_PERIOD="1")
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    pods = kubelet.start_all(f"web-{n}" for n in range(3))
    live.settle(node)
    node.stop_daemon()

    node.start_daemon(WARM_IP_TARGET="1", VPCLEDGER_CLOUD_INTERVAL="1")
    until(lambda: len(secondaries(lab)) == 4, "three pods' addresses and a warm one")

    live.settle(node)
    held = {pod.address for pod in pods}
    assert held < secondaries(lab)
    given_back = [
        address
        for call in lab.front.journal.rows(action="UnassignPrivateIpAddresses")
        for address in call.params["PrivateIpAddresses"]
    ]
    assert len(given_back) == 5
    assert not held & set(given_back)
    for pod in pods:
        kubelet.check(pod)
        assert pod.ping(node.address)


def secondaries(lab: Lab) -> set[str]:
    """What EC2 has assigned to the first node beside its interfaces' own addresses."""
    with lab.cloud.lock:
        enis = lab.cloud.interfaces_of(lab.nodes[0].instance)
    return {
        each["PrivateIpAddress"]
        for eni in enis
        for each in eni["PrivateIpAddresses"]
        if not each["Primary"]
    }


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_an_idle_interface_is_given_back(lab: Lab) -> None:
    """Two of three interfaces have nobody: one stays warm, one is detached and then deleted."""
    lab.start(IP_COOLDOWN_PERIOD="1", VPCLEDGER_CLOUD_INTERVAL="1")
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    pods = kubelet.start_all(f"web-{n}" for n in range(12))
    live.settle(node)
    on_primary = next(pod for pod in pods if live.interface_of(lab, pod) == 0)
    kubelet.stop_all(pod for pod in pods if pod is not on_primary)

    deadline = time.monotonic() + 200  # an interface is kept for its first 60 s
    while not changes(lab)["DeleteNetworkInterface"]:
        assert time.monotonic() < deadline, rows(node, "SELECT * FROM v_intents")
        time.sleep(1)

    live.settle(node)
    assert changes(lab)["DetachNetworkInterface"] == changes(lab)["DeleteNetworkInterface"] == 1
    with lab.cloud.lock:
        assert len(lab.cloud.interfaces_of(node.instance)) == 2
        assert len(lab.cloud.scan("interface")) == 2
    kubelet.check(on_primary)
    assert on_primary.ping(node.address)
    assert "lookup 3" not in node.netns.command("ip", "rule")
