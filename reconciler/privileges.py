"""Give up everything but CAP_NET_ADMIN, and keep one small root process to publish the conflist.

The daemon is started as root (a container runtime gives no ambient capabilities to other users) and
becomes an ordinary user before it serves anybody: `become` keeps exactly one capability, empties the
bounding set and forbids regaining any by exec. The folder of CNI configurations belongs to root, so
`Publisher`, forked before that, stays root's without a single capability and does one thing: put the
text it is sent in place by rename, once. See capabilities(7), prctl(2). Deciding what the text says or
when it may be published does not belong here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

from reconciler import errors

CAP_NET_ADMIN = 12
_CAP_LAST = 40
_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP, _PR_SET_KEEPCAPS, _PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 24, 8, 1, 38
_SIGTERM = 15

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, argument, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {argument}): {os.strerror(code)}")


def _capset(capabilities: int) -> None:
    """Make the permitted and effective sets equal to the bit mask; nothing is inheritable."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0))
    low, high = capabilities & 0xFFFFFFFF, capabilities >> 32
    data = ctypes.create_string_buffer(struct.pack("=6I", low, low, 0, high, high, 0))
    if _libc.capset(header, data) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"capset({capabilities:#x}): {os.strerror(code)}")


def effective() -> int:
    """The calling thread's effective capabilities as a bit mask."""
    with Path("/proc/thread-self/status").open(encoding="ascii") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    raise OSError(errno.ENOENT, "no CapEff in /proc/thread-self/status")


def _shrink_bounding_set(keep: int) -> None:
    """Drop what may ever be gained from the bounding set; needs CAP_SETPCAP, without it exec can give
    nothing to an ordinary user anyway (no_new_privs).
    """
    for capability in range(_CAP_LAST + 1):
        if capability == keep:
            continue
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError as refused:
            if refused.errno not in {errno.EPERM, errno.EINVAL}:
                raise


def become(uid: int) -> None:
    """Run on as user and group `uid` with CAP_NET_ADMIN alone; 0 keeps the present user.

    Must be called before threads are started. Refused when CAP_NET_ADMIN is not there to be kept.
    """
    if not effective() >> CAP_NET_ADMIN & 1:
        raise errors.Refused(
            "bad_setting",
            "the daemon needs CAP_NET_ADMIN: start it as root, it drops the rest itself",
        )
    _shrink_bounding_set(CAP_NET_ADMIN)
    if uid and os.getuid() == 0:
        _prctl(_PR_SET_KEEPCAPS, 1)
        with contextlib.suppress(PermissionError):  # a user namespace may forbid setgroups
            os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    _capset(1 << CAP_NET_ADMIN)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_all() -> None:
    """Keep no capability at all and forbid regaining any."""
    _shrink_bounding_set(-1)
    _capset(0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent's thread ends (prctl PR_SET_PDEATHSIG)."""
    _prctl(_PR_SET_PDEATHSIG, _SIGTERM)


class Publisher:
    """A forked process of the starting user, without capabilities, that puts one text in its place.

    `place` is run there with the text and may raise OSError. The process ends after the first success
    or when this one does.
    """

    def __init__(self, place: Callable[[str], None]) -> None:
        """Fork; call it before `become` and before any thread is started."""
        ask_read, self._ask = os.pipe()
        self._answer, answer_write = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._ask)
            os.close(self._answer)
            _publish_for(ask_read, answer_write, place)
        os.close(ask_read)
        os.close(answer_write)
        self._published = ""

    def publish(self, text: str) -> str:
        """Put `text` in place; the answer is empty on success, else what stood in the way.

        The same text again is no work; another text after a success is refused: a published conflist
        stays.
        """
        if self._published:
            return "" if text == self._published else "published already; restart to change it"
        payload = text.encode()
        try:
            os.write(self._ask, struct.pack("=I", len(payload)) + payload)
            answer = os.read(self._answer, 4096).decode()
        except OSError as failed:
            answer = str(failed)
        if answer == "ok":
            self._published = text
            self.close()
            return ""
        return answer or "the publishing process is gone; restart the daemon"

    def close(self) -> None:
        """End the process and take its exit status; closing twice is fine."""
        if self._pid:
            os.close(self._ask)
            os.close(self._answer)
            os.waitpid(self._pid, 0)
            self._pid = 0


def _publish_for(ask: int, answer: int, place: Callable[[str], None]) -> None:
    """The child's life: read a text, place it, answer; leave after a success or at end of file."""
    status = 1
    try:
        drop_all()
        while head := os.read(ask, 4):
            left, text = struct.unpack("=I", head)[0], b""
            while left > len(text):
                text += os.read(ask, left - len(text))
            try:
                place(text.decode())
            except OSError as failed:
                os.write(answer, str(failed).encode()[:4096])
                continue
            os.write(answer, b"ok")
            break
        status = 0
    finally:
        os._exit(status)
