"""A node that the VPC CNI ran, taken over with its pods alive, and given back."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.lab import spaces, stream
from tests.lab.kubelet import Sandbox
from tests.lab.node import Node
from tests.lab.upstream import Upstream, allocation
from tests.lab.whole import Lab
from tests.reconciler import live

pytestmark = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))
WARM = {"WARM_IP_TARGET": "2", "MINIMUM_IP_TARGET": "8"}


@pytest.fixture
def old() -> Iterator[Upstream]:
    """Two nodes: the VPC CNI on the first with two interfaces, a neighbour with our daemon on the second."""
    with Lab(nodes=2, attach_delay=0.1, throttle=None) as lab:
        upstream = Upstream(lab, lab.nodes[0], lab.kubelets[0])
        upstream.lay_down()
        lab.nodes[1].start_daemon()
        yield upstream


def leases(node: Node) -> dict[str, str]:
    """Pod names and addresses of the open leases."""
    found = live.rows(node, "SELECT pod_name, address FROM v_pods")
    return {row["pod_name"]: row["address"] for row in found}


def unmarked(node: Node) -> list[str]:
    """Rules and routes of pods and interfaces that do not bear our protocol."""
    rules = node.netns.command("ip", "rule").splitlines()
    routes = node.netns.command("ip", "-4", "route", "show", "table", "all", "type", "unicast")
    named = [line for line in rules if line.split(":")[0] in {"512", "1536", "32765"}]
    named += [line for line in routes.splitlines() if " dev eni" in line or " table 2" in line]
    return [line for line in named if "proto 201" not in line and "protocol 201" not in line]


def test_live_pods_keep_their_addresses_and_the_node_becomes_ours(old: Upstream) -> None:
    """On both interfaces; what bears no mark of ours is replaced, and a new pod gets another address."""
    node, kubelet = old.node, old.kubelet
    pods = [old.start(f"web-{n}") for n in range(6)]
    peer = old.lab.kubelets[1].start("peer")
    assert all(pod.ping(peer.address) for pod in pods)
    node.start_daemon(**WARM)
    live.until(lambda: leases(node) == {p.pod: p.address for p in pods}, "every pod has its lease")
    live.until(lambda: not unmarked(node), "everything of the pods bears our mark")
    assert all(pod.ping(peer.address) for pod in pods)
    assert old.lab.fabric.drops() == {}
    fresh = kubelet.start("fresh")
    assert fresh.address not in {pod.address for pod in pods}
    for pod in pods:
        kubelet.check(pod)
    assert "AWS-SNAT-CHAIN-0" in node.netns.command("iptables-nft-save")
    running = [stream.Stream(pod.netns, peer.address) for pod in (pods[0], pods[5])]
    done = node.product("unchain")
    assert done.returncode == 0, done.stderr
    left = node.netns.command("iptables-nft-save") + node.netns.command("nft", "list", "tables")
    assert "AWS" not in left
    assert "table ip aws-cni" not in left
    assert [each.stop().lost for each in running] == [0, 0]
    kubelet.stop(pods[0])
    kubelet.stop(pods[5])
    assert pods[0].address not in leases(node).values()
    assert pods[5].address not in node.netns.command("ip", "rule")


def test_a_pod_that_was_gone_is_ended_and_its_rules_go(old: Upstream) -> None:
    """Its namespace died without a DEL; the runtime has forgotten it as well."""
    pods: list[Sandbox] = [old.start(f"web-{n}") for n in range(6)]
    gone = pods[5]
    gone.netns.close()
    for path in old.node.cache.glob(f"*{gone.container}*"):
        path.unlink()
    old.node.start_daemon(**WARM)
    live.until(lambda: len(leases(old.node)) == 5, "five leases")
    live.until(lambda: gone.address not in old.node.netns.command("ip", "rule"), "no rule")
    [row] = live.rows(old.node, "SELECT leases, stale, quarantined FROM takeovers")
    assert row == {"leases": 5, "stale": 1, "quarantined": 0}
    ended = live.rows(old.node, "SELECT pod_name, reason FROM v_leases WHERE state = 'ended'")
    assert ended == [{"pod_name": "web-5", "reason": "takeover_stale"}]


def test_without_its_records_the_kernel_tells(old: Upstream) -> None:
    """A checkpoint cut short: the runtime's cache and the routes still name every address in use."""
    pods = [old.start(f"web-{n}") for n in range(4)]
    old.checkpoint.write_text(old.checkpoint.read_text()[:100])
    nameless = pods[3]
    for path in old.node.cache.glob(f"*{nameless.container}*"):
        path.unlink()
    old.node.start_daemon(**WARM)
    live.until(lambda: len(leases(old.node)) == 4, "four leases")
    named = leases(old.node)
    assert {named[pod.pod] for pod in pods[:3]} == {pod.address for pod in pods[:3]}
    assert nameless.address in named.values()
    assert "takeover_unreadable" in live.findings(old.node)
    assert all(pod.ping(pods[0].address) for pod in pods[1:])
    fresh = [old.kubelet.start(f"new-{n}") for n in range(3)]
    assert not {pod.address for pod in fresh} & {pod.address for pod in pods}


def test_shadow_mode_says_what_would_be_done_and_touches_nothing(old: Upstream) -> None:
    """Only marks differ; neither EC2 nor the kernel nor a file has changed."""
    node = old.node
    pods = [old.start(f"web-{n}") for n in range(6)]
    before = (live.picture(node), old.checkpoint.read_text())
    calls = live.changes(old.lab)
    node.environment.update(WARM)
    done = node.product("shadow", "--once", "--json")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["leases"] == len(pods)
    assert {step["why"] for step in seen["steps"]} == {"mark"}
    assert (live.picture(node), old.checkpoint.read_text()) == before
    assert live.changes(old.lab) == calls
    assert not list(node.state.iterdir())
    old.start("another")
    node.netns.command("ip", "rule", "del", "prio", "1536", "from", f"{pods[5].address}/32")
    told = node.product("shadow", "--once").stdout
    assert "7 pods keep their addresses" in told
    assert f"put rule 1536 from {pods[5].address}/32 lookup 2" in told


def pings(pod: Sandbox, address: str) -> subprocess.Popen[str]:
    """A stream of ten pings a second until it is interrupted; its output tells how many were lost."""
    return pod.netns.run(
        subprocess.Popen,
        ["ping", "-i", "0.1", address],
        stdout=subprocess.PIPE,
        text=True,
    )


def lost(stream: subprocess.Popen[str]) -> tuple[int, int]:
    """End a stream: how many were sent, and how many of them got no answer."""
    stream.send_signal(signal.SIGINT)
    told = stream.communicate(timeout=10)[0]
    sent, received = map(int, re.findall(r"(\d+) (?:packets transmitted|received)", told))
    return sent, sent - received


def streams(old: Upstream, pods: list[Sandbox], peer: Sandbox) -> list[subprocess.Popen[str]]:
    """From pods on both interfaces, to another node, to each other, and back."""
    pairs = [(pods[0], peer), (pods[5], peer), (pods[1], pods[5]), (peer, pods[4])]
    return [pings(one, other.address) for one, other in pairs]


def none_lost(running: list[subprocess.Popen[str]]) -> None:
    """Each was sent something, and every packet was answered."""
    told = [lost(stream) for stream in running]
    assert all(sent > 10 for sent, _ in told)
    assert [missing for _, missing in told] == [0] * len(told)


def test_a_node_goes_over_and_back_and_over_again_under_traffic(old: Upstream) -> None:
    """What we do loses no packet: the takeover, the hand-back, and the takeover after it.

    In between the VPC CNI deletes each pod's rules and adds one anew (its W15), which packets may meet.
    """
    node, kubelet = old.node, old.kubelet
    pods = [old.start(f"web-{n}") for n in range(6)]
    peer = old.lab.kubelets[1].start("peer")
    running = streams(old, pods, peer)
    try:
        node.start_daemon(**WARM)
        live.until(lambda: len(leases(node)) == 6, "six leases")
        live.until(lambda: not unmarked(node), "everything bears our mark")
        ours = kubelet.start("ours")
        refused = node.product("handback")
        assert refused.returncode == 1
        assert "Stop that one first" in refused.stderr
        assert node.stop_daemon() == 0
        back = node.product("handback")
        assert back.returncode == 0, back.stderr
        assert "names 7 pods" in back.stdout
        assert "proto 201" not in node.netns.command("ip", "rule")
        assert "proto 201" not in node.netns.command("ip", "route", "show", "table", "all")
        assert node.product("handback").returncode == 1  # and has not emptied the checkpoint
    finally:
        none_lost(running)
    assert old.lab.fabric.drops() == {}
    assert set(old.take_back()) == {pod.address for pod in (*pods, ours)}
    old.lab.fabric.forget_drops()
    running = streams(old, pods, peer)
    try:
        assert "table ip vpcledger" in node.netns.command("nft", "list", "tables")
        assert node.product("handback", "--finish").returncode == 0
        assert "table ip vpcledger" not in node.netns.command("nft", "list", "tables")
        old.delete(ours)
        late = old.start("late")
        node.start_daemon()
        live.until(lambda: len(leases(node)) == 7, "seven leases")
        assert leases(node)["late"] == late.address
        live.until(lambda: not unmarked(node), "everything bears our mark again")
    finally:
        none_lost(running)
    assert old.lab.fabric.drops() == {}


def test_the_checkpoint_is_kept_for_the_way_back(old: Upstream) -> None:
    """What the VPC CNI would have written, and it takes the node back with every pod alive."""
    node = old.node
    pods = [old.start(f"web-{n}") for n in range(3)]
    node.start_daemon(**WARM)
    ours = old.kubelet.start("ours")
    old.kubelet.stop(pods.pop())
    assert node.stop_daemon() == 0
    text = old.checkpoint.read_text()
    written = json.loads(text)
    assert {row["ipv4"] for row in written["allocations"]} == {p.address for p in (*pods, ours)}
    theirs = [row for row in old.allocations if row["ipv4"] in {pod.address for pod in pods}]
    theirs.append(allocation(ours, ours.address))
    stamps = {row["ipv4"]: row["allocationTimestamp"] for row in written["allocations"]}
    for row in theirs[:-1]:  # ours are milliseconds
        row["allocationTimestamp"] -= row["allocationTimestamp"] % 1_000_000
        assert stamps[row["ipv4"]] == row["allocationTimestamp"]
    theirs[-1]["allocationTimestamp"] = stamps[ours.address]
    theirs.sort(key=lambda row: list(stamps).index(row["ipv4"]))  # a Go map's order is no order
    old.allocations = theirs
    old.write()
    assert old.checkpoint.read_text() == text, "byte for byte what the VPC CNI would have written"
    assert set(old.take_back()) == {pod.address for pod in (*pods, ours)}
    peer = old.lab.kubelets[1].start("peer")
    assert all(pod.ping(peer.address) for pod in (*pods, ours))
    for pod in (*pods, ours):
        old.delete(pod)
        assert pod.address not in node.netns.command("ip", "rule")
        assert pod.address not in node.netns.command("ip", "route")
