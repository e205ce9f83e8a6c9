"""Who talks to whom: servers that tell a caller who he is, and connections that stay open.

A Listener answers every line of a TCP connection, and every UDP datagram, with the address it sees. So
the caller learns the far end's view: is the source translated, is the connection still one.

What does not belong here: the way between the two (`hops`).
"""

from __future__ import annotations

import contextlib
import http.client
import selectors
import socket
import threading
from typing import Self

from tests.lab.netns import Netns


class Listener:
    """A server on a port of a namespace, TCP and UDP, until `close()`; `name` prefixes its answers."""

    def __init__(self, netns: Netns, port: int, name: str = "") -> None:
        self._name = name
        self._selector = selectors.DefaultSelector()
        tcp = netns.run(socket.create_server, ("", port), backlog=64)
        udp = netns.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("", port))
        self._wake, woken = socket.socketpair()
        for each in (tcp, udp, woken):
            each.setblocking(False)
        self._selector.register(tcp, selectors.EVENT_READ, self._accept)
        self._selector.register(udp, selectors.EVENT_READ, self._answer_datagram)
        self._selector.register(woken, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._serve, name=f"listener-{port}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; open connections end."""
        self._wake.close()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                with contextlib.suppress(OSError):
                    key.data(key.fileobj)

    def _accept(self, server: socket.socket) -> None:
        connection, _ = server.accept()
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, self._answer)

    def _answer(self, connection: socket.socket) -> None:
        try:
            asked = connection.recv(4096)
        except OSError:
            asked = b""
        if not asked:
            self._selector.unregister(connection)
            connection.close()
            return
        host, port = connection.getpeername()
        connection.sendall(f"{self._name} {host} {port}\n".encode() * asked.count(b"\n"))

    def _answer_datagram(self, udp: socket.socket) -> None:
        _, peer = udp.recvfrom(4096)
        udp.sendto(f"{self._name} {peer[0]} {peer[1]}\n".encode(), peer)


class Call:
    """A TCP connection from a namespace, open until `close()`. OSError if it cannot be made."""

    def __init__(self, netns: Netns, address: str, port: int, *, wait: float = 2.0) -> None:
        self._socket = netns.run(socket.create_connection, (address, port), wait)
        self._answers = self._socket.makefile("r")

    @property
    def source(self) -> tuple[str, int]:
        """What the caller takes for its own address and port."""
        host, port = self._socket.getsockname()
        return str(host), int(port)

    def ask(self) -> tuple[str, str]:
        """(name of who answered, the source it sees), or OSError (TimeoutError) without an answer."""
        self._socket.sendall(b"who am I\n")
        answer = self._answers.readline()
        if not answer:
            raise ConnectionResetError("the far end has closed")
        name, host, _ = answer.split(" ")
        return name, host

    def close(self) -> None:
        """Hang up, and wait until the other side has: nothing of it is on its way afterwards."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            self._answers.read()
        self._answers.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask(netns: Netns, address: str, port: int, *, wait: float = 2.0) -> tuple[str, str]:
    """One short TCP conversation: who answered, and the source it saw."""
    with Call(netns, address, port, wait=wait) as call:
        return call.ask()


def ask_by_datagram(netns: Netns, address: str, port: int, *, wait: float = 2.0) -> tuple[str, str]:
    """One UDP question: who answered, and the source it saw. OSError (TimeoutError) without an answer."""
    with netns.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as caller:
        caller.settimeout(wait)
        caller.connect((address, port))
        caller.send(b"who am I\n")
        name, host, _ = caller.recv(4096).decode().split(" ")
        return name, host


def ask_metadata(netns: Netns, address: str, port: int, *, wait: float = 2.0) -> tuple[str, str]:
    """Which instance does the metadata service take the caller for? (its id, "")."""

    def inside() -> str:
        door = http.client.HTTPConnection(address, port, timeout=wait)
        door.request(
            "PUT", "/latest/api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        )
        token = door.getresponse().read().decode()
        headers = {"X-aws-ec2-metadata-token": token}
        door.request("GET", "/latest/meta-data/instance-id", headers=headers)
        answer = door.getresponse().read().decode()
        door.close()
        return answer

    return netns.run(inside), ""


ASK = {"tcp": ask, "udp": ask_by_datagram, "imds": ask_metadata}
"""By protocol."""
