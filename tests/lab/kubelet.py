"""Stands in for kubelet and containerd: sandboxes, and CNI calls as libcni makes them.

A chain is run plugin by plugin with the network's name and version filled in, `prevResult` handed on, the
result cached per container; DEL and CHECK take it from there (CNI specification, section 3 and "Deriving
execution configuration from plugin configuration"). Observed habits of containerd 1.6 are kept: CNI_ARGS
come in random order; DEL comes twice, the second time with an empty CNI_NETNS and no prevResult; a failed
ADD is followed at once by DEL. CHECK, STATUS and GC, which containerd does not call, are there to be
called by name.

What does not belong here: what a plugin should answer, and anything of EC2.
"""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import threading
import time
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.lab import spaces

if TYPE_CHECKING:
    from tests.lab.node import Node

TRY_AGAIN = 11  # CNI specification, "Error": well-known code "Try again later"

Json = dict[str, Any]


class CniError(Exception):
    """A plugin's refusal: its code, message and details; `plugin` is its type."""

    def __init__(self, plugin: str, code: int, message: str, details: str = "") -> None:
        super().__init__(f"{plugin}: {code}: {message}" + (f" ({details})" if details else ""))
        self.plugin = plugin
        self.code = code
        self.message = message
        self.details = details


@dataclass(slots=True, eq=False)
class Sandbox:
    """A pod's sandbox: a network namespace with a name, known by its container id."""

    namespace: str
    pod: str
    netns: spaces.Netns
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    container: str = field(default_factory=lambda: os.urandom(32).hex())
    ifname: str = "eth0"
    runtime: Json = field(default_factory=dict)
    """Capability arguments, e.g. {"portMappings": [...]}."""
    result: Json | None = None

    @property
    def name(self) -> str:
        """`namespace/pod`, as kubectl shows it."""
        return f"{self.namespace}/{self.pod}"

    @property
    def address(self) -> str:
        """The pod's first address, without prefix length."""
        if self.result is None:
            raise LookupError(f"{self.name} has no network")
        return str(self.result["ips"][0]["address"].partition("/")[0])

    def ping(self, address: str, *, wait: float = 1.0) -> bool:
        """Does one ping to `address` come back within `wait` seconds?"""
        return self.execute("ping", "-c1", f"-W{wait:g}", address).returncode == 0

    def execute(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a program in the pod's network namespace; never raises."""
        return self.netns.run(subprocess.run, argv, capture_output=True, text=True, check=False)


class Kubelet:
    """The kubelet and runtime of one node. Safe to be called from many threads."""

    def __init__(self, node: Node, *, seed: int = 0) -> None:
        self.node = node
        self.sandboxes: dict[str, Sandbox] = {}
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    # ── pods ──────────────────────────────────────────────────────────────────────────────────

    def start(self, pod: str, namespace: str = "default", *, patience: float = 60.0) -> Sandbox:
        """Start a pod: sandbox after sandbox until one gets its network, as kubelet does.

        A refusal with code 11 is followed by a pause that doubles from 0.25 s to 2 s (kubelet's own
        is longer); any other, or `patience` seconds without success, raises the CniError.
        """
        deadline, pause = time.monotonic() + patience, 0.25
        while True:
            sandbox = self.sandbox(pod, namespace)
            try:
                self.add(sandbox)
            except CniError as refused:
                self.remove(sandbox)
                if refused.code != TRY_AGAIN or time.monotonic() + pause > deadline:
                    raise
            else:
                return sandbox
            time.sleep(pause)  # kubelet's back-off is time, there is no event to wait for
            pause = min(2 * pause, 2.0)

    def start_all(self, pods: Iterable[str], *, workers: int = 10) -> list[Sandbox]:
        """Start pods in parallel, as many at a time as `workers`."""
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(self.start, pods))

    def stop_all(self, sandboxes: Iterable[Sandbox], *, workers: int = 10) -> None:
        """Stop and remove pods in parallel."""
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(self.stop, sandboxes))

    def stop(self, sandbox: Sandbox) -> None:
        """Stop and remove a pod: DEL twice, the second time after its namespace is gone."""
        self.delete(sandbox)
        self.remove(sandbox)

    def sandbox(self, pod: str, namespace: str = "default") -> Sandbox:
        """An empty sandbox: a namespace with lo up, and no network yet."""
        netns = spaces.Netns(f"cni-{uuid.uuid4()}", directory=self.node.pods)
        sandbox = Sandbox(namespace, pod, netns)
        with self._lock:
            self.sandboxes[sandbox.container] = sandbox
        return sandbox

    def remove(self, sandbox: Sandbox) -> None:
        """RemovePodSandbox: the namespace goes, then DEL once more with nothing but the id."""
        sandbox.netns.close()
        self.delete(sandbox, gone=True)
        with self._lock:
            self.sandboxes.pop(sandbox.container, None)

    # ── CNI ───────────────────────────────────────────────────────────────────────────────────

    def add(self, sandbox: Sandbox) -> Json:
        """ADD through the chain: the last plugin's result, cached. CniError; kubelet then calls DEL."""
        conflist = self.conflist()
        result: Json | None = None
        for plugin in conflist["plugins"]:
            result = self._call("ADD", conflist, plugin, sandbox, result)
        if result is None:
            raise CniError(conflist["name"], 0, "no plugin of the chain gave a result")
        sandbox.result = result
        self.keep(conflist, sandbox, result)
        return result

    def keep(self, conflist: Json, sandbox: Sandbox, result: Json) -> None:
        """Cache the result of an ADD as libcni does (api.go, cachedInfo)."""
        cached = {
            "kind": "cniCacheV1",
            "containerId": sandbox.container,
            "config": base64.b64encode(json.dumps(conflist).encode()).decode(),
            "ifName": sandbox.ifname,
            "networkName": conflist["name"],
            "cniArgs": [pair.split("=", 1) for pair in self._arguments(sandbox).split(";")],
            "result": result,
        }
        self._cached(conflist, sandbox).write_text(json.dumps(cached))

    def delete(self, sandbox: Sandbox, *, gone: bool = False) -> None:
        """DEL through the chain backwards; `gone`: the namespace and the cached result are gone."""
        conflist = self.conflist()
        previous = None if gone else self._previous(conflist, sandbox)
        for plugin in reversed(conflist["plugins"]):
            self._call("DEL", conflist, plugin, sandbox, previous, gone=gone)
        self._cached(conflist, sandbox).unlink(missing_ok=True)

    def check(self, sandbox: Sandbox) -> None:
        """CHECK through the chain with the cached result. CniError names what is missing.

        A list that forbids it (disableCheck) is asked all the same: a test's question is no runtime's.
        """
        conflist = self.conflist()
        previous = self._previous(conflist, sandbox)
        if previous is None:
            raise LookupError(f"{sandbox.name} has no cached result to check")
        for plugin in conflist["plugins"]:
            self._call("CHECK", conflist, plugin, sandbox, previous)

    def status(self) -> None:
        """STATUS (CNI 1.1): can one more pod be served now? CniError with 50 or 51 if not."""
        conflist = self.conflist(at_least="1.1.0")
        for plugin in self._speakers(conflist):
            self._call("STATUS", conflist, plugin)

    def collect_garbage(self, valid: Iterable[Sandbox] | None = None) -> None:
        """GC (CNI 1.1): whatever is not attached for `valid` (default: all known) may go."""
        conflist = self.conflist(at_least="1.1.0")
        keep = list(self.sandboxes.values()) if valid is None else list(valid)
        attachments = [{"containerID": box.container, "ifname": box.ifname} for box in keep]
        known = {self._cached(conflist, box) for box in keep}
        for stale in set(self.node.cache.iterdir()) - known:
            stale.unlink()
        for plugin in self._speakers(conflist):
            extended = {**plugin, "cni.dev/valid-attachments": attachments}
            self._call("GC", conflist, extended)

    def version(self, plugin: str) -> list[str]:
        """VERSION of one plugin: the specification versions it supports."""
        return list(self.invoke("VERSION", plugin, {"cniVersion": "1.0.0"})["supportedVersions"])

    def _speakers(self, conflist: Json) -> list[Json]:
        """The plugins that speak the list's version: Debian's know no STATUS and no GC yet."""
        version = conflist["cniVersion"]
        return [each for each in conflist["plugins"] if version in self.version(each["type"])]

    def conflist(self, *, at_least: str = "0") -> Json:
        """The first conflist of the folder by name, as the runtime picks it; or its version raised."""
        names = sorted(self.node.conf.glob("*.conflist"))
        if not names:
            raise CniError(
                "runtime", 0, f"cni plugin not initialized: no conflist in {self.node.conf}"
            )
        conflist: Json = json.loads(names[0].read_text())
        if _version(conflist["cniVersion"]) < _version(at_least):
            conflist["cniVersion"] = at_least
        return conflist

    def _call(
        self,
        command: str,
        conflist: Json,
        plugin: Json,
        sandbox: Sandbox | None = None,
        previous: Json | None = None,
        *,
        gone: bool = False,
    ) -> Json:
        config = {key: value for key, value in plugin.items() if key != "capabilities"}
        config |= {"name": conflist["name"], "cniVersion": conflist["cniVersion"]}
        environment = {}
        if sandbox:
            environment = {
                "CNI_CONTAINERID": sandbox.container,
                "CNI_IFNAME": sandbox.ifname,
                "CNI_NETNS": "" if gone else sandbox.netns.path,
                "CNI_ARGS": self._arguments(sandbox),
            }
            wanted = {name for name, on in plugin.get("capabilities", {}).items() if on}
            if granted := {k: v for k, v in sandbox.runtime.items() if k in wanted}:
                config["runtimeConfig"] = granted
        if previous is not None:
            config["prevResult"] = previous
        return self.invoke(command, plugin["type"], config, environment)

    def invoke(
        self, command: str, plugin: str, config: Json, environment: dict[str, str] | None = None
    ) -> Json:
        """Run one plugin once, in the node's namespace: its result ({} for none), or CniError.

        The whole environment is the runtime's PATH and the CNI variables given; tests send nonsense
        through here.
        """
        path = self.node.bin / plugin
        if not path.exists():
            raise CniError(plugin, 0, f"failed to find plugin {plugin!r} in path [{self.node.bin}]")
        done = self.node.netns.run(
            subprocess.run,
            [str(path)],
            input=json.dumps(config),
            env={
                "PATH": os.environ["PATH"],
                "CNI_COMMAND": command,
                "CNI_PATH": str(self.node.bin),
                **(environment or {}),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            answer: Json = json.loads(done.stdout) if done.stdout.strip() else {}
        except ValueError as error:
            raise CniError(plugin, 0, f"{command}: not JSON: {done.stdout[:200]!r}") from error
        if done.returncode:
            if "code" not in answer:
                raise CniError(plugin, 0, f"exit {done.returncode}: {done.stderr.strip()[:500]!r}")
            raise CniError(plugin, answer["code"], answer.get("msg", ""), answer.get("details", ""))
        return answer

    def _arguments(self, sandbox: Sandbox) -> str:
        """CNI_ARGS as containerd passes them: a Go map, so the order is random per call."""
        pairs = [
            "IgnoreUnknown=1",
            f"K8S_POD_NAMESPACE={sandbox.namespace}",
            f"K8S_POD_NAME={sandbox.pod}",
            f"K8S_POD_INFRA_CONTAINER_ID={sandbox.container}",
            f"K8S_POD_UID={sandbox.uid}",
        ]
        with self._lock:
            self._random.shuffle(pairs)
        return ";".join(pairs)

    def _cached(self, conflist: Json, sandbox: Sandbox) -> Path:
        return self.node.cache / f"{conflist['name']}-{sandbox.container}-{sandbox.ifname}"

    def _previous(self, conflist: Json, sandbox: Sandbox) -> Json | None:
        try:
            cached = json.loads(self._cached(conflist, sandbox).read_text())
        except OSError:
            return None
        previous: Json = cached["result"]
        return previous


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
