"""The frames between launcher and daemon: what is asked, what is answered, byte for byte.

A connection carries one request and one reply. All integers are little-endian u32.

    request   length, body; body = "VLC1", flags, n, n x (length, "KEY=VALUE"), length, stdin
    reply     length, body; body = exit status, n, n x (u8 'h' or 'p', length, path, length, value),
              length, stdout

The request's first bytes carry the file descriptors its flags announce (SCM_RIGHTS), the network
namespace before the netlink socket. A spooled deletion is a request body in a file. The other half
of this is launcher.c. What the words mean is spec's; sockets belong to the server.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from cni import spec

MAGIC: Final = b"VLC1"
MAX_REQUEST: Final = 3 << 19
"""1.5 MiB: the launcher's limit for stdin (1 MiB) with ample room for the environment."""
MAX_REPLY: Final = 1 << 20
"""What the launcher takes; a longer reply is refused by encode_reply."""

HAS_NETNS: Final = 1
"""A file descriptor of the pod's network namespace is attached."""
HAS_NETLINK: Final = 2
"""A NETLINK_ROUTE socket opened in the pod's namespace is attached."""
NETNS_FAILED: Final = 4
"""CNI_NETNS was given but could not be opened or entered; NETNS_ERRNO in the environment says why."""
NETNS_ERRNO: Final = "VPCLEDGER_NETNS_ERRNO"

_KNOWN_FLAGS = HAS_NETNS | HAS_NETLINK | NETNS_FAILED
_MAX_ENV = 256
_U32 = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Request:
    """What the runtime handed to the launcher: the CNI_* variables and standard input."""

    env: Mapping[str, str]
    stdin: bytes = b""
    flags: int = 0

    @property
    def fds_announced(self) -> int:
        """How many file descriptors must come with it."""
        return bool(self.flags & HAS_NETNS) + bool(self.flags & HAS_NETLINK)

    @property
    def netns_errno(self) -> int | None:
        """The errno with which CNI_NETNS could not be entered; None when it was, or was not given."""
        if not self.flags & NETNS_FAILED:
            return None
        text = self.env.get(NETNS_ERRNO, "")
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 5 else 0


@dataclass(frozen=True, slots=True)
class Sysctl:
    """One file the launcher writes below /proc/sys/net/, in its own or in the pod's namespace.

    A file that does not exist is passed over (an IPv6 key on a kernel without IPv6).
    """

    where: Literal["host", "pod"]
    path: str
    value: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What the launcher does last: write the sysctls, print `stdout`, exit with `status`."""

    status: int = 0
    stdout: bytes = b""
    sysctls: tuple[Sysctl, ...] = field(default=())


def refusal(error: spec.CniError, cni_version: str = spec.FALLBACK_VERSION) -> Reply:
    """The reply that tells the runtime an error, in the version it speaks."""
    return Reply(status=1, stdout=error.render(cni_version))


def encode_request(request: Request) -> bytes:
    """The request's body, also the contents of a spooled deletion (without the length before it)."""
    parts = [MAGIC, _U32.pack(request.flags), _U32.pack(len(request.env))]
    for key, value in request.env.items():
        parts.append(_text(f"{key}={value}".encode()))
    parts.append(_text(request.stdin))
    return b"".join(parts)


def decode_request(body: bytes) -> Request:
    """The request in a body; CniError (DECODING_FAILURE) if it is not one."""
    if len(body) > MAX_REQUEST:
        raise _malformed(f"it is larger than {MAX_REQUEST} bytes")
    reader = _Reader(body)
    if reader.take(4) != MAGIC:
        raise _malformed("it does not begin as one")
    flags, count = reader.number(), reader.number()
    if flags & ~_KNOWN_FLAGS:
        raise _malformed(f"flags {flags:#x} are not known")
    if count > _MAX_ENV:
        raise _malformed(f"it has more than {_MAX_ENV} variables")
    env: dict[str, str] = {}
    for _ in range(count):
        key, equals, value = _utf8(reader.text()).partition("=")
        if not key or not equals or key in env:
            raise _malformed("a variable is not KEY=VALUE, or comes twice")
        env[key] = value
    request = Request(env, reader.text(), flags)
    reader.end()
    return request


def encode_reply(reply: Reply) -> bytes:
    """The whole reply frame, length included; ValueError for a reply the launcher would not take."""
    parts = [_U32.pack(reply.status), _U32.pack(len(reply.sysctls))]
    for sysctl in reply.sysctls:
        if sysctl.path.startswith("/") or ".." in sysctl.path:
            raise ValueError(f"{sysctl.path!r} leaves /proc/sys/net")
        where = b"h" if sysctl.where == "host" else b"p"
        parts += [where, _text(sysctl.path.encode()), _text(sysctl.value.encode())]
    parts.append(_text(reply.stdout))
    body = b"".join(parts)
    if len(body) > MAX_REPLY:
        raise ValueError(f"a reply of {len(body)} bytes is larger than {MAX_REPLY}")
    return _U32.pack(len(body)) + body


def decode_reply(body: bytes) -> Reply:
    """The reply in a body (the length before it taken off); CniError if it is not one."""
    reader = _Reader(body)
    status, count = reader.number(), reader.number()
    sysctls = []
    for _ in range(count):
        where = reader.take(1)
        if where not in {b"h", b"p"}:
            raise _malformed("a sysctl is for neither host nor pod")
        path, value = _utf8(reader.text()), _utf8(reader.text())
        sysctls.append(Sysctl("host" if where == b"h" else "pod", path, value))
    reply = Reply(status, reader.text(), tuple(sysctls))
    reader.end()
    return reply


class _Reader:
    """A place in a body; every step forward is checked."""

    __slots__ = ("_at", "_body")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def take(self, size: int) -> bytes:
        start, self._at = self._at, self._at + size
        if self._at > len(self._body):
            raise _malformed("it ends too soon")
        return self._body[start : self._at]

    def number(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def text(self) -> bytes:
        return self.take(self.number())

    def end(self) -> None:
        if self._at != len(self._body):
            raise _malformed("bytes follow its end")


def _text(value: bytes) -> bytes:
    return _U32.pack(len(value)) + value


def _utf8(value: bytes) -> str:
    if b"\0" in value:
        raise _malformed("a text holds NUL")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise _malformed("a text is not UTF-8") from None


def _malformed(why: str) -> spec.CniError:
    return spec.CniError(
        spec.DECODING_FAILURE,
        f"the frame could not be decoded: {why}",
        "Launcher and daemon must be of the same release: install the node's plugin again.",
    )
