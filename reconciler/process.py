"""A daemon as a process: the folders it owns, and the signals that end it or ask it for a look.

What it does until then does not belong here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from reconciler import audit
from reconciler import settings as knobs

log = logging.getLogger(__name__)


class End:
    """What the main thread waits for: SIGTERM, SIGINT, or the death of a thread that is needed.

    The kernel may hand a signal to any thread (signal(7)), and CPython runs its handler in the main
    one, which a lock it waits for would never let go; a socket that the signal itself writes to does.
    """

    def __init__(self) -> None:
        """Signals are heard from now on; the main thread has to make it."""
        self.broken, self._wanted, self._look = False, False, False
        self._told, self._tell = socket.socketpair()
        self._tell.setblocking(False)
        signal.set_wakeup_fd(self._tell.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._want())
        signal.signal(audit.LOOK_NOW, lambda *_: self._want_a_look())
        threading.excepthook = self._thread_died

    def wait(self, look: Callable[[], None] = lambda: None) -> None:
        """Until it is time to end; `look` whenever somebody has asked for one."""
        while not self._wanted:
            self._told.recv(64)
            if self._look:
                self._look = False
                look()

    def _want_a_look(self) -> None:
        self._look = True

    def within(self, seconds: float) -> bool:
        """Wait so long for it; True once it is time to end."""
        self._told.settimeout(seconds)
        with contextlib.suppress(TimeoutError):
            while not self._wanted:
                self._told.recv(64)
        self._told.settimeout(None)
        return self._wanted

    def _want(self) -> None:
        self._wanted = True

    def _thread_died(self, died: threading.ExceptHookArgs) -> None:
        """A door or a watch that is gone serves nobody: end, and be started again from the ledger."""
        log.critical("thread %s died", died.thread, exc_info=died.exc_value)
        self.broken = True
        self._want()
        with contextlib.suppress(BlockingIOError):  # it has been woken often enough
            self._tell.send(b"\0")


def prepare_folders(settings: knobs.Settings) -> None:
    """Make the state, spool and run folders and give what is in them to the daemon's user.

    Files may be root's after a look with `vpcledger sql` while the daemon was down.
    """
    folders = (settings.state_dir, settings.run_dir, *settings.spool_dirs)
    for folder in folders:
        Path(folder).mkdir(mode=0o755, parents=True, exist_ok=True)
    if os.getuid() != 0 or settings.uid == 0:
        return
    for folder in folders:
        os.chown(folder, settings.uid, settings.uid)
        for each in os.scandir(folder):
            if each.is_file(follow_symlinks=False) or each.is_dir(follow_symlinks=False):
                os.chown(each.path, settings.uid, settings.uid, follow_symlinks=False)
