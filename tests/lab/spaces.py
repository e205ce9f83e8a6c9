"""Namespaces of our own, as root or as an ordinary user: nothing on the host is touched or left.

Session.  `enter(argv)` turns this process into the supervisor of a private world and runs `argv` in it:

    supervisor (the pid the caller knows)   waits, passes signals on, returns the exit status
      └─ init (pid 1 inside)                reaps; dies with the supervisor, and with it everything
           └─ argv                          uid 0 inside; own network, mounts, pids, /run, /sys, /proc

Killing the supervisor or init by SIGKILL ends all of it: init has a parent-death signal, and the kernel
kills a pid namespace together with its pid 1. /run is an empty tmpfs, so files end as well. By hand:
`python -m tests.lab.spaces -- bash`.

Three tiers, told apart inside by `tier()`:
  root      real uids, no user namespace (also: root of an outer session, so sessions nest)
  subuids   an ordinary user with a line in /etc/subuid: newuidmap maps 0 -> caller, 1.. -> that range
  single    an ordinary user without: only 0 -> caller, so no process can have a uid of its own

pytest.  `tests/conftest.py` calls `pytest_cmdline_main`, so the whole session runs inside and a test simply
makes what it needs, as root and as an ordinary user alike:

    with spaces.Netns() as ns:
        ns.command("ip", "link", "add", "a", "type", "veth", "peer", "name", "b")
        sock = ns.run(socket.socket, socket.AF_INET)        # a socket stays where it was born

Where namespaces are forbidden the session runs outside; `missing()` is then the sentence to skip with.

What does not belong here: anything about EC2, VPCs, nodes or pods.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tests.lab import session
from tests.lab.netns import RUN, Netns, unbind

__all__ = ["RUN", "Netns", "unbind"]

_MISSING = "VPCLEDGER_LAB_MISSING"  # why this session could not have one
_ROOT = str(Path(__file__).resolve().parents[2])


def enter(argv: Sequence[str]) -> NoReturn:
    """Become the supervisor of a new session that runs `argv`; never returns.

    Replaces the process image (one thread is a condition of the kernel for a user namespace), so
    flush and close what matters first. The exit status is that of `argv`, 128+n for a signal.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    program = (
        f"import sys; sys.path.insert(0, {_ROOT!r});"
        " from tests.lab import session; sys.exit(session.main(sys.argv[1:]))"
    )
    os.execv(sys.executable, [sys.executable, "-P", "-c", program, *argv])


def inside() -> bool:
    """Is this process part of a session?"""
    return session.MARK in os.environ


def is_main() -> bool:
    """Is this process the very one a session was made for (and not a child that may nest one)?"""
    return inside() and os.getppid() == 1


def tier() -> str:
    """`root`, `subuids` or `single` (see the module): which uids exist here."""
    lines = session.text("/proc/self/uid_map").splitlines()
    spans = [tuple(map(int, line.split())) for line in lines]
    if spans == [(0, 0, 4294967295)]:
        return "root"
    return "subuids" if any(first <= 65532 < first + n for first, _, n in spans) else "single"


def missing() -> str | None:
    """Why this process has no session, in one sentence; None when it has one."""
    return None if inside() else os.environ.get(_MISSING) or forbidden() or "not inside a session"


def forbidden() -> str | None:
    """Why this user cannot have a session on this host and how to go on; None when it can."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            session.new_spaces(subuids=False)
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return None if code == 0 else session.sentence(code)


def outer_pid(pid: int | None = None) -> int:
    """The pid under which a process of this session (default: this one) is known outside."""
    pid = os.getpid() if pid is None else pid
    own = Path("/proc/self/ns/pid").readlink()
    for status in session.OUTER_PROC.glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            fields = [ln for ln in status.read_text().splitlines() if ln.startswith("NSpid:")]
            chain = fields[0].split()[1:]
            if chain[-1] == str(pid) and (status.parent / "ns/pid").readlink() == own:
                return int(chain[0])
    raise ProcessLookupError(f"no process {pid} in this session")


def outer_path(path: str | Path) -> str:
    """A path of this session as the outside can open it, through the root of this process's init."""
    return f"/proc/{outer_pid(1)}/root{Path(path)}"


def outer_enter(netns: str | Path | None = None) -> list[str]:
    """The argv prefix by which the same user (or root) outside runs a program in this session.

    `netns` is a path inside the session (see `Netns.path`); default is the session's own namespace.
    """
    init = str(outer_pid(1))
    user = ["--user", "--preserve-credentials"] if os.environ[session.MARK] == "user" else []
    net = f"--net={outer_path(netns)}" if netns else "--net"
    return ["nsenter", "--target", init, *user, "--mount", "--pid", net]


def pytest_cmdline_main(config: Any) -> None:
    """pytest hook: run the whole test session inside; outside, with the reason said, if forbidden."""
    if is_main() or config.option.collectonly or config.option.help:
        return
    if hasattr(config, "workerinput"):
        return  # a worker of pytest-xdist shares the session of the process that started it
    reason = forbidden()
    if reason:
        os.environ[_MISSING] = reason
        return
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.stop_global_capturing()
    enter([sys.executable, "-m", "pytest", *config.invocation_params.args])


if __name__ == "__main__":
    sys.exit(session.main(sys.argv[sys.argv.index("--") + 1 :]))
