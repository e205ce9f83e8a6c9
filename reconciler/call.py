"""One request of the runtime on its way through the daemon: what came, and how it is answered.

How it came is the server's business, what is done about it the verbs'.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cni import wire


class Call:
    """One request that waits for its answer.

    `netns` and `netlink` are the descriptors that came with it (None where there was none). They
    stay open until the answer is given and belong to the call: use them, never close or keep them.
    A launcher that has gone away in the meantime changes nothing: a call is answered all the same.
    """

    __slots__ = ("_end", "arrived", "hung_up", "netlink", "netns", "request")

    def __init__(
        self,
        request: wire.Request,
        fds: list[int],
        hung_up: Callable[[], bool],
        end: Callable[[Call, bytes], None],
    ) -> None:
        self._end = end
        left = iter(fds)
        self.request = request
        self.netns = next(left) if request.flags & wire.HAS_NETNS else None
        self.netlink = next(left) if request.flags & wire.HAS_NETLINK else None
        self.arrived = time.monotonic()
        self.hung_up = hung_up
        """Ask, before the answer, whether the launcher is gone and nobody will read it."""

    def answer(self, reply: wire.Reply) -> None:
        """Send the reply and end the call: from any thread, exactly once (RuntimeError after that).

        Returns at once; what the socket does not take now, the server's thread sends later.
        """
        self._end(self, wire.encode_reply(reply))

    def give_back(self) -> None:
        """End the call without a reply, as a daemon that dies would: the launcher keeps a deletion then."""
        self._end(self, b"")
