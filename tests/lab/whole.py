"""The whole lab in one object: EC2 and IMDS, the VPC's fabric, nodes with daemons, a kubelet on each.

Must be made inside a session (`spaces`). What a command prints about it, or a test asserts of it, does
not belong here.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from tests.lab import apiserver, clock, inproc, mounts, spaces, world
from tests.lab.cloud import Cloud
from tests.lab.fabric import API, IMDS, Fabric
from tests.lab.frontdoor import FrontDoor
from tests.lab.imds import Imds
from tests.lab.kubelet import Kubelet
from tests.lab.node import Node
from tests.lab.server import Server, Timers


class Lab:
    """A VPC with `nodes` instances, booted; `start()` brings the product's daemons up on them."""

    def __init__(
        self,
        *,
        nodes: int = 2,
        instance_type: str = "m5.large",
        nodes_in: str = world.NODE_CIDR,
        attach_delay: float = 1.5,
        throttle: float | None = 1.0,
        seed: int = 0,
        directory: Path | None = None,
    ) -> None:
        self.directory = directory or Path(tempfile.mkdtemp(prefix="vpc-", dir=spaces.RUN))
        self.directory.chmod(0o755)  # the daemons are other users
        self.instance_type = instance_type
        self.cloud = Cloud(
            clock.RealClock(),
            seed=seed,
            attach_delay=attach_delay,
            detach_delay=attach_delay,
            start_delay=0,
        )
        self.front = FrontDoor(self.cloud, throttle=throttle, seed=seed)
        self.imds = Imds(self.cloud)
        self.ec2: Any = inproc.client(self.front)
        self.world = world.build(
            self.ec2, instances=nodes, instance_type=instance_type, nodes_in=nodes_in
        )
        self.front.journal.clear()
        self._timers = Timers(self.cloud)
        self.front.settled = self._timers.nudge
        self.fabric = Fabric(self.cloud, self.directory)
        self._servers = [
            Server(self.fabric.listen(API), mounts.everything(self.front, self.imds)),
            Server(self.fabric.listen(IMDS), mounts.metadata(self.imds, self._who_is)),
        ]
        self.nodes = [
            Node(f"node{number}", instance, self.fabric)
            for number, instance in enumerate(self.world.instances, 1)
        ]
        self.kubelets = [Kubelet(node, seed=seed) for node in self.nodes]
        self._kubernetes: apiserver.Secured | None = None
        for node in self.nodes:
            node.boot()

    def kubernetes(self) -> apiserver.ApiServer:
        """Bring up an API server that knows the nodes; daemons started from now on can reach it."""
        api = apiserver.ApiServer()
        listener = self.fabric.listen(API, apiserver.PORT)
        self._kubernetes = apiserver.Secured(api, listener, self.directory)
        for node in self.nodes:
            api.join(node.name)
            node.environment["KUBECONFIG"] = str(self._kubernetes.kubeconfig)
        return api

    def start(self, **settings: str) -> None:
        """Start all daemons, together, and wait until each can serve pods; see Node.start_daemon."""
        self.on_each(lambda node: node.start_daemon(**settings), self.nodes)

    def close(self) -> None:
        """Stop all daemons, power all off, end the VPC."""
        self.on_each(Node.close, self.nodes)
        for server in self._servers:
            server.close()
        if self._kubernetes is not None:
            self._kubernetes.close()
        self._timers.close()
        self.fabric.close()
        shutil.rmtree(self.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def on_each(work: Callable[[Any], object], things: Iterable[Any]) -> list[Any]:
        """Do `work` on each of `things` at the same time; the results in order, or the first error."""
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(work, things))

    def _who_is(self, address: str) -> str | None:
        with self.cloud.lock:
            return self.cloud.owner_of_source(address)
