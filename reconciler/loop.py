"""The whole story on one screen: observe, plan, carry out, record. The only caller of the kernel's apply.

Outside is observed first and the ledger read second; nothing outside is touched while a transaction is
open. Its twin for EC2 is cloud_loop, in a lane of its own, so that slow EC2 never delays the kernel. What
to do is the planner's business, what a pod's request means is verbs'.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence

from ledger import database, model, reads, writes
from reconciler import errors, record, strangers
from reconciler import settings as knobs
from reconciler.planner import actions, wiring
from reconciler.planner import plan as planner
from reconciler.providers import kernel as kernel_provider

log = logging.getLogger(__name__)

Notes = tuple[actions.Note, ...]


class Loop:
    """Converges one node. `engine` runs a function on the thread that serves the runtime's calls."""

    def __init__(
        self,
        ledger: database.Ledger,
        kernel: kernel_provider.Kernel,
        settings: knobs.Settings,
        clock: Callable[[], int],
    ) -> None:
        self.ledger, self.kernel = ledger, kernel
        self.settings, self.clock = settings, clock
        self.engine: Callable[[Callable[[], None]], None] = lambda job: job()
        self.capacity_changed: Callable[[], None] = lambda: None
        self.eni_lost: Callable[[], None] = lambda: None
        self.beside: Callable[[model.Desired, model.ObservedKernel], Notes] = lambda *_: ()
        """What else of the node is kept true with each look, before pods get anything new."""
        self.left_to_launcher: Callable[[], tuple[model.Sysctl, ...]] = tuple
        """Sysctls of the node that only the launcher may write."""
        self.reap_soon: Callable[[], object] = self.reap
        """Have `reap` run, in a thread of its own where there is one."""
        self._strays: tuple[model.KernelObject, ...] = ()
        self._missed: frozenset[actions.Note] = frozenset()
        self.records: Sequence[model.Allocation] = ()
        """The checkpoint as it was at the start, for pods that the ledger has forgotten."""

    def tick(self) -> Notes:
        """One comparison with the kernel; what differs is mended between two requests of the runtime."""
        observed = self.kernel.observe()
        lost = not isinstance(observed, model.Unknown) and self._is_lost(observed)
        with self.ledger.read() as tx:
            desired = reads.desired(tx, self.clock())
        plan = self._without_retired(planner.kernel(desired, observed, self.settings))
        if isinstance(observed, model.Unknown):
            with self.ledger.write() as tx:
                writes.open_finding(tx, "kernel_unreadable", "", observed.why, self.clock())
            return plan.notes
        with self.ledger.write() as tx:
            writes.close_finding(tx, "kernel_unreadable", "", self.clock())
            if not plan.kernel:  # whatever was refused is as it should be by now
                writes.close_finding(tx, "kernel_error", "", self.clock())
        if lost:
            return plan.notes
        notes = self._doubtless(plan.notes) + self.beside(desired, observed)
        self._write_host_down(desired)
        self._withdraw_enis(desired, observed)
        again, confirmed = self._look_again(plan) if plan.kernel else (observed, frozenset())
        if confirmed:
            self.engine(lambda: self._mend(again, confirmed))
        else:
            self._publish_enis(desired, observed)
        return notes

    def _doubtless(self, notes: Notes) -> Notes:
        """Without the links that this look alone misses: their pods came while it was at work."""
        missed = frozenset(note for note in notes if note.code == "pod_link_gone")
        before, self._missed = self._missed, missed
        return tuple(note for note in notes if note not in missed or note in before)

    def _look_again(
        self, plan: actions.Plan
    ) -> tuple[model.ObservedKernel, frozenset[actions.KernelAction]]:
        """The steps that a second look and a second reading want as well.

        What a pod that comes or goes at this moment shows in between is gone by then, and the door is
        not held up for it.
        """
        observed = self.kernel.observe()
        if isinstance(observed, model.Unknown):
            return model.ObservedKernel(observed.since), frozenset()
        with self.ledger.read() as tx:
            desired = reads.desired(tx, self.clock())
        second = self._without_retired(planner.kernel(desired, observed, self.settings))
        return observed, frozenset(plan.kernel) & frozenset(second.kernel)

    def _write_host_down(self, desired: model.Desired) -> None:
        """The rows of what all pods need alike, if they are not what they should be."""
        things = wiring.host(self.settings, desired.installed)
        rows = {row.thing: row.id for row in desired.installed if row.owner_kind == "host"}
        if set(rows) == set(things):
            return
        with self.ledger.write() as tx:
            gone = [number for thing, number in rows.items() if thing not in things]
            writes.forget_installed(tx, gone, self.clock())
            writes.plan_installed(tx, "host", "", things, self.clock())

    def _without_retired(self, plan: actions.Plan) -> actions.Plan:
        """Retired links are `reap`'s to remove, for it does not hold up the door."""
        retired = [step for step in plan.kernel if wiring.is_retired(step.thing)]
        if not retired:
            return plan
        self._strays = tuple(step.thing for step in retired)
        self.reap_soon()
        return dataclasses.replace(
            plan, kernel=tuple(step for step in plan.kernel if step not in retired)
        )

    def _is_lost(self, observed: model.ObservedKernel) -> bool:
        """Do pods live here that this ledger does not know? Then it is new in another's place, or older.

        What it would plan is their removal, and their addresses look free to it: it does neither
        until they are entered, here or by takeover.
        """
        with self.ledger.read() as tx:
            is_new = not reads.ever_leased(tx)
        if is_new:
            ours = (link for link in observed.links if wiring.ours(link))
            unknown = tuple(link.name for link in ours if not wiring.is_retired(link))
        else:
            unknown = strangers.enter(
                self.ledger, observed, self.records, self.settings, self.clock
            )
        with self.ledger.write() as tx:
            if unknown:
                text = f"{len(unknown)} links of pods, such as {unknown[0]}"
                writes.open_finding(tx, "ledger_lost", "", text, self.clock())
            else:
                writes.close_finding(tx, "ledger_lost", "", self.clock())
        return bool(unknown)

    def _mend(
        self, observed: model.ObservedKernel, confirmed: frozenset[actions.KernelAction]
    ) -> None:
        """Runs on the engine thread, on the ledger as it is now: no ADD or DEL can come between.

        So what an old look shows cannot take away what a new pod was just given.
        """
        with self.ledger.read() as tx:
            desired = reads.desired(tx, self.clock())
        plan = self._without_retired(planner.kernel(desired, observed, self.settings))
        outcomes = self.carry_out([step for step in plan.kernel if step in confirmed])
        for outcome in outcomes:
            log.info("mended: %s %s", outcome.action, outcome.error)
        with self.ledger.write() as tx:
            record.kernel(tx, outcomes, self.clock())
            if not any(outcome.error for outcome in outcomes):
                writes.mark_owner_installed(tx, "host", "", self.clock())
        if not any(outcome.error for outcome in outcomes):
            self._publish_enis(desired, observed)

    def _publish_enis(self, desired: model.Desired, observed: model.ObservedKernel) -> None:
        """An interface is given to pods only once it is wired (never before: upstream's W4)."""
        now = self.clock()
        links = planner.eni_links(desired, observed)
        fresh = [e for e in desired.enis if e.eni_id in links and e.state != "usable"]
        if not fresh:
            return
        with self.ledger.write(durable=True) as tx:
            for eni in fresh:
                name = links[eni.eni_id].name
                for gone in _before_on(name, desired, links):
                    writes.forget_owner_installed(tx, "eni", gone, now)
                things = wiring.eni(eni, name, self.settings)
                writes.plan_installed(tx, "eni", eni.eni_id, things, now)
                writes.mark_owner_installed(tx, "eni", eni.eni_id, now)
                writes.eni_state(tx, eni.eni_id, "usable", now)
        self.capacity_changed()

    def _withdraw_enis(self, desired: model.Desired, observed: model.ObservedKernel) -> None:
        """An interface whose link is gone gets no more pods; EC2 is asked what became of it."""
        links = planner.eni_links(desired, observed)
        lost = [
            e for e in desired.enis if e.state == "usable" and e.managed and e.eni_id not in links
        ]
        if not lost:
            return
        with self.ledger.write(durable=True) as tx:
            for eni in lost:
                writes.eni_state(tx, eni.eni_id, "attached", self.clock())
        self.eni_lost()
        self.capacity_changed()

    def in_use(self) -> frozenset[str] | None:
        """Addresses that a route or a rule of this host names; None if the kernel could not tell."""
        observed = self.kernel.observe()
        if isinstance(observed, model.Unknown):
            return None
        named = {route.dst for route in observed.routes}
        named |= {cidr for rule in observed.rules for cidr in (rule.src, rule.dst) if cidr}
        return frozenset(cidr.removesuffix("/32") for cidr in named if cidr.endswith("/32"))

    def carry_out(
        self,
        steps: Sequence[actions.KernelAction],
        pod: kernel_provider.PodHandle | None = None,
    ) -> list[actions.Outcome]:
        """Apply kernel actions; each has its outcome, in order."""
        assert not self.ledger.in_transaction(), "nothing outside is touched in a transaction"
        return self.kernel.apply(steps, pod) if steps else []

    def end_leases(
        self,
        ending: Sequence[tuple[model.Lease, str]],
        also: Callable[[database.Write, model.Lease], None] = lambda _tx, _lease: None,
    ) -> dict[int, str]:
        """Take out of service what was installed for these leases, then end each for its reason.

        All their rules go, then their links are retired: nothing reaches the pods any more or leaves
        them, and the links' names are free. `reap` removes the links soon after. Returns why the kernel
        refused, by lease id: those leases stay open, since an address must not meet the rules of its
        last holder. `also` joins the transaction that ends a lease.
        """
        with self.ledger.read() as tx:
            owned = {
                lease.id: reads.installed_for(tx, "lease", str(lease.id)) for lease, _ in ending
            }
        refused: dict[int, str] = {}
        links: dict[int, model.Link | None] = {lease.id: None for lease, _ in ending}
        steps = [
            (lease_id, step)
            for lease_id, rows in owned.items()
            for step in unmaking(lease_id, [row.thing for row in rows])
        ]
        steps.sort(key=lambda each: isinstance(each[1], actions.Retire))  # the links last
        outcomes = self.carry_out([step for _, step in steps])
        for (lease_id, _), outcome in zip(steps, outcomes, strict=True):
            links[lease_id] = links[lease_id] or retired(lease_id, [outcome])
            if outcome.error:
                refused[lease_id] = f"{outcome.error}: {outcome.text}"
        now = self.clock()
        with self.ledger.write() as tx:
            for lease, reason in ending:
                if lease.id not in refused:
                    writes.retire(tx, lease.id, links[lease.id], now)
                    writes.end(tx, lease.id, reason, now, self.settings.ip_cooldown_ms)
                    also(tx, lease)
        if any(links.values()):
            self.reap_soon()
        return refused

    def end_unasked(self, ending: Sequence[tuple[model.Lease, str]]) -> dict[int, str]:
        """End leases for whom nobody waits; why the kernel refused, by lease id.

        Those are findings, which keep them in sight; who finds their end begun tries again.
        """

        def well(tx: database.Write, lease: model.Lease) -> None:
            writes.close_finding(tx, "kernel_error", str(lease.id), self.clock())

        if not ending:
            return {}
        refused = self.end_leases(ending, well)
        if refused:
            with self.ledger.write() as tx:
                for number, text in refused.items():
                    writes.open_finding(tx, "kernel_error", str(number), text, self.clock())
        return refused

    def reap(self) -> int:
        """Remove the retired links, all in one grace period of the kernel's; how many there were.

        May run in any thread beside the door's. TryLater if one could not be removed; its row stays.
        """
        with self.ledger.read() as tx:
            rows = reads.retired(tx)
        strays, self._strays = self._strays, ()
        named = {row.thing.key for row in rows}
        links = [row.thing for row in rows] + [each for each in strays if each.key not in named]
        outcomes = self.carry_out([actions.Remove(link) for link in links])
        failed = [outcome for outcome in outcomes if outcome.error]
        gone = [row.id for row, done in zip(rows, outcomes, strict=False) if not done.error]
        if gone:
            with self.ledger.write() as tx:
                writes.forget_installed(tx, gone, self.clock())
        if failed:
            raise errors.TryLater("kernel_error", f"{failed[0].error}: {failed[0].text}")
        return len(links)


def unmaking(lease_id: int, things: Sequence[model.KernelObject]) -> list[actions.KernelAction]:
    """The steps that undo a lease's wiring, the last made first; a link takes its routes along."""
    links = {thing.name for thing in things if isinstance(thing, model.Link)}
    rest = [
        actions.Remove(thing)
        for thing in reversed(things)
        if not isinstance(thing, model.Link)
        and not (isinstance(thing, model.Route) and thing.link in links)
    ]
    retiring = [
        actions.Retire(thing, wiring.retired(thing, lease_id).name)
        for thing in things
        if isinstance(thing, model.Link)
    ]
    return [*rest, *retiring]


def retired(lease_id: int, outcomes: Sequence[actions.Outcome]) -> model.Link | None:
    """The link that is now to be removed, as it is called now; None if the kernel has none."""
    for outcome in outcomes:
        if isinstance(outcome.action, actions.Retire) and outcome.result:
            return wiring.retired(outcome.action.thing, lease_id)
    return None


def _before_on(
    name: str, desired: model.Desired, links: Mapping[str, model.Link]
) -> frozenset[str]:
    """Interfaces whose link is gone and whose objects were on a link of this name, which is another's now."""
    return frozenset(
        row.owner
        for row in desired.installed
        if row.owner_kind == "eni"
        and row.owner not in links
        and name in (getattr(row.thing, "link", None), getattr(row.thing, "name", None))
    )
