"""A deletion is done, or kept for the daemon: success within two seconds, whatever the disk does."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cni import spec, spool, wire
from reconciler import server
from reconciler.call import Call
from tests.cni.conftest import Handler, Outcome, Plugin
from tests.lab import spaces

LIMIT = 2.0
"""Seconds the runtime may be kept waiting by a deletion."""

DAEMON = """\
import sys
from pathlib import Path
from cni import wire
from reconciler import server
from reconciler.call import Call

def handler(calls):
    for call in calls:
        print(call.request.env["CNI_CONTAINERID"], flush=True)
        call.answer(wire.Reply(stdout=b"done"))

server.Server(Path(sys.argv[1]), handler).start()
print("up", flush=True)
sys.stdin.read()
"""


@contextmanager
def daemon(plugin: Plugin) -> Iterator[subprocess.Popen[str]]:
    """A process that serves the plugin's socket and prints the container id of every call."""
    with subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(plugin.socket)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        try:
            yield process
        finally:
            process.kill()


def kept(plugin: Plugin) -> list[spool.Deletion]:
    """The spool's contents; nothing unfinished lies beside them."""
    assert list((plugin.spool / "tmp").iterdir()) == []
    return [spool.read(path) for path in spool.pending(plugin.spool)]


def assert_kept(plugin: Plugin, seconds: float) -> None:
    assert [deletion.container_id for deletion in kept(plugin)] == ["0a1b2c"]
    assert seconds < LIMIT


def test_a_daemon_that_is_there_gets_the_deletion_and_the_spool_does_not(plugin: Plugin) -> None:
    with daemon(plugin) as process:
        assert plugin.call("DEL").stdout == b"done"
        assert process.stdout
        assert process.stdout.readline() == "0a1b2c\n"
    assert not plugin.spool.exists()


def test_without_a_daemon_the_whole_request_is_kept(plugin: Plugin) -> None:
    outcome = plugin.call("DEL", b'{"name": "x"}', CNI_ARGS="K8S_POD_NAME=web")
    assert (outcome.status, outcome.stdout) == (0, b"")
    (deletion,) = kept(plugin)
    assert outcome.seconds < LIMIT
    assert (deletion.container_id, deletion.ifname) == ("0a1b2c", "eth0")
    assert deletion.request.env["CNI_ARGS"] == "K8S_POD_NAME=web"
    assert deletion.request.stdin == b'{"name": "x"}'
    assert deletion.request.flags == 0


@pytest.mark.netns
def test_a_kept_deletion_announces_no_descriptors(plugin: Plugin, pod: spaces.Netns) -> None:
    """The namespace was opened, but a file cannot hold it."""
    assert plugin.call("DEL", CNI_NETNS=pod.path).status == 0
    assert [deletion.request.flags for deletion in kept(plugin)] == [0]


def test_a_kept_deletion_remembers_that_the_namespace_was_gone(plugin: Plugin) -> None:
    assert plugin.call("DEL", CNI_NETNS="/absent").status == 0
    (deletion,) = kept(plugin)
    assert deletion.request.flags == wire.NETNS_FAILED
    assert deletion.request.netns_errno == 2


def test_a_killed_daemon_means_the_spool(plugin: Plugin) -> None:
    with daemon(plugin) as process:
        process.kill()
        process.wait()
        outcome = plugin.call("DEL")
    assert outcome.status == 0
    assert_kept(plugin, outcome.seconds)


def test_a_stopped_daemon_means_the_spool_and_gets_the_deletion_too(plugin: Plugin) -> None:
    """Twice is harmless; not at all would not be."""
    with daemon(plugin) as process:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        outcome = plugin.call("DEL")
        assert outcome.status == 0
        assert_kept(plugin, outcome.seconds)
        process.send_signal(signal.SIGCONT)
        assert process.stdout
        assert process.stdout.readline() == "0a1b2c\n"


def test_a_stale_socket_means_the_spool(plugin: Plugin) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(plugin.socket))
    outcome = plugin.call("DEL")
    assert outcome.status == 0
    assert_kept(plugin, outcome.seconds)


def test_a_full_backlog_means_the_spool(plugin: Plugin) -> None:
    """connect() itself would wait for ever here."""
    waiting: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(plugin.socket))
        listener.listen(0)
        with suppress(BlockingIOError):
            while True:
                waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                waiting[-1].setblocking(False)
                waiting[-1].connect(str(plugin.socket))
        outcome = plugin.call("DEL")
    for peer in waiting:
        peer.close()
    assert outcome.status == 0
    assert_kept(plugin, outcome.seconds)


def test_a_daemon_that_reads_nothing_of_a_large_request_means_the_spool(plugin: Plugin) -> None:
    """The socket's buffer fills up in the middle of the frame."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(plugin.socket))
        listener.listen()
        outcome = plugin.call("DEL", b" " * spec.MAX_STDIN)
    assert outcome.status == 0
    assert_kept(plugin, outcome.seconds)
    assert len(kept(plugin)[0].request.stdin) == spec.MAX_STDIN


def test_many_deletions_at_once_are_all_kept(plugin: Plugin) -> None:
    ids = [f"c{n}" for n in range(50)]
    with ThreadPoolExecutor(10) as pool:
        outcomes = list(pool.map(lambda it: plugin.call("DEL", CNI_CONTAINERID=it), ids))
    assert {outcome.status for outcome in outcomes} == {0}
    assert sorted(deletion.container_id for deletion in kept(plugin)) == sorted(ids)


@pytest.mark.parametrize("gone", ["CNI_CONTAINERID", "CNI_IFNAME"])
def test_a_deletion_that_names_nothing_is_refused_and_not_kept(plugin: Plugin, gone: str) -> None:
    outcome = plugin.call("DEL", without=gone)
    assert outcome.error[0] == spec.INVALID_ENVIRONMENT
    assert not plugin.spool.exists()


def test_what_is_kept_belongs_to_the_folders_owner(plugin: Plugin) -> None:
    """The daemon is an ordinary user; what root writes must be its to read and remove."""
    if spaces.tier() == "single":
        pytest.skip("needs a second uid: run as root, or as a user with a line in /etc/subuid")
    os.chown(plugin.folder, 7, 7)
    assert plugin.call("DEL").status == 0
    for path in (plugin.spool, plugin.spool / "tmp", *spool.pending(plugin.spool)):
        status = path.stat()
        assert (status.st_uid, status.st_gid) == (7, 7)
        assert stat.S_IMODE(status.st_mode) & 0o077 == 0


def test_folders_above_the_spool_are_made(plugin: Plugin) -> None:
    (plugin.folder / "aws-cni.conf").write_text("socket=s\nspool=a/b/c\n")
    assert plugin.call("DEL").status == 0
    assert len(spool.pending(plugin.folder / "a" / "b" / "c")) == 1


@contextmanager
def mounted(path: Path, options: str) -> Iterator[None]:
    if why := spaces.missing():
        pytest.skip(why)
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def assert_kept_beside(plugin: Plugin, outcome: Outcome) -> None:
    """Success, and in the spool beside the socket there is all of it."""
    assert (outcome.status, outcome.stdout) == (0, b"")
    [path] = spool.pending(plugin.beside)
    assert spool.read(path).container_id == "0a1b2c"
    assert list((plugin.beside / "tmp").iterdir()) == []
    assert outcome.seconds < LIMIT


@pytest.mark.netns
def test_with_a_read_only_disk_it_is_kept_beside_the_socket(plugin: Plugin) -> None:
    with mounted(plugin.spool, "ro"):
        assert_kept_beside(plugin, plugin.call("DEL"))


@pytest.mark.netns
def test_with_a_full_disk_it_is_kept_beside_the_socket_and_leaves_no_half_of_it(
    plugin: Plugin,
) -> None:
    with mounted(plugin.spool, "size=64k"):
        outcome = plugin.call("DEL", b" " * 100_000)
        assert kept(plugin) == []
    assert_kept_beside(plugin, outcome)


def test_with_a_file_in_the_spools_place_it_is_kept_beside_the_socket(plugin: Plugin) -> None:
    plugin.spool.touch()
    assert_kept_beside(plugin, plugin.call("DEL"))


@pytest.mark.netns
def test_what_can_be_written_nowhere_is_left_to_the_daemons_own_look(plugin: Plugin) -> None:
    """Both are read-only: an error would only keep the pod from ending (decision 52)."""
    with mounted(plugin.spool, "ro"), mounted(plugin.beside, "ro"):
        outcome = plugin.call("DEL")
    assert (outcome.status, outcome.stdout) == (0, b"")
    assert outcome.seconds < LIMIT


def test_a_deletion_that_the_daemon_gives_back_is_kept(
    plugin: Plugin, serve: Callable[[Handler], server.Server]
) -> None:
    """Its ledger takes nothing; what cannot be given back so is told that nobody answers."""

    def give_back(batch: list[Call]) -> None:
        for call in batch:
            call.give_back()

    serve(give_back)
    outcome = plugin.call("DEL")
    assert outcome.status == 0
    assert_kept(plugin, outcome.seconds)
    assert plugin.call("ADD").error[0] == spec.TRY_AGAIN_LATER
