"""systemd-networkd starts on a node with pods and takes away what it does not know: rules, routes, addresses.

The real one, with udevd, on the first node's interfaces (ManageForeignRoutingPolicyRules=yes and
ManageForeignRoutes=yes are its defaults). What it does is mended within a second of its being done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab import systemd, talk
from tests.lab.node import Node
from tests.lab.stream import Stream
from tests.lab.systemd import Systemd
from tests.paths.town import INTERFACES, PORT, Town

SECONDS = 1.0

pytestmark = [
    pytest.mark.skipif(bool(systemd.missing()), reason=str(systemd.missing())),
    pytest.mark.parametrize("mode", ["prng"], indirect=True),
]


def ours(node: Node) -> list[str]:
    """All rules and routes that bear our mark, and the addresses of our interfaces, as ip prints them."""
    found = []
    for words in ("rule", "route show table all proto 201", "-brief address show up"):
        found += node.netns.command("ip", "-4", "-N", *words.split()).splitlines()
    return sorted(line.rstrip() for line in found)


def configured(town: Town, number: int) -> str:
    """What an image that manages all its interfaces says of one."""
    with town.lab.cloud.lock:
        eni = town.lab.cloud.interfaces_of(town.node(0).instance)[number]
    router = town.lab.fabric.gateway(eni["SubnetId"])
    gateway = f"Gateway={router.ip}\n" if number == 0 else ""
    address = f"{eni['PrivateIpAddress']}/{router.network.prefixlen}"
    return (
        "[Network]\nIPv6AcceptRA=no\nLinkLocalAddressing=no\n"
        f"Address={address}\n{gateway}[Link]\nMTUBytes=9001\n"
    )


@pytest.fixture
def flusher(town: Town, tmp_path: Path) -> Iterator[Systemd]:
    with Systemd(town.node(0).netns, tmp_path) as running:
        yield running
    town.forget()  # what pods sent while their rules were away has been dropped by the source check


@pytest.mark.parametrize("managed", [(0,), INTERFACES], ids=["the primary", "all"])
def test_what_networkd_flushes_when_it_starts_is_back_within_a_second(
    town: Town, flusher: Systemd, managed: tuple[int, ...]
) -> None:
    """Twice, for the second time is a restart; connections go on, and pings tell the time lost."""
    node, before = town.node(0), ours(town.node(0))
    files = {f"eth{number}": configured(town, number) for number in managed}
    internet = town.beyond.internet.address
    with ExitStack() as stack:
        stack.enter_context(town.unobserved())
        pods = [town.pod(0, interface) for interface in INTERFACES]
        calls = [stack.enter_context(talk.Call(pod.netns, internet, PORT)) for pod in pods]
        seen = [call.ask() for call in calls]
        streams = [stack.enter_context(Stream(pod.netns, internet)) for pod in pods]
        for _ in range(2):
            flusher.networkd(files)
            assert "routing policy rule" in flusher.removed()
            town.until(lambda: ours(node) == before, "all of ours", seconds=SECONDS)
        reports = [stream.stop() for stream in streams]
        assert [call.ask() for call in calls] == seen
    assert all(report.longest_s < SECONDS for report in reports), reports
