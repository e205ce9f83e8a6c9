"""The kernel on paper does what the real one does with everything that stories ask of it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from ledger import model
from reconciler.planner import actions, wiring
from reconciler.providers import kernel
from reconciler.settings import Settings
from tests.lab import spaces
from tests.stories.paper import Paper

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing())),
]

MAC = "02:aa:00:00:00:01"
ENI = model.Eni(
    "eni-1", MAC, "subnet-1", "10.0.0.0/24", "10.0.0.5", 1, state="attached", attached_at=1
)
Picture = tuple[set[tuple[object, ...]], ...]


def lease(number: int, address: str, name: str = "eni0a") -> model.Lease:
    return model.Lease(
        number, f"c{number}", "eth0", "aws-cni", "/ns", "reserved", address, ENI.eni_id,
        host_ifname=name, host_mac=f"0a:00:00:00:00:{2 * number:02x}",
    )  # fmt: skip


@dataclass
class Pair:
    """One node in both kernels, with a pod in each."""

    real: kernel.Kernel
    paper: Paper
    real_pod: kernel.PodHandle
    paper_pod: kernel.PodHandle

    def do(self, *steps: actions.KernelAction, pod: bool = True) -> list[str]:
        """The steps' errors, which are the same in both, as is what can be seen after them."""
        real = self.real.apply(steps, self.real_pod if pod else None)
        paper = self.paper.apply(steps, self.paper_pod if pod else None)
        assert [each.error for each in real] == [each.error for each in paper]
        assert [each.result for each in real] == [each.result for each in paper]
        assert picture(self.real.observe()) == picture(self.paper.observe())
        inside = self.real.observe_pod(self.real_pod), self.paper.observe_pod(self.paper_pod)
        assert picture(inside[0]) == picture(inside[1])
        return [each.error for each in real]


def picture(seen: model.ObservedKernel | model.Unknown) -> Picture:
    """What is ours or was put there; what the kernel adds by itself is nobody's business here."""
    assert isinstance(seen, model.ObservedKernel)
    links = [link for link in seen.links if link.alias or link.mac == MAC or link.name == "eth0"]
    names = {link.name for link in links}
    return (
        {(each.name, each.kind == "veth" or each.mac == MAC, each.mac, each.up) for each in links},
        {each.key for each in seen.addresses if each.link in names},
        {(*each.key, each.via) for each in seen.routes if each.protocol == wiring.PROTOCOL},
        {each.key for each in seen.rules if each.protocol == wiring.PROTOCOL},
        {(*each.key, each.mac) for each in seen.neighbours},
    )


@pytest.fixture
def both() -> Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        node, pod = spaces.Netns(), spaces.Netns()
        stack.callback(node.close)
        stack.callback(pod.close)
        node.command(
            "ip",
            "link",
            "add",
            "eth1",
            "address",
            MAC,
            "mtu",
            "9001",
            "type",
            "veth",
            "peer",
            "far1",
        )
        node.command("ip", "link", "set", "far1", "up")
        real = node.run(kernel.Kernel)
        stack.callback(real.close)
        netlink = pod.run(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        stack.enter_context(netlink)
        paper = Paper(lambda: 0)
        paper.plug(1, MAC)
        space = paper.new_pod()
        own = os.dup(pod.fd)
        stack.callback(os.close, own)
        yield Pair(
            real,
            paper,
            kernel.PodHandle(own, netlink.fileno()),
            kernel.PodHandle(own, space.number),
        )


def puts(things: Sequence[model.KernelObject]) -> list[actions.KernelAction]:
    return [actions.Put(thing) for thing in things]


def test_an_interface_and_a_pod_come_and_go(both: Pair) -> None:
    """Made, made again, retired, removed, removed again: each time the same answers and the same sight."""
    settings = Settings()
    assert both.do(*puts(wiring.eni(ENI, "eth1", settings)), pod=False) == [""] * 5
    one = wiring.pod(lease(1, "10.0.0.20"), ENI, settings)
    for _ in range(2):
        assert set(both.do(*puts((*one.host, *one.pod)))) == {""}
    namesake = wiring.pod(lease(2, "10.0.0.21"), ENI, settings)
    assert both.do(actions.Put(namesake.link)) == ["EEXIST"]
    other = wiring.pod(lease(3, "10.0.0.22", "eni0b"), ENI, settings)
    assert both.do(actions.Put(other.link)) == ["EEXIST"], "the pod has an eth0"
    retired = wiring.retired(one.link, 1)
    rules = [actions.Remove(thing) for thing in one.host if isinstance(thing, model.Rule)]
    for _ in range(2):
        both.do(*rules, actions.Retire(one.link, retired.name))
    assert both.do(actions.Put(other.link)) == ["EEXIST"], "the pod's end stays until the removal"
    for _ in range(2):
        assert both.do(actions.Remove(retired), pod=False) == [""]
    assert both.do(actions.Put(other.link)) == [""], "the pod's eth0 is free again"
    assert both.do(actions.Remove(other.link), pod=False) == [""]
    gone = model.Route("10.9.0.0/16", "nowhere", protocol=wiring.PROTOCOL)
    assert both.do(actions.Put(gone), actions.Remove(gone), pod=False) == ["ENODEV", ""]
