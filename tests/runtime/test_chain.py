"""What the chained plugins do to a pod, seen in the pod and measured: bandwidth and tuning."""

from __future__ import annotations

import json
import socket
import time

from tests.lab.netns import Netns
from tests.runtime.containerd import Pod
from tests.runtime.scene import LONG_CHAIN, Scene, at_once

RATE = 8_000_000
"""Bits per second a limited pod may send."""
WINDOW_S = 2.0


def test_the_published_chain_is_what_the_settings_ask_for(scene: Scene) -> None:
    chains = []
    for node in scene.lab.nodes:
        [path] = node.conf.glob("*.conflist")
        chains.append([each["type"] for each in json.loads(path.read_text())["plugins"]])
    assert LONG_CHAIN.keys() <= scene.lab.nodes[1].environment.keys()
    assert chains == [["aws-cni", "portmap"], ["aws-cni", "portmap", "bandwidth", "tuning"]]


def test_a_pod_of_the_long_chain_has_no_ipv6(scene: Scene) -> None:
    """`tuning` writes three sysctls in the pod's namespace; the usual chain leaves them alone."""
    pods = at_once(*(lambda r=runtime: r.run("web") for runtime in scene.runtimes))
    seen = [
        [pod.netns.sysctl(f"ipv6/conf/{link}/disable_ipv6") for link in ("all", "default", "lo")]
        for pod in pods
    ]
    assert seen == [["0"] * 3, ["1"] * 3]
    for runtime, pod in zip(scene.runtimes, pods, strict=True):
        runtime.end(pod)


def test_an_annotated_pod_sends_no_faster_than_it_may(scene: Scene) -> None:
    """Two pods flood a caller on another node: the annotated one comes down to its rate.

    containerd asks for no burst, which the plugin takes for the largest: what it lets through at once
    is read from the kernel and received first.
    """
    runtime, caller = scene.runtimes[1], scene.lab.nodes[0].netns
    slow = runtime.run("slow", annotations={"kubernetes.io/egress-bandwidth": str(RATE)})
    free = runtime.run("free")
    for pod in (slow, free):
        runtime.serve(pod, 80)
    [bucket] = [
        each["options"]
        for each in json.loads(runtime.node.netns.command("tc", "-j", "qdisc"))
        if each["kind"] == "tbf"
    ]
    assert bucket["rate"] * 8 == RATE

    assert flood(caller, free, after=0) > 4 * RATE
    assert flood(caller, slow, after=bucket["burst"]) < 1.5 * RATE
    for pod in (slow, free):
        runtime.end(pod)


def flood(netns: Netns, pod: Pod, *, after: int) -> float:
    """Bits per second received from a pod in WINDOW_S seconds, once `after` bytes have come."""
    buffer = bytearray(1 << 20)

    def receive() -> float:
        with socket.create_connection((pod.address, 80), 10) as connection:
            connection.sendall(b"f")
            left = after
            while left > 0:
                left -= connection.recv_into(buffer)
            began, got = time.monotonic(), 0
            while (passed := time.monotonic() - began) < WINDOW_S:
                got += connection.recv_into(buffer)
            return got * 8 / passed

    return netns.run(receive)
