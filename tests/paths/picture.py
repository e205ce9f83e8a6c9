"""A node's kernel at a glance: links, IPv4 addresses, routes, rules, as one comparable value, in a millisecond.

Read by netlink and left as the kernel wrote it, without what changes by itself. nftables is not in it: a
listing by nft costs as much as all the rest. What should be there does not belong here.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Self

from tests.lab import netlink
from tests.lab.netns import Netns

# linux/rtnetlink.h
_GETLINK, _GETADDR, _GETROUTE, _GETRULE = 18, 22, 26, 34
_DUMP, _DONE = 0x301, 3  # NLM_F_REQUEST | NLM_F_DUMP
_FAMILY_HEADER = {_GETLINK: 16, _GETADDR: 8, _GETROUTE: 12, _GETRULE: 12}
_IFF_UP = 1
_ADDRESS, _IFNAME, _MTU, _IFALIAS = 1, 3, 4, 20

Facts = Counter[tuple[object, ...]]


class Camera:
    """Takes pictures of one namespace until `close()`."""

    def __init__(self, netns: Netns) -> None:
        self._socket = netns.run(
            socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, 0))
        self._sequence = 0

    def take(self) -> Facts:
        """Everything, each with how many times it is there."""
        found: Facts = Counter()
        for body in self._dump(_GETLINK, socket.AF_UNSPEC):
            index, flags = struct.unpack_from("iI", body, 4)
            known = dict(netlink.attributes(body[16:]))
            shown = (known.get(kind) for kind in (_IFNAME, _ADDRESS, _MTU, _IFALIAS))
            found["link", index, bool(flags & _IFF_UP), *shown] += 1
        for body in self._dump(_GETADDR, socket.AF_INET):
            known = dict(netlink.attributes(body[8:]))
            found["address", body[:2], body[4:8], known.get(1), known.get(2)] += 1
        for body in self._dump(_GETROUTE, socket.AF_INET):
            found["route", body[:8], body[12:]] += 1  # without flags: dead, linkdown
        for body in self._dump(_GETRULE, socket.AF_INET):
            found["rule", body] += 1
        return found

    def close(self) -> None:
        """No more pictures."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _dump(self, kind: int, family: int) -> Iterator[bytes]:
        self._sequence += 1
        header = struct.pack("B", family).ljust(_FAMILY_HEADER[kind], b"\0")
        self._socket.send(
            struct.pack("IHHII", 16 + len(header), kind, _DUMP, self._sequence, 0) + header
        )
        while True:
            for what, body in netlink.messages(self._socket.recv(1 << 17)):
                if what == _DONE:
                    return
                yield body
