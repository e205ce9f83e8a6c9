"""The whole lab with the product's daemons on its nodes: what packets and processes show."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lab import kubelet, spaces
from tests.lab.node import DaemonFailed, Node
from tests.lab.whole import Lab

pytestmark = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(attach_delay=0.1) as whole:
        whole.start()
        yield whole


def status_of(node: Node) -> dict[str, str]:
    """proc(5) status of the daemon."""
    assert node.daemon
    lines = Path(f"/proc/{node.daemon.pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def until(seen: Callable[[], object]) -> None:
    """Another process's doing, of which nothing tells us: looked for until a deadline."""
    deadline = time.monotonic() + 10
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def callers_waiting(node: Node) -> int:
    """Connections to the daemon's socket that it has not accepted yet (ss(8), Recv-Q)."""
    listing = node.netns.command("ss", "--unix", "--listening", "--no-header")
    return sum(int(line.split()[2]) for line in listing.splitlines() if str(node.run) in line)


def on_second_interface(lab: Lab) -> kubelet.Sandbox:
    """A pod of node1 whose address EC2 holds on eth1: the first ones fill eth0."""
    for n in range(12):
        pod = lab.kubelets[0].start(f"web-{n}")
        with lab.cloud.lock:
            second = lab.cloud.interfaces_of(lab.nodes[0].instance)[1:]
        held = {each["PrivateIpAddress"] for eni in second for each in eni["PrivateIpAddresses"]}
        if pod.address in held:
            return pod
    raise AssertionError("twelve pods fit on one m5.large interface")


def test_the_daemon_is_an_ordinary_user_with_one_capability(lab: Lab) -> None:
    """CAP_NET_ADMIN (bit 12) is effective, permitted, and all that may ever be gained."""
    for node in lab.nodes:
        status = status_of(node)
        for which in ("CapEff", "CapPrm"):
            assert int(status[which], 16) == 1 << 12
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
        if spaces.tier() != "single":
            assert set(status["Uid"].split()) == {"65532"}
            assert set(status["Gid"].split()) == {"65532"}


def test_a_pod_without_its_source_rule_is_dropped_named_and_repaired(lab: Lab) -> None:
    """The fabric counts the wrong interface, CHECK says what is missing, the daemon puts it back."""
    pod = on_second_interface(lab)
    peer = lab.kubelets[1].start("peer")
    one = lab.nodes[0]
    assert pod.ping(peer.address)
    assert lab.fabric.drops() == {}
    rule = f"from {pod.address}"
    one.pause_daemon()  # or it would have repaired it before the ping
    one.netns.command("ip", "rule", "del", *rule.split())
    wrong = lab.fabric.primary(one.instance)["NetworkInterfaceId"]
    assert not pod.ping(peer.address, wait=0.5)
    assert lab.fabric.drops() == {(wrong, pod.address): 1}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(lab.kubelets[0].check, pod)
        until(lambda: callers_waiting(one))  # asked before it looks at the kernel's news
        one.resume_daemon()
        with pytest.raises(kubelet.CniError, match=rule) as told:
            answer.result()
    assert told.value.plugin == "aws-cni"
    until(lambda: rule in one.netns.command("ip", "rule"))  # the repair is the daemon's own affair
    assert pod.ping(peer.address)
    lab.kubelets[0].check(pod)


def test_a_killed_daemon_comes_back_to_the_pods_it_had(lab: Lab) -> None:
    """kill -9 and a new start: the pod never noticed, CHECK is content, its deletion works."""
    pod = lab.kubelets[0].start("web")
    peer = lab.kubelets[1].start("peer")
    assert lab.nodes[0].kill_daemon() == -9
    assert pod.ping(peer.address)
    lab.nodes[0].start_daemon()
    lab.kubelets[0].check(pod)
    lab.kubelets[0].stop(pod)
    assert pod.address not in lab.nodes[0].netns.command("ip", "route")


def test_a_rebooted_node_serves_new_pods_and_has_forgotten_the_old(lab: Lab) -> None:
    """Links, rules and namespaces are gone with the machine; the ledger ends their leases."""
    old = lab.kubelets[0].start("old")
    lab.nodes[0].reboot()
    lab.nodes[0].start_daemon()
    new = lab.kubelets[0].start("new")
    peer = lab.kubelets[1].start("peer")
    assert new.ping(peer.address)
    known = json.loads(lab.nodes[0].product("show", "pods", "--json").stdout)
    assert [row["pod_name"] for row in known] == ["new"]
    assert lab.fabric.drops() == {}
    old.netns.close()


def test_a_product_that_refuses_its_settings_is_heard() -> None:
    """Nothing hangs, and what it said comes with the exception."""
    with (
        Lab(nodes=1) as lab,
        pytest.raises(
            DaemonFailed, match=r"node1: vpcledger install: .*AWS_VPC_ENI_MTU='nonsense'"
        ),
    ):
        lab.start(AWS_VPC_ENI_MTU="nonsense")


def test_a_daemon_that_ends_at_once_is_reported_with_the_end_of_its_log() -> None:
    """Its folder of state is a file: it cannot open a ledger there."""
    with Lab(nodes=1) as lab:
        [node] = lab.nodes
        assert node.product("install").returncode == 0
        node.ledger.mkdir(parents=True)
        with pytest.raises(
            DaemonFailed, match=r"(?s)node1: the daemon ended with \d+; .*ledger\.db"
        ):
            lab.start()
