"""Netlink datagrams taken apart: messages, and the attributes of one (linux/netlink.h).

Standard library only, for the lab shares nothing with the product. What a message means does not belong here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator


def messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and the body of each message."""
    at = 0
    while at + 16 <= len(datagram):
        length, kind = struct.unpack_from("IH", datagram, at)
        yield kind, datagram[at + 16 : at + length]
        at += (length + 3) & ~3


def attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    """The type (without NLA_F_NESTED and NLA_F_NET_BYTEORDER) and the value of each attribute."""
    at = 0
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("HH", body, at)
        yield kind & 0x3FFF, body[at + 4 : at + length]
        at += (length + 3) & ~3
