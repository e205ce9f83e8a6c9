"""What the kernel of a namespace announces: each change of links, IPv4 addresses, routes and rules, nftables.

Announcements are made inside the call that changes something, so whoever listens before has heard of all
that was done when it is done. Neighbours are left out, and IPv6: they come and go
by themselves.

What does not belong here: whether something should have been changed.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Self

from tests.lab import netlink
from tests.lab.netns import Netns

# linux/rtnetlink.h: groups of NETLINK_ROUTE (LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE), then
# linux/netfilter/nfnetlink.h: NFNLGRP_NFTABLES
_ROUTE_GROUPS, _NETFILTER_GROUPS = (1, 5, 7, 8), (7,)
_ADD_MEMBERSHIP, _SOL_NETLINK, _NETLINK_NETFILTER = 1, 270, 12
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h

_TYPES = {
    16: "new link", 17: "del link", 20: "new address", 21: "del address",
    24: "new route", 25: "del route", 32: "new rule", 33: "del rule",
}  # fmt: skip
_NFTABLES = 10


class Ear:
    """Listens in one namespace from construction to `close()`."""

    def __init__(self, netns: Netns) -> None:
        self._sockets = []
        for protocol, groups in (
            (socket.NETLINK_ROUTE, _ROUTE_GROUPS),
            (_NETLINK_NETFILTER, _NETFILTER_GROUPS),
        ):
            each = netns.run(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, protocol)
            try:
                each.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 23)
            except PermissionError:  # in a user namespace: as much as net.core.rmem_max lets us
                each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
            each.bind((0, 0))
            for group in groups:
                each.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
            each.setblocking(False)
            self._sockets.append(each)

    def heard(self) -> list[str]:
        """All announcements since the last time, in words; OSError (ENOBUFS) if some were lost."""
        return [word for each in self._sockets for word in self._read(each)]

    def close(self) -> None:
        """Hear no more."""
        for each in self._sockets:
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _read(listening: socket.socket) -> Iterator[str]:
        while True:
            try:
                datagram = listening.recv(1 << 17)
            except BlockingIOError:
                return
            for kind, _ in netlink.messages(datagram):
                nftables = kind >> 8 == _NFTABLES
                yield f"nftables {kind & 0xFF}" if nftables else _TYPES.get(kind, f"type {kind}")
