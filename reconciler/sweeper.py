"""Look for sandboxes that ended though nobody said so, and end what the ledger still keeps for them.

A later plugin's failure can keep a deletion from us for good, and so can a runtime's death. Witnesses are
asked here, judged in planner.sweep, and a lease is ended on the door's thread, between two calls. What the
witnesses are asked by, and when a pass comes, do not belong here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ledger import database, model, reads, writes
from reconciler import loop as loops
from reconciler.planner import sweep, takeover, wiring
from reconciler.providers import netns

log = logging.getLogger(__name__)

DOUBT, SILENT, DISAGREES = "sandbox_doubtful", "runtime_silent", "gc_disagrees"


@dataclass(slots=True)
class Sweeper:
    """One node's leases against three witnesses, for one thread at a time."""

    ledger: database.Ledger
    loop: loops.Loop
    runtime: Callable[[], model.ObservedRuntime | model.Unknown]
    has_runtime: Callable[[], bool]
    """Is there a runtime that ought to answer?"""
    held: Callable[[], frozenset[int]]
    """Leases that an open call waits for; asked on the door's thread."""
    clock: Callable[[], int]
    names: netns.Names = field(default_factory=netns.Names)
    ended: Callable[[], None] = lambda: None
    _suspects: Mapping[int, int] = field(default_factory=dict)

    def tick(self) -> None:
        """One pass: ask, judge, end what two passes agree on."""
        with self.ledger.read() as tx:
            named = {lease.netns for lease in reads.open_leases(tx)}
        seen = sweep.Witnesses(
            self.loop.kernel.observe(),
            self.names.observe(named),
            self.runtime(),
        )
        with self.ledger.read() as tx:
            desired = reads.desired(tx, self.clock())
        judged = sweep.judge(desired.leases, seen, self._suspects, takeover.NAMELESS, self.clock())
        self._suspects = judged.suspects
        self._tell(judged, seen)
        cut_short = {int(r.owner) for r in desired.installed if _is_cut_short(r)}
        if judged.over or cut_short:
            self.loop.engine(lambda: self._end(judged, cut_short))

    def _tell(self, judged: sweep.Judgement, seen: sweep.Witnesses) -> None:
        """Write down who is doubtful, who is not any more, and whom the runtime could name."""
        now = self.clock()
        doubtful = {lease.container_id: (lease, text) for lease, text in judged.doubts}
        silent = isinstance(seen.runtime, model.Unknown) and self.has_runtime()
        with self.ledger.write() as tx:
            if isinstance(seen.runtime, model.Unknown) and silent:
                writes.open_finding(tx, SILENT, "", seen.runtime.why, now)
            else:
                writes.close_finding(tx, SILENT, "", now)
            for container_id, (lease, text) in doubtful.items():
                says = f"{lease.pod_namespace}/{lease.pod_name} at {lease.address}: {text}"
                writes.open_finding(tx, DOUBT, container_id, says, now)
                writes.doubt(tx, lease.id, now)
            held = {lease.container_id for lease in reads.open_leases(tx)}
            for code, subject in reads.open_findings(tx):
                if (code == DOUBT and subject not in doubtful) or (
                    code == DISAGREES and subject not in held
                ):
                    writes.close_finding(tx, code, subject, now)
            for lease in judged.fine:
                if lease.state == "in_doubt":
                    writes.activate(tx, lease.id, now)
            for lease, sandbox in judged.named:
                writes.identify(tx, lease.id, sandbox, now)

    def _end(self, judged: sweep.Judgement, cut_short: set[int]) -> None:
        """Runs on the door's thread, on the leases as they are now."""
        held = self.held()
        reasons = {lease.id: why for lease, why in judged.over if lease.id not in held}
        reasons |= dict.fromkeys(cut_short, "deleted")
        with self.ledger.read() as tx:
            still = reads.open_leases(tx)
        ending = [(lease, reasons[lease.id]) for lease in still if lease.id in reasons]
        for lease, reason in ending:
            log.info("swept: %s %s %s", lease.container_id, lease.address, reason)
        refused = self.loop.end_unasked(ending)
        if len(refused) < len(ending):
            self.ended()


def _is_cut_short(row: model.Installed) -> bool:
    """Part of a deletion that the kernel refused: nobody may ask for it a second time.

    A retired link is none: its sandbox's namesake came, and its lease waits for its own deletion.
    """
    return (
        row.owner_kind == "lease" and row.state == "removing" and not wiring.is_retired(row.thing)
    )
