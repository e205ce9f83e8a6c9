"""Sixteen of the runtime's threads that start, check, stop and lose pods by chance, however often the daemon dies.

What each of them does depends on its seed alone and not on what it is told, so a crowd that met no death ends with
the same pods. A call that failed is followed as containerd and kubelet follow it: an ADD by a DEL and a new sandbox,
anything else by itself. Every word that was answered is remembered here and held against the next. What the node has
to show in the end does not belong here.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Final

from tests.lab import spaces
from tests.lab.kubelet import TRY_AGAIN, Kubelet

AWAY: Final = "does not answer"
"""What the launcher says when nobody is home, or somebody died with the request in hand."""
PODS_EACH: Final = 2
PATIENCE_S: Final = 300.0
"""More than any wait on a busy machine: some thread always is the unlucky one."""
SPOOLED: Final = 0.1
"""Of the deletions so many do not wait until somebody is home."""
PAUSE_S: Final = 0.01
"""Between two tries. Nothing tells a runtime either that the daemon is back."""


@dataclass(eq=False, slots=True)
class Box:
    """One sandbox; `address` once an ADD has been answered."""

    name: str
    netns: spaces.Netns
    container: str = field(default_factory=lambda: os.urandom(16).hex())
    address: str = ""
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Told:
    """The plugin's answer; `away`: there was none of the daemon's."""

    status: int
    said: dict[str, Any]

    @property
    def away(self) -> bool:
        """Did nobody answer?"""
        return bool(self.status) and AWAY in self.said.get("msg", "")


class Crowd:
    """The callers of one node, and what they were told."""

    def __init__(self, kubelet: Kubelet, callers: int) -> None:
        """`kubelet`'s own pods are the runtime's as well."""
        self._kubelet, self._node = kubelet, kubelet.node
        self.launcher = str(self._node.bin / "aws-cni")
        self._lock, self._door = threading.Lock(), threading.Lock()
        self._dice = random.Random()
        self.boxes: dict[str, Box] = {}
        """Sandboxes that the runtime has, by container id."""
        self.holders: dict[str, str] = {}
        """Addresses that a pod was given and has not been asked to give back."""
        self.wrong: list[str] = []
        self.calls = dict.fromkeys(("ADD", "DEL", "CHECK", "GC"), 0)
        """How many were answered by the daemon."""
        self._callers = [Caller(self, number) for number in range(callers)]

    def run(self, until: threading.Event, steps: list[int] | None = None) -> list[int]:
        """Let all go on until the event, or each for so many steps; how many each has made."""
        most = steps or [1 << 30] * len(self._callers)
        threads = [
            threading.Thread(target=caller.run, args=(until, n), name=f"caller {caller.number}")
            for caller, n in zip(self._callers, most, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [caller.steps for caller in self._callers]

    def collect(self) -> None:
        """GC with every sandbox there is, those at work included."""
        with self._lock:
            known = (*self._kubelet.sandboxes, *self.boxes)
        valid = [{"containerID": container, "ifname": "eth0"} for container in known]
        while True:
            told = self.call("GC", None, **{"cni.dev/valid-attachments": valid})
            if not told.away:
                break
            time.sleep(PAUSE_S)
        if told.status:
            self.complain(f"GC: {told.said}")

    def pods(self) -> list[Box]:
        """The pods that were started and not stopped or lost."""
        return [box for caller in self._callers for box in caller.pods]

    def stop_all(self) -> None:
        """Stop every pod."""
        for caller in self._callers:
            for box in list(caller.pods):
                caller.stop(box)

    def complain(self, what: str) -> None:
        """Something was said that may not be said."""
        with self._lock:
            self.wrong.append(what)

    def enter(self, box: Box) -> None:
        """The runtime has it from now on."""
        with self._lock:
            self.boxes[box.container] = box

    def leave(self, box: Box) -> None:
        """The runtime has it no more, and its address may be another's from now on."""
        with self._lock:
            self.boxes.pop(box.container, None)
            if self.holders.get(box.address) == box.container:
                del self.holders[box.address]

    def given(self, box: Box) -> None:
        """An ADD was answered."""
        with self._lock:
            holder = self.holders.setdefault(box.address, box.container)
        if holder != box.container:
            self.complain(f"{box.name} was given {box.address}, which another pod has")

    def call(self, verb: str, box: Box | None, **config: Any) -> Told:
        """One call by the launcher, once somebody listens; a DEL now and then without, into the spool."""
        if verb != "DEL" or self._dice.random() > SPOOLED:
            self._await_door()
        environment = {"CNI_COMMAND": verb, "CNI_PATH": str(self._node.bin), "PATH": "/usr/bin"}
        if box is not None:
            arguments = f"K8S_POD_NAMESPACE=crowd;K8S_POD_NAME={box.name};IgnoreUnknown=1"
            environment |= {
                "CNI_CONTAINERID": box.container,
                "CNI_IFNAME": "eth0",
                "CNI_NETNS": box.netns.path if box.netns.bound else "",
                "CNI_ARGS": arguments,
            }
        given = {"cniVersion": "1.1.0", "name": "aws-cni", "type": "aws-cni", **config}
        done = subprocess.run(
            [self.launcher],
            input=json.dumps(given).encode(),
            env=environment,
            capture_output=True,
            check=False,
        )
        told = Told(done.returncode, json.loads(done.stdout) if done.stdout else {})
        if not told.away:
            with self._lock:
                self.calls[verb] += 1
        return told

    def _await_door(self) -> None:
        """kubelet's pauses are longer than the daemon's, and a spool must not grow faster than it is read."""
        deadline = time.monotonic() + PATIENCE_S
        with self._door:  # one looks for all
            while not self._node.is_served():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"nobody listens; {self._node.tail()}")
                time.sleep(PAUSE_S)

    def sandbox(self, name: str) -> Box:
        """An empty one, with a namespace that the launcher can open."""
        netns = spaces.Netns(f"cni-{os.urandom(8).hex()}", directory=self._node.pods)
        box = Box(name, netns)
        self.enter(box)
        return box


class Caller:
    """One of the runtime's threads with its own pods."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        self._crowd, self.number = crowd, number
        self._dice = random.Random(number)
        self.pods: list[Box] = []
        self.steps = self._started = 0

    def run(self, until: threading.Event, steps: int) -> None:
        """Step after step."""
        try:
            while self.steps < steps and not until.is_set():
                self._step()
                self.steps += 1
        except Exception as failed:  # noqa: BLE001 - told by the test, not by a thread
            self._crowd.complain(f"caller {self.number}: {failed!r}")

    def _step(self) -> None:
        drawn = self._dice.random()
        if drawn < 0.03:
            self._crowd.collect()
        elif drawn < 0.2 and self.pods:
            self._check(self._dice.choice(self.pods))
        elif len(self.pods) < PODS_EACH and (drawn < 0.7 or not self.pods):
            self._start()
        elif drawn > 0.97:
            self._lose(self._dice.choice(self.pods))
        else:
            self.stop(self._dice.choice(self.pods))

    def _start(self) -> None:
        self._started += 1
        name = f"pod-{self.number}-{self._started}"
        deadline = time.monotonic() + PATIENCE_S
        while True:
            box = self._crowd.sandbox(name)
            told = self._crowd.call("ADD", box)
            if told.status == 0:
                break
            if not told.away and told.said.get("code") != TRY_AGAIN:
                self._crowd.complain(f"ADD of {name}: {told.said}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} did not start: {told.said}")
            self._remove(box)
            time.sleep(PAUSE_S)
        box.result = told.said
        box.address = told.said["ips"][0]["address"].partition("/")[0]
        self._crowd.given(box)
        self.pods.append(box)

    def _check(self, box: Box) -> None:
        while (told := self._crowd.call("CHECK", box, prevResult=box.result)).away:
            time.sleep(PAUSE_S)
        if told.status:
            self._crowd.complain(f"CHECK of {box.name} at {box.address}: {told.said}")

    def stop(self, box: Box) -> None:
        """StopPodSandbox and RemovePodSandbox."""
        self.pods.remove(box)
        self._remove(box)

    def _remove(self, box: Box) -> None:
        self._crowd.leave(box)
        self._delete(box)
        box.netns.close()

    def _delete(self, box: Box) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while (told := self._crowd.call("DEL", box, prevResult=box.result)).status:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{box.name} was not deleted: {told.said}")
            time.sleep(PAUSE_S)

    def _lose(self, box: Box) -> None:
        """The sandbox ends, and nobody says so."""
        self.pods.remove(box)
        self._crowd.leave(box)
        box.netns.close()
