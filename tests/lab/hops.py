"""Where packets went inside a namespace: each hook they passed, in order, with addresses and marks.

    with Trail(node.netns) as trail:
        ...
        trail.hops(destination="192.0.2.10")

A table `lab_trail` on the node copies the head of every IPv4 packet, at each hook, to a socket of ours
(nfnetlink_log); it changes nothing. `arrived` is before any translation, `routed` is the forward hook
(the destination is translated, the source not yet), `left` is after all translation, `delivered` and
`sent` are the namespace's own packets.

What does not belong here: who should have gone where.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from tests.lab import netlink
from tests.lab.netns import Netns

HOOKS = {
    "prerouting": ("arrived", -310),
    "input": ("delivered", 310),
    "forward": ("routed", 310),
    "output": ("sent", -310),
    "postrouting": ("left", 310),
}
"""nftables' hook -> our word for it, and where in it we look."""

_GROUP = 77
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_HEAD = 64  # bytes of a packet that are copied: the IP header with options, or with the ports

# linux/netfilter/nfnetlink.h and nfnetlink_log.h
_NETLINK_NETFILTER = 12
_ULOG = 4 << 8
_PACKET, _CONFIG = _ULOG | 0, _ULOG | 1
_BIND = 1
_CFG_CMD, _CFG_MODE, _CFG_THRESHOLD = 1, 2, 5
_MARK, _INDEV, _OUTDEV, _PAYLOAD, _PREFIX = 2, 4, 5, 9, 10
_COPY_PACKET = 2
_REQUEST, _ACK = 1, 4

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}


@dataclass(frozen=True, slots=True)
class Hop:
    """One packet at one hook. Ports are 0 where there are none, devices "" where none is known yet.

    `kept` says whether the connection bore the bit at that moment which the trail was told to watch.
    """

    hook: str
    into: str
    out: str
    source: str
    destination: str
    protocol: str
    sport: int
    dport: int
    mark: int
    kept: bool

    def __str__(self) -> str:
        """For a reader of a failed assertion."""
        marks = (f" mark {self.mark:#x}" if self.mark else "") + (" kept" if self.kept else "")
        return (
            f"{self.hook} {self.into or '-'}>{self.out or '-'} {self.protocol}"
            f" {self.source}:{self.sport} > {self.destination}:{self.dport}{marks}"
        )


class Trail:
    """The observer of one namespace, there until `close()`.

    `bit`: of connections' marks, to be watched; 0 leaves the namespace without connection tracking
    where nothing else there needs it.
    """

    def __init__(self, netns: Netns, *, bit: int = 0) -> None:
        self._netns = netns
        self._hops: list[Hop] = []
        self._names: dict[int, str] = {0: ""}
        self._socket = netns.run(
            socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER
        )
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 23)
        except PermissionError:  # in a user namespace: as much as net.core.rmem_max lets us
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
        self._socket.bind((0, 0))
        for kind, value in (
            (_CFG_CMD, struct.pack("B", _BIND)),
            (_CFG_MODE, struct.pack("!IBx", _HEAD, _COPY_PACKET)),
            (_CFG_THRESHOLD, struct.pack("!I", 1)),  # each packet at once
        ):
            self._configure(kind, value)
        self._socket.setblocking(False)
        self._bit = bit
        self.resume()

    def hops(self, **wanted: Any) -> list[Hop]:
        """What has passed so far, in order; `wanted` are fields and the values they must have.

        OSError (ENOBUFS) if more came by than the socket could hold.
        """
        self._drain()
        return [
            hop
            for hop in self._hops
            if all(getattr(hop, field) == value for field, value in wanted.items())
        ]

    def forget(self) -> None:
        """Start afresh."""
        while self._overrun():
            pass
        self._hops.clear()

    def pause(self) -> None:
        """See nothing until `resume`: streams of packets are more than a socket holds."""
        self._netns.command("nft", "delete", "table", "ip", "lab_trail")

    def resume(self) -> None:
        """Look (again)."""
        self._netns.command("nft", "-f", "-", stdin="\n".join(_table(self._bit)))

    def close(self) -> None:
        """Take the observer away."""
        self.pause()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _configure(self, kind: int, value: bytes) -> None:
        attribute = struct.pack("HH", 4 + len(value), kind) + value
        body = struct.pack("!BBH", 0, 0, _GROUP) + attribute + b"\0" * (-len(value) % 4)
        self._socket.send(
            struct.pack("IHHII", 16 + len(body), _CONFIG, _REQUEST | _ACK, 1, 0) + body
        )
        code = -struct.unpack_from("i", self._socket.recv(4096), 16)[0]
        if code:
            raise OSError(code, f"nfnetlink_log: {errno.errorcode.get(code, code)}")

    def _overrun(self) -> bool:
        """Drain; True if the kernel says in between that it had to leave some out."""
        try:
            self._drain()
        except OSError as failed:
            if failed.errno != errno.ENOBUFS:
                raise
            return True
        return False

    def _drain(self) -> None:
        self._learn()
        while True:
            try:
                datagram = self._socket.recv(1 << 16)
            except BlockingIOError:
                return
            packets = (body for kind, body in netlink.messages(datagram) if kind == _PACKET)
            self._hops += filter(None, map(self._hop, packets))

    def _learn(self) -> None:
        """Names of the links by index; one that is gone keeps the name it had."""
        self._names |= dict(self._netns.run(socket.if_nameindex))

    def _hop(self, message: bytes) -> Hop | None:
        found = dict(netlink.attributes(message[4:]))
        packet, prefix = found.get(_PAYLOAD, b""), found[_PREFIX].rstrip(b"\0").decode()
        if len(packet) < 20:
            return None
        at = (packet[0] & 15) * 4
        ported = packet[9] in {6, 17} and len(packet) >= at + 4
        sport, dport = struct.unpack_from("!HH", packet, at) if ported else (0, 0)
        into, out = (
            int.from_bytes(found[kind]) if kind in found else 0 for kind in (_INDEV, _OUTDEV)
        )
        hook, _, kept = prefix.partition(" ")
        return Hop(
            hook=hook,
            into=self._names.get(into, str(into)),
            out=self._names.get(out, str(out)),
            source=str(ipaddress.IPv4Address(packet[12:16])),
            destination=str(ipaddress.IPv4Address(packet[16:20])),
            protocol=_PROTOCOLS.get(packet[9], str(packet[9])),
            sport=sport,
            dport=dport,
            mark=int.from_bytes(found.get(_MARK, b"")),
            kept=bool(kept),
        )


def _table(bit: int) -> Iterator[str]:
    yield "table ip lab_trail {"
    for hook, (word, priority) in HOOKS.items():
        yield f"chain {word} {{ type filter hook {hook} priority {priority}; policy accept;"
        if bit:
            log = f'log prefix "{word} kept" group {_GROUP}'
            yield f"ct mark & {bit:#x} == {bit:#x} {log} accept"
        yield f'log prefix "{word}" group {_GROUP}'
        yield "}"
    yield "}"
