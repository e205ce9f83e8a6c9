"""Five hundred additions at once while somebody gives new links other MACs: no pod's router is at an old one.

A pod knows its router by a permanent neighbour entry with the host link's MAC, so a link that gets another
one is a dark pod. udevd does it by MACAddressPolicy=persistent, the default of systemd's 99-default.link, to links that
bear a random MAC; it leaves alone what was given when the link was made.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest

from tests.lab import netlink, spaces, systemd
from tests.lab.kubelet import Sandbox
from tests.lab.netns import Netns
from tests.lab.node import Node
from tests.lab.systemd import Systemd
from tests.lab.whole import Lab
from tests.reconciler import live

pytestmark = [
    pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing())),
    pytest.mark.slow,
    pytest.mark.timeout(240),
]

PODS, CALLERS = 500, 50
ROUTER = "169.254.1.1"
SOON_S = 10.0
"""While all of them come at once; how soon one thing is mended is the vandals' test to show."""

# linux/rtnetlink.h, linux/if_link.h, linux/netlink.h
_NEWLINK, _GROUP_LINK, _IFLA_ADDRESS, _IFLA_IFNAME, _REQUEST = 16, 1, 1, 3, 1


class Rewriter:
    """Gives each new link of pods another MAC, once, as soon as the kernel tells of it."""

    def __init__(self, netns: Netns) -> None:
        self._news, self._hand = (
            netns.run(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            for _ in range(2)
        )
        self._news.bind((0, _GROUP_LINK))
        self._hand.bind((0, 0))
        self.rewritten: set[int] = set()
        self._random = random.Random(1)
        self._ended = False
        self._thread = threading.Thread(target=self._listen, name="rewriter")
        self._thread.start()

    def _listen(self) -> None:
        self._news.settimeout(0.1)
        while not self._ended:
            try:
                datagram = self._news.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError:  # more news than it can hold: some links keep their MAC
                continue
            for kind, body in netlink.messages(datagram):
                if kind != _NEWLINK:
                    continue
                (index,) = struct.unpack_from("i", body, 4)
                name = dict(netlink.attributes(body[16:])).get(_IFLA_IFNAME, b"")
                if name.startswith(b"eni") and index not in self.rewritten:
                    self.rewritten.add(index)
                    self._rewrite(index)

    def _rewrite(self, index: int) -> None:
        mac = b"\x02\xee" + self._random.randbytes(4)
        body = struct.pack("BxHiII", 0, 0, index, 0, 0) + struct.pack("HH", 10, _IFLA_ADDRESS)
        body += mac + b"\0\0"
        self._hand.send(struct.pack("IHHII", 16 + len(body), _NEWLINK, _REQUEST, 1, 0) + body)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join()
        self._news.close()
        self._hand.close()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A node with addresses for all pods in stock."""
    with Lab(
        nodes=1,
        instance_type="m5.4xlarge",
        attach_delay=0,
        throttle=None,
        nodes_in="10.0.16.0/20",
    ) as lab:
        lab.start(ENABLE_PREFIX_DELEGATION="true", WARM_IP_TARGET=str(PODS), IP_COOLDOWN_PERIOD="0")
        live.settle(lab.nodes[0])
        yield lab


def mistaken(node: Node, boxes: list[Sandbox]) -> dict[str, tuple[str, str]]:
    """Pods whose router's entry is not their link's MAC: what each says."""
    links = json.loads(node.netns.command("ip", "-j", "link"))
    macs = {link["ifname"]: link["address"] for link in links}
    found = {}
    for box in boxes:
        assert box.result
        link = macs.get(box.result["interfaces"][0]["name"], "no link")
        [entry] = json.loads(box.netns.command("ip", "-j", "neighbour", "show", ROUTER))
        assert entry["state"] == ["PERMANENT"]
        if entry["lladdr"] != link:
            found[box.pod] = (entry["lladdr"], link)
    return found


def test_500_pods_at_once_know_their_routers_whoever_rewrites_macs(
    lab: Lab, tmp_path: Path
) -> None:
    """No addition fails, and each entry is its link's soon after the last one's answer.

    udevd runs as well, where it can: it finds every one of the links given a MAC, and lets it be.
    """
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    boxes = [kubelet.sandbox(f"web-{n}") for n in range(PODS)]
    with ExitStack() as stack:
        udevd = None
        if not systemd.missing():
            udevd = stack.enter_context(Systemd(node.netns, tmp_path))
        rewriter = stack.enter_context(Rewriter(node.netns))
        with ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(kubelet.add, boxes))
        live.until(lambda: mistaken(node, boxes) == {}, "every router's entry", SOON_S)
        assert len(rewriter.rewritten) > PODS * 9 / 10
        if udevd is not None:
            left = udevd.log("udevd").count("MAC address on the device already set by userspace")
            assert left >= PODS
    assert live.findings(node) == set()
