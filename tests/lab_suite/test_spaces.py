"""Sessions and network namespaces: apart from the host, and gone when they end."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import session, spaces

THIS_NETNS = Path("/proc/thread-self/ns/net")
LAB = Path(spaces.__file__).parent
pytestmark = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))


def nested(script: str, *args: str) -> list[str]:
    """The command line of a session inside this one that runs a Python script."""
    preamble = "import os, sys; from tests.lab import spaces\n"
    program = [sys.executable, "-c", preamble + script, *args]
    return [sys.executable, "-m", "tests.lab.spaces", "--", *program]


@contextlib.contextmanager
def running(script: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A nested session and the words of its first line."""
    with subprocess.Popen(nested(script), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process, process.stdout.readline().split()
        finally:
            process.kill()


def links(ns: spaces.Netns) -> set[str]:
    return {name for _, name in ns.run(socket.if_nameindex)}


def gone(pid: int) -> bool:
    """Has this process ended? Its parent may be slow to reap, so a zombie counts as ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def wait_gone(pid: int) -> bool:
    # Another parent's child: the kernel tells us nothing about it, so we ask until a deadline.
    deadline = time.monotonic() + 5
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return gone(pid)


def test_a_session_sees_only_its_own_network() -> None:
    """The test session itself has no link but loopback, and it is up."""
    with spaces.Netns.here() as here:
        assert links(here) == {"lo"}
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname()).close()


def test_links_made_in_a_namespace_stay_there() -> None:
    """A veth pair across two namespaces carries a ping, and the caller's namespace shows neither."""
    with spaces.Netns() as one, spaces.Netns() as two, spaces.Netns.here() as here:
        pair = f"left type veth peer name right netns {two.path}"
        one.command("ip", "link", "add", *pair.split())
        for ns, dev, address in ((one, "left", "192.0.2.1/24"), (two, "right", "192.0.2.2/24")):
            ns.command("ip", "address", "add", address, "dev", dev)
            ns.command("ip", "link", "set", dev, "up")
        assert "1 received" in one.command("ping", "-c1", "-W2", "192.0.2.2")
        assert (links(one), links(two), links(here)) == ({"lo", "left"}, {"lo", "right"}, {"lo"})


def test_run_leaves_the_caller_where_it_was_and_passes_exceptions_on() -> None:
    """Whatever happens inside, the calling thread's namespace does not change."""
    before = THIS_NETNS.readlink()
    with spaces.Netns() as ns:
        assert ns.run(THIS_NETNS.readlink) != before
        with pytest.raises(ZeroDivisionError):
            ns.run(divmod, 1, 0)
    assert THIS_NETNS.readlink() == before


def test_a_named_namespace_can_be_entered_by_its_path_until_it_is_closed() -> None:
    """nsenter finds it by path; after close the path is gone."""
    ns = spaces.Netns("named")
    inode = ns.run(THIS_NETNS.readlink)
    line = ["nsenter", f"--net={ns.path}", "readlink", "/proc/self/ns/net"]
    assert subprocess.check_output(line, text=True).strip() == str(inode)
    path = Path(ns.path)
    ns.close()
    assert not path.exists()


def test_a_failing_command_says_what_it_was_and_why() -> None:
    """The error of `command` carries the program's own words."""
    with spaces.Netns() as ns, pytest.raises(RuntimeError, match=r"ip link show nosuch.*exist"):
        ns.command("ip", "link", "show", "nosuch")


def test_sysctls_are_those_of_the_namespace() -> None:
    """Writing ip_forward in one namespace leaves another alone."""
    with spaces.Netns() as one, spaces.Netns() as two:
        assert one.sysctl("ipv4/ip_forward", 1) == "1"
        assert two.sysctl("ipv4/ip_forward") == "0"


def test_the_exit_status_comes_back() -> None:
    """An exit code as it is, a death by signal as 128 + its number."""
    assert subprocess.run(nested("sys.exit(7)"), check=False).returncode == 7
    assert subprocess.run(nested("os.kill(os.getpid(), 9)"), check=False).returncode == 137


def test_sigterm_to_the_supervisor_reaches_the_program() -> None:
    """The pid the caller knows is the one to signal."""
    script = (
        "import signal\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "print('ready', flush=True)\nsignal.pause()"
    )
    with running(script) as (process, _):
        process.terminate()
        assert process.wait(5) == 5


@pytest.mark.parametrize("victim", ["supervisor", "init"])
def test_sigkill_of_supervisor_or_init_ends_everything(victim: str) -> None:
    """No process is left, not even one that ignores signals and left its process group."""
    script = (
        "import signal, subprocess\n"
        "stubborn = subprocess.Popen(['sh', '-c', 'trap \"\" TERM HUP; sleep 300; :'],"
        " start_new_session=True)\n"
        "print(*map(spaces.outer_pid, (1, os.getpid(), stubborn.pid)), flush=True)\n"
        "signal.pause()"
    )
    with running(script) as (process, words):
        init, program, stubborn = map(int, words)
        assert not any(map(gone, (init, program, stubborn)))
        os.kill(process.pid if victim == "supervisor" else init, signal.SIGKILL)
        process.wait(5)
        assert all(map(wait_gone, (init, program, stubborn)))


def test_the_outside_reads_files_and_enters_namespaces_by_the_names_it_is_given() -> None:
    """Pids, paths and the nsenter prefix work from outside as printed inside."""
    script = (
        "import signal\n"
        "ns = spaces.Netns('inner'); ns.command('ip', 'link', 'add', 'mark', 'type', 'bridge')\n"
        "(spaces.RUN / 'file').write_text('hello')\n"
        "print(spaces.outer_path(spaces.RUN / 'file'), *spaces.outer_enter(ns.path), flush=True)\n"
        "signal.pause()"
    )
    with running(script) as (_, (file, *enter)):
        assert Path(file).read_text() == "hello"
        shown = subprocess.check_output([*enter, "ip", "-br", "link"], text=True)
        assert "mark" in shown


def test_files_of_a_session_are_not_seen_outside() -> None:
    """/run inside is a tmpfs of the session alone."""
    name = f"witness-{os.getpid()}"
    subprocess.run(nested(f"(spaces.RUN / '{name}').touch()"), check=True)
    assert not (spaces.RUN / name).exists()


def test_the_tier_says_which_uids_exist() -> None:
    """A process can take uid 65532 exactly when the tier is not `single`."""
    done = subprocess.run(["setpriv", "--reuid", "65532", "true"], check=False, capture_output=True)
    assert (done.returncode == 0) == (spaces.tier() != "single")


def test_every_uid_of_a_session_reaches_the_program_behind_a_closed_folder(tmp_path: Path) -> None:
    """A home of mode 700 does not hide Python and the project from a daemon with its own uid."""
    closed = tmp_path / "home"
    closed.mkdir()
    (closed / "other").write_text("still here")
    (closed / "link").symlink_to("other")
    copy = closed / "project/tests/lab"
    copy.mkdir(parents=True)
    (copy.parent / "__init__.py").touch()
    for name in ("__init__", "netns", "session", "spaces"):
        shutil.copy(LAB / f"{name}.py", copy)
    closed.chmod(0o700)
    other = [] if spaces.tier() == "single" else ["setpriv", "--reuid", "65532", "--clear-groups"]
    program = (
        f"import sys; sys.path.insert(0, {str(closed / 'project')!r})\n"
        "from tests.lab import spaces; spaces.enter(sys.argv[1:])"
    )
    cat = ["cat", str(copy / "session.py"), str(closed / "link")]
    shown = subprocess.check_output([sys.executable, "-P", "-c", program, *other, *cat], text=True)
    assert shown == (LAB / "session.py").read_text() + "still here"
    assert closed.stat().st_mode & 0o777 == 0o700


def test_a_host_without_namespaces_is_named_with_its_reason() -> None:
    """With the sysctl at zero a process without privilege is told which one it is."""
    script = (
        "import subprocess\n"
        "from pathlib import Path\n"
        "Path('/proc/sys/user/max_user_namespaces').write_text('0')\n"
        "probe = 'from tests.lab import spaces; print(spaces.forbidden())'\n"
        "line = ['setpriv', '--bounding-set=-all', sys.executable, '-c', probe]\n"
        "subprocess.run(line, check=True)"
    )
    # A user namespace around it: the limit is per user namespace, so this does not touch the host's.
    outer = ["unshare", "--user", "--map-root-user", *nested(script)]
    said = subprocess.run(outer, check=True, capture_output=True, text=True).stdout
    assert "user.max_user_namespaces is 0" in said


def test_an_ordinary_user_is_told_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to do is sudo, or to ask for the permission."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    said = session.sentence(errno.EPERM)
    assert "Operation not permitted" in said
    assert "with sudo, or have the administrator allow" in said
