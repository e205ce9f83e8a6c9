"""Sandboxes of a real containerd: their addresses, their packets, their host ports."""

from __future__ import annotations

import functools
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab.netns import Netns
from tests.lab.whole import Lab
from tests.reconciler import live
from tests.runtime.containerd import Pod
from tests.runtime.scene import Scene, at_once


def asked(netns: Netns, address: str, port: int) -> str:
    """Whom a server takes this caller for; OSError if there is none."""

    def ask() -> str:
        with socket.create_connection((address, port), 10) as connection:
            connection.sendall(b"w")
            return connection.makefile("r").readline().split()[0]

    return netns.run(ask)


def held_by(lab: Lab, instance: str) -> set[str]:
    """Addresses that EC2 has assigned to this instance."""
    with lab.cloud.lock:
        enis = lab.cloud.interfaces_of(instance)
        return {each["PrivateIpAddress"] for eni in enis for each in eni["PrivateIpAddresses"]}


def test_sandboxes_get_the_vpcs_addresses_and_reach_each_other(scene: Scene) -> None:
    """Six on each node, all at once: EC2, the ledger and the runtime name the same addresses."""
    scene.lab.fabric.forget_drops()
    work = [
        functools.partial(runtime.run, f"{runtime.node.name}-{n}")
        for n in range(6)
        for runtime in scene.runtimes
    ]
    pods: list[Pod] = at_once(*work)
    mine, theirs = pods[::2], pods[1::2]
    assert len({pod.address for pod in pods}) == 12
    for runtime, few in zip(scene.runtimes, (mine, theirs), strict=True):
        assert {pod.address for pod in few} < held_by(scene.lab, runtime.node.instance)
        leases = "SELECT container_id, address FROM v_leases WHERE state = 'active'"
        told = {row["container_id"]: row["address"] for row in live.rows(runtime.node, leases)}
        assert told == {pod.id: pod.address for pod in few}

    pairs = [(a, b) for a in mine for b in theirs] + [(mine[0], mine[1])]
    with ThreadPoolExecutor(8) as pool:
        answered = list(pool.map(lambda pair: pair[0].ping(pair[1].address), pairs))
    assert all(answered)
    assert scene.lab.fabric.drops() == {}

    at_once(
        *(functools.partial(scene.runtimes[0].end, pod) for pod in mine),
        *(functools.partial(scene.runtimes[1].end, pod) for pod in theirs),
    )


@pytest.mark.parametrize("at", [0, 1], ids=["usual-chain", "long-chain"])
def test_a_host_port_leads_to_the_container_until_its_pod_goes(scene: Scene, at: int) -> None:
    """A server in a real container, called from elsewhere in the VPC, by pods, by its own node.

    The last needs portmap's `snat`, which must be there in every variant of the chain.
    """
    runtime, other = scene.runtimes[at], scene.runtimes[1 - at]
    pod, peer = runtime.run("server", ports={8080: 80}), other.run("caller")
    runtime.serve(pod, 80)
    own = runtime.node.netns

    assert asked(other.node.netns, runtime.node.address, 8080) == other.node.address
    assert asked(peer.netns, runtime.node.address, 8080) == peer.address
    assert asked(own, runtime.node.address, 8080) == runtime.node.address
    assert asked(own, "127.0.0.1", 8080)
    assert asked(peer.netns, pod.address, 80) == peer.address  # and without a host port

    runtime.end(pod)
    with pytest.raises(ConnectionRefusedError):
        asked(peer.netns, runtime.node.address, 8080)
    other.end(peer)
