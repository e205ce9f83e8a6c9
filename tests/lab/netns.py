"""Network namespaces: made, named, entered by a thread of their own, let go.

A namespace is per thread, so `Netns.run` uses a thread of its own and the caller never moves. Sockets and
processes stay in the namespace they were made in.

What does not belong here: which namespaces a session has, and what is laid out in them.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

RUN = Path("/run/vpcledger-lab")
"""The session's own directory, on a tmpfs only the session sees."""

# linux/sched.h, linux/mount.h, linux/sockios.h, linux/if.h
NEWNET = 0x40000000
MS_BIND = 4096
_MNT_DETACH = 2
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1

_libc = ctypes.CDLL(None, use_errno=True)


def system_call(name: str, *args: Any) -> None:
    """Call a function of libc that answers 0; OSError if it does not."""
    if getattr(_libc, name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """The system call of that name; `options` are the filesystem's own."""
    text = [part.encode() for part in (source, target, kind)]
    system_call("mount", *text, ctypes.c_ulong(flags), options.encode())


class Netns:
    """A network namespace of its own (lo is up), held by a descriptor until `close()`.

    `name` additionally binds it to `RUN/netns/<name>` so that other processes can enter it by path
    (`nsenter --net=PATH`, `ip ... netns PATH`, CNI_NETNS). Needs the session, or root.
    """

    def __init__(self, name: str | None = None, *, directory: Path = RUN / "netns") -> None:
        self.bound = directory / name if name else None
        self.fd = _in_thread(self._make)

    @classmethod
    def here(cls) -> Self:
        """The namespace the calling thread is in, held open."""
        ns = cls.__new__(cls)
        ns.bound = None
        ns.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        return ns

    @classmethod
    def at(cls, path: str | Path) -> Self:
        """The namespace that somebody else has bound to a path, held open; OSError if it is not there."""
        ns = cls.__new__(cls)
        ns.bound = None
        ns.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return ns

    def _make(self) -> int:
        system_call("unshare", NEWNET)
        loopback_up()
        fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        if self.bound:
            self.bound.parent.mkdir(parents=True, exist_ok=True)
            self.bound.touch(exist_ok=False)
            mount("/proc/thread-self/ns/net", str(self.bound), "", MS_BIND)
        return fd

    @property
    def path(self) -> str:
        """A path by which processes of this session can open the namespace."""
        return str(self.bound) if self.bound else f"/proc/{os.getpid()}/fd/{self.fd}"

    def run(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`fn(*args)` in a thread that has entered the namespace: its result, or its exception.

        Sockets and processes made by `fn` belong to the namespace for good.
        """

        def inside() -> T:
            system_call("setns", self.fd, NEWNET)
            return fn(*args, **kwargs)

        return _in_thread(inside)

    def command(self, *argv: str, stdin: str = "") -> str:
        """Run a program inside; its standard output. RuntimeError with its words when it fails."""
        done = self.run(
            subprocess.run, argv, input=stdin, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
        return str(done.stdout)

    def sysctl(self, name: str, value: object | None = None) -> str:
        """Read (or first write) `net.<name>`, with slashes: `sysctl("ipv4/ip_forward", 1)`."""
        path = Path("/proc/sys/net") / name

        def inside() -> str:
            if value is not None:
                path.write_text(str(value))
            return path.read_text().strip()

        return self.run(inside)

    def await_up(self, device: str) -> None:
        """Return once the kernel sends by this device; TimeoutError after 5 s.

        The event for it may have passed before we could listen; to look costs 2 ms.
        """
        deadline = time.monotonic() + 5
        while self.command("ip", "-brief", "link", "show", device).split()[1] != "UP":
            if time.monotonic() > deadline:
                raise TimeoutError(f"{device} has no link")
            time.sleep(0.001)

    def close(self) -> None:
        """Let go. The kernel ends the namespace when no process or socket is left in it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.bound:
            unbind(self.bound)
            self.bound = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def unbind(path: Path) -> None:
    """Remove the name of a namespace, as the runtime does on its own; twice is fine."""
    with contextlib.suppress(OSError):
        system_call("umount2", str(path).encode(), _MNT_DETACH)
    path.unlink(missing_ok=True)


def _in_thread(fn: Callable[[], T]) -> T:
    box: list[tuple[bool, Any]] = []

    def body() -> None:
        try:
            box.append((True, fn()))
        except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is
            box.append((False, error))

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    good, value = box[0]
    if good:
        return value  # type: ignore[no-any-return]  # the box holds what fn returned
    raise value


def loopback_up() -> None:
    """Raise lo in the calling thread's namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
