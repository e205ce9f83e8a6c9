"""Frames survive the way there and back, and nothing that is not a frame passes for one."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni import spec, wire

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
KEY = TEXT.filter(lambda text: text and "=" not in text)
REQUESTS = st.builds(
    wire.Request,
    env=st.dictionaries(KEY, TEXT, max_size=6),
    stdin=st.binary(max_size=100),
    flags=st.integers(0, 7),
)
PATH = TEXT.filter(lambda text: not text.startswith("/") and ".." not in text)
SYSCTLS = st.builds(wire.Sysctl, where=st.sampled_from(["host", "pod"]), path=PATH, value=TEXT)
REPLIES = st.builds(
    wire.Reply,
    status=st.integers(0, 255),
    stdout=st.binary(max_size=100),
    sysctls=st.lists(SYSCTLS, max_size=4).map(tuple),
)


@given(request=REQUESTS)
def test_a_request_comes_back_as_it_went(request: wire.Request) -> None:
    assert wire.decode_request(wire.encode_request(request)) == request


@given(reply=REPLIES)
def test_a_reply_comes_back_as_it_went(reply: wire.Reply) -> None:
    frame = wire.encode_reply(reply)
    assert struct.unpack("<I", frame[:4]) == (len(frame) - 4,)
    assert wire.decode_reply(frame[4:]) == reply


@given(request=REQUESTS, cut=st.integers(1, 60))
def test_a_request_cut_short_is_refused(request: wire.Request, cut: int) -> None:
    body = wire.encode_request(request)
    with pytest.raises(spec.CniError) as refused:
        wire.decode_request(body[: max(0, len(body) - cut)])
    assert refused.value.code == spec.DECODING_FAILURE


@given(body=st.binary(max_size=80), whole=st.booleans())
def test_random_bytes_raise_a_cni_error_or_nothing(body: bytes, whole: bool) -> None:
    """No other exception, whether or not they begin as a request does."""
    with suppress(spec.CniError):
        wire.decode_request(wire.MAGIC + body if whole else body)
    with suppress(spec.CniError):
        wire.decode_reply(body)


def text(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"VLC2" + bytes(12),
        b"VLC1" + struct.pack("<II", 8, 0) + text(b""),
        b"VLC1" + struct.pack("<II", 0, 0xFFFFFFFF) + text(b""),
        b"VLC1" + struct.pack("<II", 0, 1) + text(b"CNI_COMMAND") + text(b""),
        b"VLC1" + struct.pack("<II", 0, 1) + text(b"=x") + text(b""),
        b"VLC1" + struct.pack("<II", 0, 2) + text(b"A=1") + text(b"A=2") + text(b""),
        b"VLC1" + struct.pack("<II", 0, 1) + text(b"A=\xff") + text(b""),
        b"VLC1" + struct.pack("<II", 0, 1) + text(b"A=\0") + text(b""),
        b"VLC1" + struct.pack("<III", 0, 0, 0xFFFFFFFF),
        b"VLC1" + struct.pack("<II", 0, 0) + text(b"") + b"x",
        b"VLC1" + struct.pack("<II", 0, 0) + text(bytes(wire.MAX_REQUEST)),
    ],
    ids=range(12),
)
def test_a_body_that_is_nearly_a_request_is_refused(body: bytes) -> None:
    with pytest.raises(spec.CniError) as refused:
        wire.decode_request(body)
    assert refused.value.code == spec.DECODING_FAILURE


@pytest.mark.parametrize(
    ("flags", "errno_text", "announced", "errno"),
    [
        (0, None, 0, None),
        (wire.HAS_NETNS | wire.HAS_NETLINK, None, 2, None),
        (wire.HAS_NETLINK, None, 1, None),
        (wire.NETNS_FAILED, "2", 0, 2),
        (wire.NETNS_FAILED, None, 0, 0),
        (wire.NETNS_FAILED, "\u0662", 0, 0),
        (0, "2", 0, None),
    ],
)
def test_flags_say_what_came_with_the_request(
    flags: int, errno_text: str | None, announced: int, errno: int | None
) -> None:
    env = {} if errno_text is None else {wire.NETNS_ERRNO: errno_text}
    request = wire.Request(env, flags=flags)
    assert (request.fds_announced, request.netns_errno) == (announced, errno)


@pytest.mark.parametrize("path", ["/etc/passwd", "../kernel/core_pattern", "ipv4/../../kernel/x"])
def test_a_sysctl_outside_the_network_is_never_sent(path: str) -> None:
    with pytest.raises(ValueError, match="leaves"):
        wire.encode_reply(wire.Reply(sysctls=(wire.Sysctl("host", path, "1"),)))


def test_a_reply_the_launcher_would_not_take_is_never_sent() -> None:
    with pytest.raises(ValueError, match="larger"):
        wire.encode_reply(wire.Reply(stdout=bytes(wire.MAX_REPLY)))


def test_a_refusal_ends_with_status_one_and_the_error_object() -> None:
    error = spec.CniError(spec.TRY_AGAIN_LATER, "no address yet", "Wait.")
    assert wire.refusal(error, "0.4.0") == wire.Reply(1, error.render("0.4.0"))
