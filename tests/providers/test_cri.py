"""The runtime's list of sandboxes: as a real containerd serves it, and whatever a sick one may say."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ledger import model
from reconciler import runtime
from reconciler.providers import cri
from tests.lab import spaces

CONFIG = """\
version = 2
root = "{0}/root"
state = "{0}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{0}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{0}"
"""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def field(number: int, value: bytes | int) -> bytes:
    """One of a protobuf message, of less than 128 octets."""
    if isinstance(value, int):
        octets = b""
        while value > 127:
            octets += bytes([value & 0x7F | 0x80])
            value >>= 7
        return bytes([number << 3]) + octets + bytes([value])
    return bytes([number << 3 | 2, len(value)]) + value


def sandbox(name: str, state: int = 0) -> bytes:
    metadata = field(1, name.encode()) + field(2, b"uid-1") + field(3, b"default")
    item = field(1, f"box-{name}".encode()) + field(2, metadata)
    item += field(3, state) + field(4, 1_700_000_000_123_456_789)
    return field(1, item + field(5, field(1, b"app") + field(2, b"web")))


def body(message: bytes) -> bytes:
    return b"\0" + struct.pack(">I", len(message)) + message


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[[bytes], str]]:
    """A socket that answers one call with the octets given, and then hangs up."""
    listener = socket.socket(socket.AF_UNIX)
    path = str(tmp_path / "cri.sock")
    listener.bind(path)
    listener.listen()
    threads: list[threading.Thread] = []

    def serve(answer: bytes) -> str:
        def once() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(1 << 16)
                peer.sendall(answer)
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(1 << 16):
                    pass

        threads.append(threading.Thread(target=once))
        threads[-1].start()
        return path

    yield serve
    for thread in threads:
        thread.join()
    listener.close()


SETTINGS = frame(4, 0, 0, b"")
TRAILERS = frame(1, 0x5, 1, b"\x88")
HEADERS = frame(1, 0x4, 1, b"\x88")


def test_sandboxes_are_read_with_pod_and_state(served: Callable[[bytes], str]) -> None:
    """In as many frames as the runtime likes, one of them padded, with others in between."""
    whole = body(sandbox("web") + sandbox("old", state=1))
    padded = bytes([3]) + whole[40:60] + b"\0\0\0"
    answer = SETTINGS + HEADERS + frame(0, 0, 1, whole[:40]) + frame(6, 0, 0, b"01234567")
    answer += frame(0, 0x8, 1, padded) + frame(0, 0, 1, whole[60:]) + TRAILERS

    seen = cri.observe(served(answer))

    assert isinstance(seen, model.ObservedRuntime)
    at = 1_700_000_000_123
    assert seen.sandboxes == (
        model.Sandbox("box-web", "default", "web", "uid-1", ready=True, created_at=at),
        model.Sandbox("box-old", "default", "old", "uid-1", ready=False, created_at=at),
    )


WHOLE = body(sandbox("web"))


@pytest.mark.parametrize(
    "answer",
    {
        "nothing": b"",
        "an error in the trailers": SETTINGS + TRAILERS,
        "half a message": SETTINGS + HEADERS + frame(0, 0, 1, WHOLE[:-9]) + TRAILERS,
        "half a frame": SETTINGS + HEADERS + frame(0, 0, 1, WHOLE)[:-9],
        "no end": SETTINGS + HEADERS + frame(0, 0, 1, WHOLE),
        "compressed": SETTINGS + HEADERS + frame(0, 0, 1, b"\1" + WHOLE[1:]) + TRAILERS,
        "a sandbox cut short": HEADERS + frame(0, 0, 1, body(sandbox("web")[:-3])) + TRAILERS,
        "a reset": SETTINGS + frame(3, 0, 1, b"\0\0\0\7"),
        "a goodbye": SETTINGS + frame(7, 0, 0, b"\0" * 8),
        "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9,
    }.items(),
    ids=lambda each: each[0],
)
def test_what_is_not_a_whole_list_is_no_list(
    served: Callable[[bytes], str], answer: tuple[str, bytes]
) -> None:
    """An empty list would be one witness against every pod."""
    assert isinstance(cri.observe(served(answer[1]), patience_s=5), model.Unknown)


def test_no_socket_and_a_silent_one_are_no_answer(tmp_path: Path) -> None:
    assert isinstance(cri.observe(str(tmp_path / "none")), model.Unknown)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen()
        began = time.monotonic()
        seen = cri.observe(str(tmp_path / "silent"), patience_s=0.2)
        assert time.monotonic() - began < 5
    assert isinstance(seen, model.Unknown)
    assert seen.why


@pytest.mark.skipif(shutil.which("containerd") is None, reason="containerd is not installed")
@pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))
def test_a_real_containerd_answers(tmp_path: Path) -> None:
    """It has no sandboxes yet, and says so: a list, and not Unknown."""
    if spaces.tier() != "root":
        pytest.skip("containerd needs root")
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(tmp_path))
    with (tmp_path / "log").open("wb") as log:
        daemon = subprocess.Popen(["containerd", "-c", str(config)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        seen: model.ObservedRuntime | model.Unknown = model.Unknown("not asked", 0)
        while isinstance(seen, model.Unknown) and time.monotonic() < deadline:
            assert daemon.poll() is None, (tmp_path / "log").read_text()[-2000:]
            seen = cri.observe(str(tmp_path / "containerd.sock"))
            time.sleep(0.02)
        assert isinstance(seen, model.ObservedRuntime), f"{seen} {(tmp_path / 'log').read_text()}"
        assert seen.sandboxes == ()
    finally:
        daemon.terminate()
        daemon.wait()


def test_the_process_that_asks_has_no_capability_and_answers_in_turn() -> None:
    """What is asked there comes back as it was found; a process that is lost is silence."""
    box = model.Sandbox("a", "default", "web")

    def look() -> runtime.Seen:
        lines = Path("/proc/thread-self/status").read_text().splitlines()
        capabilities = next(line for line in lines if line.startswith("CapEff"))
        return model.ObservedRuntime(7, (box, model.Sandbox(capabilities, str(os.getppid()))))

    asking = runtime.Runtime(look)
    try:
        for _ in range(3):
            seen = asking.observe()
            assert isinstance(seen, model.ObservedRuntime)
            assert seen.sandboxes[0] == box
            assert int(seen.sandboxes[1].id.split()[1], 16) == 0
            assert seen.sandboxes[1].pod_namespace == str(os.getpid())
    finally:
        asking.close()
    assert isinstance(asking.observe(), model.Unknown)


def test_a_process_that_answers_too_late_is_not_asked_again() -> None:
    """Its late answer would pass for that to the next question."""

    def hangs() -> runtime.Seen:
        threading.Event().wait(2)
        return model.Unknown("late", 0)

    asking = runtime.Runtime(hangs, patience_s=0.2)
    for _ in range(2):
        seen = asking.observe()
        assert isinstance(seen, model.Unknown)
        assert "lost" in seen.why
    asking.close()


def test_a_runtime_that_may_not_be_looked_at_is_there(tmp_path: Path) -> None:
    """The daemon's user and the folder of some runtimes: that is no reason to fail, and no absence."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    tmp_path.chmod(0o755)
    asked = f"from reconciler.providers import cri; print(cri.present('{folder}/containerd.sock'))"

    told = subprocess.run(
        [sys.executable, "-c", asked],
        user=65532 if spaces.tier() != "single" else None,
        capture_output=True,
        text=True,
        check=True,
    )

    assert told.stdout == "True\n"
    assert not cri.present(str(folder / "containerd.sock"))
