"""What would be done on a node that another CNI runs: looked at, entered, planned, and nothing touched.

Each round begins with an empty ledger of its own in a temporary folder and takes the node over on paper.
EC2 is asked to describe, the kernel to list, files are read. What remains to be done is compared with
what is there, so that only differences that packets would notice count. Doing it does not belong here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ledger import database, migrate, model, reads, writes
from reconciler import cloud as clouds
from reconciler import errors, loop, takeover
from reconciler import settings as knobs
from reconciler.planner import actions, drift
from reconciler.planner import plan as planner
from reconciler.planner import takeover as heirs
from reconciler.providers import host, kernel, upstream

Why = Literal["mark", "kernel", "ec2"]

EXPLAINED: Final = {
    "mark": "the same object, marked as ours",
    "kernel": "the kernel differs from what pods and interfaces need",
    "ec2": "the warm pool would be changed",
}
"""What each kind of step means; only the first changes nothing for anybody."""


@dataclass(frozen=True, slots=True)
class Step:
    """One action of the plan, in words, with what kind of difference it is."""

    action: str
    why: Why
    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """One round: pods that would keep their address, addresses nobody names, and what would be done."""

    leases: int
    unnamed: tuple[str, ...]
    faults: tuple[str, ...]
    steps: tuple[Step, ...]

    @property
    def differences(self) -> tuple[Step, ...]:
        """The steps that are more than a mark."""
        return tuple(step for step in self.steps if step.why != "mark")


class Shadow:
    """Looks at one node again and again; `close` ends the process that asks EC2."""

    def __init__(self, settings: knobs.Settings, clock: Callable[[], int]) -> None:
        self._settings, self._clock = settings, clock
        self._cloud = clouds.Cloud(settings)
        self._kernel = kernel.Kernel()

    def look(self) -> Picture:
        """One round. TryLater if instance metadata, EC2 or the kernel cannot be asked."""
        node = self._cloud.identify()
        if isinstance(node, model.Unknown):
            raise errors.TryLater("imds_down", node.why)
        seen = self._cloud.observe()
        if isinstance(seen, model.Unknown):
            raise errors.TryLater("ec2_down", seen.why)
        inheritance = upstream.observe(self._settings.checkpoint, self._settings.cni_cache_dir)
        observed = self._kernel.observe()
        if isinstance(observed, model.Unknown):
            raise errors.TryLater("kernel_unreadable", observed.why)
        with tempfile.TemporaryDirectory(prefix="vpcledger-shadow-") as folder:
            path = Path(folder) / "ledger.db"
            migrate.bring_to_head(path)
            with database.Ledger.open(path) as ledger:
                desired = self._enter(ledger, node, seen, inheritance, observed)
        plan = planner.plan(desired, model.Observed(seen, observed), self._settings, self._clock())
        leases = [x for x in desired.leases if not x.container_id.startswith(heirs.NAMELESS)]
        unnamed = [x.address or "" for x in desired.leases if x not in leases]
        unnamed += [a.address for a in desired.addresses if a.state == "quarantine"]
        return Picture(len(leases), tuple(unnamed), inheritance.faults, _explained(plan, observed))

    def _enter(
        self,
        ledger: database.Ledger,
        node: model.Node,
        seen: model.ObservedCloud,
        inheritance: model.Inheritance,
        observed: model.ObservedKernel,
    ) -> model.Desired:
        now = self._clock()
        boot_id = host.boot_id(self._settings.boot_id_path)
        nobody = loop.Loop(ledger, self._kernel, self._settings, self._clock)
        heritage = takeover.Heritage(
            nobody, self._settings, boot_id, self._clock, inheritance, observed
        )
        with ledger.write(durable=True) as tx:
            writes.record_boot(tx, boot_id, now)
            writes.record_node(tx, node, now)
            writes.adopt(tx, seen, now)
            heritage.enter(tx, seen)
        with ledger.read() as tx:
            return reads.desired(tx, now)

    def close(self) -> None:
        """End the child."""
        self._cloud.close()


def _explained(plan: actions.Plan, observed: model.ObservedKernel) -> tuple[Step, ...]:
    """Is an object there without our mark, and put with it or removed because it is, that is a mark."""
    seen: tuple[model.KernelObject, ...] = (*observed.routes, *observed.rules)
    there = {_exactly(thing) for thing in seen}
    links = {link.name: link for link in observed.links}
    put = {action.thing.key for action in plan.kernel if isinstance(action, actions.Put)}

    def why(action: actions.KernelAction) -> Why:
        thing = action.thing
        if isinstance(thing, model.Link):
            found = links.get(thing.name)
            same = found is not None and not drift.faults(thing, found)
        elif isinstance(action, actions.Remove):
            same = thing.key in put
        else:
            same = any(_exactly(twin) in there for twin in heirs.twins([thing]))
        return "mark" if same else "kernel"

    steps = [Step(_words(action), why(action), "") for action in plan.kernel]
    steps += [
        Step(type(step.action).__name__, "ec2", f"{step.lane}: {step.cause}") for step in plan.cloud
    ]
    return tuple(steps)


def _words(action: actions.KernelAction) -> str:
    verb = type(action).__name__.lower()
    return f"{verb} {drift.describe(action.thing)}"


def _exactly(thing: model.KernelObject) -> tuple[object, ...]:
    return (*thing.key, getattr(thing, "protocol", 0))
