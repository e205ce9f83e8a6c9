"""The daemon as a process on the lab: growth, refusals, restarts, everything dead, and what it says."""

from __future__ import annotations

import json
import time
from collections import Counter

import pytest

from tests.lab import spaces
from tests.lab.kubelet import CniError
from tests.lab.whole import Lab
from tests.reconciler.live import calls, changes, findings, refused, rows, until

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
    known = rows(node, "SELECT eni_id, held FROM v_enis WHERE gone_at IS NULL")
    with lab.cloud.lock:
        enis = [eni for eni in lab.cloud.scan("interface") if eni["Status"] == "in-use"]
        loose = [eni for eni in lab.cloud.scan("interface") if eni["Status"] == "available"]
    assert {row["eni_id"]: row["held"] for row in known} == {
        eni["NetworkInterfaceId"]: len(eni["PrivateIpAddresses"]) - 1 for eni in enis
    }
    assert loose == []
    assert lab.fabric.drops() == {}


# ------------------------------------------------------------------------------- restarts


def test_a_restart_writes_nothing_and_asks_ec2_once(lab: Lab) -> None:
    lab.start()
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    pods = kubelet.start_all(f"web-{n}" for n in range(12))
    until(lambda: changes(lab)["CreateNetworkInterface"] == 2, "the warm interface")
    until(
        lambda: len(rows(node, "SELECT 1 FROM v_enis WHERE state = 'usable'")) == 3, "three usable"
    )
    picture = [node.netns.command("ip", what) for what in ("rule", "route")]
    mended = "SELECT count(*) AS n FROM v_journal WHERE kind = 'kernel.mended'"
    before = rows(node, mended)
    assert node.stop_daemon() == 0
    lab.front.journal.clear()

    node.start_daemon()
    for pod in pods:
        kubelet.check(pod)
    until(lab.front.journal.rows, "the look at EC2 after a start")

    assert [node.netns.command("ip", what) for what in ("rule", "route")] == picture
    assert rows(node, mended) == before
    assert changes(lab) == {}


def test_sigterm_ends_in_time_and_tells_who_waits(lab: Lab) -> None:
    with lab.cloud.lock:
        lab.front.faults.add(op="CreateNetworkInterface", delay=30.0)
    lab.start(VPCLEDGER_ADD_WAIT="60")
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    kubelet.start_all(f"web-{n}" for n in range(9))
    waits = kubelet.sandbox("waits")
    told: list[CniError] = []

    def ask(_: object) -> None:
        try:
            kubelet.add(waits)
        except CniError as error:
            told.append(error)

    def stop(_: object) -> None:
        until(lambda: rows(node, "SELECT 1 FROM v_pods WHERE state = 'waiting'"), "a waiting pod")
        began = time.monotonic()
        assert node.stop_daemon() in {0, -9}
        assert time.monotonic() - began < 10

    lab.on_each(lambda work: work(None), [ask, stop])

    assert [error.code for error in told] == [11]


def test_deletions_while_it_is_away_are_taken_in(lab: Lab) -> None:
    lab.start()
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    pods = kubelet.start_all(f"web-{n}" for n in range(5))
    node.kill_daemon()

    kubelet.stop_all(pods[:3])
    node.start_daemon()

    ended = rows(node, "SELECT DISTINCT reason FROM v_leases WHERE state = 'ended'")
    assert ended == [{"reason": "deleted_late"}]
    for pod in pods[3:]:
        kubelet.check(pod)
    rules = node.netns.command("ip", "rule")
    assert not [pod for pod in pods[:3] if pod.address in rules]


def test_with_everything_dead_pods_are_served_from_stock(lab: Lab) -> None:
    """Decision 8: EC2 and metadata are gone; the ledger has addresses; the door is open in a second."""
    lab.start()
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    old = kubelet.start("old")
    node.kill_daemon()
    with lab.cloud.lock:
        lab.front.faults.add(error="InternalError")

    dead = {
        "AWS_EC2_ENDPOINT": "http://198.51.100.9",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://198.51.100.9",
    }
    began = time.monotonic()
    node.start_daemon(**dead)
    new = kubelet.start("new")
    taken = time.monotonic() - began

    assert new.ping(node.address)
    kubelet.stop(old)
    until(lambda: "imds_down" in findings(node), "the finding imds_down")
    assert taken < 5, "far beyond a second even on a busy machine"
    node.kill_daemon()
    with lab.cloud.lock:
        lab.front.faults.clear()
    for name in dead:
        del node.environment[name]
    node.start_daemon()
    until(lambda: not findings(node), "no finding left")


def test_nothing_is_published_before_a_pod_can_be_served(lab: Lab) -> None:
    """A fresh node without EC2 has no conflist; with it it has one, and keeps it."""
    with lab.cloud.lock:
        lab.front.faults.add(op="Assign*", error="InvalidParameterValue", times=1)
    lab.start()
    node = lab.nodes[0]

    published = rows(node, "SELECT min(at) AS at FROM v_journal WHERE kind = 'address.assigned'")
    refusal = rows(node, "SELECT min(at) AS at FROM v_api_calls WHERE code <> ''")
    assert refusal[0]["at"] < published[0]["at"]
    conflist = json.loads((node.conf / "10-aws.conflist").read_text())
    assert (conflist["cniVersion"], conflist["plugins"][0]["type"]) == ("1.0.0", "aws-cni")
    node.stop_daemon()
    assert (node.conf / "10-aws.conflist").exists()


@pytest.mark.slow
def test_what_is_too_much_is_given_back_and_never_a_pods(lab: Lab) -> None:
    """Targets shrink, cooldown passes: surplus addresses go, those of pods stay."""
    lab.start(WARM_IP_TARGET="9", IP_COOLDOWN_PERIOD="1")
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    pods = kubelet.start_all(f"web-{n}" for n in range(3))
    until(lambda: len(rows(node, "SELECT 1 FROM v_addresses WHERE state = 'free'")) >= 9, "nine")
    node.stop_daemon()

    node.start_daemon(WARM_IP_TARGET="1", VPCLEDGER_CLOUD_INTERVAL="1")
    deadline = "SELECT count(*) AS n FROM v_addresses WHERE released_at IS NULL"
    global_patience = time.monotonic() + 100  # an address rests for 60 s before it is given back
    while rows(node, deadline)[0]["n"] > 4:
        assert time.monotonic() < global_patience, rows(node, deadline)
        time.sleep(1)

    for pod in pods:
        kubelet.check(pod)
        assert pod.ping(node.address)
    held = {pod.address for pod in pods}
    for call in lab.front.journal.rows(action="UnassignPrivateIpAddresses"):
        assert not held & set(call.params.get("PrivateIpAddresses", ()))
