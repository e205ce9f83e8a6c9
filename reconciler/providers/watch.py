"""News from the kernel: a socket in netlink's multicast groups, readable when something has changed.

What changed is not said, and news that were lost for lack of room are news too: look. Looking does not
belong here, and neither does what the groups are.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator, Sequence

from reconciler.providers import channel


class Watch:
    """Readable (`fileno`) when something has changed; `drain` takes the news in.

    Iterating waits for each piece of news in turn.
    """

    def __init__(self, listening: socket.socket, groups: Sequence[int]) -> None:
        """Have the socket join the kernel's groups; it is ours from now on."""
        self._socket = listening
        self._socket.bind((0, 0))  # without a port of its own a socket is told nothing
        for group in groups:
            self._socket.setsockopt(channel.SOL_NETLINK, channel.ADD_MEMBERSHIP, group)

    def fileno(self) -> int:
        """The descriptor to poll for reading."""
        return self._socket.fileno()

    def drain(self) -> bool:
        """Read all that is there; True if there was any."""
        news = False
        while True:
            try:
                self._socket.recv(channel.DATAGRAM, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return news
            except OSError as failed:
                if not channel.is_overrun(failed):
                    raise
            news = True

    def __iter__(self) -> Iterator[None]:
        """Wait for news, time after time, until the object is closed."""
        poll = select.poll()
        poll.register(self, select.POLLIN)
        while self.fileno() >= 0:
            poll.poll()
            if self.fileno() >= 0 and self.drain():
                yield

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()
