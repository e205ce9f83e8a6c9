"""What the paths' tests rest on: with the daemon held still and one thing missing, the loss is seen and told.

Each thing missing is one that the daemon keeps; the VPC or the internet gateway names the packet that went
wrong. The daemon then puts it right.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab import talk
from tests.lab.kubeproxy import KubeProxy, Service
from tests.paths.town import PORT, Town, table_of

NODE_PORT = 30070

NODE, POD = "the node's address", "the pod's address"

MISSING = {
    "the rule for marked packets": ("ip rule delete fwmark 0x80/0x80", "out", 1, NODE),
    "the marks of what leaves": ("nft flush chain ip vpcledger off-vpc", "out", 1, NODE),
    "the translation": ("nft flush chain ip vpcledger translate", "out", 0, POD),
    "the marks of what comes in": ("nft flush chain ip vpcledger inbound", "in", 1, NODE),
    "the mark put back": ("nft flush chain ip vpcledger outbound", "in", 1, NODE),
}
"""What is taken away by which command; which path of a pod of the second interface shows it, out to the
internet or in to a NodePort; at which interface which source is dropped."""

pytestmark = pytest.mark.parametrize("mode", ["prng"], indirect=True)


@contextlib.contextmanager
def held_still(town: Town) -> Iterator[None]:
    """The first node's daemon does nothing meanwhile; afterwards all is as it was."""
    node = town.node(0)
    before = table_of(node), node.netns.command("ip", "rule")
    node.pause_daemon()
    try:
        yield
    finally:
        node.resume_daemon()
    town.until(
        lambda: (table_of(node), node.netns.command("ip", "rule")) == before, "all put right"
    )


@pytest.mark.parametrize("what", MISSING)
def test_one_thing_missing_is_told_by_who_drops_the_packet(town: Town, what: str) -> None:
    command, path, interface, whose = MISSING[what]
    node, pod, internet = town.node(0), town.pod(0, 1), town.beyond.internet
    service = Service(
        "near",
        "172.20.0.30",
        8000,
        [(pod.address, PORT)],
        [(pod.address, PORT)],
        NODE_PORT,
        "Local",
    )
    proxy = KubeProxy(node.netns, "nftables", [service])
    assert talk.ask(pod.netns, internet.address, PORT) == ("internet", town.public[0])
    assert talk.ask(internet.netns, town.public[0], NODE_PORT) == (pod.pod, internet.address)
    source = node.address if whose == NODE else pod.address
    with ThreadPoolExecutor(1) as pool:
        with held_still(town):
            node.netns.command(*command.split())
            if path == "in":
                asked = pool.submit(talk.ask, internet.netns, town.public[0], NODE_PORT, wait=20)
            else:
                asked = pool.submit(talk.ask, pod.netns, internet.address, PORT, wait=0.4)
            town.until(town.lab.fabric.drops, "a packet that is dropped")
            assert town.lab.fabric.drops().keys() == {(town.eni(0, interface), source)}
            assert town.beyond.refused() == {}
            if path == "out":
                assert isinstance(asked.exception(), TimeoutError)
        if path == "in":  # its next try is marked again
            assert asked.result() == (pod.pod, internet.address)
    town.forget()
    assert talk.ask(pod.netns, internet.address, PORT) == ("internet", town.public[0])
    assert talk.ask(internet.netns, town.public[0], NODE_PORT) == (pod.pod, internet.address)
    proxy.close()
