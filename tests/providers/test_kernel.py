"""The kernel's hands in real namespaces: pods wired and unwired, refusals, foreign objects, news."""

from __future__ import annotations

import json
import os
import select
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from ledger import model
from reconciler import privileges
from reconciler import settings as knobs
from reconciler.planner import actions, wiring
from reconciler.providers import kernel
from tests.lab import spaces

pytestmark = pytest.mark.netns

SETTINGS = knobs.Settings()
ENI = model.Eni("eni-1", "02:aa:00:00:00:01", "subnet-1", "10.0.0.0/24", "10.0.0.10", device=1)
LEASE = model.Lease(
    7, "c7", "eth0", "aws-cni", "/n", "reserved", "10.0.0.77", "eni-1", host_ifname="eni0",
    host_mac="0a:00:00:00:00:70",
)  # fmt: skip


class Place:
    """A node and a pod, each a namespace; the interface's link is a veth's end with its MAC."""

    def __init__(self) -> None:
        self.node, self.inside = spaces.Netns(), spaces.Netns()
        self.node.command(
            "ip", "link", "add", "eth1", "address", ENI.mac, "type", "veth", "peer", "name", "far"
        )
        self.node.command("ip", "link", "set", "far", "up")
        self.kernel: kernel.Kernel = self.node.run(kernel.Kernel)
        self.netlink = self.inside.run(
            socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE
        )
        self.pod = kernel.PodHandle(self.inside.fd, self.netlink.fileno())

    def put(self, *things: model.KernelObject) -> list[actions.Outcome]:
        return self.kernel.apply([actions.Put(thing) for thing in things], self.pod)

    def remove(self, *things: model.KernelObject) -> list[actions.Outcome]:
        return self.kernel.apply([actions.Remove(thing) for thing in things])

    def observed(self) -> model.ObservedKernel:
        seen = self.kernel.observe()
        assert isinstance(seen, model.ObservedKernel)
        return seen

    def picture(self) -> list[Any]:
        """All of the node's namespace as `ip` shows it."""
        shown = [self.node.command("ip", "-j", what) for what in ("link", "address", "rule")]
        shown.append(self.node.command("ip", "-j", "route", "show", "table", "all"))
        return [json.loads(text) for text in shown]

    def close(self) -> None:
        self.kernel.close()
        self.netlink.close()
        self.node.close()
        self.inside.close()


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    made.close()


def errors(outcomes: list[actions.Outcome]) -> list[str]:
    return [outcome.error for outcome in outcomes]


def test_a_pod_is_wired_answers_and_leaves_nothing(place: Place) -> None:
    """What the planner asks is what is there, a ping crosses it, and its removal restores the picture."""
    place.put(*wiring.eni(ENI, "eth1", SETTINGS))
    before = place.picture()
    wired = wiring.pod(LEASE, ENI, SETTINGS)

    outcomes = place.put(*wired.host, *wired.pod)

    assert errors(outcomes) == [""] * len(outcomes)
    assert wiring.compare(wired.host, place.kernel.observe()) == ()
    assert wiring.compare((wired.end, *wired.pod), place.kernel.observe_pod(place.pod)) == ()
    place.node.command("ping", "-c1", "-W1", "10.0.0.77")

    gone = place.remove(*reversed(wired.host))

    assert errors(gone) == [""] * len(gone)
    assert place.picture() == before


def test_doing_it_twice_is_success_and_changes_nothing(place: Place) -> None:
    wired = wiring.pod(LEASE, ENI, SETTINGS)
    place.put(*wiring.eni(ENI, "eth1", SETTINGS), *wired.host, *wired.pod)
    before = place.picture()

    again = place.put(*wiring.eni(ENI, "eth1", SETTINGS), *wired.host, *wired.pod)

    assert errors(again) == [""] * len(again)
    assert place.picture() == before


def test_removing_what_is_gone_is_success(place: Place) -> None:
    wired = wiring.pod(LEASE, ENI, SETTINGS)
    assert errors(place.remove(*wired.host, *wired.pod)) == [""] * len((*wired.host, *wired.pod))


def test_a_link_of_that_name_that_is_anothers_is_left_alone(place: Place) -> None:
    place.node.command("ip", "link", "add", LEASE.host_ifname, "type", "veth", "peer", "name", "x")
    before = place.picture()
    wired = wiring.pod(LEASE, ENI, SETTINGS)

    outcomes = place.put(*wired.host)

    assert outcomes[0].error == "EEXIST"
    place.kernel.apply(wiring.undo(outcomes))
    assert errors(place.remove(wired.link)) == [""]
    assert place.picture() == before


def test_an_interface_name_taken_in_the_pod_is_said_to_be(place: Place) -> None:
    place.inside.command("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "y")
    before = place.picture()

    (outcome,) = place.put(wiring.pod(LEASE, ENI, SETTINGS).link)

    assert outcome.error in {"EEXIST", "EBUSY"}
    assert outcome.result == {"where": "pod"}
    assert place.picture() == before


def test_a_pod_whose_namespace_was_not_handed_over_is_not_half_made(place: Place) -> None:
    before = place.picture()
    wired = wiring.pod(LEASE, ENI, SETTINGS)

    outcomes = place.kernel.apply([actions.Put(thing) for thing in (*wired.host, *wired.pod)])
    place.kernel.apply(wiring.undo(outcomes))

    assert outcomes[0].error == "EBADF"
    assert place.picture() == before


@pytest.mark.parametrize("nth", range(5))
def test_each_object_of_an_interface_is_missed_named_and_put_back(place: Place, nth: int) -> None:
    wanted = wiring.eni(ENI, "eth1", SETTINGS)
    place.put(*wanted)
    thing = wanted[nth]
    if isinstance(thing, model.Link):
        place.node.command("ip", "link", "set", "eth1", "mtu", "1500")
    else:
        assert errors(place.remove(thing)) == [""]

    named = wiring.compare(wanted, place.observed())
    repair = wiring.diff(wanted, place.observed(), ())
    place.kernel.apply(repair)

    assert any(wiring.describe(thing) in sentence for sentence in named)
    assert actions.Put(thing) in repair
    assert len(repair) == len(named)  # an address takes its routes along
    assert all(isinstance(step, actions.Put) for step in repair)
    assert wiring.diff(wanted, place.observed(), ()) == ()


def test_a_link_that_went_down_takes_its_routes_and_all_come_back(place: Place) -> None:
    wanted = wiring.eni(ENI, "eth1", SETTINGS)
    place.put(*wanted)
    place.node.command("ip", "link", "set", "eth1", "down")

    place.kernel.apply(wiring.diff(wanted, place.observed(), ()))

    assert wiring.compare(wanted, place.observed()) == ()


def test_fifty_foreign_objects_stay_byte_for_byte(place: Place) -> None:
    """Rules, routes, links and addresses that bear no mark of ours survive a plan that wants nothing."""
    lines = ["link add foreign type veth peer name other", "link set foreign up"]
    lines += [f"rule add from 10.9.0.{n} lookup {300 + n} pref {500 + n}" for n in range(20)]
    lines += [f"route add 10.8.{n}.0/24 dev foreign table {400 + n}" for n in range(20)]
    lines += [f"address add 192.0.2.{n + 1}/32 dev foreign" for n in range(10)]
    place.node.command("ip", "-batch", "-", stdin="\n".join(lines))
    before = place.picture()
    wired = wiring.pod(LEASE, ENI, SETTINGS)
    place.put(*wiring.eni(ENI, "eth1", SETTINGS), *wired.host)

    plan = wiring.diff((), place.observed(), ())
    place.kernel.apply(plan)

    assert {type(step) for step in plan} == {actions.Remove}
    after = place.picture()
    assert after[2] == before[2]
    kept = [route for route in after[3] if route.get("dev") == "foreign"]
    assert kept == [route for route in before[3] if route.get("dev") == "foreign"]
    assert [row for row in after[1] if row["ifname"] in {"foreign", "other"}] == [
        row for row in before[1] if row["ifname"] in {"foreign", "other"}
    ]


def test_the_other_ends_death_is_seen(place: Place) -> None:
    wired = wiring.pod(LEASE, ENI, SETTINGS)
    place.put(*wired.host)
    assert place.observed().peers[LEASE.host_ifname] is True


def test_changes_are_news_and_silence_is_none(place: Place) -> None:
    watch = place.node.run(place.kernel.watch)
    poll = select.poll()
    poll.register(watch, select.POLLIN)
    watch.drain()
    assert poll.poll(0) == []

    for line in (
        "link set eth1 up",
        "rule add from 10.3.3.3 lookup 9",
        "route add 10.4.0.0/16 dev eth1",
    ):
        place.node.command("ip", *line.split())
        assert poll.poll(2_000), line
        assert watch.drain()

    watch.close()


def test_one_capability_and_an_ordinary_user_are_enough(place: Place) -> None:
    """Decision 14: what the launcher handed over suffices; setns would be refused to this process."""
    if spaces.tier() == "single":
        pytest.skip("this user has no subuids: there is no other uid to become")
    place.put(*wiring.eni(ENI, "eth1", SETTINGS))
    wired = wiring.pod(LEASE, ENI, SETTINGS)

    def unprivileged() -> list[str]:
        """In a child, for privileges given up do not come back."""
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                privileges.become(65532)
                own = kernel.Kernel()
                steps = [actions.Put(thing) for thing in (*wired.host, *wired.pod)]
                failed = [o.error for o in own.apply(steps, place.pod) if o.error]
                os.write(tell, json.dumps([os.getuid(), privileges.effective(), failed]).encode())
            finally:
                os._exit(0)
        os.close(tell)
        os.waitpid(pid, 0)
        answer: list[str] = json.loads(os.read(told, 4096))
        os.close(told)
        return answer

    assert place.node.run(unprivileged) == [65532, 1 << privileges.CAP_NET_ADMIN, []]
    place.node.command("ping", "-c1", "-W1", "10.0.0.77")


def test_many_links_go_in_one_batch(place: Place) -> None:
    pods = [spaces.Netns() for _ in range(5)]
    links = []
    for n, ns in enumerate(pods):
        with ns.run(
            socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE
        ) as route:
            lease = replace(LEASE, id=100 + n, host_ifname=f"eni{n}", address=f"10.0.0.{100 + n}")
            links.append(wiring.pod(lease, ENI, SETTINGS).link)
            handle = kernel.PodHandle(ns.fd, route.fileno())
            assert errors(place.kernel.apply([actions.Put(links[-1])], handle)) == [""]

    assert errors(place.remove(*links)) == [""] * 5

    assert not [link for link in place.observed().links if link.name.startswith("eni")]
    for ns in pods:
        ns.close()
