"""Subnets without room, over hours: how often EC2 is asked, across crashes, and what happens when room comes back."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator
from typing import Any

from reconciler import settings as knobs
from tests.lab import world
from tests.stories import scene

PAUSE_S = 120
"""The longest pause after a refusal."""
BLOCKS_S = 1_800
"""That of a call for /28s, in whose place single addresses are."""
NETWORK = ipaddress.IPv4Network(world.NODE_CIDR)
GROWTH = ("AssignPrivateIpAddresses", "CreateNetworkInterface")


@contextlib.contextmanager
def told(**targets: Any) -> Iterator[scene.Scene]:
    """A node whose daemon has not started yet."""
    with scene.folder() as folder:
        made = scene.Scene(1, folder, settings=knobs.Settings(**targets))
        with made.opened():
            yield made


def fill(node: scene.Scene, leave: int) -> list[str]:
    """Take the subnet but for `leave` addresses, one interface after the other."""
    subnet = node.world.subnets[0]
    taken: list[str] = []
    while True:
        [found] = node.operator("DescribeSubnets", SubnetIds=[subnet])["Subnets"]
        room = found["AvailableIpAddressCount"] - leave
        if room <= 0:
            return taken
        made = node.operator(
            "CreateNetworkInterface",
            SubnetId=subnet,
            SecondaryPrivateIpAddressCount=min(room - 1, 40),
        )
        taken.append(made["NetworkInterface"]["NetworkInterfaceId"])


def break_up(node: scene.Scene) -> list[str]:
    """Put somebody into every /28 of the subnet."""
    shown = node.operator("DescribeNetworkInterfaces")["NetworkInterfaces"]
    used = {eni["PrivateIpAddress"] for eni in shown}
    taken = []
    for block in NETWORK.subnets(new_prefix=28):
        if str(block[7]) not in used:
            made = node.operator(
                "CreateNetworkInterface",
                SubnetId=node.world.subnets[0],
                PrivateIpAddress=str(block[7]),
            )
            taken.append(made["NetworkInterface"]["NetworkInterfaceId"])
    return taken


def free(node: scene.Scene, *enis: str) -> None:
    for eni in enis:
        node.operator("DeleteNetworkInterface", NetworkInterfaceId=eni)


def served(node: scene.Scene) -> list[str]:
    """The addresses of the pods that run."""
    return [each.address for each in node.runtime.sandboxes if each.state == "up"]


def kubelet_tries(node: scene.Scene, seconds: int) -> None:
    """As kubelet does it: again and again."""
    for _ in range(seconds // 10):
        node.runtime.reconcile()
        node.pass_(10)


def test_a_full_subnet_is_asked_for_room_once_a_pause_whoever_waits_and_whatever_crashes() -> None:
    """Five, two, then one address are tried: three calls in two minutes. Once there is room pods are served."""
    with told(warm_ip_target=2) as node:
        taken = fill(node, leave=3)
        node.start()
        node.runtime.want(6)
        kubelet_tries(node, 300)
        assert len(served(node)) == 3
        before = len(node.calls(*GROWTH))
        for _ in range(6):
            kubelet_tries(node, 600)
            node.kill()
            node.start()
        assert len(node.calls(*GROWTH)) - before <= 3 * 3600 // PAUSE_S
        assert {reason for _, reason in node.runtime.refusals} <= {
            "subnet_full",
            "stopping",
            "growing",
        }
        free(node, taken[0])
        kubelet_tries(node, PAUSE_S + 20)
        assert len(served(node)) == 6


def test_a_restart_does_not_shorten_the_pause() -> None:
    """It is a date in the ledger: within it a daemon that starts anew asks for nothing."""
    with told(warm_ip_target=1) as node:
        fill(node, leave=1)
        node.start()
        node.runtime.want(2)
        node.pass_(5)
        [pause] = node.machine.rows(
            "SELECT MAX(retry_at - ended_at) AS ms FROM intents WHERE state = 'failed'"
        )
        asked = len(node.calls(*GROWTH))
        for _ in range(4):
            node.kill()
            node.start()
            kubelet_tries(node, 5)
        assert pause["ms"] >= 30_000
        assert len(node.calls(*GROWTH)) == asked


def test_many_tries_at_once_are_one_refusal() -> None:
    """For pods that wait half as much is tried, and half of that: one pause for all, and the shortest."""
    with told(warm_ip_target=1) as node:
        fill(node, leave=1)
        node.start()
        node.pass_(5)
        node.pass_(700)  # forgotten
        node.runtime.want(9)
        node.pass_(5)
        found = node.machine.rows(
            "SELECT retry_at - created_at AS ms FROM intents WHERE state = 'failed'"
            f" AND retry_at > {node.time.now_ms()} ORDER BY id"
        )
        assert len(found) >= 3
        assert max(row["ms"] for row in found) <= 2 * 30_000


def test_without_blocks_pods_are_served_singly_until_blocks_come_back() -> None:
    """Then a prefix is there within a pause, new pods are out of it, and free single addresses go."""
    with told(prefix_delegation=True, warm_prefix_target=1, ip_cooldown_ms=0) as node:
        taken = break_up(node)
        node.start()
        node.runtime.want(4)
        kubelet_tries(node, 60)
        assert len(served(node)) == 4
        assert node.machine.desired().prefixes == ()
        assert {"code": "subnet_full"} in node.machine.rows(
            "SELECT code FROM v_findings WHERE closed IS NULL"
        )
        before = len(node.calls(*GROWTH))
        kubelet_tries(node, 3600)
        assert len(node.calls(*GROWTH)) - before <= 6, "the pauses double"
        before = len(node.calls(*GROWTH))
        node.kill()
        node.start()
        node.pass_(3 * 3600)
        assert len(node.calls(*GROWTH)) - before <= 3 * 3600 // BLOCKS_S, "and never end"

        free(node, *taken[:3])
        node.pass_(BLOCKS_S + 70)
        [prefix] = node.machine.desired().prefixes
        node.runtime.want(2)
        node.pass_(10)
        inside = ipaddress.IPv4Network(prefix.cidr)
        assert sum(ipaddress.IPv4Address(a) in inside for a in served(node)) == 2
        node.settle()
        single = [a for a in node.machine.desired().addresses if a.prefix is None]
        assert len(single) == 4  # all of them pods': no free one is left
        assert all(a.leased for a in single)
        node.runtime.drop(6)
        node.settle()
        assert not [a for a in node.machine.desired().addresses if a.prefix is None]
        assert not node.machine.rows("SELECT code FROM v_findings WHERE closed IS NULL")
