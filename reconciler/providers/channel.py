"""A netlink socket: requests out, the answer to each in.

The kernel answers a request before `send` returns, so there is nothing to wait for but room: a batch is
sent in parts small enough for the receive buffer to hold all answers. What the messages mean does not
belong here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple, Self

from reconciler.providers import netlink
from reconciler.providers.netlink import Message, Refusal

# linux/netlink.h, socket options
SOL_NETLINK = 270
ADD_MEMBERSHIP = 1
_CAP_ACK, _EXT_ACK, _STRICT = 10, 11, 12
_NETLINK_NETFILTER = 12  # the socket module has no name for it

DATAGRAM = 1 << 16
"""Bytes to read at once; the kernel fills up to 32 KiB of what the reader offers (netlink_dump)."""

_PART = 64  # messages sent at once: if all are refused, that takes a quarter of the default buffer
_TRIES = 8  # of a dump that the kernel calls interrupted because something changed meanwhile
_I32 = struct.Struct("=i")


class Answer(NamedTuple):
    """What became of one request: a refusal or None, and for a question the datagram that answers."""

    refusal: Refusal | None
    data: bytes = b""


_DONE = Answer(None)


def route_socket() -> socket.socket:
    """A new socket in the calling thread's namespace."""
    return socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    )


def netfilter_socket() -> socket.socket:
    """A new socket to the netfilter subsystems of the calling thread's namespace."""
    return socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
    )


def is_overrun(failed: OSError) -> bool:
    """Did the kernel drop messages because the receive buffer was full?"""
    return failed.errno == errno.ENOBUFS


class Channel:
    """One socket and its sequence numbers; for one thread at a time."""

    def __init__(self, route: socket.socket) -> None:
        for option in (_CAP_ACK, _EXT_ACK, _STRICT):
            route.setsockopt(SOL_NETLINK, option, 1)
        self._socket = route
        # Who had the socket before may have left answers unread: start far from where anybody would.
        self._seq = int.from_bytes(os.urandom(4), "little") | 1 << 31

    @classmethod
    def here(cls) -> Self:
        """A channel to the calling thread's namespace."""
        return cls(route_socket())

    @classmethod
    def handed(cls, fd: int) -> Self:
        """A channel over a descriptor that stays the giver's. OSError if it is no NETLINK_ROUTE socket."""
        route = socket.socket(fileno=os.dup(fd))
        if (route.family, route.proto) != (socket.AF_NETLINK, socket.NETLINK_ROUTE):
            route.close()
            raise OSError(errno.EPROTOTYPE, "not a NETLINK_ROUTE socket")
        return cls(route)

    def close(self) -> None:
        """Close this end's descriptor."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, messages: Sequence[Message]) -> list[Answer]:
        """Send all and give the answer to each, in order. OSError when the socket itself fails.

        The kernel tells every refusal, asked or not (netlink_rcv_skb), in the order of the messages;
        so the last alone asks for its acknowledgement: what was not refused by then was done.
        """
        answers: list[Answer] = []
        for at in range(0, len(messages), _PART):
            part = messages[at : at + _PART]
            last = len(part) - 1
            first = self._send(part, drop=netlink.ACK)
            found: dict[int, Answer] = {}
            while last not in found:
                data = self._socket.recv(DATAGRAM)
                for frame in netlink.frames(data):
                    nth = (frame.seq - first) & 0xFFFFFFFF
                    if nth > last:
                        continue
                    if frame.kind == netlink.ERROR:
                        found[nth] = Answer(netlink.refusal(data, frame))
                    else:
                        found[nth] = Answer(None, data)
            for nth, message in enumerate(part):
                answer = found.get(nth, _DONE)
                if answer is _DONE and not message.flags & netlink.ACK:
                    raise OSError(errno.EPROTO, "the kernel passed over a question")
                answers.append(answer)
        return answers

    def transact(self, messages: list[Message]) -> Refusal | None:
        """Send all as one transaction of nfnetlink's, in which the last but one asks for its answer.

        The first refusal, or None once the kernel has committed. OSError when the socket itself fails.
        """
        first = self._send(messages)
        committed = False
        while True:
            try:
                data = self._socket.recv(DATAGRAM, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break  # the kernel has said all before `send` returned
            for frame in netlink.frames(data):
                nth = (frame.seq - first) & 0xFFFFFFFF
                if nth >= len(messages) or frame.kind != netlink.ERROR:
                    continue
                refused = netlink.refusal(data, frame)
                if refused is not None:
                    self._drain()
                    return refused
                committed = True
        if not committed:
            raise OSError(errno.EPROTO, "the kernel did not answer a transaction")
        return None

    def _drain(self) -> None:
        """Throw away what is left of an answer."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(DATAGRAM, socket.MSG_DONTWAIT)

    def dump(self, message: Message) -> list[bytes]:
        """All datagrams of a dump, of one that nothing interrupted. OSError if there is none to be had."""
        for _ in range(_TRIES):
            datagrams, whole = self._read_dump(self._send([message]))
            if whole:
                return datagrams
        raise OSError(errno.EINTR, "the kernel's tables change faster than they can be read")

    def _send(self, messages: Sequence[Message], drop: int = 0) -> int:
        first = self._seq
        self._seq = (self._seq + len(messages)) & 0xFFFFFFFF
        self._socket.send(netlink.pack(messages, first, drop))
        return first

    def _read_dump(self, seq: int) -> tuple[list[bytes], bool]:
        datagrams: list[bytes] = []
        whole = True
        while True:
            data = self._socket.recv(DATAGRAM)
            last = None
            for frame in netlink.frames(data):
                if frame.seq != seq:
                    break
                whole = whole and not frame.flags & netlink.DUMP_INTERRUPTED
                last = frame
            if last is None:
                continue
            if last.kind in {netlink.DONE, netlink.ERROR}:
                code = -_I32.unpack_from(data, last.start)[0]
                if code:
                    raise OSError(code, os.strerror(code))
                return [*datagrams, data], whole
            datagrams.append(data)
