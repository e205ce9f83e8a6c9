"""One launcher's connection, seen from the daemon: a request comes in, a reply goes out.

The socket never blocks; no more is believed or kept than a request may hold, and every descriptor
that arrives is closed when the channel is. Who may connect, when to give up waiting and what to
answer belong to the server.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from typing import Final

from cni import spec, wire

MAX_FDS: Final = 2

_CHUNK = 1 << 16
_FD_SPACE = socket.CMSG_SPACE(MAX_FDS * 4)
_LENGTH = struct.Struct("<I")
_UCRED = struct.Struct("3i")


class Channel:
    """A peer from connect to close; `deadline` (monotonic seconds) is kept here for the server.

    `fds` are the descriptors that came with the request, in the order they were sent.
    """

    __slots__ = ("_inbox", "_outbox", "deadline", "fds", "peer")

    def __init__(self, peer: socket.socket, deadline: float) -> None:
        peer.setblocking(False)
        self.peer = peer
        self.deadline = deadline
        self.fds: list[int] = []
        self._inbox = bytearray()
        self._outbox = memoryview(b"")

    def credentials(self) -> tuple[int, int]:
        """(uid, pid) of who connected, as this user namespace sees them (SO_PEERCRED, unix(7))."""
        creds = self.peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, _ = _UCRED.unpack(creds)
        return uid, pid

    def hung_up(self) -> bool:
        """Whether nobody holds the other end any more."""
        poll = select.poll()
        poll.register(self.peer, 0)  # a hang-up is reported unasked
        return bool(poll.poll(0))

    def receive(self) -> wire.Request | None:
        """The request once all of it is there, None before that.

        EOFError if the peer hung up, CniError if what it sends cannot be a request.
        """
        while True:
            try:
                data, ancillary, flags, _ = self.peer.recvmsg(
                    _CHUNK, _FD_SPACE, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return None
            for level, kind, payload in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self.fds += struct.unpack(f"{len(payload) // 4}i", payload)
            if not data:
                raise EOFError
            if flags & socket.MSG_CTRUNC or len(self.fds) > MAX_FDS:
                raise _refused(f"more than {MAX_FDS} file descriptors came with it")
            self._inbox += data
            request = self._request()
            if request is not None:
                return request

    def _request(self) -> wire.Request | None:
        if len(self._inbox) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._inbox)
        if length > wire.MAX_REQUEST:
            raise _refused(f"{length} bytes were announced, {wire.MAX_REQUEST} are allowed")
        missing = _LENGTH.size + length - len(self._inbox)
        if missing < 0:
            raise _refused("bytes follow its end")
        if missing:
            return None
        request = wire.decode_request(bytes(self._inbox[_LENGTH.size :]))
        if request.fds_announced != len(self.fds):
            raise _refused("its flags and its file descriptors differ")
        self._inbox.clear()
        return request

    def reply(self, frame: bytes) -> bool:
        """Begin to send an encoded reply; False if `flush` must finish it when there is room."""
        self._outbox = memoryview(frame)
        return self.flush()

    def flush(self) -> bool:
        """Send what the socket takes; True once nothing is left to send, or nobody to take it."""
        try:
            while self._outbox:
                sent = self.peer.send(self._outbox, socket.MSG_NOSIGNAL)
                self._outbox = self._outbox[sent:]
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    @property
    def sending(self) -> bool:
        """Whether a reply has begun to go out and has not all gone."""
        return bool(self._outbox)

    def close_fds(self) -> None:
        """Let go of the pod's namespace: an open descriptor would keep it alive."""
        while self.fds:
            os.close(self.fds.pop())

    def close(self) -> None:
        """Close the connection and whatever came with it."""
        self.close_fds()
        self.peer.close()


def _refused(why: str) -> spec.CniError:
    return spec.CniError(
        spec.DECODING_FAILURE,
        f"the request was refused: {why}",
        "Launcher and daemon must be of the same release: install the node's plugin again.",
    )
