"""The kernel's hands in real namespaces: pods wired and unwired, refusals, foreign objects, news."""

from __future__ import annotations

import json
import os
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from ledger import model
from reconciler import privileges
from reconciler import settings as knobs
from reconciler.planner import actions, drift, wiring
from reconciler.providers import batch, kernel, netlink, rtnetlink
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
        """The node's namespace as `ip` shows it.

        Without what follows a change of state later by itself: operational state and carrier (RFC 2863),
        and the link-local address a link makes itself once it has a carrier (RFC 4862).
        """
        shown = [self.node.command("ip", "-4", "-j", what) for what in ("link", "address", "rule")]
        shown.append(self.node.command("ip", "-4", "-j", "route", "show", "table", "all"))
        rows = [json.loads(text) for text in shown]
        for row in (*rows[0], *rows[1], *rows[3]):
            row.pop("operstate", None)
            row["flags"] = sorted(set(row["flags"]) - {"LOWER_UP", "NO-CARRIER", "linkdown"})
        return rows

    def ping(self) -> None:
        """One answer within ten seconds; the first packets may be lost.

        The end that comes up first is activated only a moment after the other has given it a carrier,
        by a work queue of the kernel's (linkwatch) that waits its turn behind namespaces being torn down.
        """
        self.node.command("ping", "-c1", "-i0.2", "-w10", "10.0.0.77")

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
    assert drift.compare(wired.host, place.kernel.observe()) == ()
    assert drift.compare((wired.end, *wired.pod), place.kernel.observe_pod(place.pod)) == ()
    place.ping()

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
    assert set(errors(place.remove(*reversed(wired.host)))) == {""}
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
    place.remove(*reversed(wired.host))

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

    named = drift.compare(wanted, place.observed())
    repair = drift.diff(wanted, place.observed(), ())
    place.kernel.apply(repair)

    assert any(drift.describe(thing) in sentence for sentence in named)
    assert actions.Put(thing) in repair
    assert len(repair) == len(named)  # an address takes its routes along
    assert all(isinstance(step, actions.Put) for step in repair)
    assert drift.diff(wanted, place.observed(), ()) == ()


def test_a_link_that_went_down_takes_its_routes_and_all_come_back(place: Place) -> None:
    wanted = wiring.eni(ENI, "eth1", SETTINGS)
    place.put(*wanted)
    place.node.command("ip", "link", "set", "eth1", "down")

    place.kernel.apply(drift.diff(wanted, place.observed(), ()))

    assert drift.compare(wanted, place.observed()) == ()


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

    plan = drift.diff((), place.observed(), ())
    place.kernel.apply(plan)

    assert {type(step) for step in plan} == {actions.Remove}
    after = place.picture()
    assert after[2] == before[2]
    kept = [route for route in after[3] if route.get("dev") == "foreign"]
    assert kept == [route for route in before[3] if route.get("dev") == "foreign"]
    assert [row for row in after[1] if row["ifname"] in {"foreign", "other"}] == [
        row for row in before[1] if row["ifname"] in {"foreign", "other"}
    ]


VANDALISM = [
    ("ip link set eni0 address 0a:00:00:00:00:99", "link eni0: MAC is 0a:00:00:00:00:99"),
    ("ip link set eni0 mtu 1400", "link eni0: MTU is 1400, not 9001"),
    ("ip link set eni0 down", "link eni0: state is down, not up"),
    ("ip route del 10.0.0.77/32", "route 10.0.0.77/32 dev eni0 in table 254 is missing"),
    (
        "ip route replace 10.0.0.77/32 dev eth1",
        "route 10.0.0.77/32 dev eni0 in table 254 is missing",
    ),
    ("ip rule del to 10.0.0.77", "rule 512 from all to 10.0.0.77/32 lookup 254 is missing"),
    ("ip rule del from 10.0.0.77", "rule 1536 from 10.0.0.77/32 lookup 2 is missing"),
]


@pytest.mark.parametrize(("act", "named"), VANDALISM)
def test_what_breaks_a_pod_is_named_and_put_back(place: Place, act: str, named: str) -> None:
    """Without the pod's handle, as a tick does it; afterwards packets pass and nothing differs."""
    wired = wiring.pod(LEASE, ENI, SETTINGS)
    wanted = (*wiring.eni(ENI, "eth1", SETTINGS), *wired.host)
    place.put(*wanted, *wired.pod)
    place.node.command(*act.split())

    assert named in "; ".join(drift.compare(wanted, place.observed()))
    mended = place.kernel.apply(drift.diff(wanted, place.observed(), wanted))

    assert set(errors(mended)) == {""}
    assert drift.diff(wanted, place.observed(), wanted) == ()
    place.ping()


def test_a_mac_that_somebody_changes_at_birth_is_read_back_and_set_right(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What udev's MACAddressPolicy=persistent does to a new link, at the worst moment there is."""
    create, made = batch.Batch._create, []

    def and_udev_is_there(self: batch.Batch, link: model.Link, index: int) -> object:
        refused = create(self, link, index)
        place.node.command("ip", "link", "set", link.name, "address", "0a:00:00:00:00:99")
        made.append(link.name)
        return refused

    monkeypatch.setattr(batch.Batch, "_create", and_udev_is_there)
    wired = wiring.pod(LEASE, ENI, SETTINGS)

    outcomes = place.put(*wiring.eni(ENI, "eth1", SETTINGS), *wired.host, *wired.pod)

    assert errors(outcomes) == [""] * len(outcomes)
    assert made == [LEASE.host_ifname]
    assert drift.compare(wired.host, place.kernel.observe()) == ()
    place.ping()


def test_udev_sees_a_mac_that_was_given_and_leaves_it(place: Place) -> None:
    """addr_assign_type 3 (NET_ADDR_SET) is what systemd's MACAddressPolicy does not replace."""
    wired = wiring.pod(LEASE, ENI, SETTINGS)
    place.put(*wired.host, *wired.pod)
    for netns, name in ((place.node, LEASE.host_ifname), (place.inside, LEASE.ifname)):
        shown = json.loads(netns.command("ip", "-d", "-j", "link", "show", name))
        assert shown[0].get("addr_assign_type", _assigned(netns, name)) in {3, "set"}


def _assigned(netns: spaces.Netns, name: str) -> int:
    """What sysfs, mounted in the namespace's own view, says of the link's MAC."""
    script = f"mount -t sysfs none /mnt && cat /mnt/class/net/{name}/addr_assign_type"
    return int(netns.command("unshare", "-m", "sh", "-c", script))


def test_a_link_that_lost_its_mark_is_known_by_its_mac_and_marked_again(place: Place) -> None:
    wired = wiring.pod(LEASE, ENI, SETTINGS)
    place.put(*wired.host)
    place.node.command("ip", "link", "set", "eni0", "alias", "")

    repair = drift.diff(wired.host, place.observed(), ())
    place.kernel.apply(repair)

    assert repair == (actions.Put(wired.link),)
    assert drift.diff(wired.host, place.observed(), ()) == ()


def test_the_link_of_a_later_sandbox_of_that_name_is_not_removed(place: Place) -> None:
    """A late deletion of the pod's last sandbox must not unplug the one that replaced it."""
    earlier = wiring.pod(
        replace(LEASE, id=6, host_mac="0a:00:00:00:00:60", address="10.0.0.66"), ENI, SETTINGS
    )
    later = wiring.pod(LEASE, ENI, SETTINGS)
    place.put(*wiring.eni(ENI, "eth1", SETTINGS), *later.host, *later.pod)

    assert set(errors(place.remove(*reversed(earlier.host)))) == {""}

    assert drift.compare(later.host, place.observed()) == ()
    place.ping()


def test_an_index_taken_by_another_link_costs_nothing_but_another_index(place: Place) -> None:
    wired = wiring.pod(LEASE, ENI, SETTINGS)
    taken = str(wired.link.index)
    place.node.command(
        "ip", "link", "add", "squatter", "index", taken, "type", "veth", "peer", "name", "x"
    )
    place.put(*wiring.eni(ENI, "eth1", SETTINGS))
    before = place.node.command("ip", "-j", "link", "show", "squatter")

    outcomes = place.put(*wired.host, *wired.pod)

    assert set(errors(outcomes)) == {""}
    assert place.node.command("ip", "-j", "link", "show", "squatter") == before
    place.ping()


def test_an_interfaces_own_link_is_never_removed(place: Place) -> None:
    before = place.picture()

    outcomes = place.remove(wiring.eni(ENI, "eth1", SETTINGS)[0])

    assert errors(outcomes) == ["EPERM"]
    assert place.picture() == before


def test_a_link_that_took_an_interfaces_name_is_not_set_up_for_it(place: Place) -> None:
    """Names move when devices come and go between a look and its effect; MACs do not."""
    place.node.command("ip", "link", "set", "eth1", "name", "eth9")
    place.node.command("ip", "link", "add", "eth1", "type", "veth", "peer", "name", "y")
    before = place.picture()

    (outcome,) = place.put(wiring.eni(ENI, "eth1", SETTINGS)[0])

    assert outcome.error == "ENODEV"
    assert "another link" in outcome.text
    assert place.picture() == before


def test_a_pair_whose_far_end_cannot_be_set_up_is_taken_back(place: Place) -> None:
    """Here the socket handed over belongs to another namespace than the descriptor."""
    before = place.picture()
    with spaces.Netns() as elsewhere:
        handle = kernel.PodHandle(elsewhere.fd, place.netlink.fileno())

        link = wiring.pod(LEASE, ENI, SETTINGS).link
        (outcome,) = place.kernel.apply([actions.Put(link)], handle)

        assert outcome.error == "ENODEV"
        assert place.picture() == before
        assert "eth0" not in elsewhere.command("ip", "link")


def test_each_failure_of_a_batch_is_named_and_stops_no_other(place: Place) -> None:
    """The text of a refused route is the kernel's own (extended acknowledgement)."""
    place.put(*wiring.eni(ENI, "eth1", SETTINGS))
    nowhere = model.Route("10.7.0.0/16", "eth1", 9, "203.0.113.1")

    outcomes = place.put(
        model.Rule(700, 9, src="10.7.0.1/32"),
        nowhere,
        model.Route("10.7.0.0/16", "nolink", 9),
        model.Rule(701, 9, src="10.7.0.2/32"),
        model.Sysctl("ipv4/ip_forward", "1"),
    )

    assert errors(outcomes) == ["", "ENETUNREACH", "ENODEV", "", "EOPNOTSUPP"]
    assert outcomes[1].text == "Nexthop has invalid gateway"
    assert {r.priority for r in place.observed().rules} >= {700, 701}


def test_many_objects_go_in_one_call_whatever_room_a_buffer_has(place: Place) -> None:
    """The answers to 600 do not fit; also across the end of the 32 bits that number the messages."""
    rules = [
        model.Rule(800 + n, 9, src=f"10.{n // 250}.{n % 250}.0/24", protocol=201)
        for n in range(600)
    ]
    place.kernel._change._seq = 0xFFFF_FFC8

    assert set(errors(place.put(*rules))) == {""}
    assert set(rules) <= set(place.observed().rules)
    assert set(errors(place.remove(*rules))) == {""}
    assert not set(rules) & set(place.observed().rules)


def test_a_look_is_whole_while_the_tables_change(place: Place) -> None:
    """Whatever comes and goes meanwhile, what is there all the time is in every look."""
    steady = {model.Rule(900 + n, 9, src=f"10.5.{n}.0/24") for n in range(200)}
    place.put(*steady)
    moving = [model.Rule(850 + n, 9, src=f"10.4.{n}.0/24") for n in range(40)]
    done = threading.Event()

    def churn() -> None:
        while not done.is_set():
            place.put(*moving)
            place.remove(*moving)

    thread = threading.Thread(target=churn)
    thread.start()
    looks = [place.kernel.observe() for _ in range(40)]
    done.set()
    thread.join()

    seen = [look for look in looks if isinstance(look, model.ObservedKernel)]
    assert len(seen) > 20
    assert all(steady <= set(look.rules) for look in seen)


def test_what_its_last_user_left_unread_in_the_socket_does_no_harm(place: Place) -> None:
    """The launcher may have asked something; nor does it matter that it made the socket non-blocking."""
    place.netlink.setblocking(False)
    place.netlink.send(netlink.pack([rtnetlink.dump(rtnetlink.GETADDR)], 1))
    wired = wiring.pod(LEASE, ENI, SETTINGS)

    assert set(errors(place.put(*wired.host, *wired.pod))) == {""}
    assert drift.compare((wired.end, *wired.pod), place.kernel.observe_pod(place.pod)) == ()


def test_a_handle_that_is_no_netlink_socket_is_unknown_to_a_look(place: Place) -> None:
    with socket.socket() as plain:
        seen = place.kernel.observe_pod(kernel.PodHandle(place.inside.fd, plain.fileno()))
    assert isinstance(seen, model.Unknown)


def test_the_other_end_lives_until_its_namespace_dies_and_the_link_goes_with_it(
    place: Place,
) -> None:
    """The daemon holds nothing open, so the end of a sandbox is news."""
    wired = wiring.pod(LEASE, ENI, SETTINGS)
    place.put(*wired.host)
    assert place.observed().peers[LEASE.host_ifname] is True
    watch = place.node.run(place.kernel.watch)
    watch.drain()

    place.netlink.close()
    place.inside.close()

    for _ in watch:
        if LEASE.host_ifname not in {link.name for link in place.observed().links}:
            break
    watch.close()


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

    while poll.poll(200):  # a link that comes up has more to tell, a moment later
        watch.drain()
    place.node.sysctl("ipv4/conf/eth1/rp_filter", 1)
    assert poll.poll(2_000), "rp_filter"
    watch.close()


def test_one_capability_and_an_ordinary_user_are_enough(place: Place) -> None:
    """Decision 14: what the launcher handed over suffices; setns would be refused to this process.

    Where no other uid exists, the only one is an ordinary user's already.
    """
    uid = 0 if spaces.tier() == "single" else 65532
    place.put(*wiring.eni(ENI, "eth1", SETTINGS))
    wired = wiring.pod(LEASE, ENI, SETTINGS)

    def unprivileged() -> list[str]:
        """In a child, for privileges given up do not come back."""
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                privileges.become(uid)
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

    assert place.node.run(unprivileged) == [uid, 1 << privileges.CAP_NET_ADMIN, []]
    place.ping()


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
