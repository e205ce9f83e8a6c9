"""Frames and attributes of netlink (RFC 3549, linux/netlink.h): bytes in, bytes out, no socket.

What an object of the model looks like on the wire is rtnetlink.py's, sending and waiting kernel.py's.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

# linux/netlink.h: nlmsg_flags
REQUEST, ACK = 0x1, 0x4
REPLACE, EXCL, CREATE = 0x100, 0x200, 0x400
DUMP = 0x300
DUMP_INTERRUPTED = 0x10
_ACK_HAS_ATTRIBUTES = 0x200

# nlmsg_type below NLMSG_MIN_TYPE
ERROR, DONE = 2, 3

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("=I")
_U32_ATTRIBUTE = struct.Struct("=HHI")
_I32 = struct.Struct("=i")
_ERROR_MESSAGE = 1  # NLMSGERR_ATTR_MSG
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
NESTED = 0x8000


class Message(NamedTuple):
    """A request before it has a sequence number."""

    kind: int
    flags: int
    body: bytes


class Frame(NamedTuple):
    """One message found in a datagram; its body is `data[start:end]`."""

    kind: int
    flags: int
    seq: int
    start: int
    end: int


class Refusal(NamedTuple):
    """The kernel's no: the errno's name (ENOENT) and, if it gave one, its sentence (extended ack)."""

    code: str
    text: str


def pack(messages: Sequence[Message], first: int, drop: int = 0) -> bytes:
    """One datagram of all messages, numbered from `first`, after 2^32 - 1 from 0.

    All but the last go without the flags of `drop`.
    """
    parts: list[bytes] = []
    last = len(messages) - 1
    for n, (kind, flags, body) in enumerate(messages):
        seq = (first + n) & 0xFFFFFFFF
        said = flags | REQUEST if n == last else (flags | REQUEST) & ~drop
        size = len(body)
        parts += _HEADER.pack(_HEADER.size + size, kind, said, seq, 0), body
        if size & 3:
            parts.append(b"\0" * (-size & 3))
    return b"".join(parts)


def frames(data: bytes) -> Iterator[Frame]:
    """The messages of a datagram. ValueError for one that is cut short."""
    at, end = 0, len(data)
    while at + _HEADER.size <= end:
        length, kind, flags, seq, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > end:
            raise ValueError("a netlink message is cut short")
        yield Frame(kind, flags, seq, at + _HEADER.size, at + length)
        at += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    size = len(value)
    head = _ATTRIBUTE.pack(4 + size, kind) + value
    return head + b"\0" * (-size & 3) if size & 3 else head


def u32(kind: int, value: int) -> bytes:
    """An attribute of 32 bits in host order."""
    return _U32_ATTRIBUTE.pack(8, kind, value)


def text(kind: int, value: str) -> bytes:
    """An attribute of text that ends with a zero."""
    return attribute(kind, value.encode() + b"\0")


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | NESTED, b"".join(attributes))


def attributes(data: bytes, at: int, end: int) -> dict[int, bytes]:
    """The attributes of `data[at:end]`; of a repeated one the last."""
    found: dict[int, bytes] = {}
    unpack = _ATTRIBUTE.unpack_from
    while at + 4 <= end:
        length, kind = unpack(data, at)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def each(data: bytes, kind: int) -> Iterator[bytes]:
    """The attributes of that kind in a list that repeats it, in order."""
    at, end = 0, len(data)
    while at + 4 <= end:
        length, found = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            return
        if found & _TYPE_MASK == kind:
            yield data[at + 4 : at + length]
        at += (length + 3) & ~3


def number(value: bytes) -> int:
    """An unsigned attribute in host order."""
    return int(_U32.unpack(value)[0])


def signed(value: bytes) -> int:
    """A signed attribute in host order."""
    return int(_I32.unpack(value)[0])


def string(value: bytes) -> str:
    """Text up to its zero; bytes that are no UTF-8 stay recognisable, for foreign names and aliases."""
    return value.partition(b"\0")[0].decode(errors="backslashreplace")


def refusal(data: bytes, frame: Frame) -> Refusal | None:
    """What an ERROR frame says: None for an acknowledgement."""
    code = -_I32.unpack_from(data, frame.start)[0]
    if code == 0:
        return None
    said = ""
    if frame.flags & _ACK_HAS_ATTRIBUTES:
        # NETLINK_CAP_ACK is set, so of our own message only the header is repeated.
        given = attributes(data, frame.start + 4 + _HEADER.size, frame.end)
        said = string(given.get(_ERROR_MESSAGE, b""))
    return Refusal(errno.errorcode.get(code, str(code)), said or os.strerror(code))
