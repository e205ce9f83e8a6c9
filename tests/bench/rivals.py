"""Who is measured: our launcher and daemon, Debian's ptp with host-local, and the bare kernel.

Each has a host namespace, the same number of pods' namespaces, and knows how to prove that its pods
work and that nothing of them is left. What is counted does not belong here.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench.stopwatch import BenchError, Call, Stopwatch, require
from tests.lab import node as nodes
from tests.lab import spaces

PTP = nodes.PLUGINS / "ptp"
MTU = 9001
_GONE_S = 30.0


class Plugin:
    """A CNI plugin in a host namespace, and pods' namespaces for it to wire."""

    def __init__(
        self, name: str, host: spaces.Netns, pods: Path, plugin: Path, config: Path, program: Path
    ) -> None:
        self.name, self.plugin, self.config, self.host = name, plugin, config, host
        self.watch = Stopwatch(program, host)
        self._folder = pods
        self.pods: list[spaces.Netns] = []

    def have(self, count: int) -> None:
        """At least so many pods' namespaces."""
        while len(self.pods) < count:
            name = f"{self.name}-{len(self.pods)}"
            self.pods.append(spaces.Netns(name, directory=self._folder))

    def call(self, verb: str, pod: int) -> Call:
        """That verb for that pod; its container id is always the same."""
        container = f"{self.name}{pod:060d}"[:64]
        name = f"{self.name}-{pod}"
        return Call(verb, self.pods[pod].path, container, name, self.plugin, self.config)

    def one(self, verb: str, pod: int) -> int:
        """Nanoseconds of one call; BenchError if it fails."""
        return self.watch.call(self.call(verb, pod))

    def many(self, verb: str, pods: Sequence[int], *, together: int = 30) -> tuple[int, list[int]]:
        """Nanoseconds for all of these pods, and of each; BenchError if one call fails."""
        calls = [self.call(verb, pod) for pod in pods]
        whole, taken = self.watch.run(calls, together=together)
        for call, each in zip(calls, taken, strict=True):
            require(call, each)
        return whole, [each.ns for each in taken]

    def prove(self) -> None:
        """A pod is given its network, pings the host, and is taken away: BenchError if it is not."""
        self.have(2)
        taken = self.watch.run([self.call("ADD", pod) for pod in (0, 1)])[1]
        for pod, each in enumerate(taken):
            require(self.call("ADD", pod), each)
        address = json.loads(taken[1].text)["ips"][0]["address"].partition("/")[0]
        done = self.pods[0].run(
            subprocess.run, ["ping", "-c1", "-W1", address], capture_output=True, check=False
        )
        if done.returncode:
            raise BenchError(f"{self.name}: a pod cannot ping the other")
        self.many("DEL", (0, 1))
        self.nothing_left()

    def nothing_left(self) -> None:
        """No link of a pod at either end, no rule of ours: BenchError if there still is after a while.

        Ours removes links behind the reply, so they are looked for until a deadline.
        """
        deadline = time.monotonic() + _GONE_S
        while left := self._left():
            if time.monotonic() > deadline:
                raise BenchError(f"{self.name}: {len(left)} are left, such as {left[0]}")
            time.sleep(0.01)

    def _left(self) -> list[str]:
        links = [
            line
            for where in (self.host, *self.pods)
            for line in where.command("ip", "-o", "link", "show", "type", "veth").splitlines()
            if "@" in line and "eth" not in line.split("@")[0]
        ]
        rules = self.host.command("ip", "rule").splitlines()
        return links + [line for line in rules if line.startswith(("512:", "1536:"))]

    def close(self) -> None:
        """End the stopwatch and the pods' namespaces; the host's stays its owner's."""
        self.watch.close()
        for pod in self.pods:
            pod.close()


def ours(node: nodes.Node, program: Path) -> Plugin:
    """The launcher of a node of the lab, with the configuration that the daemon published."""
    conflist = json.loads(next(node.conf.glob("*.conflist")).read_text())
    first = conflist["plugins"][0]
    config = node.root / "bench.conf"
    named = {"name": conflist["name"], "cniVersion": conflist["cniVersion"]}
    config.write_text(json.dumps({**first, **named}))
    return Plugin("ours", node.netns, node.pods, node.bin / first["type"], config, program)


def ptp(folder: Path, program: Path) -> Plugin | None:
    """Debian's ptp with host-local, its leases in the same kind of folder; None if not installed."""
    if not PTP.exists():
        return None
    config = folder / "ptp.conf"
    ipam = {
        "type": "host-local",
        "dataDir": str(folder / "host-local"),
        "ranges": [[{"subnet": "10.98.0.0/16"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    named = {"cniVersion": "1.0.0", "name": "ptp", "type": "ptp", "mtu": MTU}
    config.write_text(json.dumps({**named, "ipam": ipam}))
    host = spaces.Netns("ptp", directory=folder / "netns")
    host.sysctl("ipv4/ip_forward", 1)
    return Plugin("ptp", host, folder / "netns", PTP, config, program)


class Floor:
    """What the kernel and the disk alone take: wiring, a flush, and the launcher with an echo."""

    def __init__(self, folder: Path, launcher: Path, program: Path) -> None:
        self.host = spaces.Netns("floor", directory=folder / "netns")
        self.watch = Stopwatch(program, self.host)
        self.pods: list[spaces.Netns] = []
        self._folder, self._file = folder, folder / "pages"
        self._plugin = folder / "aws-cni"
        shutil.copy2(launcher, self._plugin)
        (folder / "aws-cni.conf").write_text(f"socket={folder}/echo.sock\n")
        self._echo = subprocess.Popen(
            [str(program), "echo", f"{folder}/echo.sock"], stdout=subprocess.PIPE
        )
        assert self._echo.stdout is not None
        self._echo.stdout.readline()

    def have(self, count: int) -> None:
        """At least so many pods' namespaces."""
        while len(self.pods) < count:
            name = f"floor-{len(self.pods)}"
            self.pods.append(spaces.Netns(name, directory=self._folder / "netns"))

    def wire(self, pod: int) -> int:
        """Nanoseconds of the netlink messages of one pod."""
        return self.watch.wire(self.pods[pod].path, self._index(pod))

    def unwire(self, pod: int) -> int:
        """Nanoseconds until the kernel has let go of it."""
        return self.watch.unwire(self._index(pod))

    def sync(self) -> int:
        """Nanoseconds of a commit's flush."""
        return self.watch.sync(self._file)

    def echo(self, like: Call) -> int:
        """Nanoseconds of the launcher for the same call, answered by a daemon that does nothing."""
        return self.watch.call(
            Call("ADD", like.netns, like.container, like.pod, self._plugin, like.config)
        )

    def close(self) -> None:
        """End the processes and the namespaces."""
        self._echo.terminate()
        self._echo.communicate()
        self.watch.close()
        for netns in (*self.pods, self.host):
            netns.close()

    @staticmethod
    def _index(pod: int) -> int:
        return 500_000 + 2 * pod


def resident_mib(leader: int) -> float:
    """Proportional memory (Pss counts a shared page once) of a process and all it started, MiB."""
    whole, pids = 0, [leader]
    while pids:
        pid = pids.pop()
        for task in Path(f"/proc/{pid}/task").iterdir():
            pids += map(int, (task / "children").read_text().split())
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        whole += sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    return whole / 1024
