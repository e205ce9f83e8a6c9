"""Debian's containerd on a node of the lab, with folders of its own; pods by its CRI, as kubelet asks for.

Its root, state and socket lie with the node's files, and it runs in the node's network namespace, as do
the plugins and shims it starts. What it keeps elsewhere whatever it is told (libcni's results below
/var/lib/cni, the shims' sockets below /run) stays inside the session; what a container's processes are
counted in (cgroups) has no inside, so it goes by a name of ours and is removed at the end.

What a pod is asked and what a test expects does not belong here.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab import session, spaces
from tests.lab.netns import mount
from tests.lab.node import Node
from tests.runtime import cri, image

RESULTS = Path("/var/lib/cni/results")
"""Where libcni caches results; containerd has no setting for it."""

_CGROUPS = Path("/sys/fs/cgroup")
_NAMESPACE = "k8s.io"  # in which containerd's CRI plugin keeps images and containers
_DEADLINE_S = 60.0

_CONFIG = """\
version = 2
root = "{root}/root{life}"
state = "{root}/c{life}"
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.tracing",
]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  restrict_oom_score_adj = true  # root of a container may not lower it
  disable_apparmor = true
  netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{node.bin}"
  conf_dir = "{node.conf}"
  max_conf_num = 1
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
"""


def missing() -> str | None:
    """Why no containerd can run here, in one sentence; None when one can."""
    if not spaces.inside():
        return spaces.missing()
    if spaces.tier() != "root":
        return "a real container runtime needs root: run `sudo make test` to have it tried as well"
    absent = [each for each in ("containerd", "runc", "ctr") if not shutil.which(each)]
    if absent:
        return f"no {' and no '.join(absent)} here: run deploy/machine as root"
    return None


@dataclass(slots=True, eq=False)
class Pod:
    """A sandbox as the runtime tells of it. `netns` is held open until `let_go()`."""

    name: str
    id: str
    config: dict[str, Any]
    address: str
    path: str
    """Of its network namespace, as the plugin is told it."""
    netns: spaces.Netns

    def ping(self, address: str, *, wait: float = 5.0) -> bool:
        """Does one ping to `address` come back within `wait` seconds?"""
        argv = ("ping", "-c1", f"-W{wait:g}", address)
        return self.netns.run(subprocess.run, argv, capture_output=True).returncode == 0

    def let_go(self) -> None:
        """Close the namespace; an open one outlives its sandbox."""
        self.netns.close()


@dataclass(slots=True, eq=False)
class Containerd:
    """The runtime of one node. `start()` it; `close()` removes all it ever had."""

    node: Node
    archive: Path
    process: subprocess.Popen[bytes] | None = None
    life: int = 0
    """Another number is a runtime whose disk was wiped: it knows nothing of the pods that were."""
    known: set[str] = field(default_factory=set)
    """Ids of all sandboxes it ever made."""
    cgroup: str = field(default_factory=lambda: f"vpcledger-lab-{uuid.uuid4().hex[:12]}")
    _cri: cri.Cri | None = None

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.root / "containerd.sock"

    @property
    def root(self) -> Path:
        """Its folder."""
        return self.node.root / "containerd"

    @property
    def log(self) -> Path:
        """What it writes."""
        return self.root / "log"

    # ── the process ───────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Start it and wait until it takes pods; TimeoutError with the end of its log if it does not."""
        self.root.mkdir(exist_ok=True)
        new = not (self.root / f"root{self.life}").exists()
        config = self.root / "config.toml"
        fields: dict[str, Any] = {
            "root": self.root,
            "socket": self.socket,
            "image": image.NAME,
            "node": self.node,
        }
        fields["life"] = self.life
        config.write_text(_CONFIG.format(**fields))
        with self.log.open("ab") as log:
            self.process = self.node.netns.run(
                subprocess.Popen,
                ["containerd", "--config", str(config), "--log-level", "info"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._cri = cri.Cri(self.socket)
        self._until(self._answers, "answered")
        if new:
            ctr = ["ctr", "--address", str(self.socket), "--namespace", _NAMESPACE]
            subprocess.run(
                [*ctr, "images", "import", str(self.archive)], check=True, capture_output=True
            )
        self._until(lambda: self.conditions()["NetworkReady"], "had a network")

    def kill(self) -> None:
        """SIGKILL to containerd alone; shims and sandboxes live on."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Remove all sandboxes, end the process, and take the cgroups away."""
        if self.process:
            self.end_all()
            self._end(signal.SIGTERM)
        for top in (_CGROUPS / self.cgroup, *_CGROUPS.glob(f"*/{self.cgroup}")):  # v2, v1
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):  # v1 shows some hierarchies by two names
                    Path(folder).rmdir()

    def _end(self, how: signal.Signals) -> None:
        if self.process:
            self.process.send_signal(how)
            self.process.wait(_DEADLINE_S)
            self.process = None
        if self._cri:  # only now: hanging up first would tell a runtime that lives to undo the call
            self._cri.close()
            self._cri = None

    def _answers(self) -> bool:
        """Whoever is asked too early is told `server is not initialized yet`."""
        try:
            self.call("Status")
        except cri.CriError as failed:
            if failed.code != "UNAVAILABLE" and "not initialized" not in failed.details:
                raise
            return False
        return True

    def _until(self, seen: Any, what: str) -> None:
        """Its state is told by nothing but its answers: asked until a deadline, or until it has ended."""
        deadline = time.monotonic() + _DEADLINE_S
        while not seen():
            assert self.process
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
                raise TimeoutError(f"{self.node.name}'s containerd has not {what}:\n{tail}")
            time.sleep(0.02)

    # ── pods ──────────────────────────────────────────────────────────────────────────────────

    def call(self, method: str, **fields: Any) -> dict[str, Any]:
        """One call of the CRI; CriError is the runtime's refusal."""
        if self._cri is None:
            raise LookupError(f"{self.node.name} has no containerd")
        return self._cri.call(method, **fields)

    def run(
        self,
        name: str,
        *,
        ports: dict[int, int] | None = None,
        annotations: dict[str, str] | None = None,
    ) -> Pod:
        """RunPodSandbox in namespace `default`; `ports` maps host ports to the pod's."""
        config = self.sandbox_config(name, ports=ports, annotations=annotations)
        made = self.call("RunPodSandbox", config=config)["pod_sandbox_id"]
        self.known.add(made)
        return self.pod(name, made, config)

    def sandbox_config(
        self,
        name: str,
        *,
        ports: dict[int, int] | None = None,
        annotations: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """What kubelet asks for when a pod of this name is to run."""
        return {
            "metadata": {"name": name, "uid": str(uuid.uuid4()), "namespace": "default"},
            "hostname": name,
            "annotations": annotations or {},
            "port_mappings": [
                {"host_port": host, "container_port": container}
                for host, container in (ports or {}).items()
            ],
            "linux": {"cgroup_parent": f"/{self.cgroup}"},
        }

    def pod(self, name: str, identity: str, config: dict[str, Any]) -> Pod:
        """A sandbox that runs, as the runtime knows it now."""
        told = self.status(identity)
        namespaces = json.loads(told["info"]["info"])["runtimeSpec"]["linux"]["namespaces"]
        [path] = [each["path"] for each in namespaces if each["type"] == "network"]
        address = told["status"]["network"]["ip"]
        return Pod(name, identity, config, address, path, spaces.Netns.at(path))

    def status(self, identity: str) -> dict[str, Any]:
        """PodSandboxStatus with all the runtime knows besides."""
        return self.call("PodSandboxStatus", pod_sandbox_id=identity, verbose=True)

    def serve(self, pod: Pod, port: int) -> None:
        """A real container in the pod, with `container.c`'s server on `port`; it listens on return."""
        asked = {
            "metadata": {"name": "server"},
            "image": {"image": image.NAME},
            "args": ["serve", str(port)],
        }
        made = self.call(
            "CreateContainer", pod_sandbox_id=pod.id, config=asked, sandbox_config=pod.config
        )["container_id"]
        self.call("StartContainer", container_id=made)
        listens = ("ss", "--tcp", "--listening", "--no-header", "--numeric", f"sport = :{port}")
        self._until(lambda: pod.netns.command(*listens).strip(), f"started {pod.name}'s server")

    def end(self, pod: Pod) -> None:
        """StopPodSandbox and RemovePodSandbox."""
        pod.let_go()
        self.stop(pod.id)
        self.remove(pod.id)

    def end_all(self, name: str | None = None) -> None:
        """End whatever sandboxes the runtime has, or those of one pod, as kubelet does after a start."""
        for each in self.call("ListPodSandbox")["items"]:
            if name in {None, each["metadata"]["name"]}:
                self.stop(each["id"])
                self.remove(each["id"])

    def stop(self, identity: str) -> None:
        """StopPodSandbox; CriError if a plugin refuses its DEL."""
        self.call("StopPodSandbox", pod_sandbox_id=identity)

    def remove(self, identity: str) -> None:
        """RemovePodSandbox."""
        self.call("RemovePodSandbox", pod_sandbox_id=identity)

    def conditions(self) -> dict[str, bool]:
        """RuntimeReady and NetworkReady."""
        found = self.call("Status")["status"]["conditions"]
        return {each["type"]: each["status"] for each in found}

    # ── what is left ──────────────────────────────────────────────────────────────────────────

    def leftovers(self) -> Iterator[str]:
        """Sandboxes, namespaces, shims and cached results that are there now, each in words."""
        for each in self.call("ListPodSandbox")["items"] if self.process else ():
            yield f"sandbox {each['metadata']['name']} {each['id']}"
        for path in self.root.glob("c*/*/netns/*"):
            yield f"namespace {path.name}"
        for path in RESULTS.glob("*"):  # the session's other workers have theirs here
            if any(each in path.name for each in self.known):
                yield f"cached result {path.name}"
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = line.read_bytes().decode().split("\0")
                if "containerd-shim" in words[0] and str(self.socket) in words:
                    yield f"shim {words[words.index('-id') + 1]}"


def keep_results_inside() -> None:
    """Lay a tmpfs over what the session shares with the host, once in a session; workers share it."""
    with (spaces.RUN / "results.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.ismount(RESULTS.parent):
            return
        if not RESULTS.parent.exists():
            session.cover(RESULTS.parent.parent)
            RESULTS.parent.mkdir()
        mount("tmpfs", str(RESULTS.parent), "tmpfs", 0, "mode=755")
