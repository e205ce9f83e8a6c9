"""The unix socket: takes the launcher's calls in, hands them on in batches, carries the answers out.

One thread, one epoll. Everything that is ready at one wake-up is one batch, so that whoever handles
it can serve many pods with one commit; a peer that is slow, silent or talks nonsense delays nobody.
What a call means, or how it is answered, does not belong here.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Final

from cni import channel, spec, wire
from reconciler.call import Call

log = logging.getLogger(__name__)

PEER_SECONDS: Final = 5.0
"""How long a peer may take to send its whole request, and again to take its whole reply in."""
BACKLOG: Final = 4096
"""Connections the kernel keeps waiting while a batch is at work (capped by net.core.somaxconn)."""
ACCEPT_PAUSE: Final = 0.1
"""Seconds without accept after the process ran out of descriptors: nothing tells when one is free."""


class Server:
    """The socket at `path`; every batch of calls is given to `handler`, in the server's own thread.

    `handler` answers each call, now or later from another thread. If it raises, what it left
    unanswered is answered as an internal error. Only root is served (SO_PEERCRED), the socket file
    is for its owner alone, and a file that lies at the path is replaced: whoever makes a server
    must know that no other one lives there (the ledger's lock says so).
    """

    def __init__(self, path: Path, handler: Callable[[list[Call]], None]) -> None:
        self._handler = handler
        self._changed = threading.Condition()
        self._jobs: deque[Callable[[], None]] = deque()
        self._open: dict[Call, channel.Channel] = {}
        self._ending = 0
        self._unsent: deque[channel.Channel] = deque()
        self._watched: dict[int, channel.Channel] = {}
        self._accept_at: float | None = None
        self._stopping = False
        self._serving = False
        self._listener = _listen(path)
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="door", daemon=True)

    def start(self) -> None:
        """Serve; returns at once. Calls that came before this wait in the kernel's backlog."""
        self._serving = True
        self._thread.start()

    def run(self, job: Callable[[], None]) -> None:
        """Run `job` in the server's thread, between two batches, and wait for its end.

        What it raises is raised here. Before `start` and after `stop` it runs in the caller's thread,
        for then there are no batches; in the server's own thread it runs at once.
        """
        ended: futures.Future[None] = futures.Future()

        def report() -> None:
            try:
                job()
            except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
                ended.set_exception(error)
            else:
                ended.set_result(None)

        with self._changed:
            elsewhere = self._serving and threading.current_thread() is not self._thread
            if elsewhere:
                self._jobs.append(report)
        if elsewhere:
            self._wake()
        else:
            report()
        ended.result()

    def stop(self, timeout: float) -> None:
        """Take no more calls in, wait `timeout` seconds at most for the open ones, close all.

        What is still open then is told to try again later. The socket file stays: a dead one does
        no harm (the launcher is refused at once), and by now it may be a successor's.
        """
        self._stopping = True
        self._wake()
        if self._thread.ident is not None:
            self._thread.join()
        with self._changed:
            self._changed.wait_for(lambda: not self._open, timeout)
            left = list(self._open)
        self._refuse(left, spec.TRY_AGAIN_LATER, "the daemon is being stopped", "Try again.")
        with self._changed:
            self._changed.wait_for(lambda: not self._ending)
        for peer in [*self._watched.values(), *self._unsent]:
            peer.flush()
            peer.close()
        self._epoll.close()
        os.close(self._wake_fd)

    # ---------------------------------------------------------------- the server's thread

    def _run(self) -> None:
        while not self._stopping:
            batch: list[Call] = []
            for fd, _ in self._epoll.poll(self._patience()):
                if fd == self._wake_fd:
                    os.eventfd_read(self._wake_fd)
                elif fd == self._listener.fileno():
                    self._accept(batch)
                elif self._watched[fd].sending:
                    self._carry_on_sending(self._watched[fd])
                else:
                    self._receive(self._watched[fd], batch)
            self._watch_unsent()
            self._expire(time.monotonic())
            if batch:
                self._handle(batch)
            self._run_jobs()
        self._listener.close()
        with self._changed:
            self._serving = False
        self._run_jobs()

    def _run_jobs(self) -> None:
        while self._jobs:
            self._jobs.popleft()()

    def _patience(self) -> float | None:
        """Seconds until something is due although nothing happens; None if nothing is."""
        due = [peer.deadline for peer in self._watched.values()]
        if self._accept_at is not None:
            due.append(self._accept_at)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _accept(self, batch: list[Call]) -> None:
        """Take in whoever waits; most have sent their request by now, so try to read at once."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                log.error("cannot accept a connection: %s", error)  # noqa: TRY400 - no bug of ours
                self._epoll.modify(self._listener, 0)
                self._accept_at = time.monotonic() + ACCEPT_PAUSE
                return
            peer = channel.Channel(connection, time.monotonic() + PEER_SECONDS)
            uid, pid = peer.credentials()
            if uid == 0:
                self._receive(peer, batch)
            else:
                log.warning("refused a connection of uid %d, pid %d: only root is served", uid, pid)
                peer.close()

    def _receive(self, peer: channel.Channel, batch: list[Call]) -> None:
        """Read on; a peer whose request is complete leaves the epoll and joins the batch."""
        try:
            request = peer.receive()
        except spec.CniError as error:
            self._unwatch(peer)
            peer.reply(wire.encode_reply(wire.refusal(error)))
            peer.close()
        except (EOFError, OSError):
            self._unwatch(peer)
            peer.close()
        else:
            if request is None:
                self._watch(peer, select.EPOLLIN)
                return
            self._unwatch(peer)
            call = Call(request, peer.fds, peer.hung_up, self._end)
            with self._changed:
                self._open[call] = peer
            batch.append(call)

    def _handle(self, batch: list[Call]) -> None:
        try:
            self._handler(batch)
        except Exception:
            log.exception("the handler failed; the calls it left unanswered are refused")
            self._refuse(
                batch,
                spec.INTERNAL,
                "the daemon met an error of its own",
                "The call may be tried again; report the traceback in the daemon's log.",
            )

    def _watch(self, peer: channel.Channel, events: int) -> None:
        fd = peer.peer.fileno()
        if fd not in self._watched:
            self._watched[fd] = peer
            self._epoll.register(fd, events)

    def _unwatch(self, peer: channel.Channel) -> None:
        fd = peer.peer.fileno()
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _watch_unsent(self) -> None:
        while self._unsent:
            peer = self._unsent.popleft()
            peer.deadline = time.monotonic() + PEER_SECONDS
            self._watch(peer, select.EPOLLOUT)

    def _carry_on_sending(self, peer: channel.Channel) -> None:
        if peer.flush():
            self._unwatch(peer)
            peer.close()

    def _expire(self, now: float) -> None:
        if self._accept_at is not None and self._accept_at <= now:
            self._accept_at = None
            self._epoll.modify(self._listener, select.EPOLLIN)
        for peer in [peer for peer in self._watched.values() if peer.deadline <= now]:
            self._unwatch(peer)
            peer.close()

    # ------------------------------------------------------------------------ any thread

    def _end(self, call: Call, frame: bytes) -> None:
        with self._changed:
            peer = self._open.pop(call, None)
            if peer is None:
                raise RuntimeError("the call has been answered before")
            self._ending += 1
        peer.close_fds()
        if peer.reply(frame):
            peer.close()
        else:
            self._unsent.append(peer)
            self._wake()
        with self._changed:
            self._ending -= 1
            self._changed.notify_all()

    def _refuse(self, calls: list[Call], code: int, msg: str, details: str) -> None:
        """Answer those of the calls that are still open."""
        for call in calls:
            try:
                call.answer(wire.refusal(spec.CniError(code, msg, details)))
            except RuntimeError:
                continue

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)


def _listen(path: Path) -> socket.socket:
    """A listening socket that appears at `path` in one step, replacing what lies there."""
    new = path.with_name(f".{path.name}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        new.unlink(missing_ok=True)
        listener.bind(str(new))
        new.chmod(0o600)
        listener.listen(BACKLOG)
        new.replace(path)
    except OSError as error:
        listener.close()
        raise OSError(
            error.errno or errno.EINVAL,
            f"the socket {path} could not be made ({error}); its folder must exist and be writable,"
            " and the path must be shorter than 107 bytes",
        ) from error
    return listener
