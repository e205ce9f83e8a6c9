"""The container runtime at arm's length: a small process of root's asks it, this one never does.

The runtime's socket is root's, and whoever holds it can do anything to the node; the daemon is an ordinary
user. So a process forked before the privileges go keeps root's user and no capability, takes one word,
and answers with the list of sandboxes. It cannot be made again once the privileges are gone: if it is lost
the runtime counts as silent, until the daemon's next start. What a list means does not belong here.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from ledger import model
from reconciler import privileges
from reconciler.planner import notation

PATIENCE_S: Final = 10.0
"""How long the process may take for an answer; it allows the runtime less."""

Seen = model.ObservedRuntime | model.Unknown


class Runtime:
    """Asks the process, one question at a time; threads may share it."""

    def __init__(self, look: Callable[[], Seen], patience_s: float = PATIENCE_S) -> None:
        """Fork; `look` runs there. Call it before `privileges.become` and before any thread starts."""
        self._turn = threading.Lock()
        self._patience = patience_s
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._rest = b""
        self._pid = os.fork()
        if self._pid == 0:
            self._ours.close()
            _answer_for(theirs, look)
        theirs.close()

    def observe(self) -> Seen:
        """The runtime's sandboxes, or Unknown."""
        with self._turn:
            asked = time.time_ns() // 1_000_000
            try:
                self._ours.sendall(b"?")
                seen = notation.read(json.loads(self._line()))
            except (OSError, ValueError) as lost:
                self._end()
                return model.Unknown(f"the process that asks the runtime is lost: {lost}", asked)
            assert isinstance(seen, model.ObservedRuntime | model.Unknown)
            return seen

    def close(self) -> None:
        """End the process; harmless twice."""
        with self._turn:
            self._end()

    def _line(self) -> bytes:
        deadline = time.monotonic() + self._patience
        while b"\n" not in self._rest:
            self._ours.settimeout(max(deadline - time.monotonic(), 0.001))
            more = self._ours.recv(1 << 16)
            if not more:
                raise OSError("it ended")
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _end(self) -> None:
        """One that answers late would answer the next question with this one's answer: it goes.

        It is another user's, so it cannot be killed; it ends with its pipe, after what it is at.
        """
        self._ours.close()
        if self._pid and os.waitpid(self._pid, os.WNOHANG)[0]:
            self._pid = 0


def _answer_for(asker: socket.socket, look: Callable[[], Seen]) -> None:
    """The child's life: for every octet that comes, look and answer with a line; leave at the end."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # a terminal's Ctrl-C is the daemon's to act on
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        privileges.die_with_parent()
        privileges.drop_all()
        while asker.recv(1):
            answer = json.dumps(notation.written(look())) + "\n"
            asker.sendall(answer.encode())
        status = 0
    finally:
        os._exit(status)
