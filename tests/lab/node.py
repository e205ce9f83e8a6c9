"""One EC2 instance as a Kubernetes node: a namespace, its folders, its boot, and the daemon on it.

`Node.boot` does what DHCP and the machine image do; `install` and `start_daemon` run the product by
its command line alone, as processes in the node's namespace. Folders (all on the session's tmpfs):

    state/    survives a reboot: the ledger, the spool        opt/cni/bin/   executables of the runtime
    run/      does not: the socket                            etc/cni/net.d/ its configuration
    netns/    pods' namespaces                                boot_id        changes with every boot
    daemon.log                                                cni/           the runtime's result cache

What does not belong here: pods and CNI calls (kubelet), anything about how the daemon works.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab import fabric, spaces

if TYPE_CHECKING:
    from tests.lab.fabric import Fabric

PLUGINS = Path("/usr/lib/cni")
"""Where Debian's containernetworking-plugins puts portmap and its siblings."""

_READY_DEADLINE = 30.0


class DaemonFailed(RuntimeError):
    """The product's process ended or was not ready in time; the text ends with its last log lines."""


class Node:
    """A node of the lab. `close()` ends its daemon and its namespace."""

    def __init__(self, name: str, instance: str, vpc: Fabric) -> None:
        self.name = name
        self.instance = instance
        self.root = vpc.directory / "nodes" / name
        self.state = self.root / "state"
        self.run = self.root / "run"
        self.bin = self.root / "opt/cni/bin"
        self.conf = self.root / "etc/cni/net.d"
        self.pods = self.root / "netns"
        self.cache = self.root / "cni/results"
        self.log = self.root / "daemon.log"
        self.boot_id = self.root / "boot_id"
        self.daemon: subprocess.Popen[bytes] | None = None
        self.environment: dict[str, str] = {}
        self.address = ""
        self.vpc = vpc
        for folder in (self.state, self.run, self.bin, self.conf, self.pods, self.cache):
            folder.mkdir(parents=True)
        for plugin in PLUGINS.glob("*"):
            (self.bin / plugin.name).symlink_to(plugin)
        self.netns = self._namespace()

    @property
    def ledger(self) -> Path:
        """Where the daemon keeps its file."""
        return self.state / "ledger.db"

    # ── the machine ───────────────────────────────────────────────────────────────────────────

    def boot(self) -> None:
        """Power on: sysctls of the image, interfaces from EC2, an address by DHCP on eth0 alone."""
        self.boot_id.write_text(f"{uuid.uuid4()}\n")
        for sysctl, value in (
            ("ipv4/ip_forward", 1),  # the node image's bootstrap sets these for kubelet
            ("ipv6/conf/all/forwarding", 1),
            ("ipv4/conf/default/rp_filter", 1),  # Amazon Linux 2, the strictest image in use
        ):
            self.netns.sysctl(sysctl, value)
        self.vpc.join(self.instance, self.netns)
        primary = self.vpc.primary(self.instance)
        self.address = primary["PrivateIpAddress"]
        lines = fabric.boot_lines("eth0", self.address, self.vpc.gateway(primary["SubnetId"]))
        self.netns.command("ip", "-batch", "-", stdin="\n".join(lines))
        self.vpc.await_link(primary["NetworkInterfaceId"])

    def reboot(self) -> None:
        """Power off and on: processes, pods, links, rules and /run are gone; disks are not.

        The daemon is not started again: that is the caller's next step.
        """
        self.kill_daemon()
        for pod in list(self.pods.iterdir()):
            spaces.unbind(pod)
        for volatile in (self.run, self.conf):
            shutil.rmtree(volatile)
            volatile.mkdir()
        self.vpc.leave(self.instance)
        self.netns.close()
        self.netns = self._namespace()
        self.boot()

    def close(self) -> None:
        """Power off for good."""
        self.stop_daemon()
        for pod in list(self.pods.iterdir()):
            spaces.unbind(pod)
        self.vpc.leave(self.instance)
        self.netns.close()

    def _namespace(self) -> spaces.Netns:
        return spaces.Netns(self.name, directory=self.vpc.directory / "netns")

    # ── the product ───────────────────────────────────────────────────────────────────────────

    def product(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run `vpcledger ARGV` on the node as root, as `kubectl exec` would; never raises."""
        return self._run(_product(), *argv)

    def python(self, program: str) -> subprocess.CompletedProcess[str]:
        """Run a program as `product` runs the product's; never raises."""
        return self._run(sys.executable, "-c", program)

    def _run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return self.netns.run(
            subprocess.run,
            argv,
            env=self.environment_of_product(),
            capture_output=True,
            text=True,
            check=False,
        )

    def start_daemon(self, *, by: Sequence[str] = (), **settings: str) -> None:
        """Install and start the product and wait until it says that pods can come.

        `by` is a program that runs the command given to it (`env`, say); `settings` are environment
        variables (WARM_IP_TARGET="5") and stay for later starts. Raises DaemonFailed with the end of the log.
        """
        self.environment.update(settings)
        self.begin_daemon(by)
        self.await_ready()

    def begin_daemon(self, by: Sequence[str] = ()) -> None:
        """Install and start the product; nobody waits for it."""
        installed = self.product("install")
        if installed.returncode:
            raise DaemonFailed(f"{self.name}: vpcledger install: {installed.stderr.strip()}")
        with self.log.open("ab") as log:
            self.daemon = self.netns.run(
                subprocess.Popen,
                [*by, *self.daemon_command()],
                env=self.environment_of_product(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop_daemon(self) -> int | None:
        """SIGTERM, as kubelet stops a pod; its exit status, or None if there was none."""
        return self._end(signal.SIGTERM)

    def kill_daemon(self) -> int | None:
        """SIGKILL to the daemon and whatever processes it has."""
        return self._end(signal.SIGKILL)

    def pause_daemon(self) -> None:
        """SIGSTOP: the daemon is there and does nothing, as on a machine out of breath."""
        self._signal(signal.SIGSTOP)

    def resume_daemon(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, which: signal.Signals) -> None:
        if self.daemon is None:
            raise DaemonFailed(f"{self.name} has no daemon")
        os.killpg(self.daemon.pid, which)

    def _end(self, how: signal.Signals) -> int | None:
        if self.daemon is None:
            return None
        with contextlib.suppress(ProcessLookupError):
            if how == signal.SIGKILL:
                os.killpg(self.daemon.pid, how)
            else:
                self.daemon.send_signal(how)
        try:
            code = self.daemon.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.daemon.pid, signal.SIGKILL)
            code = self.daemon.wait()
        self.daemon = None
        return code

    @staticmethod
    def daemon_command() -> list[str]:
        """What the container of the daemon runs."""
        return [_product(), "daemon"]

    def environment_of_product(self) -> dict[str, str]:
        """Built from nothing: a developer's AWS_* or proxy variables must not reach the daemon."""
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "MY_NODE_NAME": self.name,
            "VPCLEDGER_STATE_DIR": str(self.state),
            "VPCLEDGER_RUN_DIR": str(self.run),
            # With a single uid there is no other user to become.
            "VPCLEDGER_UID": "0" if spaces.tier() == "single" else "65532",
            "VPCLEDGER_BOOT_ID_PATH": str(self.boot_id),
            "AWS_VPC_K8S_CNI_BACKING_STORE": str(self.run / "ipam.json"),
            "VPCLEDGER_CNI_CACHE_DIR": str(self.cache),
            # A runtime of this machine knows nothing of the lab's pods.
            "VPCLEDGER_CRI_SOCKET": str(self.run / "containerd.sock"),
            "HOST_CNI_BIN_PATH": str(self.bin),
            "HOST_CNI_CONFDIR_PATH": str(self.conf),
            "AWS_EC2_ENDPOINT": f"http://{fabric.API}",
            "AWS_VPC_K8S_CNI_LOG_FILE": "stderr",
            "AWS_VPC_K8S_PLUGIN_LOG_FILE": "stderr",
            **self.environment,
        }

    def await_ready(self) -> None:
        """Wait for the file the runtime waits for, and (it outlives a daemon) for somebody to listen.

        The events are a rename in a folder and a listen(2); the standard library has no inotify, so
        both are looked for every 20 ms until a deadline, or until the daemon has ended.
        """
        deadline = time.monotonic() + _READY_DEADLINE
        while not (any(self.conf.glob("*.conflist")) and self.is_served()):
            ended = self.daemon.poll() if self.daemon else None
            if ended is not None or time.monotonic() > deadline:
                what = f"ended with {ended}" if ended is not None else "was not ready in time"
                raise DaemonFailed(f"{self.name}: the daemon {what}; {self.log}:\n{self.tail()}")
            time.sleep(0.02)

    def is_served(self) -> bool:
        """Does somebody listen in the folder of sockets?"""
        return any(map(_listens, self.run.iterdir()))

    def tail(self, lines: int = 20) -> str:
        """The last lines of the daemon's log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def _listens(path: Path) -> bool:
    """Is this a Unix socket that somebody serves?"""
    with socket.socket(socket.AF_UNIX) as caller:
        try:
            caller.connect(str(path))
        except OSError:
            return False
    return True


def _product() -> str:
    """The console script of the environment that runs the lab."""
    path = Path(sys.executable).with_name("vpcledger")
    if not path.exists():
        raise DaemonFailed(f"{path} is missing: install the project into this environment first")
    return str(path)


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Of a process's environment the variables that configure the daemon's warm pool."""
    names = ("WARM_", "MINIMUM_IP_TARGET", "MAX_ENI")
    return {key: value for key, value in given.items() if key.startswith(names)}
