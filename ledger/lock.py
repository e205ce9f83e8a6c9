"""One writer: an exclusive flock on a file beside the ledger, held as long as the writer lives.

SQLite's own locks are POSIX locks, which a process loses when any of its code closes a descriptor of
the same file; flock on a file that SQLite never touches cannot be lost that way. What is written
under the lock does not belong here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ledger import errors


class Lock:
    """The right to write the ledger at `path`, until `release` or the process ends.

    A forked child shares it: fork before taking it, or exec at once (the descriptor is closed there).
    """

    def __init__(self, path: Path) -> None:
        """Take the lock of the ledger at `path`.

        Raises errors.Locked if another process has it, OSError if there is no such folder.
        """
        file = path.with_name(path.name + ".lock")
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            holder = f"process {pid}" if pid else "another process"
            raise errors.Locked(
                f"{path} is being written by {holder}, which holds {file}. "
                "Stop that one first, or open the ledger read-only."
            ) from None
        with contextlib.suppress(
            OSError
        ):  # for people to read: a full disk must not forbid the lock
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let another write. The file stays: removing it would let two processes lock two files."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock of the ledger at `path` for the block."""
    lock = Lock(path)
    try:
        yield
    finally:
        lock.release()
