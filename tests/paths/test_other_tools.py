"""Another tool routes by source as well, as amazon-ec2-net-utils does: in tables of its own, and in ours.

Its rules and routes stay as they are, whether they are older than ours or not, and pods do not depend on them:
when it takes them away, or restarts without them, their packets go on as before.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.lab.node import Node
from tests.paths.leg import Leg
from tests.paths.town import INTERFACES, MARK, PORT, Town

OWN_TABLE, SHARED_TABLE = 10001, 2
"""amazon-ec2-net-utils counts from 10000 for each interface; 2 is where ours of the second interface are."""

pytestmark = pytest.mark.parametrize("mode", ["prng"], indirect=True)


def foreign_lines(address: str, subnet: str, router: str) -> list[str]:
    """What follows `add` or `delete`: a rule and routes with its mark (proto static), alike to ours in all else."""
    lines = [f"rule {{}} from {address} lookup {OWN_TABLE} priority 32765"]
    for table in (OWN_TABLE, SHARED_TABLE):
        lines.append(
            f"route {{}} {subnet} dev eth1 scope link src {address} table {table} proto static"
        )
        lines.append(f"route {{}} default via {router} dev eth1 table {table} proto static onlink")
        lines.append(
            f"route {{}} default via {router} dev eth1 table {table} proto static metric 512 onlink"
        )
    return lines


def shown(node: Node, *, ours: bool) -> list[str]:
    """Rules and routes in order, with our mark or without."""
    found = []
    for words in ("rule", "route show table all"):
        found += node.netns.command("ip", "-4", "-d", "-N", *words.split()).splitlines()
    return [line for line in found if ("proto 201" in line) == ours]


@pytest.fixture
def foreign(town: Town) -> Iterator[list[str]]:
    """The other tool's lines, there before ours, which have been taken away and are put back."""
    node = town.node(0)
    with town.lab.cloud.lock:
        eni = town.lab.cloud.interfaces_of(node.instance)[1]
    router = town.lab.fabric.gateway(eni["SubnetId"])
    lines = foreign_lines(eni["PrivateIpAddress"], str(router.network), str(router.ip))
    before = sorted(shown(node, ours=True))
    node.pause_daemon()
    node.netns.command("ip", "rule", "flush", "protocol", "201")
    node.netns.command("ip", "route", "flush", "table", str(SHARED_TABLE))
    node.netns.command("ip", "-batch", "-", stdin="\n".join(x.format("add") for x in lines))
    theirs = shown(node, ours=False)
    node.resume_daemon()
    town.until(lambda: sorted(shown(node, ours=True)) == before, "ours beside it")
    assert shown(node, ours=False) == theirs
    town.forget()
    yield lines
    undone = "\n".join(x.format("delete") for x in lines)
    # What a test has deleted itself is an error here, and passed over.
    words = ["ip", "-force", "-batch", "-"]
    node.netns.run(subprocess.run, words, input=undone, capture_output=True, text=True)


def walk(town: Town) -> None:
    """Pods of each interface, to the other node and off the VPC; and the interface's own address."""
    node, peer = town.node(0), town.beyond.peer
    for interface in INTERFACES:
        pod, far = town.pod(0, interface), town.pod(1, interface)
        link = town.link(pod)
        near = Leg(link, f"eth{interface}", pod.address, far.address)
        there = Leg(f"eth{interface}", town.link(far), pod.address, far.address)
        seen = town.walk(pod.netns, far.address, PORT, (0, near), (1, there))
        assert seen == (far.pod, pod.address)
        out = Leg(
            link, "eth0", pod.address, peer.address, seen_source=node.address, mark=MARK, kept=True
        )
        assert town.walk(pod.netns, peer.address, PORT, (0, out)) == ("peer", node.address)
    with town.lab.cloud.lock:
        own = town.lab.cloud.interfaces_of(node.instance)[1]["PrivateIpAddress"]
    itself = Leg("eth1", "", peer.address, own, kept=None)
    assert town.walk(peer.netns, own, PORT, (0, itself)) == (node.name, peer.address)


def test_another_tools_tables_are_left_alone_and_nothing_hangs_on_them(
    town: Town, foreign: list[str]
) -> None:
    node = town.node(0)
    before, mine = shown(node, ours=False), shown(node, ours=True)
    walk(town)
    assert (shown(node, ours=False), shown(node, ours=True)) == (before, mine)

    assert node.stop_daemon() == 0
    node.start_daemon()
    walk(town)
    assert (shown(node, ours=False), shown(node, ours=True)) == (before, mine)

    node.netns.command("ip", "-batch", "-", stdin="\n".join(x.format("delete") for x in foreign))
    assert shown(node, ours=True) == mine
    walk(town)
