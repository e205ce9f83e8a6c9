"""Our messages against two referees: pyroute2's encoder, byte for byte, and the kernel by way of `ip`."""

from __future__ import annotations

import json
import socket
from contextlib import closing
from typing import Any

import pytest
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from ledger import model
from reconciler.planner import wiring
from reconciler.providers import channel, kernel, netlink, rtnetlink
from tests.lab import spaces

HEADER = 16  # struct nlmsghdr


def by_pyroute2(message: Any, attributes: list[list[Any]], **fields: int) -> bytes:
    """The body that pyroute2 makes of the same thing."""
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attributes
    message.encode()
    return bytes(message.data[HEADER:])


def padded(message: netlink.Message) -> bytes:
    return message.body + b"\0" * (-len(message.body) % 4)


def test_a_rule_is_what_pyroute2_makes_of_it() -> None:
    rule = model.Rule(1536, 10100, src="10.0.0.7/32", protocol=wiring.PROTOCOL)

    expected = by_pyroute2(
        fibmsg(),
        [
            ["FRA_SRC", "10.0.0.7"],
            ["FRA_PRIORITY", 1536],
            ["FRA_TABLE", 10100],
            ["FRA_PROTOCOL", wiring.PROTOCOL],
        ],
        family=socket.AF_INET,
        src_len=32,
        action=1,
    )

    assert padded(rtnetlink.rule(rule, put=True)) == expected


def test_a_route_is_what_pyroute2_makes_of_it() -> None:
    route = model.Route("0.0.0.0/0", "eth1", 2, "10.0.0.1", protocol=wiring.PROTOCOL)

    expected = by_pyroute2(
        rtmsg(),
        [["RTA_GATEWAY", "10.0.0.1"], ["RTA_OIF", 7], ["RTA_TABLE", 2]],
        family=socket.AF_INET,
        table=2,
        proto=wiring.PROTOCOL,
        type=1,
    )

    assert padded(rtnetlink.route(route, 7, put=True)) == expected


def test_a_link_route_is_what_pyroute2_makes_of_it() -> None:
    route = model.Route("10.0.0.7/32", "eni1", protocol=wiring.PROTOCOL)

    expected = by_pyroute2(
        rtmsg(),
        [["RTA_DST", "10.0.0.7"], ["RTA_OIF", 9], ["RTA_TABLE", 254]],
        family=socket.AF_INET,
        dst_len=32,
        table=254,
        proto=wiring.PROTOCOL,
        type=1,
        scope=253,
    )

    assert padded(rtnetlink.route(route, 9, put=True)) == expected


def test_an_address_is_what_pyroute2_makes_of_it() -> None:
    address = model.InterfaceAddress("eth0", "10.0.0.7/32")

    expected = by_pyroute2(
        ifaddrmsg(),
        [["IFA_LOCAL", "10.0.0.7"], ["IFA_ADDRESS", "10.0.0.7"], ["IFA_FLAGS", 0x200]],
        family=socket.AF_INET,
        prefixlen=32,
        index=4,
    )

    assert padded(rtnetlink.address(address, 4, put=True)) == expected


def test_a_neighbour_is_what_pyroute2_makes_of_it() -> None:
    neighbour = model.Neighbour("eth0", "169.254.1.1", "02:00:00:00:00:01")

    expected = by_pyroute2(
        ndmsg(),
        [["NDA_DST", "169.254.1.1"], ["NDA_LLADDR", "02:00:00:00:00:01"]],
        family=socket.AF_INET,
        ifindex=4,
        state=0x80,
    )

    assert padded(rtnetlink.neighbour(neighbour, 4, put=True)) == expected


def test_a_veth_pair_is_read_by_pyroute2_as_it_is_meant() -> None:
    """Nested attributes differ in their flags, so what is compared is what pyroute2 decodes."""
    link = model.Link(
        "eni1", "veth", "02:00:00:00:00:02", 9001, peer="eth0", peer_mac="02:00:00:00:00:03"
    )
    message = rtnetlink.create_veth(link, 1000, netns_fd=5)
    head = (HEADER + len(message.body)).to_bytes(4, "little") + bytes(12)

    decoded = ifinfmsg(head + message.body)
    decoded.decode()

    info = decoded.get_attr("IFLA_LINKINFO")
    peer = info.get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")
    assert (decoded["index"], decoded.get_attr("IFLA_IFNAME")) == (1000, "eni1")
    assert (decoded.get_attr("IFLA_NUM_TX_QUEUES"), decoded.get_attr("IFLA_TXQLEN")) == (1, 0)
    assert (peer["index"], peer.get_attr("IFLA_IFNAME")) == (1001, "eth0")
    assert peer.get_attr("IFLA_ADDRESS") == "02:00:00:00:00:03"
    assert peer.get_attr("IFLA_NET_NS_FD") == 5


# ------------------------------------------------------------------------------- what is read


def seen_by_ip(ns: spaces.Netns, *what: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(ns.command("ip", "-j", "-d", *what) or "[]")
    return rows


def seen(ns: spaces.Netns) -> model.ObservedKernel:
    with closing(ns.run(kernel.Kernel)) as hands:
        observed = hands.observe()
    assert isinstance(observed, model.ObservedKernel)
    return observed


@pytest.mark.netns
def test_a_large_dump_says_what_ip_says() -> None:
    """500 routes and 500 rules need many datagrams; every one is decoded, and nothing else."""
    with spaces.Netns() as ns:
        ns.command("ip", "link", "add", "one", "type", "veth", "peer", "name", "two")
        ns.command("ip", "link", "set", "one", "up", "mtu", "1400", "alias", "somebody's")
        ns.command("ip", "address", "add", "192.0.2.1/24", "dev", "one")
        nets = [f"10.{n // 250}.{n % 250}.0/24" for n in range(500)]
        lines = [
            f"route add {net} dev one table {100 + n % 7} proto 77" for n, net in enumerate(nets)
        ]
        lines += [
            f"rule add from {net} lookup {1000 + n % 300} pref {1000 + n}"
            for n, net in enumerate(nets)
        ]
        ns.command("ip", "-batch", "-", stdin="\n".join(lines))

        observed = seen(ns)

        assert {(r.priority, r.src, r.table) for r in observed.rules if r.src} == {
            (r["priority"], f"{r['src']}/{r['srclen']}", int(r["table"]))
            for r in seen_by_ip(ns, "rule")
            if "srclen" in r
        }
        theirs = seen_by_ip(ns, "route", "show", "table", "all", "proto", "77")
        assert len(theirs) == 500
        assert {(r.dst, r.link, r.table) for r in observed.routes if r.protocol == 77} == {
            (r["dst"], r["dev"], int(r["table"])) for r in theirs
        }
        one = next(link for link in observed.links if link.name == "one")
        assert (one.mtu, one.up, one.alias, one.kind) == (1400, True, "somebody's", "veth")
        assert model.InterfaceAddress("one", "192.0.2.1/24") in observed.addresses


@pytest.mark.parametrize(
    ("namespace", "index", "alive"),
    [(0, 2, True), (None, 2, True), (-1, 2, False), (None, 0, False)],
)
def test_a_peer_is_alive_unless_its_namespace_or_itself_is_gone(
    namespace: int | None, index: int, alive: bool
) -> None:
    """While a namespace dies its id reads -1; a peer that is gone has index 0 (veth_get_iflink)."""
    attributes: list[list[Any]] = [
        ["IFLA_IFNAME", "eni1"],
        ["IFLA_MTU", 9001],
        ["IFLA_LINK", index],
        ["IFLA_LINKINFO", {"attrs": [["IFLA_INFO_KIND", "veth"]]}],
    ]
    if namespace is not None:
        attributes.append(["IFLA_LINK_NETNSID", namespace])
    body = by_pyroute2(ifinfmsg(), attributes, index=7, flags=1)
    data = netlink.pack([netlink.Message(rtnetlink.NEWLINK, 0, body)], 1)

    (found,) = rtnetlink.links([data])

    assert (found.link.index, found.link.up, found.peer) == (7, True, alive)


def test_a_message_cut_short_is_refused() -> None:
    data = netlink.pack([rtnetlink.find_link("eth0")], 1)
    with pytest.raises(ValueError, match="cut short"):
        list(netlink.frames(data[:-4]))


@pytest.mark.netns
def test_what_no_noun_can_say_is_left_out() -> None:
    """A rule with an input interface or a route with a metric must not be taken for a plainer one."""
    with spaces.Netns() as ns:
        ns.command("ip", "link", "add", "one", "type", "veth", "peer", "name", "two")
        ns.command("ip", "link", "set", "one", "up")
        before = seen(ns)
        ns.command(
            "ip", "rule", "add", "iif", "one", "from", "10.0.0.9", "lookup", "7", "pref", "99"
        )
        ns.command("ip", "rule", "add", "from", "10.0.0.9", "unreachable", "pref", "98")
        ns.command("ip", "route", "add", "10.9.0.0/16", "dev", "one", "metric", "5")
        after = seen(ns)

        assert (after.rules, after.routes) == (before.rules, before.routes)


def test_a_descriptor_that_is_no_netlink_socket_is_refused() -> None:
    one, two = socket.socketpair()
    with one, two, pytest.raises(OSError, match="not a NETLINK_ROUTE socket"):
        channel.Channel.handed(one.fileno())


def test_what_is_kept_of_messages_follows_how_many_links_there_are() -> None:
    """Ten pods at a time, ten thousand in all: what those that went looked like is forgotten."""
    readers = (rtnetlink._link, rtnetlink._route, rtnetlink._oif, rtnetlink._rule)
    for reader in readers:
        reader.cache_clear()
    most = 0
    for turn in range(100):
        for pod in range(10):
            rule = model.Rule(512, 254, dst=f"10.0.{turn}.{pod}/32", protocol=201)
            data = netlink.pack([rtnetlink.rule(rule, put=True)], 1)
            assert list(rtnetlink.rules([data])) == [rule]
        rtnetlink.keep(10)
        most = max(most, *(reader.cache_info().currsize for reader in readers))

    assert 10 <= most < 100 * 10 / 2
