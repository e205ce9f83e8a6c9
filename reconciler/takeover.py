"""Take a node over from the CNI that ran it: its pods' leases enter the ledger together with EC2's picture.

It happens once, for a ledger that never had a lease, in the transaction that adopts the interfaces: there
is no instant at which a pod's address looks free. A ledger that was lost is rebuilt the same way, from the
checkpoint we keep for whoever comes after us. Who holds what is decided in planner.takeover.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from ledger import database, model, reads, writes
from reconciler import errors
from reconciler import loop as loops
from reconciler import settings as knobs
from reconciler.planner import takeover, wiring
from reconciler.providers import host, upstream

log = logging.getLogger(__name__)

ORIGIN = "the VPC CNI"
OURSELVES = "a lost ledger"


@dataclass(slots=True)
class Heritage:
    """What is to be entered with the next look at EC2."""

    loop: loops.Loop
    settings: knobs.Settings
    boot_id: str
    clock: Callable[[], int]
    inheritance: model.Inheritance
    kernel: model.ObservedKernel
    _stale: list[model.Lease] = field(default_factory=list)

    def enter(self, tx: database.Write, seen: model.ObservedCloud) -> None:
        """Give every pod that lives its lease, and keep what nobody can explain from being given out."""
        now = self.clock()
        decided = takeover.decide(self.inheritance, seen.enis, self.kernel, self.settings)
        enis = {each.eni.eni_id: each.eni for each in seen.enis}
        for heir in decided.heirs:
            self._enter_lease(tx, heir, enis[heir.eni_id], now)
        for address, why in decided.strangers:
            writes.address_quarantine(tx, address, why, now)
        ours = any(wiring.ours(link) for link in self.kernel.links)
        writes.record_takeover(
            tx,
            origin=OURSELVES if ours else ORIGIN,
            checkpoint=self.inheritance.checkpoint,
            leases=len(decided.heirs) - len(self._stale),
            stale=len(self._stale),
            quarantined=len(decided.strangers),
            now=now,
        )
        for fault in self.inheritance.faults:
            writes.open_finding(tx, "takeover_unreadable", "", fault, now)

    def _enter_lease(
        self, tx: database.Write, heir: takeover.Heir, eni: model.Eni, now: int
    ) -> None:
        lease = writes.adopt_lease(
            tx,
            heir.allocation,
            eni_id=eni.eni_id,
            host_ifname=heir.link.name if heir.link else "",
            host_mac=heir.link.mac if heir.link else "",
            boot_id=self.boot_id,
            in_doubt=heir.doubtful,
            now=now,
        )
        if heir.link is not None:
            things = wiring.pod(lease, eni, self.settings).host
            writes.plan_installed(tx, "lease", str(lease.id), things, now)
            return
        writes.plan_installed(tx, "lease", str(lease.id), _once_each(heir.traces), now)
        if not heir.doubtful or reads.late_delete(tx, lease.container_id, lease.ifname):
            writes.mark_owner_removing(tx, "lease", str(lease.id), now)
            self._stale.append(lease)

    def settle(self) -> None:
        """Clear away what is left of pods that were gone already, and end their leases."""
        if self._stale:
            ending = [(lease, "takeover_stale") for lease in self._stale]
            self.loop.engine(lambda: self._end(ending))

    def _end(self, ending: list[tuple[model.Lease, str]]) -> None:
        for lease_id, why in self.loop.end_leases(ending).items():
            log.warning("lease %s of a pod that is gone stays: %s", lease_id, why)


def heritage(
    ledger: database.Ledger,
    loop: loops.Loop,
    settings: knobs.Settings,
    boot_id: str,
    inheritance: model.Inheritance,
    clock: Callable[[], int],
) -> Heritage | None:
    """What there is to take over, or None; TryLater if the kernel cannot tell."""
    with ledger.read() as tx:
        if reads.took_over(tx) or reads.ever_leased(tx):
            return None
    kernel = loop.kernel.observe()
    if isinstance(kernel, model.Unknown):
        raise errors.TryLater("kernel_unreadable", kernel.why)
    if not takeover.needed(inheritance, kernel, settings):
        return None
    return Heritage(loop, settings, boot_id, clock, inheritance, kernel)


def _once_each(things: tuple[model.KernelObject, ...]) -> list[model.KernelObject]:
    """Of objects with one key, such as equal rules beside each other, one row."""
    return list({thing.key: thing for thing in things}.values())


def tell_of_records(
    ledger: database.Ledger, inheritance: model.Inheritance, clock: Callable[[], int]
) -> None:
    """Close the finding of records that could not be read, at a start that finds nothing wrong with them."""
    if not inheritance.faults:
        with ledger.write() as tx:
            writes.close_finding(tx, "takeover_unreadable", "", clock())


def leave_checkpoint(
    ledger: database.Ledger, inheritance: model.Inheritance, clock: Callable[[], int]
) -> None:
    """Write what the VPC CNI would need to take this node back; a finding says if that fails.

    Not before its own file has been taken over: it is the only copy.
    """
    with ledger.read() as tx:
        ours = reads.took_over(tx) or reads.ever_leased(tx)
        leases, enis = reads.open_leases(tx), reads.enis(tx)
    if (inheritance.allocations or inheritance.faults) and not ours:
        return
    trouble = ""
    try:
        for name, text in upstream.checkpoints(inheritance.checkpoint, leases, enis):
            host.place(name, text)
    except OSError as failed:
        trouble = str(failed)
    with ledger.write() as tx:
        if trouble:
            writes.open_finding(tx, "checkpoint_unwritable", "", trouble, clock())
        else:
            writes.close_finding(tx, "checkpoint_unwritable", "", clock())
