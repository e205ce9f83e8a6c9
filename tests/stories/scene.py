"""One node with EC2, instance metadata, a kernel on paper and a runtime, on a clock of its own.

For whoever tells what happens: a story by chance, or a test by its script. `tell` something, let time
`pass_`, and the lanes work at their moments. What happens, and what must be true, does not belong here.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from reconciler import settings as knobs
from tests.lab import world
from tests.lab.clock import VirtualClock
from tests.lab.cloud import Cloud
from tests.stories import agreement, door, neighbours, truths
from tests.stories.machine import Machine
from tests.stories.runtime import Runtime

SETTLES_IN_S: Final = 75 * 60
"""I5's bound: how long after the last fault everything may still differ.

EC2 is looked at within an hour, and a subnet that had no blocks is tried again within half of one.
"""


class Scene:
    """The parts, and time. EC2 never throttles unless `ec2.buckets.scale` says so."""

    def __init__(
        self,
        seed: int,
        folder: Path,
        *,
        instance_type: str = "m5.large",
        settings: knobs.Settings | None = None,
        delay: float = 1.5,
    ) -> None:
        self.seed = seed
        self.rng = random.Random(f"story {seed}")
        self.cloud = Cloud(
            VirtualClock(), seed=seed, attach_delay=delay, detach_delay=delay, start_delay=0
        )
        self.ec2 = door.Ec2Door(self.cloud, seed=seed)
        self.world = world.build(door.operator(self.ec2), instances=1, instance_type=instance_type)
        self.ec2.node = self.world.instances[0]
        self.ec2.arrives, self.ec2.leaves = self.arrives, self.leaves
        self.metadata = door.Metadata(self.cloud)
        self.neighbours = neighbours.Neighbours(
            self.cloud, self.ec2.node, self.world.subnets[0], self.rng
        )
        self.time = door.Time(self.cloud)
        self.machine = Machine(folder, self.ec2, self.time, self.rng)
        self.machine.settings = settings or knobs.Settings()
        for eni in self.cloud.interfaces_of(self.ec2.node):
            self.machine.plug(eni)
        self.runtime = Runtime(self.machine, self.rng)
        self.lossy = 0.0
        """How likely the child is to be lost at a question."""
        self.told: list[str] = []
        self.aloud = False
        self._began = self.cloud.clock.now()
        self._deaths = 0

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Within the block the daemon's providers reach this EC2; its files are closed at the end."""
        api = self.neighbours.api
        with door.opened(self.ec2, self.metadata, api, self.time, self.rng, self._loses_the_child):
            try:
                yield
            finally:
                self.machine.close()

    def _loses_the_child(self) -> bool:
        return self.rng.random() < self.lossy

    # ------------------------------------------------------------------ time and death

    def pass_(self, seconds: float) -> None:
        """Let time go by; whatever falls due, here or in EC2, happens at its moment."""
        until = self.cloud.clock.now() + seconds
        self.work()
        self.neighbours.tidy()
        while (left := until - self.cloud.clock.now()) > 0:
            due = self.machine.next_due()
            if due is not None:
                left = min(left, max((due - self.time.elapsed_ms()) / 1000, 0.001))
            at = self.cloud.next_due()
            if at is not None:
                left = min(left, max(at - self.cloud.clock.now(), 0.001))
            self.time.sleep(left)
            self.work()

    def work(self) -> None:
        """Let the lanes do what is due now."""
        self.machine.work()
        self.notice_death()

    def start(self) -> None:
        """Start the daemon, if it is not running."""
        if not self.machine.running:
            self.machine.start()
            self.work()

    def kill(self) -> None:
        """Kill the daemon, if it is running."""
        if self.machine.running:
            self.machine.crash()
        self.notice_death()

    def notice_death(self) -> None:
        """Tell the runtime, whose calls are cut short."""
        if self.machine.crashes != self._deaths:
            self._deaths = self.machine.crashes
            self.say("  (the daemon died)")
            self.runtime.daemon_died()

    def settle(self, seconds: float = SETTLES_IN_S) -> None:
        """Let time go by, as kubelet and daemon do their rounds, until all agree: I1 to I5."""
        deadline = self.cloud.clock.now() + seconds
        rested = 0
        while self.cloud.clock.now() < deadline and rested < 3:
            self.start()
            self.runtime.reconcile()
            self.pass_(60)
            self.runtime.delete_all()
            self.check()
            rested = rested + 1 if self._agrees() else 0
        agreement.at_the_end(self.machine, self.runtime)

    def _agrees(self) -> bool:
        try:
            agreement.at_the_end(self.machine, self.runtime)
        except truths.Broken:
            return False
        return True

    # ------------------------------------------------------------------ watching

    def check(self) -> None:
        """The invariants that hold at any moment."""
        if self.machine.path.exists():
            truths.after_a_step(self.machine, self.runtime)

    def arrives(self, action: str, params: dict[str, Any]) -> None:
        """A call of the node's is about to be carried out."""
        truths.before_a_call(self.machine, self.neighbours.strangers, action, params)
        self.machine.instant()

    def leaves(self, _action: str) -> None:
        """A call of the node's has been carried out; its reply is on the way."""
        self.machine.instant()

    def operator(self, action: str, **params: Any) -> dict[str, Any]:
        """A call of somebody else's, whom no fault meets."""
        with self.cloud.lock:
            return self.cloud.call(action, params, "operator")

    def attached(self, device: int, card: int = 0, **wish: Any) -> str:
        """An interface that somebody else makes and attaches, by default like the node's own: its id."""
        primary = self.cloud.interfaces_of(self.ec2.node)[0]
        like = {
            "SubnetId": primary["SubnetId"],
            "Groups": [group["GroupId"] for group in primary["Groups"]],
        }
        made = self.operator("CreateNetworkInterface", **like | wish)["NetworkInterface"]
        self.operator(
            "AttachNetworkInterface",
            NetworkInterfaceId=made["NetworkInterfaceId"],
            InstanceId=self.ec2.node,
            DeviceIndex=device,
            NetworkCardIndex=card,
        )
        return str(made["NetworkInterfaceId"])

    def calls(self, *actions: str) -> list[str]:
        """The node's calls so far, in order, only those named if any are."""
        rows = self.ec2.journal.rows(who=self.ec2.node)
        return [row.action for row in rows if not actions or row.action in actions]

    def say(self, what: str) -> None:
        """Note an event, for whoever reads of a failure."""
        self.told.append(f"{self.cloud.clock.now() - self._began:8.1f}  {what}")
        if self.aloud:
            print(self.told[-1], flush=True)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder in memory if there is one, where a durable commit costs nothing."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - for tests only
    made = Path(tempfile.mkdtemp(prefix="story-", dir=where))
    try:
        yield made
    finally:
        shutil.rmtree(made)


@contextlib.contextmanager
def resting(pods: int, *, seed: int = 1, **more: Any) -> Iterator[Scene]:
    """A node at rest with so many pods."""
    with folder() as there:
        node = Scene(seed, there, **more)
        with node.opened():
            node.start()
            node.pass_(10)
            node.runtime.want(pods)
            node.settle()
            yield node
