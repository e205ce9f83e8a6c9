"""Requests and answers over a socket whose other end says what a busy kernel may say."""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from reconciler.providers import channel, netlink, rtnetlink


class Scripted(socket.socket):
    """One end of a pair, in place of a netlink socket; its options mean nothing here."""

    def setsockopt(self, *_: object) -> None:
        """Netlink's options are none of this kind of socket's."""


@pytest.fixture
def ends() -> Iterator[tuple[Scripted, socket.socket]]:
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kernels.settimeout(5)
    with Scripted(fileno=ours.detach()) as near, kernels:
        yield near, kernels


def link(name: str, flags: int, seq: int) -> bytes:
    body = struct.pack("=BxHiII", 0, 1, 7, 1, 0)
    body += netlink.text(3, name) + netlink.u32(4, 1500)
    return struct.pack("=IHHII", 16 + len(body), rtnetlink.NEWLINK, flags, seq, 0) + body


def done(flags: int, seq: int, code: int = 0) -> bytes:
    return struct.pack("=IHHIIi", 20, netlink.DONE, flags, seq, 0, code)


def asked(kernels: socket.socket) -> int:
    """The number of the request that came."""
    return int(struct.unpack_from("=I", kernels.recv(4096), 8)[0])


@pytest.mark.parametrize("marked", ["entry", "end"])
def test_a_dump_that_something_interrupted_is_asked_for_again(
    ends: tuple[Scripted, socket.socket], marked: str
) -> None:
    """Whether an entry or the end of it says so (NLM_F_DUMP_INTR); what it said is thrown away."""
    near, kernels = ends

    def answer() -> None:
        seq = asked(kernels)
        flag = netlink.DUMP_INTERRUPTED
        kernels.send(link("half", flag if marked == "entry" else 0, seq))
        kernels.send(done(flag if marked == "end" else 0, seq))
        seq = asked(kernels)
        kernels.send(link("whole", 0, seq))
        kernels.send(done(0, seq))

    thread = threading.Thread(target=answer)
    thread.start()
    found = rtnetlink.links(channel.Channel(near).dump(rtnetlink.dump(rtnetlink.GETLINK)))
    thread.join()

    assert [each.link.name for each in found] == ["whole"]


def test_a_kernel_that_never_holds_still_is_an_error_in_the_end(
    ends: tuple[Scripted, socket.socket],
) -> None:
    near, kernels = ends
    stop = threading.Event()

    def answer() -> None:
        while not stop.is_set():
            try:
                seq = asked(kernels)
            except (TimeoutError, struct.error):
                return
            kernels.send(done(netlink.DUMP_INTERRUPTED, seq))

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(OSError, match="change faster") as raised:
        channel.Channel(near).dump(rtnetlink.dump(rtnetlink.GETLINK))
    stop.set()
    near.close()
    thread.join()

    assert raised.value.errno == errno.EINTR


def test_a_dump_that_fails_at_its_end_is_an_error(ends: tuple[Scripted, socket.socket]) -> None:
    near, kernels = ends
    thread = threading.Thread(target=lambda: kernels.send(done(0, asked(kernels), -errno.ENOBUFS)))
    thread.start()
    with pytest.raises(OSError) as raised:
        channel.Channel(near).dump(rtnetlink.dump(rtnetlink.GETLINK))
    thread.join()

    assert raised.value.errno == errno.ENOBUFS


def test_an_answer_to_somebody_elses_question_is_passed_over(
    ends: tuple[Scripted, socket.socket],
) -> None:
    near, kernels = ends

    def answer() -> None:
        seq = asked(kernels)
        kernels.send(link("another", 0, seq - 100))
        kernels.send(done(0, seq - 100))
        kernels.send(link("mine", 0, seq))

    thread = threading.Thread(target=answer)
    thread.start()
    (answered,) = channel.Channel(near).ask([rtnetlink.find_link("mine")])
    thread.join()

    assert [each.link.name for each in rtnetlink.links([answered.data])] == ["mine"]


def refusal(seq: int, code: int) -> bytes:
    """NLMSG_ERROR with the head of the message it is about; code 0 acknowledges."""
    return struct.pack("=IHHIIi", 36, netlink.ERROR, 0x100, seq, 0, -code) + bytes(16)


def flags_of(datagram: bytes) -> list[int]:
    return [frame.flags for frame in netlink.frames(datagram)]


def test_the_last_alone_is_acknowledged_and_every_refusal_is_heard(
    ends: tuple[Scripted, socket.socket],
) -> None:
    """The kernel tells a refusal also of what asked for no acknowledgement, in the messages' order."""
    near, kernels = ends
    sent: list[bytes] = []

    def answer() -> None:
        sent.append(kernels.recv(4096))
        (first, *_) = (frame.seq for frame in netlink.frames(sent[0]))
        kernels.send(refusal(first + 1, errno.ENODEV))
        kernels.send(refusal(first + 2, 0))

    thread = threading.Thread(target=answer)
    thread.start()
    answers = channel.Channel(near).ask([rtnetlink.set_link(nth, up=True) for nth in (1, 2, 3)])
    thread.join()

    assert [each.refusal and each.refusal.code for each in answers] == [None, "ENODEV", None]
    acknowledged = [bool(flags & netlink.ACK) for flags in flags_of(sent[0])]
    assert acknowledged == [False, False, True]


def test_a_question_that_is_passed_over_is_an_error(ends: tuple[Scripted, socket.socket]) -> None:
    near, kernels = ends
    thread = threading.Thread(target=lambda: kernels.send(refusal(asked(kernels) + 1, 0)))
    thread.start()
    with pytest.raises(OSError) as raised:
        channel.Channel(near).ask([rtnetlink.find_link("x"), rtnetlink.set_link(1, up=True)])
    thread.join()

    assert raised.value.errno == errno.EPROTO
