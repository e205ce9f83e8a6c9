"""The kernel's objects as rtnetlink messages and back: linux/rtnetlink.h, if_link.h, fib_rules.h.

Requests state every field that tells an object from another, because the kernel takes what a removal
leaves out for "any". Readers decode only what the nouns hold and leave out what no noun can say (a
rule with an input interface, a route with a metric), so that nothing is taken for what it is not.
Sending, and what a refusal means, do not belong here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import NamedTuple

from ledger import model
from reconciler.providers import netlink
from reconciler.providers.netlink import Message

# linux/rtnetlink.h: message types
NEWLINK, DELLINK, GETLINK = 16, 17, 18
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30
NEWRULE, DELRULE, GETRULE = 32, 33, 34

# Multicast groups that tell of changes: links, IPv4 addresses, IPv4 routes, IPv4 rules, and the IPv4
# configuration of links (rp_filter is in it).
GROUPS = (1, 5, 7, 8, 24)

_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, device type, index, flags, changed flags
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, length, flags, scope, link index
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg; a rule's header has the same shape
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # ndmsg: family, link index, state, flags, type

_UP = 0x1
_SKIP_STATS = 8  # RTEXT_FILTER_SKIP_STATS
_UNICAST, _TO_TABLE = 1, 1  # RTN_UNICAST, FR_ACT_TO_TBL
_UNIVERSE, _ON_LINK = 0, 253  # route scopes
_LOCAL_TABLE = 255
_PERMANENT = 0x80  # NUD_PERMANENT
# The kernel adds no route of its own for an address of ours, so there is none to take away again; and
# it does not make a pod wait for duplicate address detection.
_ADDRESS_FLAGS = {
    int(AF_INET): 0x200,
    int(AF_INET6): 0x200 | 0x02,
}  # IFA_F_NOPREFIXROUTE, IFA_F_NODAD

# Attributes: IFLA_, IFA_, RTA_, FRA_, NDA_
_L_ADDRESS, _L_NAME, _L_MTU, _L_LINK, _L_TXQLEN, _L_INFO, _L_ALIAS = 1, 3, 4, 5, 13, 18, 20
_L_NETNS_FD, _L_EXT_MASK, _L_TX_QUEUES, _L_RX_QUEUES, _L_LINK_NETNSID = 28, 29, 31, 32, 37
_L_GROUP = 27
_DOOMED = 0x76706C67  # 'vplg': a link group nobody else would number so
_I_KIND, _I_DATA, _V_PEER = 1, 2, 1
_A_ADDRESS, _A_LOCAL, _A_FLAGS = 1, 2, 8
_R_DST, _R_OIF, _R_GATEWAY, _R_METRIC, _R_TABLE, _R_VIA = 1, 4, 5, 6, 15, 18
_R_MULTIPATH, _R_NEXTHOP_OBJECT = 9, 30
_F_DST, _F_SRC, _F_PRIORITY, _F_MARK, _F_SUPPRESS_LENGTH = 1, 2, 6, 10, 14
_F_TABLE, _F_MASK, _F_PAD, _F_PROTOCOL = 15, 16, 18, 21
_F_KNOWN = {
    _F_DST, _F_SRC, _F_PRIORITY, _F_MARK, _F_SUPPRESS_LENGTH, _F_TABLE, _F_MASK, _F_PAD, _F_PROTOCOL
}  # fmt: skip
_F_NOTHING_SUPPRESSED = b"\xff\xff\xff\xff"
_N_DST, _N_MAC = 1, 2

# One queue each way: a veth needs no more, and each further one costs a grace period on creation.
_ONE_QUEUE = netlink.u32(_L_TXQLEN, 0) + netlink.u32(_L_TX_QUEUES, 1) + netlink.u32(_L_RX_QUEUES, 1)
_VETH = netlink.text(_I_KIND, "veth")
_AF = {4: int(AF_INET), 6: int(AF_INET6)}
_FAMILY = {int(AF_INET): 4, int(AF_INET6): 6}
_EVERYTHING = {4: "0.0.0.0", 6: "::"}
_KEPT_AT_LEAST = 256


class Found(NamedTuple):
    """A link as it is, with whether its other end lives (None unless it is a veth)."""

    link: model.Link
    peer: bool | None


def family(cidr: str) -> int:
    """4 or 6, by the notation."""
    return 6 if ":" in cidr else 4


@lru_cache(maxsize=1024)
def _network(cidr: str) -> tuple[int, int, bytes]:
    """AF_INET or AF_INET6, length and bytes of a network; of an address alone the length of all of it."""
    host, _, length = cidr.partition("/")
    packed = inet_pton(_AF[family(cidr)], host)
    return _AF[family(cidr)], int(length or 8 * len(packed)), packed


# ------------------------------------------------------------------------------------- requests


def create_veth(link: model.Link, index: int, netns_fd: int) -> Message:
    """A pair: this end `index` here and up, the peer `index + 1` in the namespace behind `netns_fd`.

    The peer comes down: made up together with this end the kernel refuses it (ENOTCONN).
    """
    peer = _LINK.pack(0, 0, index + 1, 0, 0) + _end(link.peer, link.peer_mac, link.mtu)
    peer += netlink.u32(_L_NETNS_FD, netns_fd)
    info = netlink.nested(
        _L_INFO, _VETH, netlink.nested(_I_DATA, netlink.attribute(_V_PEER | netlink.NESTED, peer))
    )
    body = _LINK.pack(0, 0, index, _UP, _UP) + _end(link.name, link.mac, link.mtu) + info
    return Message(NEWLINK, netlink.ACK | netlink.CREATE | netlink.EXCL, body)


def _end(name: str, mac: str, mtu: int) -> bytes:
    address = netlink.attribute(_L_ADDRESS, bytes.fromhex(mac.replace(":", ""))) if mac else b""
    return netlink.text(_L_NAME, name) + address + netlink.u32(_L_MTU, mtu) + _ONE_QUEUE


def set_link(index: int, *, up: bool, mtu: int = 0, mac: str = "", alias: str = "") -> Message:
    """Change a link that is there; what is zero or empty stays as it is."""
    body = _LINK.pack(0, 0, index, _UP if up else 0, _UP)
    if mtu:
        body += netlink.u32(_L_MTU, mtu)
    if mac:
        body += netlink.attribute(_L_ADDRESS, bytes.fromhex(mac.replace(":", "")))
    if alias:
        body += netlink.attribute(_L_ALIAS, alias.encode())
    return Message(NEWLINK, netlink.ACK, body)


def retire_link(index: int, name: str) -> list[Message]:
    """Take a link down, then give it a new name and put it into the group of those to be removed."""
    body = _LINK.pack(0, 0, index, 0, 0) + netlink.text(_L_NAME, name)
    return [
        Message(NEWLINK, netlink.ACK, _LINK.pack(0, 0, index, 0, _UP)),
        Message(NEWLINK, netlink.ACK, body + netlink.u32(_L_GROUP, _DOOMED)),
    ]


def rename_link(index: int, name: str) -> Message:
    """Give a link a new name: EBUSY while it is up, by kernels before 6.2."""
    return Message(
        NEWLINK, netlink.ACK, _LINK.pack(0, 0, index, 0, 0) + netlink.text(_L_NAME, name)
    )


def remove_link(index: int) -> Message:
    """Remove a link; a veth takes its peer along."""
    return Message(DELLINK, netlink.ACK, _LINK.pack(0, 0, index, 0, 0))


def regroup_link(index: int) -> Message:
    """Put a link into the group of those about to be removed."""
    return Message(
        NEWLINK, netlink.ACK, _LINK.pack(0, 0, index, 0, 0) + netlink.u32(_L_GROUP, _DOOMED)
    )


def remove_group() -> Message:
    """Remove all links that `regroup_link` has marked, in one grace period of the kernel's."""
    return Message(DELLINK, netlink.ACK, _LINK.pack(0, 0, 0, 0, 0) + netlink.u32(_L_GROUP, _DOOMED))


def find_link(name: str) -> Message:
    """Ask for one link; the answer is NEWLINK or ENODEV."""
    body = _LINK.pack(0, 0, 0, 0, 0) + netlink.text(_L_NAME, name)
    return Message(GETLINK, 0, body + netlink.u32(_L_EXT_MASK, _SKIP_STATS))


def address(thing: model.InterfaceAddress, index: int, *, put: bool) -> Message:
    """Add or remove an address."""
    family_, length, packed = _network(thing.cidr)
    flags = _ADDRESS_FLAGS[family_]
    body = _ADDRESS.pack(family_, length, flags & 0xFF, _UNIVERSE, index)
    body += netlink.attribute(_A_LOCAL, packed) + netlink.attribute(_A_ADDRESS, packed)
    if put:
        body += netlink.u32(_A_FLAGS, flags)
        return Message(NEWADDR, netlink.ACK | netlink.CREATE | netlink.EXCL, body)
    return Message(DELADDR, netlink.ACK, body)


def route(thing: model.Route, index: int, *, put: bool) -> Message:
    """Add or remove a route.

    Neither EXCL nor REPLACE: the kernel then puts ours before any other to the same destination and
    touches none of them; EEXIST means that this very route is there.
    """
    body = _route_but_link(thing.dst, thing.via, thing.table, thing.protocol)
    body += netlink.u32(_R_OIF, index) + netlink.u32(_R_TABLE, thing.table)
    if put:
        return Message(NEWROUTE, netlink.ACK | netlink.CREATE, body)
    return Message(DELROUTE, netlink.ACK, body)


@lru_cache(maxsize=1024)
def _route_but_link(dst: str, via: str | None, table: int, protocol: int) -> bytes:
    """What of a route comes before its link; of the pods' two it is the same in every pod."""
    family_, length, packed = _network(dst)
    scope = _UNIVERSE if via else _ON_LINK
    short = table if table < 256 else 0
    body = _ROUTE.pack(family_, length, 0, 0, short, protocol, scope, _UNICAST, 0)
    if length:
        body += netlink.attribute(_R_DST, packed)
    if via:
        body += netlink.attribute(_R_GATEWAY, inet_pton(family_, via))
    return body


def rule(thing: model.Rule, *, put: bool) -> Message:
    """Add or remove a rule; EEXIST means that this very rule, protocol included, is there."""
    lengths, body = [0, 0], b""
    for at, kind, cidr in ((0, _F_DST, thing.dst), (1, _F_SRC, thing.src)):
        if cidr:
            _, lengths[at], packed = _network(cidr)
            body += netlink.attribute(kind, packed)
    short = thing.table if thing.table < 256 else 0
    head = _ROUTE.pack(_AF[thing.family], *lengths, 0, short, 0, 0, _TO_TABLE, 0)
    body += netlink.u32(_F_PRIORITY, thing.priority) + netlink.u32(_F_TABLE, thing.table)
    if thing.fwmark or thing.fwmask:
        body += netlink.u32(_F_MARK, thing.fwmark) + netlink.u32(_F_MASK, thing.fwmask)
    body += netlink.attribute(_F_PROTOCOL, bytes([thing.protocol]))
    if put:
        return Message(NEWRULE, netlink.ACK | netlink.CREATE | netlink.EXCL, head + body)
    return Message(DELRULE, netlink.ACK, head + body)


def neighbour(thing: model.Neighbour, index: int, *, put: bool) -> Message:
    """Set or remove a permanent neighbour entry."""
    family_, _, packed = _network(thing.ip)
    body = _NEIGHBOUR.pack(family_, index, _PERMANENT, 0, 0) + netlink.attribute(_N_DST, packed)
    if put:
        body += netlink.attribute(_N_MAC, bytes.fromhex(thing.mac.replace(":", "")))
        return Message(NEWNEIGH, netlink.ACK | netlink.CREATE | netlink.REPLACE, body)
    return Message(DELNEIGH, netlink.ACK, body)


def dump(kind: int, version: int = 4) -> Message:
    """Ask for all links, addresses, routes (of all tables), rules or neighbours of a family."""
    body = {
        GETLINK: _LINK.pack(0, 0, 0, 0, 0) + netlink.u32(_L_EXT_MASK, _SKIP_STATS),
        GETADDR: _ADDRESS.pack(_AF[version], 0, 0, 0, 0),
        GETROUTE: _ROUTE.pack(_AF[version], 0, 0, 0, 0, 0, 0, 0, 0),
        GETRULE: _ROUTE.pack(_AF[version], 0, 0, 0, 0, 0, 0, 0, 0),
        GETNEIGH: _NEIGHBOUR.pack(_AF[version], 0, 0, 0, 0),
    }[kind]
    return Message(kind, netlink.DUMP, body)


# -------------------------------------------------------------------------------------- readers


def links(datagrams: list[bytes]) -> list[Found]:
    """The links of a dump."""
    return [_link(body) for body in _each(datagrams, NEWLINK)]


def keep(links_there: int) -> None:
    """So many links there are: what is kept beyond twice their messages is of pods that have gone."""
    for reader, each in ((_link, 1), (_oif, 4), (_route, 4), (_rule, 3)):
        if reader.cache_info().currsize > 2 * each * links_there + _KEPT_AT_LEAST:
            reader.cache_clear()


def shows_mac(datagram: bytes, mac: str) -> bool:
    """Does the answer to `find_link` hold this address? Without reading its forty other attributes.

    The attribute is looked for with its head, and no other of six bytes has the same kind but in a nest.
    """
    return netlink.attribute(_L_ADDRESS, bytes.fromhex(mac.replace(":", ""))) in datagram


def link(datagram: bytes) -> Found:
    """The answer to `find_link`."""
    (body,) = _each([datagram], NEWLINK)
    return _link.__wrapped__(body)


# From one look to the next hardly a message changes, so what equal bytes mean is kept: a node with 1,000
# pods is looked at with half the processor time, which is the door's (one interpreter lock).
@lru_cache(maxsize=2048)
def _link(body: bytes) -> Found:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    given = netlink.attributes(body, _LINK.size, len(body))
    kind = ""
    if _L_INFO in given:
        info = given[_L_INFO]
        kind = netlink.string(netlink.attributes(info, 0, len(info)).get(_I_KIND, b""))
    link = model.Link(
        name=netlink.string(given[_L_NAME]),
        kind=kind,
        mac=given.get(_L_ADDRESS, b"").hex(":"),
        mtu=netlink.number(given[_L_MTU]),
        up=bool(flags & _UP),
        alias=netlink.string(given.get(_L_ALIAS, b"")),
        index=index,
    )
    if kind != "veth":
        return Found(link, None)
    # While a namespace dies its id is -1; a peer that is gone has index 0.
    namespace = netlink.signed(given[_L_LINK_NETNSID]) if _L_LINK_NETNSID in given else 0
    there = netlink.number(given[_L_LINK]) if _L_LINK in given else 0
    return Found(link, namespace >= 0 and there > 0)


def addresses(
    datagrams: list[bytes], names: dict[int, str], where: model.Where
) -> Iterator[model.InterfaceAddress]:
    """The addresses of a dump, on links that `names` knows by index."""
    for body in _each(datagrams, NEWADDR):
        family_, length, _, _, index = _ADDRESS.unpack_from(body)
        given = netlink.attributes(body, _ADDRESS.size, len(body))
        packed = given.get(_A_LOCAL) or given.get(_A_ADDRESS)
        if index in names and packed:
            cidr = f"{inet_ntop(family_, packed)}/{length}"
            yield model.InterfaceAddress(names[index], cidr, where)


def routes(
    datagrams: list[bytes], names: dict[int, str], where: model.Where
) -> Iterator[model.Route]:
    """The unicast routes of a dump that have one link, no metric and no table but the local one."""
    for body in _each(datagrams, NEWROUTE):
        index = _oif(body)
        if index in names:
            found = _route(body, names[index], where)
            if found is not None:
                yield found


@lru_cache(maxsize=4096)
def _oif(body: bytes) -> int:
    """The link of a route; 0 for one without or of a kind no noun can say."""
    _, _, source, tos, table, _, _, type_, _ = _ROUTE.unpack_from(body)
    if type_ != _UNICAST or table == _LOCAL_TABLE or source or tos:
        return 0
    given = netlink.attributes(body, _ROUTE.size, len(body))
    return netlink.number(given[_R_OIF]) if _R_OIF in given else 0


@lru_cache(maxsize=4096)
def _route(body: bytes, link: str, where: model.Where) -> model.Route | None:
    family_, length, _, _, table, protocol, _, _, _ = _ROUTE.unpack_from(body)
    given = netlink.attributes(body, _ROUTE.size, len(body))
    if not given.keys().isdisjoint((_R_METRIC, _R_MULTIPATH, _R_NEXTHOP_OBJECT, _R_VIA)):
        return None
    version = _FAMILY[family_]
    dst = inet_ntop(family_, given[_R_DST]) if _R_DST in given else _EVERYTHING[version]
    via = inet_ntop(family_, given[_R_GATEWAY]) if _R_GATEWAY in given else None
    return model.Route(
        f"{dst}/{length}",
        link,
        netlink.number(given[_R_TABLE]) if _R_TABLE in given else table,
        via,
        version,
        where,
        protocol,
    )


def rules(datagrams: list[bytes]) -> Iterator[model.Rule]:
    """The rules of a dump that look up a table by source, destination and mark alone."""
    for body in _each(datagrams, NEWRULE):
        found = _rule(body)
        if found is not None:
            yield found


@lru_cache(maxsize=4096)
def _rule(body: bytes) -> model.Rule | None:
    family_, to, source, tos, table, _, _, action, flags = _ROUTE.unpack_from(body)
    if action != _TO_TABLE or tos or flags:
        return None
    given = netlink.attributes(body, _ROUTE.size, len(body))
    suppressed = given.get(_F_SUPPRESS_LENGTH, _F_NOTHING_SUPPRESSED)
    if not given.keys() <= _F_KNOWN or suppressed != _F_NOTHING_SUPPRESSED:
        return None
    return model.Rule(
        netlink.number(given[_F_PRIORITY]) if _F_PRIORITY in given else 0,
        netlink.number(given[_F_TABLE]) if _F_TABLE in given else table,
        f"{inet_ntop(family_, given[_F_SRC])}/{source}" if _F_SRC in given else None,
        f"{inet_ntop(family_, given[_F_DST])}/{to}" if _F_DST in given else None,
        _FAMILY[family_],
        netlink.number(given[_F_MARK]) if _F_MARK in given else 0,
        netlink.number(given[_F_MASK]) if _F_MASK in given else 0,
        given.get(_F_PROTOCOL, b"\0")[0],
    )


def neighbours(datagrams: list[bytes], names: dict[int, str]) -> Iterator[model.Neighbour]:
    """The permanent neighbours of a dump."""
    for body in _each(datagrams, NEWNEIGH):
        family_, index, state, _, _ = _NEIGHBOUR.unpack_from(body)
        given = netlink.attributes(body, _NEIGHBOUR.size, len(body))
        if state == _PERMANENT and index in names and _N_DST in given and _N_MAC in given:
            yield model.Neighbour(
                names[index], inet_ntop(family_, given[_N_DST]), given[_N_MAC].hex(":")
            )


def _each(datagrams: list[bytes], kind: int) -> Iterator[bytes]:
    """The bodies of the messages of a kind."""
    for data in datagrams:
        for frame in netlink.frames(data):
            if frame.kind == kind:
                yield data[frame.start : frame.end]
