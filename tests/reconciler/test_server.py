"""The server answers every call once, whoever else is slow or hostile, and leaves nothing open."""

from __future__ import annotations

import array
import json
import logging
import os
import queue
import random
import resource
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cni import spec, wire
from reconciler import server
from reconciler.call import Call
from tests.lab import spaces

PATIENCE = 10.0
"""Seconds after which a test gives up waiting for what must come at once."""

Handler = Callable[[list[Call]], None]


def open_fds() -> dict[str, str]:
    """Every open descriptor of this process and what it is."""
    fds = {}
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            fds[entry.name] = str(entry.readlink())
    return fds


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A socket path short enough for sockaddr_un."""
    return tmp_path_factory.mktemp("door") / "s"


@contextmanager
def serving(path: Path, handler: Handler, *, drain: float = PATIENCE) -> Iterator[server.Server]:
    """A server that is stopped at the end, having left no descriptor open."""
    before = open_fds()
    made = server.Server(path, handler)
    made.start()
    try:
        yield made
    finally:
        made.stop(drain)
    left = {fd: what for fd, what in open_fds().items() if before.get(fd) != what}
    assert left == {}


def echo(calls: list[Call]) -> None:
    for call in calls:
        call.answer(wire.Reply(stdout=call.request.stdin))


def collect(into: queue.Queue[Call]) -> Handler:
    """A handler that answers nothing and puts every call where the test takes it."""

    def handler(calls: list[Call]) -> None:
        for call in calls:
            into.put(call)

    return handler


def new_peer() -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.settimeout(PATIENCE)
    return peer


def connect(path: Path) -> socket.socket:
    peer = new_peer()
    try:
        peer.connect(str(path))
    except OSError:
        peer.close()
        raise
    return peer


def frame(stdin: bytes = b"", flags: int = 0, **env: str) -> bytes:
    body = wire.encode_request(wire.Request(env, stdin, flags))
    return struct.pack("<I", len(body)) + body


def read_all(peer: socket.socket) -> bytes:
    """Everything until the server closes; a reset (unread bytes on its side) ends it as well."""
    data = b""
    with suppress(ConnectionResetError):
        while chunk := peer.recv(1 << 16):
            data += chunk
    return data


def read_reply(peer: socket.socket) -> wire.Reply:
    data = read_all(peer)
    assert struct.unpack("<I", data[:4]) == (len(data) - 4,)
    return wire.decode_reply(data[4:])


def ask(path: Path, stdin: bytes = b"") -> wire.Reply:
    with connect(path) as peer:
        peer.sendall(frame(stdin))
        return read_reply(peer)


def refusal_code(reply: wire.Reply) -> int:
    assert reply.status == 1
    return int(json.loads(reply.stdout)["code"])


def send_fds(peer: socket.socket, data: bytes, fds: list[int]) -> None:
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
    peer.sendmsg([data], [rights])


def test_a_call_gets_its_answer(path: Path) -> None:
    with serving(path, echo):
        assert ask(path, b"hello") == wire.Reply(stdout=b"hello")


def test_the_socket_file_is_for_its_owner_alone(path: Path) -> None:
    with serving(path, echo):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_stale_socket_file_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with serving(path, echo):
        assert ask(path, b"1").stdout == b"1"
    with serving(path, echo):
        assert ask(path, b"2").stdout == b"2"


def test_a_folder_that_does_not_exist_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="its folder must exist"):
        server.Server(tmp_path / "absent" / "s", echo)


def test_a_caller_who_is_not_root_gets_nothing(path: Path) -> None:
    """Even where the file's mode would let it in."""
    if spaces.tier() == "single":
        pytest.skip("needs a second uid: run as root, or as a user with a line in /etc/subuid")
    seen: list[bytes] = []

    def handler(calls: list[Call]) -> None:
        seen.extend(call.request.stdin for call in calls)
        echo(calls)

    with serving(path, handler):
        path.chmod(0o666)
        for folder in path.parents:
            if folder == Path(tempfile.gettempdir()):
                break
            folder.chmod(0o755)
        program = (
            "import os, socket, sys; os.setgroups([]); os.setgid(1); os.setuid(1)\n"
            "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
            "s.sendall(bytes.fromhex(sys.argv[2])); print(s.recv(9))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(path), frame().hex()],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.stdout.strip() == "b''" or "Reset" in done.stderr or "Broken" in done.stderr
        assert ask(path, b"root").stdout == b"root"
    assert seen == [b"root"]


def test_descriptors_arrive_in_order_and_are_closed_with_the_answer(path: Path) -> None:
    seen: queue.Queue[tuple[Call, int, int]] = queue.Queue()

    def keep(calls: list[Call]) -> None:
        for call in calls:
            assert call.netns is not None
            assert call.netlink is not None
            seen.put((call, os.fstat(call.netns).st_ino, os.fstat(call.netlink).st_ino))

    first, second = os.pipe()
    with serving(path, keep), connect(path) as peer:
        send_fds(peer, frame(flags=wire.HAS_NETNS | wire.HAS_NETLINK), [first, second])
        call, netns, netlink = seen.get(timeout=PATIENCE)
        assert (netns, netlink) == (os.fstat(first).st_ino, os.fstat(second).st_ino)
        assert call.netns is not None
        assert not os.get_inheritable(call.netns)
        os.close(second)
        call.answer(wire.Reply())
        read_reply(peer)
        os.set_blocking(first, False)
        assert os.read(first, 1) == b""  # end of file: the copy sent was the last write end
    os.close(first)


def test_descriptors_are_let_go_before_the_answer_has_been_taken(path: Path) -> None:
    """A runtime that reads slowly must not keep its pod's namespace alive."""
    answered = threading.Event()

    def answer(calls: list[Call]) -> None:
        for call in calls:
            call.answer(wire.Reply(stdout=bytes(wire.MAX_REPLY - 12)))
        answered.set()

    first, second = os.pipe()
    with serving(path, answer), connect(path) as slow:
        send_fds(slow, frame(flags=wire.HAS_NETNS), [second])
        os.close(second)
        assert answered.wait(PATIENCE)
        os.set_blocking(first, False)
        assert os.read(first, 1) == b""
        read_reply(slow)
    os.close(first)


def test_one_descriptor_may_come_alone(path: Path) -> None:
    seen: queue.Queue[tuple[int | None, bool]] = queue.Queue()

    def look(calls: list[Call]) -> None:
        for call in calls:
            seen.put((call.netns, call.netlink is not None))
            call.answer(wire.Reply())

    with serving(path, look), Path("/dev/null").open("rb") as null, connect(path) as peer:
        send_fds(peer, frame(flags=wire.HAS_NETLINK), [null.fileno()])
        assert seen.get(timeout=PATIENCE) == (None, True)
        read_reply(peer)


def test_an_answer_may_come_later_from_another_thread(path: Path) -> None:
    waiting: queue.Queue[Call] = queue.Queue()

    def handler(calls: list[Call]) -> None:
        for call in calls:
            if call.request.stdin == b"wait":
                waiting.put(call)
            else:
                call.answer(wire.Reply(stdout=b"now"))

    with serving(path, handler), connect(path) as peer:
        peer.sendall(frame(b"wait"))
        call = waiting.get(timeout=PATIENCE)
        assert ask(path).stdout == b"now"
        call.answer(wire.Reply(stdout=b"later"))
        assert read_reply(peer).stdout == b"later"


def test_a_call_is_answered_exactly_once(path: Path) -> None:
    outcomes: queue.Queue[str] = queue.Queue()

    def twice(calls: list[Call]) -> None:
        for call in calls:
            call.answer(wire.Reply(stdout=b"first"))
            try:
                call.answer(wire.Reply(stdout=b"second"))
            except RuntimeError as error:
                outcomes.put(str(error))

    with serving(path, twice):
        assert ask(path).stdout == b"first"
        assert "before" in outcomes.get(timeout=PATIENCE)


def test_a_call_whose_caller_hung_up_is_handled_all_the_same(path: Path) -> None:
    waiting: queue.Queue[Call] = queue.Queue()

    with serving(path, collect(waiting)):
        with connect(path) as peer:
            peer.sendall(frame(b"bye"))
            call = waiting.get(timeout=PATIENCE)
            assert not call.hung_up()
        assert call.hung_up()
        assert call.request.stdin == b"bye"
        call.answer(wire.Reply(stdout=b"to nobody"))


def test_a_handler_that_raises_refuses_what_it_left_and_the_server_lives(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(calls: list[Call]) -> None:
        if calls[0].request.stdin == b"bad":
            raise ZeroDivisionError
        echo(calls)

    with serving(path, broken):
        assert refusal_code(ask(path, b"bad")) == spec.INTERNAL
        assert ask(path, b"good").stdout == b"good"
    assert "ZeroDivisionError" in caplog.text


def test_a_large_reply_reaches_a_slow_reader_whole(path: Path) -> None:
    """It does not fit into the socket: the server's thread sends the rest as room comes."""
    big = bytes(wire.MAX_REPLY - 12)

    def answer(calls: list[Call]) -> None:
        for call in calls:
            call.answer(wire.Reply(stdout=big))

    with serving(path, answer), connect(path) as slow:
        slow.sendall(frame())
        assert ask(path).stdout == big
        assert read_reply(slow).stdout == big


def test_64_callers_at_once_get_each_their_own_answer(path: Path) -> None:
    sizes: list[int] = []

    def handler(calls: list[Call]) -> None:
        sizes.append(len(calls))
        echo(calls)

    texts = [str(n).encode() * 50 for n in range(64 * 10)]
    with serving(path, handler), ThreadPoolExecutor(64) as pool:
        replies = list(pool.map(lambda text: ask(path, text), texts))
    assert [reply.stdout for reply in replies] == texts
    assert sum(sizes) == len(texts)


def test_calls_that_wait_together_are_one_batch(path: Path) -> None:
    batches: queue.Queue[int] = queue.Queue()
    gate = threading.Event()

    def handler(calls: list[Call]) -> None:
        batches.put(len(calls))
        gate.wait(PATIENCE)
        echo(calls)

    with serving(path, handler):
        peers = [connect(path)]
        peers[0].sendall(frame())
        assert batches.get(timeout=PATIENCE) == 1
        for _ in range(5):
            peers.append(connect(path))
            peers[-1].sendall(frame())
        gate.set()
        assert batches.get(timeout=PATIENCE) == 5
        for peer in peers:
            read_reply(peer)
            peer.close()


def test_a_request_in_pieces_is_put_together(path: Path) -> None:
    with serving(path, echo), connect(path) as peer:
        for byte in frame(b"piecemeal"):
            peer.send(bytes([byte]))
        assert read_reply(peer).stdout == b"piecemeal"


def test_a_peer_that_never_finishes_is_dropped_and_delays_nobody(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PEER_SECONDS", 0.3)
    with serving(path, echo), connect(path) as silent, connect(path) as half:
        half.sendall(frame(b"x" * 1000)[:500])
        assert ask(path, b"quick").stdout == b"quick"
        assert read_all(silent) == b""
        assert read_all(half) == b""


HOSTILE = {
    "length alone, too large": struct.pack("<I", wire.MAX_REQUEST + 1),
    "largest length": b"\xff" * 4,
    "empty body": bytes(4),
    "no magic": struct.pack("<I", 12) + bytes(12),
    "bytes after the end": frame() + b"x",
    "two requests": frame() * 2,
    "descriptors announced, none sent": frame(flags=wire.HAS_NETNS | wire.HAS_NETLINK),
    "unknown flags": struct.pack("<I", 16) + b"VLC1" + struct.pack("<III", 99, 0, 0),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_frame_is_told_so_and_leaves_nothing_open(path: Path, data: bytes) -> None:
    with serving(path, echo):
        with connect(path) as peer:
            peer.sendall(data)
            assert refusal_code(read_reply(peer)) == spec.DECODING_FAILURE
        assert ask(path, b"next").stdout == b"next"


@pytest.mark.parametrize("flags", [0, wire.HAS_NETNS | wire.HAS_NETLINK])
@pytest.mark.parametrize("count", [1, 3, 50])
def test_descriptors_nobody_announced_are_closed(path: Path, flags: int, count: int) -> None:
    """`serving` finds whatever stays open."""
    with serving(path, echo), Path("/dev/null").open("rb") as null, connect(path) as peer:
        send_fds(peer, frame(flags=flags), [null.fileno()] * count)
        assert refusal_code(read_reply(peer)) == spec.DECODING_FAILURE


def test_descriptors_of_a_peer_that_hangs_up_half_way_are_closed(path: Path) -> None:
    with serving(path, echo), Path("/dev/null").open("rb") as null:
        for cut in (1, 4, 10):
            with connect(path) as peer:
                send_fds(peer, frame(flags=wire.HAS_NETNS)[:cut], [null.fileno()])
        assert ask(path, b"next").stdout == b"next"


def test_random_bytes_do_no_harm(path: Path) -> None:
    dice = random.Random(4)
    with serving(path, echo):
        for _ in range(200):
            with connect(path) as peer, suppress(BrokenPipeError, ConnectionResetError):
                peer.sendall(dice.randbytes(dice.randrange(64)))
        assert ask(path, b"alive").stdout == b"alive"


def test_running_out_of_descriptors_pauses_accepting_and_passes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ACCEPT_PAUSE", 0.01)
    refused = threading.Event()
    notice = logging.Handler()
    monkeypatch.setattr(notice, "emit", lambda _: refused.set())
    monkeypatch.setattr(server.log, "handlers", [notice])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving(path, echo), new_peer() as peer:
        resource.setrlimit(resource.RLIMIT_NOFILE, (peer.fileno() + 1, limits[1]))
        try:
            peer.connect(str(path))
            peer.sendall(frame(b"late"))
            assert refused.wait(PATIENCE)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert read_reply(peer).stdout == b"late"


def test_a_job_runs_between_batches_in_the_servers_thread(path: Path) -> None:
    """`run` waits for its job, raises what it raises, and runs it in place when nobody serves."""
    seen: list[str] = []

    def job() -> None:
        seen.append(threading.current_thread().name)

    def failing() -> None:
        raise ValueError("of the job")

    made = server.Server(path, lambda _: None)
    made.run(job)
    made.start()
    made.run(job)
    made.run(lambda: made.run(job))
    with pytest.raises(ValueError, match="of the job"):
        made.run(failing)
    made.stop(1)
    made.run(job)

    here = threading.current_thread().name
    assert seen == [here, "door", "door", here]


def test_stop_waits_for_the_open_calls(path: Path) -> None:
    waiting: queue.Queue[Call] = queue.Queue()
    with new_peer() as peer:
        with serving(path, collect(waiting)):
            peer.connect(str(path))
            peer.sendall(frame())
            call = waiting.get(timeout=PATIENCE)
            later = threading.Timer(0.2, call.answer, [wire.Reply(stdout=b"done")])
            later.start()
        assert read_reply(peer).stdout == b"done"
        later.join()


def test_what_is_open_after_the_drain_is_told_to_try_again(path: Path) -> None:
    waiting: queue.Queue[Call] = queue.Queue()
    with new_peer() as peer:
        with serving(path, collect(waiting), drain=0):
            peer.connect(str(path))
            peer.sendall(frame())
            call = waiting.get(timeout=PATIENCE)
        assert refusal_code(read_reply(peer)) == spec.TRY_AGAIN_LATER
    with pytest.raises(RuntimeError):
        call.answer(wire.Reply())


def test_a_stopped_server_refuses_at_once(path: Path) -> None:
    with serving(path, echo):
        pass
    with pytest.raises(ConnectionRefusedError):
        connect(path)
