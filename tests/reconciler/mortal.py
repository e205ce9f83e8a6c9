"""The daemon as a process that dies by SIGKILL at its n-th act, and comes back in a few hundredths of a second.

`python -m tests.reconciler.mortal` makes the daemon's imports once and forks a daemon of itself for each line on
standard input, which is the number of its last act (see mortal.c). From `main(["daemon"])` on it is what the
console script runs; for the lives that shall have nothing in common there is `Mortal.born`. Whoever is asked for
while it lives, and what has to hold afterwards, do not belong here.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Self

from tests.lab.node import Node

LAST = "died before "
SOURCE = Path(__file__).with_name("mortal.c")


def built(folder: Path) -> Path:
    """The library to preload."""
    library = folder / "mortal.so"
    if not library.exists():
        partial = folder / f"mortal-{os.getpid()}.so"
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-O1", "-o", str(partial), str(SOURCE), "-ldl"], check=True
        )
        partial.replace(library)
    return library


class Mortal:
    """Lives of one node's daemon, one after the other."""

    def __init__(self, node: Node, library: Path) -> None:
        self._node, self._log = node, node.log.open("ab")
        self._environment = node.environment_of_product() | {
            "LD_PRELOAD": str(library),
            "MORTAL_FOLDER": str(node.state),
        }
        self._mother = node.netns.run(
            subprocess.Popen,
            [sys.executable, "-m", "tests.reconciler.mortal"],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
        )

    def live(self, acts: int) -> int:
        """One life that ends at this act, forked; returns its exit status (-9)."""
        assert self._mother.stdin
        assert self._mother.stdout
        self._mother.stdin.write(f"{acts}\n")
        return int(self._mother.stdout.readline())

    def born(self, acts: int) -> int:
        """The same by the console script: a process with nothing of another's in it."""
        daemon = self._node.netns.run(
            subprocess.Popen,
            self._node.daemon_command(),
            env=self._environment | {"MORTAL_AFTER": str(acts)},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        status = daemon.wait()
        _end_group(daemon.pid)
        return status

    def deaths(self) -> Counter[str]:
        """How many of the lives ended before which kind of act, as their last words in the log say."""
        said = self._node.log.read_text(errors="replace").splitlines()
        return Counter(line.removeprefix(LAST) for line in said if line.startswith(LAST))

    def close(self) -> None:
        """No more lives."""
        assert self._mother.stdin
        with self._mother:
            self._mother.stdin.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _end_group(leader: int) -> None:
    """What a dead container's other processes meet before it is started again.

    Their parent is init now, so nobody tells us when the last one is gone.
    """
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(leader, signal.SIGKILL)
            time.sleep(0.001)


def _mother() -> None:
    """Fork a daemon for each line, wait for its end and say how it came."""
    from reconciler import cli, daemon  # noqa: F401 - its imports are what is shared

    arm = ctypes.CDLL(None).mortal_after
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setsid()
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(2, 1)
                arm(int(line))
                status = cli.main(["daemon"])
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        _end_group(child)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _mother()
