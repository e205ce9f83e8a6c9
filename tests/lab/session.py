"""The process that is a session's supervisor: it makes the namespaces, runs a program in them, and waits.

Run as a program of its own (`spaces.enter`), because the kernel lets only a process with one thread
into a new user namespace. Standard library only. See `spaces` for what a session is.

What does not belong here: what the inside may ask about its session (`spaces`), and what it runs.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.lab.netns import MS_BIND, NEWNET, RUN, loopback_up, mount, system_call

MARK = "VPCLEDGER_LAB_SPACES"
"""Set in a session: `user` if it has a user namespace, else `root`."""

OUTER_PROC = RUN / "outer-proc"
"""Where a session sees /proc of those who made it."""

# linux/sched.h, linux/mount.h, linux/prctl.h
_NEWNS, _NEWUSER, _NEWPID = 0x00020000, 0x10000000, 0x20000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_REC, _MS_PRIVATE = 16384, 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main(argv: list[str]) -> int:
    """Run `argv` in new namespaces and return its exit status, or 1 with the reason why not."""
    try:
        os.environ[MARK] = new_spaces(subuids=True)
    except OSError as error:
        sys.stderr.write(f"{sentence(error.errno or 1)}\n")
        return 1
    return _supervise(argv)


def text(path: str) -> str:
    """A small file, or nothing."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def sentence(code: int) -> str:
    """Why namespaces were refused with this errno, and how to go on."""
    why = os.strerror(code)
    for sysctl, bad, word in (
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone is 0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor restricts them"),
        ("user/max_user_namespaces", "0", "user.max_user_namespaces is 0"),
    ):
        if text(f"/proc/sys/{sysctl}").strip() == bad:
            why = word
    if os.geteuid() == 0:
        return f"root may not make namespaces here ({why}): use a machine or container that allows unshare."
    return (
        f"This host forbids user namespaces to ordinary users ({why}): run the same command with sudo,"
        " or have the administrator allow them."
    )


def new_spaces(*, subuids: bool) -> str:
    """Move this process into new namespaces with their own /run and /sys: `user` or `root`, as done.

    OSError if it may not.
    """
    made = "root"
    try:
        if os.geteuid() != 0:
            raise PermissionError(1, "not root")
        system_call("unshare", _NEWNS | NEWNET | _NEWPID)
    except PermissionError:
        _new_user(subuids=subuids)
        made = "user"
        system_call("unshare", _NEWNS | NEWNET | _NEWPID)
    mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    mount("tmpfs", "/run", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")
    OUTER_PROC.mkdir(parents=True)
    mount("/proc", str(OUTER_PROC), "", MS_BIND | _MS_REC)
    _own_sysfs()
    _open_the_way(Path(sys.executable).resolve(), Path(sys.prefix), Path(__file__))
    loopback_up()
    return made


def _own_sysfs() -> None:
    """/sys of the new network namespace (/sys/class/net shows its links), cgroups as they were."""
    kept = RUN / "cgroup"
    kept.mkdir()
    with contextlib.suppress(OSError):  # none mounted: nothing to keep
        mount("/sys/fs/cgroup", str(kept), "", MS_BIND | _MS_REC)
    # A container may forbid a fresh sysfs; then /sys keeps showing the host's links, which only
    # misleads readers of /sys/class/net.
    with contextlib.suppress(OSError):
        mount("sysfs", "/sys", "sysfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
        mount(str(kept), "/sys/fs/cgroup", "", MS_BIND | _MS_REC)


def _open_the_way(*targets: Path) -> None:
    """Let every uid of the session reach these: a home of mode 700 would hide Python from a daemon.

    Each closed folder on the way is covered by a tmpfs of mode 755 that shows the same entries.
    """
    for target in targets:
        for folder in reversed(target.parents):
            if not folder.stat().st_mode & 0o001:
                cover(folder)
    os.chdir(Path.cwd())  # into what now stands there


def cover(folder: Path) -> None:
    """Show a folder's entries in a tmpfs laid over it, so that others can be made beside them."""
    behind = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    mount("tmpfs", str(folder), "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")
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
            mount(entry.path, str(shown), "", MS_BIND | _MS_REC)
    os.close(behind)


def _new_user(*, subuids: bool) -> None:
    """A user namespace in which this process is root; every uid of the caller's range exists there."""
    uid, gid = os.geteuid(), os.getegid()
    mapper = _Mapper(os.getpid(), uid, gid) if subuids else None
    system_call("unshare", _NEWUSER)
    if mapper is None or not mapper.map():
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    os.setgid(0)
    os.setuid(0)
    # A change of credentials hides /proc/PID/root from the user who started us.
    system_call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)


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
            groups = _mapper("newgidmap", pid, gid, _span("/etc/subgid", uid))
            users = _mapper("newuidmap", pid, uid, _span("/etc/subuid", uid))
            # One map alone would bar the single one that is the way out: both, or none is tried.
            if os.read(go, 1) and groups and users:
                good = all(
                    subprocess.run(line, check=False, stderr=subprocess.DEVNULL).returncode == 0
                    for line in (groups, users)
                )
        finally:
            os._exit(0 if good else 1)

    def map(self) -> bool:
        os.write(self._go, b"x")
        os.close(self._go)
        return os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1]) == 0


def _mapper(tool: str, pid: int, own: int, span: tuple[int, int] | None) -> list[str] | None:
    """The command that maps 0 to the caller and 1.. to its range; None without range or tool."""
    path = shutil.which(tool)
    if path is None or span is None:
        return None
    first, count = span
    return [path, str(pid), "0", str(own), "1", "1", str(first), str(min(count, 65535))]


def _span(path: str, uid: int) -> tuple[int, int] | None:
    """The caller's first range in /etc/subuid or /etc/subgid (subuid(5): by name or by number)."""
    names = {str(uid)}
    with contextlib.suppress(KeyError):
        names.add(pwd.getpwuid(uid).pw_name)
    for line in text(path).splitlines():
        who, _, rest = line.partition(":")
        if who in names:
            first, count = rest.split(":")
            return int(first), int(count)
    return None


def _supervise(argv: list[str]) -> int:
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
    system_call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.set_blocking(alive, False)
    with contextlib.suppress(BlockingIOError):  # blocks = the supervisor still holds the other end
        os.read(alive, 1)
        return 1  # it died before the parent-death signal was armed
    mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
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
