"""The launcher carries a call and its answer, and no answer it gives by itself leaves a question."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cni import spec, wire
from reconciler import server
from reconciler.call import Call
from tests.cni.conftest import Handler, Plugin
from tests.lab import spaces

Serve = Callable[[Handler], server.Server]


def parsing(calls: list[Call]) -> None:
    """Answers as the daemon's door does: with what `spec` says of the call."""
    for call in calls:
        try:
            spec.parse(call.request.env, call.request.stdin)
            call.answer(wire.Reply(stdout=b"parsed"))
        except spec.CniError as error:
            call.answer(wire.refusal(error, spec.version_of(call.request.stdin)))


def replying(reply: wire.Reply) -> Handler:
    def handler(calls: list[Call]) -> None:
        for call in calls:
            call.answer(reply)

    return handler


@contextmanager
def foreign_daemon(path: Path, answer: bytes | None) -> Iterator[None]:
    """Something at the socket that takes one request and sends these bytes, or just hangs up."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with suppress(OSError):
                peer, _ = listener.accept()
                with peer:
                    peer.recv(1 << 16)
                    if answer is not None:
                        peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


# ------------------------------------------------------------------------------ what is carried


def test_variables_and_standard_input_arrive_and_the_answer_returns(
    plugin: Plugin, serve: Serve
) -> None:
    seen: list[wire.Request] = []

    def handler(calls: list[Call]) -> None:
        seen.extend(call.request for call in calls)
        replying(wire.Reply(3, b"answer"))(calls)

    serve(handler)
    outcome = plugin.call("ADD", b"\0\xff config", CNI_ARGS="A=ä", OTHER="not told")
    assert (outcome.status, outcome.stdout) == (3, b"answer")
    assert seen[0].stdin == b"\0\xff config"
    assert seen[0].env == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "0a1b2c",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
        "CNI_ARGS": "A=ä",
    }
    assert seen[0].flags == 0


def test_a_configuration_of_one_mebibyte_and_an_answer_as_large_pass(
    plugin: Plugin, serve: Serve
) -> None:
    def echo(calls: list[Call]) -> None:
        for call in calls:
            call.answer(wire.Reply(stdout=call.request.stdin[: wire.MAX_REPLY - 12]))

    serve(echo)
    config = os.urandom(spec.MAX_STDIN)
    assert plugin.call("ADD", config).stdout == config[: wire.MAX_REPLY - 12]


@pytest.mark.netns
@pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL"])
def test_the_pods_namespace_and_a_socket_in_it_are_handed_over(
    plugin: Plugin, serve: Serve, pod: spaces.Netns, host: spaces.Netns, verb: str
) -> None:
    """What is made through the netlink socket is in the pod, not on the host."""
    seen: list[tuple[int, int]] = []

    def handler(calls: list[Call]) -> None:
        for call in calls:
            assert call.netns is not None
            assert call.netlink is not None
            seen.append((os.fstat(call.netns).st_ino, call.request.flags))
            make_bridge(call.netlink, "probe0")
            call.answer(wire.Reply())

    serve(handler)
    assert plugin.call(verb, host=host, CNI_NETNS=pod.path).status == 0
    assert seen == [(os.fstat(pod.fd).st_ino, wire.HAS_NETNS | wire.HAS_NETLINK)]
    assert "probe0" in pod.command("ip", "link")
    assert "probe0" not in host.command("ip", "link")


def make_bridge(netlink: int, name: str) -> None:
    """RTM_NEWLINK of kind bridge through the socket, acknowledged (rtnetlink(7))."""

    def attribute(kind: int, data: bytes) -> bytes:
        return struct.pack("HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)

    info = attribute(1, b"bridge")
    payload = bytes(16) + attribute(3, name.encode() + b"\0") + attribute(18, info)
    header = struct.pack("IHHII", 16 + len(payload), 16, 0x1 | 0x4 | 0x200 | 0x400, 1, 0)
    with socket.socket(fileno=os.dup(netlink)) as route:
        route.send(header + payload)
        _, kind, _, _, _, error = struct.unpack_from("IHHIIi", route.recv(4096))
    assert (kind, error) == (2, 0)


@pytest.mark.netns
def test_sysctls_are_written_each_in_its_namespace(
    plugin: Plugin, serve: Serve, pod: spaces.Netns, host: spaces.Netns
) -> None:
    path = "ipv4/conf/lo/rp_filter"
    host.sysctl(path, 0)
    pod.sysctl(path, 0)
    sysctls = (
        wire.Sysctl("host", path, "1"),
        wire.Sysctl("pod", path, "2"),
        wire.Sysctl("host", "ipv6/conf/absent/accept_ra", "0"),
        wire.Sysctl("pod", "ipv4/conf/absent/rp_filter", "0"),
        wire.Sysctl("host", "ipv4/conf/lo/accept_local", "1"),
    )
    serve(replying(wire.Reply(stdout=b"{}", sysctls=sysctls)))
    outcome = plugin.call("ADD", host=host, CNI_NETNS=pod.path)
    assert (outcome.status, outcome.stdout) == (0, b"{}")
    assert (host.sysctl(path), pod.sysctl(path)) == ("1", "2")
    assert host.sysctl("ipv4/conf/lo/accept_local") == "1"


def watched(path: str) -> int:
    """A descriptor that tells of writes to the file (inotify(7), IN_MODIFY), for which Python has no words."""
    libc = ctypes.CDLL(None, use_errno=True)
    watching = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if libc.inotify_add_watch(watching, path.encode(), 0x2) < 0:
        raise OSError(ctypes.get_errno(), path)
    return watching


def written(watching: int) -> bool:
    try:
        return bool(os.read(watching, 4096))
    except BlockingIOError:
        return False


@pytest.mark.netns
def test_a_sysctl_that_is_so_already_is_not_written(
    plugin: Plugin, serve: Serve, host: spaces.Netns
) -> None:
    """The kernel would take a lock for it that the daemon needs for other pods (addrconf_sysctl_forward)."""
    path = "ipv4/conf/lo/rp_filter"
    serve(replying(wire.Reply(stdout=b"{}", sysctls=(wire.Sysctl("host", path, "1"),))))
    watching = host.run(watched, f"/proc/sys/net/{path}")
    for before, expected in ((0, True), (1, False)):
        host.sysctl(path, before)
        written(watching)
        assert plugin.call("ADD", host=host).status == 0
        assert host.sysctl(path) == "1"
        assert written(watching) is expected
    os.close(watching)


def test_a_sysctl_that_cannot_be_written_fails_the_call(plugin: Plugin, serve: Serve) -> None:
    sysctl = wire.Sysctl("host", "ipv4/conf/lo/rp_filter", "no number")
    serve(replying(wire.Reply(stdout=b"{}", sysctls=(sysctl,))))
    code, msg = plugin.call("ADD").error
    assert code == spec.IO_FAILURE
    assert "/proc/sys/net/ipv4/conf/lo/rp_filter cannot be written: Invalid argument" in msg


def test_a_sysctl_for_a_pod_without_namespace_fails_the_call(plugin: Plugin, serve: Serve) -> None:
    sysctl = wire.Sysctl("pod", "ipv4/conf/lo/rp_filter", "1")
    serve(replying(wire.Reply(sysctls=(sysctl,))))
    assert plugin.call("ADD").error[0] == spec.IO_FAILURE


# ---------------------------------------------------------------------------- a bad namespace


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("missing", errno.ENOENT),
        ("file", errno.EINVAL),
        ("fifo", errno.EINVAL),
        ("under a file", errno.ENOTDIR),
    ],
)
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_a_namespace_that_cannot_be_entered_is_reported_to_the_daemon(
    plugin: Plugin, serve: Serve, tmp_path: Path, kind: str, why: int, verb: str
) -> None:
    """It decides: ADD is refused, DEL goes on. A FIFO does not hold the launcher up."""
    path = tmp_path / "ns"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind != "missing":
        path.touch()
    seen: list[wire.Request] = []
    fds: list[int | None] = []

    def handler(calls: list[Call]) -> None:
        for call in calls:
            seen.append(call.request)
            fds.extend((call.netns, call.netlink))
            call.answer(wire.Reply())

    serve(handler)
    netns = str(path / "x" if kind == "under a file" else path)
    assert plugin.call(verb, CNI_NETNS=netns).status == 0
    assert (seen[0].flags, seen[0].netns_errno) == (wire.NETNS_FAILED, why)
    assert fds == [None, None]


# ------------------------------------------------------------------------- what is refused here


@pytest.mark.parametrize("verb", ["", "add", "UPDATE", "ADDX"])
def test_an_unknown_verb_is_an_invalid_environment(plugin: Plugin, verb: str) -> None:
    code, msg = plugin.call(verb).error
    assert (code, "CNI_COMMAND" in msg) == (spec.INVALID_ENVIRONMENT, True)


def test_version_needs_no_daemon(plugin: Plugin) -> None:
    outcome = plugin.call("VERSION")
    assert outcome.status == 0
    assert outcome.told == {"cniVersion": "1.1.0", "supportedVersions": list(spec.VERSIONS)}


@pytest.mark.parametrize("verb", spec.VERBS)
@pytest.mark.parametrize("size", [spec.MAX_STDIN + 1, 10_000_000])
def test_a_configuration_that_is_too_large_is_refused_and_not_sent(
    plugin: Plugin, serve: Serve, verb: str, size: int
) -> None:
    seen: list[Call] = []
    serve(seen.extend)
    assert plugin.call(verb, b" " * size).error[0] == spec.DECODING_FAILURE
    assert seen == []
    assert not plugin.spool.exists()


def test_an_environment_that_is_too_large_is_refused(plugin: Plugin) -> None:
    text = "x" * 100_000
    outcome = plugin.call("ADD", CNI_ARGS=text, CNI_PATH=text, CNI_NETNS=text)
    assert outcome.error[0] == spec.INVALID_ENVIRONMENT


@pytest.mark.parametrize("verb", ["ADD", "DEL", "STATUS"])
def test_standard_input_that_cannot_be_read_is_an_io_failure(plugin: Plugin, verb: str) -> None:
    folder = os.open(plugin.folder, os.O_RDONLY)
    try:
        done = subprocess.run(
            [plugin.folder / "aws-cni"],
            env={"CNI_COMMAND": verb},
            stdin=folder,
            capture_output=True,
            check=False,
        )
    finally:
        os.close(folder)
    assert done.returncode == 1
    assert b'"code":5' in done.stdout


def test_standard_input_that_never_ends_does_not_hold_it_for_ever(plugin: Plugin) -> None:
    with plugin.start("DEL") as process:
        assert process.wait(timeout=10) == 1
        assert process.stdout
        assert b'"code":5' in process.stdout.read()


# --------------------------------------------------------------- what the daemon refuses through it


@pytest.mark.parametrize("gone", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"])
def test_a_missing_variable_is_an_invalid_environment(
    plugin: Plugin, serve: Serve, gone: str
) -> None:
    serve(parsing)
    code, msg = plugin.call("ADD", without=gone, CNI_NETNS="/absent").error
    assert (code, gone in msg) == (spec.INVALID_ENVIRONMENT, True)


def test_an_interface_name_too_long_is_an_invalid_environment(plugin: Plugin, serve: Serve) -> None:
    serve(parsing)
    outcome = plugin.call("ADD", CNI_NETNS="/absent", CNI_IFNAME="sixteen-letters-")
    assert outcome.error[0] == spec.INVALID_ENVIRONMENT


@pytest.mark.parametrize("config", [b"", b'{"cniVersion": "1.0.0", "na', b"[" * 100_000, b"\xff"])
def test_a_truncated_or_hostile_configuration_is_a_decoding_failure(
    plugin: Plugin, serve: Serve, config: bytes
) -> None:
    serve(parsing)
    assert plugin.call("ADD", config, CNI_NETNS="/absent").error[0] == spec.DECODING_FAILURE


# ------------------------------------------------------------------------------ nobody at home


def lay_stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


AWAY = [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)]


@pytest.mark.parametrize(("verb", "code"), AWAY)
@pytest.mark.parametrize("stale", [False, True])
def test_without_a_daemon_a_call_is_told_at_once_to_try_later(
    plugin: Plugin, verb: str, code: int, stale: bool
) -> None:
    if stale:
        lay_stale_socket(plugin.socket)
    outcome = plugin.call(verb)
    assert outcome.error[0] == code
    assert str(plugin.socket) in outcome.error[1]
    assert outcome.seconds < 1
    assert not plugin.spool.exists()


@pytest.mark.parametrize(
    ("answer", "codes"),
    [
        (None, {11}),
        (b"\x08\x00", {11}),
        (b"\xff\xff\xff\xff", {11}),
        (struct.pack("<I", 100) + b"short", {11}),
        (struct.pack("<I", 4) + bytes(4), {5}),
        (struct.pack("<IIII", 12, 0, 0, 99), {5}),
        (struct.pack("<IIII", 12, 0, 9, 0), {5}),
        (struct.pack("<IIIcI", 13, 0, 1, b"h", 0xFFFFFFFF), {5}),
    ],
    ids=range(8),
)
def test_a_daemon_that_dies_or_talks_nonsense_is_an_error_at_once(
    plugin: Plugin, answer: bytes | None, codes: set[int]
) -> None:
    with foreign_daemon(plugin.socket, answer):
        outcome = plugin.call("ADD")
    assert outcome.error[0] in codes
    assert outcome.seconds < 2


@pytest.mark.parametrize("path", [b"../kernel/hostname", b"ipv4/../../kernel/x", b"a" * 5000])
def test_a_reply_cannot_write_outside_the_network(plugin: Plugin, path: bytes) -> None:
    """Even if the daemon were somebody else's."""
    body = struct.pack("<II", 0, 1) + b"h" + struct.pack("<I", len(path)) + path
    body += struct.pack("<I", 1) + b"x" + struct.pack("<I", 0)
    with foreign_daemon(plugin.socket, struct.pack("<I", len(body)) + body):
        code, msg = plugin.call("ADD").error
    assert (code, "asked for" in msg) == (spec.IO_FAILURE, True)


def test_a_silent_daemon_is_given_up_on(plugin: Plugin) -> None:
    """STATUS waits 5 s; the socket accepts, as the kernel does for a stopped process."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(plugin.socket))
        listener.listen()
        outcome = plugin.call("STATUS")
    assert outcome.error[0] == spec.NOT_AVAILABLE
    assert 4.5 < outcome.seconds < 8


# -------------------------------------------------------------------------------- configuration


def test_without_a_configuration_file_the_usual_paths_are_used(plugin: Plugin) -> None:
    (plugin.folder / "aws-cni.conf").unlink()
    assert "/var/run/aws-node/vpcledger.sock" in plugin.call("ADD").error[1]


def test_an_absolute_socket_path_is_taken_as_it_is(plugin: Plugin) -> None:
    (plugin.folder / "aws-cni.conf").write_text("socket=/nowhere/s\n")
    assert " /nowhere/s " in plugin.call("ADD").error[1]


@pytest.mark.parametrize("line", ["socket=", "socket=" + "x" * 5000, "socket=" + "x" * 200])
def test_a_socket_path_that_cannot_be_is_an_error_in_words(plugin: Plugin, line: str) -> None:
    (plugin.folder / "aws-cni.conf").write_text(line + "\n")
    assert plugin.call("ADD").error[0] in {spec.IO_FAILURE, spec.TRY_AGAIN_LATER}


def test_a_path_with_odd_bytes_still_makes_json(plugin: Plugin) -> None:
    (plugin.folder / "aws-cni.conf").write_bytes(b'socket=/a"\\\x01\xff\n')
    assert "/a????" in plugin.call("ADD").error[1]
