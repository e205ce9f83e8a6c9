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

pytest.  `tests/conftest.py` imports `pytest_cmdline_main` from here, so the whole session runs inside and a
test simply makes what it needs, as root and as an ordinary user alike:

    with spaces.Netns() as ns:
        ns.command("ip", "link", "add", "a", "type", "veth", "peer", "name", "b")
        sock = ns.run(socket.socket, socket.AF_INET)        # a socket stays where it was born

Where namespaces are forbidden the session runs outside; `missing()` is then the sentence to skip with.
Network namespaces are per thread: `Netns.run` uses a thread of its own, the caller never moves.

What does not belong here: anything about EC2, VPCs, nodes or pods.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

RUN = Path("/run/vpcledger-lab")
"""The session's own directory, on a tmpfs only the session sees."""

_OUTER_PROC = RUN / "outer-proc"
_MARK = "VPCLEDGER_LAB_SPACES"  # in a session: `user` if it has a user namespace, else `root`
_MISSING = "VPCLEDGER_LAB_MISSING"  # why this session could not have one

# linux/sched.h, linux/mount.h, linux/prctl.h
_NEWNS, _NEWUSER, _NEWPID, _NEWNET = 0x00020000, 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_libc = ctypes.CDLL(None, use_errno=True)


class Forbidden(RuntimeError):
    """This host does not let this user make namespaces; the text says why and how to go on."""


def _call(name: str, *args: Any) -> None:
    if getattr(_libc, name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _unshare(flags: int) -> None:
    _call("unshare", flags)


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    text = [part.encode() for part in (source, target, kind)]
    _call("mount", *text, ctypes.c_ulong(flags), options.encode())


# ── network namespaces ────────────────────────────────────────────────────────────────────────────


class Netns:
    """A network namespace of its own (lo is up), held by a descriptor until `close()`.

    `name` additionally binds it to `RUN/netns/<name>` so that other processes can enter it by path
    (`nsenter --net=PATH`, `ip ... netns PATH`, CNI_NETNS). Needs the session, or root.
    """

    def __init__(self, name: str | None = None, *, directory: Path = RUN / "netns") -> None:
        self.bound = directory / name if name else None
        self.fd = _in_thread(self._make)

    @classmethod
    def here(cls) -> Self:
        """The namespace the calling thread is in, held open."""
        ns = cls.__new__(cls)
        ns.bound = None
        ns.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        return ns

    def _make(self) -> int:
        _unshare(_NEWNET)
        _lo_up()
        fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        if self.bound:
            self.bound.parent.mkdir(parents=True, exist_ok=True)
            self.bound.touch(exist_ok=False)
            _mount("/proc/thread-self/ns/net", str(self.bound), "", _MS_BIND)
        return fd

    @property
    def path(self) -> str:
        """A path by which processes of this session can open the namespace."""
        return str(self.bound) if self.bound else f"/proc/{os.getpid()}/fd/{self.fd}"

    def run(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`fn(*args)` in a thread that has entered the namespace: its result, or its exception.

        Sockets and processes made by `fn` belong to the namespace for good.
        """

        def inside() -> T:
            _call("setns", self.fd, _NEWNET)
            return fn(*args, **kwargs)

        return _in_thread(inside)

    def command(self, *argv: str, stdin: str = "") -> str:
        """Run a program inside; its standard output. RuntimeError with its words when it fails."""
        done = self.run(
            subprocess.run, argv, input=stdin, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
        return str(done.stdout)

    def sysctl(self, name: str, value: object | None = None) -> str:
        """Read (or first write) `net.<name>`, with slashes: `sysctl("ipv4/ip_forward", 1)`."""
        path = Path("/proc/sys/net") / name

        def inside() -> str:
            if value is not None:
                path.write_text(str(value))
            return path.read_text().strip()

        return self.run(inside)

    def close(self) -> None:
        """Let go. The kernel ends the namespace when no process or socket is left in it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.bound:
            unbind(self.bound)
            self.bound = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def unbind(path: Path) -> None:
    """Remove the name of a namespace, as the runtime does on its own; twice is fine."""
    with contextlib.suppress(OSError):
        _call("umount2", str(path).encode(), _MNT_DETACH)
    path.unlink(missing_ok=True)


def _in_thread(fn: Callable[[], T]) -> T:
    box: list[tuple[bool, Any]] = []

    def body() -> None:
        try:
            box.append((True, fn()))
        except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is
            box.append((False, error))

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    good, value = box[0]
    if good:
        return value  # type: ignore[no-any-return]
    raise value


def _lo_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


# ── the session ───────────────────────────────────────────────────────────────────────────────────


def enter(argv: Sequence[str]) -> NoReturn:
    """Become the supervisor of a new session that runs `argv`; never returns.

    Replaces the process image (one thread is a condition of the kernel for a user namespace), so
    flush and close what matters first. The exit status is that of `argv`, 128+n for a signal.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-P", str(Path(__file__).resolve()), "--", *argv])


def inside() -> bool:
    """Is this process part of a session?"""
    return _MARK in os.environ


def is_main() -> bool:
    """Is this process the very one a session was made for (and not a child that may nest one)?"""
    return inside() and os.getppid() == 1


def tier() -> str:
    """`root`, `subuids` or `single` (see the module): which uids exist here."""
    spans = [tuple(map(int, line.split())) for line in _text("/proc/self/uid_map").splitlines()]
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
            _new_spaces(subuids=False)
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return None if code == 0 else _sentence(code)


def _sentence(code: int) -> str:
    why = os.strerror(code)
    for sysctl, bad, word in (
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone is 0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor restricts them"),
        ("user/max_user_namespaces", "0", "user.max_user_namespaces is 0"),
    ):
        if _text(f"/proc/sys/{sysctl}").strip() == bad:
            why = word
    if os.geteuid() == 0:
        return f"root may not make namespaces here ({why}): use a machine or container that allows unshare."
    return (
        f"This host forbids user namespaces to ordinary users ({why}): run the same command with sudo,"
        " or have the administrator allow them."
    )


def outer_pid(pid: int | None = None) -> int:
    """The pid under which a process of this session (default: this one) is known outside."""
    pid = os.getpid() if pid is None else pid
    own = Path("/proc/self/ns/pid").readlink()
    for status in _OUTER_PROC.glob("[0-9]*/status"):
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
    user = ["--user", "--preserve-credentials"] if os.environ[_MARK] == "user" else []
    net = f"--net={outer_path(netns)}" if netns else "--net"
    return ["nsenter", "--target", init, *user, "--mount", "--pid", net]


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _new_spaces(*, subuids: bool) -> str:
    """Move this process into new namespaces with their own /run and /sys: `user` or `root`, as done.

    OSError if it may not.
    """
    made = "root"
    try:
        if os.geteuid() != 0:
            raise PermissionError(1, "not root")
        _unshare(_NEWNS | _NEWNET | _NEWPID)
    except PermissionError:
        _new_user(subuids=subuids)
        made = "user"
        _unshare(_NEWNS | _NEWNET | _NEWPID)
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", "/run", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")
    _OUTER_PROC.mkdir(parents=True)
    _mount("/proc", str(_OUTER_PROC), "", _MS_BIND | _MS_REC)
    _own_sysfs()
    _open_the_way(Path(sys.executable).resolve(), Path(sys.prefix), Path(__file__))
    _lo_up()
    return made


def _own_sysfs() -> None:
    """/sys of the new network namespace (/sys/class/net shows its links), cgroups as they were."""
    kept = RUN / "cgroup"
    kept.mkdir()
    with contextlib.suppress(OSError):  # none mounted: nothing to keep
        _mount("/sys/fs/cgroup", str(kept), "", _MS_BIND | _MS_REC)
    # A container may forbid a fresh sysfs; then /sys keeps showing the host's links, which only
    # misleads readers of /sys/class/net.
    with contextlib.suppress(OSError):
        _mount("sysfs", "/sys", "sysfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
        _mount(str(kept), "/sys/fs/cgroup", "", _MS_BIND | _MS_REC)


def _open_the_way(*targets: Path) -> None:
    """Let every uid of the session reach these: a home of mode 700 would hide Python from a daemon.

    Each closed folder on the way is covered by a tmpfs of mode 755 that shows the same entries.
    """
    for target in targets:
        for folder in reversed(target.parents):
            if not folder.stat().st_mode & 0o001:
                _cover(folder)
    os.chdir(Path.cwd())  # into what now stands there


def _cover(folder: Path) -> None:
    behind = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    _mount("tmpfs", str(folder), "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")
    for entry in os.scandir(f"/proc/self/fd/{behind}"):
        shown = folder / entry.name
        if entry.is_symlink():
            shown.symlink_to(Path(entry.path).readlink())
            continue
        if entry.is_dir():
            shown.mkdir()
        else:
            shown.touch()
        with contextlib.suppress(OSError):  # one entry that cannot be shown hides nothing else
            _mount(entry.path, str(shown), "", _MS_BIND | _MS_REC)
    os.close(behind)


def _new_user(*, subuids: bool) -> None:
    """A user namespace in which this process is root; every uid of the caller's range exists there."""
    uid, gid = os.geteuid(), os.getegid()
    mapper = _Mapper(os.getpid(), uid, gid) if subuids else None
    _unshare(_NEWUSER)
    if mapper is None or not mapper.map():
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    os.setgid(0)
    os.setuid(0)
    # A change of credentials hides /proc/PID/root from the user who started us.
    _call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)


class _Mapper:
    """A child left outside the user namespace: newuidmap must be run from there."""

    def __init__(self, pid: int, uid: int, gid: int) -> None:
        go, self._go = os.pipe()
        self._child = os.fork()
        if self._child:
            os.close(go)
            return
        os.close(self._go)
        good = False
        try:
            if os.read(go, 1):
                good = all(
                    _run_mapper(tool, pid, own, span)
                    for tool, own, span in (
                        ("newgidmap", gid, _span("/etc/subgid", uid)),
                        ("newuidmap", uid, _span("/etc/subuid", uid)),
                    )
                )
        finally:
            os._exit(0 if good else 1)

    def map(self) -> bool:
        os.write(self._go, b"x")
        os.close(self._go)
        return os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1]) == 0


def _run_mapper(tool: str, pid: int, own: int, span: tuple[int, int] | None) -> bool:
    path = shutil.which(tool)
    if path is None or span is None:
        return False
    first, count = span
    line = [path, str(pid), "0", str(own), "1", "1", str(first), str(min(count, 65535))]
    return subprocess.run(line, check=False, stderr=subprocess.DEVNULL).returncode == 0


def _span(path: str, uid: int) -> tuple[int, int] | None:
    """The caller's first range in /etc/subuid or /etc/subgid (subuid(5): by name or by number)."""
    names = {str(uid)}
    with contextlib.suppress(KeyError):
        names.add(pwd.getpwuid(uid).pw_name)
    for line in _text(path).splitlines():
        who, _, rest = line.partition(":")
        if who in names:
            first, count = rest.split(":")
            return int(first), int(count)
    return None


# ── supervisor and init ───────────────────────────────────────────────────────────────────────────


def _supervise(argv: list[str]) -> int:
    try:
        os.environ[_MARK] = _new_spaces(subuids=True)
    except OSError as error:
        raise Forbidden(_sentence(error.errno or 1)) from error
    alive, hold = os.pipe()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (*_FORWARDED, signal.SIGCHLD))
    init = os.fork()
    if init == 0:
        os.close(hold)
        code = 127
        try:
            code = _init(argv, alive, mask)
        finally:
            os._exit(code)
    os.close(alive)
    return _wait(init)


def _init(argv: list[str], alive: int, mask: set[signal.Signals | int]) -> int:
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.set_blocking(alive, False)
    with contextlib.suppress(BlockingIOError):  # blocks = the supervisor still holds the other end
        os.read(alive, 1)
        return 1  # it died before the parent-death signal was armed
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    # An ordinary user's PATH leaves out where ip and nft live.
    os.environ["PATH"] = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    child = os.fork()
    if child == 0:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.execvp(argv[0], argv)
        except OSError as error:
            print(f"{argv[0]}: {error.strerror}", file=sys.stderr)
        finally:
            os._exit(127)
    return _wait(child)


def _wait(child: int) -> int:
    """Reap until `child` has ended; pass on signals that a process (not the terminal) sent us."""
    while True:
        got = signal.sigwaitinfo((*_FORWARDED, signal.SIGCHLD))
        if got.si_signo != signal.SIGCHLD:
            # The terminal's signals (si_code SI_KERNEL > 0) reach the whole process group already.
            if got.si_code <= 0:
                os.kill(child, got.si_signo)
            continue
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 127
            if pid == 0:
                break
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code


# ── pytest ────────────────────────────────────────────────────────────────────────────────────────


def pytest_cmdline_main(config: Any) -> None:
    """pytest hook: run the whole test session inside; outside, with the reason said, if forbidden."""
    if is_main() or config.option.collectonly or config.option.help:
        return
    reason = forbidden()
    if reason:
        os.environ[_MISSING] = reason
        return
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.stop_global_capturing()
    enter([sys.executable, "-m", "pytest", *config.invocation_params.args])


if __name__ == "__main__":
    try:
        sys.exit(_supervise(sys.argv[sys.argv.index("--") + 1 :]))
    except Forbidden as error:
        sys.exit(str(error))
