"""The container runtime's sandboxes, asked of its CRI socket: `observe`, and nothing that could change one.

One gRPC call, RuntimeService/ListPodSandbox (cri-api, runtime/v1/api.proto), in the few HTTP/2 frames that
it takes (RFC 9113): gRPC's own library costs 20 MB and threads of its own, and this runs in a small process.
Its answer is read to the last byte or is no answer. Who may open the socket, and what a sandbox that is
not listed means, do not belong here.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from ledger import model

METHOD = "/runtime.v1.RuntimeService/ListPodSandbox"
PATIENCE_S = 5.0
"""How long the whole call may take; a runtime that is slower has not answered."""
MOST_BYTES = 16 * 1024 * 1024
"""The largest answer taken: what CRI's own clients allow."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, section 3.4
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_ACK = _END_STREAM = 0x1
_END_HEADERS, _PADDED = 0x4, 0x8
_INITIAL_WINDOW_SIZE = 4  # RFC 9113, section 6.5.2
_WINDOW = 2**31 - 1
_STREAM = 1
_READY = 0  # enum PodSandboxState: SANDBOX_READY


class _NoAnswerError(Exception):
    """The runtime did not say what it has; the sentence says what it said instead."""


def observe(path: str, patience_s: float = PATIENCE_S) -> model.ObservedRuntime | model.Unknown:
    """All sandboxes the runtime at the Unix socket `path` knows, ready or not; Unknown with the reason."""
    asked = time.time_ns() // 1_000_000
    try:
        with socket.socket(socket.AF_UNIX) as peer:
            message = _call(peer, path, time.monotonic() + patience_s)
        return model.ObservedRuntime(asked, tuple(_sandboxes(message)))
    except (OSError, _NoAnswerError) as failed:
        return model.Unknown(f"{path}: {failed}", asked)


def present(path: str) -> bool:
    """Is there a runtime's socket? One in a folder that is closed to this user may well be."""
    try:
        return Path(path).exists()
    except OSError:
        return True


def _call(peer: socket.socket, path: str, deadline: float) -> bytes:
    """The answer's protobuf message."""
    peer.settimeout(max(deadline - time.monotonic(), 0.001))
    peer.connect(path)
    window = struct.pack(">HI", _INITIAL_WINDOW_SIZE, _WINDOW)
    peer.sendall(
        _PREFACE
        + _frame(_SETTINGS, 0, 0, window)
        + _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _WINDOW - 65_535))
        + _frame(_HEADERS, _END_HEADERS, _STREAM, _headers())
        + _frame(_DATA, _END_STREAM, _STREAM, b"\0\0\0\0\0")  # an empty ListPodSandboxRequest
    )
    body = b""
    for kind, flags, payload in _frames(peer, deadline):
        if kind == _SETTINGS and not flags & _ACK:
            peer.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            peer.sendall(_frame(_PING, _ACK, 0, payload))
        elif kind == _DATA:
            body += payload[1 : len(payload) - payload[0]] if flags & _PADDED else payload
            if len(body) > MOST_BYTES:
                raise _NoAnswerError(f"the answer is longer than {MOST_BYTES} bytes")
        elif kind in {_RST_STREAM, _GOAWAY}:
            raise _NoAnswerError("the runtime refused the call; does it speak CRI v1?")
        if kind in {_DATA, _HEADERS} and flags & _END_STREAM:
            return _message(body)
    raise _NoAnswerError("the runtime hung up")


def _message(body: bytes) -> bytes:
    """What a body holds: gRPC sends none with an error, whose code is in the trailers."""
    if len(body) < 5:
        raise _NoAnswerError("the runtime answered with an error; does it speak CRI v1?")
    compressed, size = struct.unpack(">BI", body[:5])
    if compressed or len(body) != 5 + size:
        raise _NoAnswerError("the runtime's answer is not one plain message")
    return body[5:]


def _headers() -> bytes:
    """The request's fields, each literal, never indexed and not Huffman coded (RFC 7541, 6.2.2)."""
    fields = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", METHOD.encode()),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
    return b"".join(
        bytes([0, len(name)]) + name + bytes([len(value)]) + value for name, value in fields
    )


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113, section 4.1: 24 bits of length, type, flags, stream."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _frames(peer: socket.socket, deadline: float) -> Iterator[tuple[int, int, bytes]]:
    """Type, flags and payload of what concerns the connection or our one stream."""
    while True:
        head = _exactly(peer, 9, deadline)
        kind, flags, stream = struct.unpack(">BBI", head[3:])
        payload = _exactly(peer, int.from_bytes(head[:3], "big"), deadline)
        if stream & 0x7FFFFFFF in {0, _STREAM}:
            yield kind, flags, payload


def _exactly(peer: socket.socket, size: int, deadline: float) -> bytes:
    parts: list[bytes] = []
    while size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise _NoAnswerError("the runtime did not answer in time")
        peer.settimeout(left)
        part = peer.recv(min(size, 1 << 16))
        if not part:
            raise _NoAnswerError("the runtime hung up")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


# --------------------------------------------------------------------------- protobuf


def _sandboxes(message: bytes) -> Iterator[model.Sandbox]:
    """ListPodSandboxResponse: `items` is field 1."""
    for number, value in _fields(message):
        if number == 1 and isinstance(value, bytes):
            yield _sandbox(value)


def _sandbox(message: bytes) -> model.Sandbox:
    """PodSandbox: id 1, metadata 2 (name 1, uid 2, namespace 3), state 3, created_at 4 (ns)."""
    fields = dict(_fields(message))
    metadata = dict(_fields(_bytes(fields.get(2, b""))))
    state, created = fields.get(3, _READY), fields.get(4, 0)
    return model.Sandbox(
        _bytes(fields.get(1, b"")).decode(),
        pod_namespace=_bytes(metadata.get(3, b"")).decode(),
        pod_name=_bytes(metadata.get(1, b"")).decode(),
        pod_uid=_bytes(metadata.get(2, b"")).decode(),
        ready=state == _READY,
        created_at=created // 1_000_000 if isinstance(created, int) else 0,
    )


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise _NoAnswerError("the runtime's answer is not what CRI v1 says")
    return value


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field (protobuf encoding: varint 0, 64 bit 1, length 2, 32 bit 5)."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        match key & 7:
            case 0:
                value, at = _varint(message, at)
                yield key >> 3, value
            case 1:
                at += 8
            case 2:
                size, at = _varint(message, at)
                yield key >> 3, message[at : at + size]
                at += size
            case 5:
                at += 4
            case kind:
                raise _NoAnswerError(f"the runtime's answer has wire type {kind}")
    if at != len(message):
        raise _NoAnswerError("the runtime's answer is cut short")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        octet = message[at]
        value |= (octet & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if octet < 0x80:
            return value, at
    raise _NoAnswerError("the runtime's answer is cut short")
