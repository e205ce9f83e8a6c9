"""Somebody breaks the wiring of a running node: packets show it, CHECK names it, the daemon mends it."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.lab import spaces
from tests.lab.kubelet import CniError, Kubelet, Sandbox
from tests.lab.whole import Lab
from tests.reconciler import live

pytestmark = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))


@dataclass(frozen=True, slots=True)
class Wired:
    """A pod of node1 on eth1 and one of node2."""

    lab: Lab
    pod: Sandbox
    peer: Sandbox

    @property
    def kubelet(self) -> Kubelet:
        return self.lab.kubelets[0]

    def ip(self, words: str) -> str:
        """Run `ip` on node1; {pod}, {eni}, {gateway} and {link} are filled in."""
        node = self.lab.nodes[0]
        with self.lab.cloud.lock:
            second = self.lab.cloud.interfaces_of(node.instance)[1]
        [link] = live.rows(
            node, f"SELECT host_ifname FROM v_pods WHERE address = '{self.pod.address}'"
        )
        said = words.format(
            pod=self.pod.address,
            eni=second["PrivateIpAddress"],
            gateway=self.lab.fabric.gateway(second["SubnetId"]).ip,
            link=link["host_ifname"],
        )
        return node.netns.command("ip", *said.split())


@pytest.fixture(scope="module")
def wired(served: Lab) -> Wired:
    pods = served.kubelets[0].start_all(f"web-{n}" for n in range(12))
    on_second = [pod for pod in pods if live.interface_of(served, pod) == 1]
    live.settle(served.nodes[0])
    return Wired(served, on_second[0], served.kubelets[1].start("peer"))


@pytest.fixture(autouse=True)
def settled(wired: Wired) -> Iterator[None]:
    """Every test starts with pings that are answered."""
    assert wired.pod.ping(wired.peer.address, wait=5)
    yield
    wired.lab.nodes[0].resume_daemon()


# What is done with `ip`, and whether the pod notices at once.
VANDALISM = {
    "rule del pref 1536 from {pod}": True,
    "rule del pref 512 to {pod}": False,  # the host route is in the main table as well
    "route del {pod}": True,
    "route del default table 2": True,
    "rule del pref 32765 from {eni}": False,
    "link set eth1 down": True,
    "link set eth1 mtu 1500": False,
    "link set {link} mtu 1400": False,
    "link set {link} down": True,
}


@pytest.mark.parametrize("act", VANDALISM)
def test_what_is_broken_is_mended(wired: Wired, act: str) -> None:
    """The node's picture is as before, and pings are answered again."""
    node = wired.lab.nodes[0]
    before = live.picture(node)
    node.pause_daemon()
    wired.ip(act)
    assert live.picture(node) != before
    assert wired.pod.ping(wired.peer.address, wait=0.3) is not VANDALISM[act]

    node.resume_daemon()

    live.until(lambda: live.picture(node) == before, f"the repair of {act}")
    assert wired.pod.ping(wired.peer.address, wait=5)
    wired.kubelet.check(wired.pod)


def test_a_wrong_way_out_is_dropped_and_counted_by_the_vpc(wired: Wired) -> None:
    """Without its rule the pod's packets leave by eth0: each is counted there, none after the repair."""
    node = wired.lab.nodes[0]
    wrong = wired.lab.fabric.primary(node.instance)["NetworkInterfaceId"], wired.pod.address
    counted = wired.lab.fabric.drops().get(wrong, 0)
    node.pause_daemon()
    wired.ip("rule del pref 1536 from {pod}")
    for _ in range(3):
        assert not wired.pod.ping(wired.peer.address, wait=0.2)
    assert wired.lab.fabric.drops()[wrong] == counted + 3

    node.resume_daemon()
    live.until(lambda: "1536" in wired.ip("rule show pref 1536 from {pod}"), "the rule")

    assert wired.pod.ping(wired.peer.address, wait=5)
    assert wired.lab.fabric.drops()[wrong] == counted + 3


def test_check_tells_a_pods_broken_end_that_nobody_else_mends(wired: Wired) -> None:
    """Only the runtime's next call can reach into the pod's namespace; CHECK says that it should."""
    pod = wired.pod
    pod.netns.command("ip", "route", "del", "default")
    with pytest.raises(CniError) as told:
        wired.kubelet.check(pod)
    assert told.value.code == 11
    assert told.value.message.startswith("drift: ")
    assert "default" in told.value.message or "0.0.0.0/0" in told.value.message
    pod.netns.command("ip", "route", "add", "default", "via", "169.254.1.1", "dev", "eth0")
    wired.kubelet.check(pod)


def test_foreign_objects_stay_byte_for_byte(wired: Wired) -> None:
    """Links, rules and routes of others, as like ours as can be, through a repair, an ADD and a DEL."""
    node = wired.lab.nodes[0]
    before = live.picture(node)
    lines = ["link add eniforeign type veth peer name other", "link set eniforeign up"]
    lines += [f"rule add from 10.9.0.{n} lookup {300 + n} pref 1536" for n in range(20)]
    lines += [f"rule add to 10.9.0.{n} lookup main pref 512" for n in range(20)]
    lines += [f"route add 10.8.{n}.0/24 dev eniforeign table {400 + n}" for n in range(20)]
    lines += ["route add 10.7.0.0/24 dev eniforeign table 2", "route add 10.6.0.1 dev eniforeign"]
    node.netns.command("ip", "-batch", "-", stdin="\n".join(lines))
    shown = live.picture(node)

    wired.ip("rule del pref 1536 from {pod}")
    live.until(lambda: live.picture(node) == shown, "the repair and nothing else")
    wired.kubelet.stop(wired.kubelet.start("passes"))

    live.until(lambda: live.picture(node) == shown, "the picture without the pod")
    undo = [line.replace(" add ", " del ", 1) for line in lines[2:]]
    undo += ["link del eniforeign"]
    node.netns.command("ip", "-batch", "-", stdin="\n".join(undo))
    assert live.picture(node) == before


@pytest.mark.slow
def test_a_rule_is_back_within_a_second_also_while_pods_come_and_go(lab: Lab) -> None:
    """As a rule: the median of nine, for a pod's own rule, on a node whose door is never at rest."""
    lab.start(MINIMUM_IP_TARGET="9", IP_COOLDOWN_PERIOD="0")
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    still = kubelet.start("still")
    over, come = threading.Event(), itertools.count()
    rule = ("to", still.address, "priority", "512")

    def crowd(number: int) -> None:
        while not over.is_set():
            kubelet.stop(kubelet.start(f"crowd-{number}"))
            next(come)

    def mended() -> float:
        node.netns.command("ip", "rule", "del", *rule)
        began = time.monotonic()
        live.until(lambda: node.netns.command("ip", "rule", "show", *rule), "the rule")
        return time.monotonic() - began

    with ThreadPoolExecutor(3) as pool:
        callers = [pool.submit(crowd, number) for number in range(3)]
        try:
            took = [mended() for _ in range(9)]
        finally:
            over.set()
    assert [caller.exception() for caller in callers] == [None] * 3
    assert next(come) > 9
    assert statistics.median(took) < 1, took
