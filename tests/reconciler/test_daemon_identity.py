"""Who the running processes are, and whom the door lets in."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import spaces
from tests.lab.whole import Lab
from tests.reconciler import live

pytestmark = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))

CAP_NET_ADMIN = 1 << 12
ordinary = pytest.mark.skipif(
    spaces.inside() and spaces.tier() == "single",
    reason="this user has no subuids: there is no other uid here",
)


def pid_of(lab: Lab) -> int:
    daemon = lab.nodes[0].daemon
    assert daemon
    return daemon.pid


def capabilities(pid: int) -> dict[str, int]:
    told = live.status_of(pid)
    return {which: int(told[f"Cap{which}"], 16) for which in ("Eff", "Prm", "Bnd", "Inh", "Amb")}


def test_every_thread_of_the_daemon_has_one_capability_for_good(served: Lab) -> None:
    """Capabilities are a thread's own: one that was started before the drop would have kept all."""
    pid = pid_of(served)
    for task in Path(f"/proc/{pid}/task").iterdir():
        told = capabilities(int(task.name))
        assert {told["Eff"], told["Prm"], told["Bnd"]} == {CAP_NET_ADMIN}
        assert (told["Inh"], told["Amb"]) == (0, 0)
        assert live.status_of(int(task.name))["NoNewPrivs"] == "1"


@ordinary
def test_the_daemon_is_an_ordinary_user(served: Lab) -> None:
    told = live.status_of(pid_of(served))
    assert set(told["Uid"].split()) == set(told["Gid"].split()) == {"65532"}
    assert told["Groups"].strip() == ""


def test_the_child_that_talks_to_ec2_has_no_capability(served: Lab) -> None:
    """The other is the one that asks the runtime; the one that published the conflist has ended."""
    pid = pid_of(served)
    live.until(lambda: len(live.children_of(pid)) == 2, "the publisher's end")
    [child] = [pid for pid, line in live.children_of(pid).items() if "reconciler.cloud" in line]
    told = capabilities(child)
    assert (told["Eff"], told["Prm"], told["Inh"], told["Amb"]) == (0, 0, 0, 0)
    assert told["Bnd"] in {0, CAP_NET_ADMIN}  # without CAP_SETPCAP nobody can shrink it further
    assert live.status_of(child)["NoNewPrivs"] == "1"
    assert live.status_of(child)["Uid"] == live.status_of(pid)["Uid"]


# ------------------------------------------------------------------------------- the door


def knock(path: str, uid: int) -> str:
    """What a process of that user gets at the socket: `open`, or the error's name."""
    return _as(uid, lambda: _connect(path))


def _connect(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as knocking:
        knocking.settimeout(live.PATIENCE_S)
        knocking.connect(path)
        knocking.sendall(b"\0\0\0\1")
        try:
            return "open" if knocking.recv(1) else "closed"
        except ConnectionResetError:
            return "closed"


def _as(uid: int, do: Callable[[], str]) -> str:
    """Run `do` in a child that is another user; its answer, or its OSError's name."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            answer = do()
        except OSError as error:
            answer = type(error).__name__
        finally:
            os.write(tell, answer.encode())
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(tell)
    with os.fdopen(told) as said:
        return said.read()


@ordinary
@pytest.mark.parametrize("uid", [1000, 65532])
def test_the_door_is_for_root_alone(served: Lab, uid: int) -> None:
    """The file's mode keeps others out, and the peer's uid even the daemon's own user."""
    path = str(served.nodes[0].run / "vpcledger.sock")
    assert knock(path, uid) in {
        "PermissionError",
        "BrokenPipeError",
        "ConnectionResetError",
        "closed",
    }
    served.kubelets[0].status()


def test_nobody_else_may_touch_the_files(served: Lab) -> None:
    """The socket is its owner's alone, and what others may read they may not write."""
    node = served.nodes[0]
    assert (node.run / "vpcledger.sock").stat().st_mode & 0o777 == 0o600
    for path in (node.state, *node.state.iterdir(), node.run):
        assert path.stat().st_mode & 0o022 == 0, path
