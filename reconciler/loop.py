"""The whole story on one screen: observe, plan, carry out, record. The only caller of a provider's apply.

Two lanes tick here, each in a thread of its own so that slow EC2 never delays the kernel. Outside is
observed first and the ledger read second; an EC2 mutation is a committed intent before it is sent and
a committed outcome after; nothing outside is touched while a transaction is open. What to do is the
planner's business, what a pod's request means is verbs'.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from ledger import database, model, reads, writes
from reconciler import cloud as clouds
from reconciler import errors, record
from reconciler import settings as knobs
from reconciler.planner import actions, budget, wiring
from reconciler.planner import plan as planner
from reconciler.providers import ec2
from reconciler.providers import kernel as kernel_provider

log = logging.getLogger(__name__)

Notes = tuple[actions.Note, ...]

STEPS_PER_TICK = 32
"""A tick ends after so many EC2 mutations; the next one goes on where it stopped."""
LOOK_PAUSE_MS = (2_000, 120_000)
"""First and longest pause between looks that are made to give something back."""
DOWN_PAUSE_MS = (1_000, 60_000)
"""First and longest pause before instance metadata or EC2, found down, is asked again unasked."""
LOOK_IS_FRESH_MS = 60_000
"""How old a look at EC2 may be and still allow something to be given back."""


class Loop:
    """Converges one node. `engine` runs a function on the thread that serves the runtime's calls."""

    def __init__(
        self,
        ledger: database.Ledger,
        kernel: kernel_provider.Kernel,
        cloud: clouds.Cloud,
        settings: knobs.Settings,
        clock: Callable[[], int],
    ) -> None:
        self.ledger, self.kernel, self.cloud = ledger, kernel, cloud
        self.settings, self.clock = settings, clock
        self.engine: Callable[[Callable[[], None]], None] = lambda job: job()
        self.capacity_changed: Callable[[], None] = lambda: None
        self._seen: model.ObservedCloud | model.Unknown = model.Unknown("not asked yet", 0)
        self._look_wanted = True
        self._look_pause, self._look_not_before = LOOK_PAUSE_MS[0], 0
        self._down_pause, self._down_until = DOWN_PAUSE_MS[0], 0
        self._budget_at: int | None = None

    # ----------------------------------------------------------------------- kernel

    def tick_kernel(self) -> Notes:
        """One comparison with the kernel; what differs is mended between two requests of the runtime."""
        observed = self.kernel.observe()
        with self.ledger.read() as tx:
            desired = reads.desired(tx, self.clock())
        plan = planner.kernel(desired, observed, self.settings)
        if isinstance(observed, model.Unknown):
            with self.ledger.write() as tx:
                writes.open_finding(tx, "kernel_unreadable", "", observed.why, self.clock())
            return plan.notes
        with self.ledger.write() as tx:
            writes.close_finding(tx, "kernel_unreadable", "", self.clock())
        if self._is_lost(observed):
            return plan.notes
        self._withdraw_enis(desired, observed)
        if plan.kernel:
            self.engine(lambda: self._mend(observed))
        else:
            self._publish_enis(desired, observed)
        return plan.notes

    def _is_lost(self, observed: model.ObservedKernel) -> bool:
        """Do pods live here that this ledger never knew? Then it is new in another's place.

        What it would plan is their removal, and their addresses look free to it: it does neither
        until somebody who knows has decided.
        """
        strangers = [link.name for link in observed.links if wiring.ours(link)]
        with self.ledger.write() as tx:
            lost = bool(strangers) and not reads.ever_leased(tx)
            if lost:
                text = f"{len(strangers)} links of pods, such as {strangers[0]}"
                writes.open_finding(tx, "ledger_lost", "", text, self.clock())
            else:
                writes.close_finding(tx, "ledger_lost", "", self.clock())
        return lost

    def _mend(self, observed: model.ObservedKernel) -> None:
        """Runs on the engine thread, on the ledger as it is now: no ADD or DEL can come between.

        So what an old look shows cannot take away what a new pod was just given.
        """
        with self.ledger.read() as tx:
            desired = reads.desired(tx, self.clock())
        plan = planner.kernel(desired, observed, self.settings)
        outcomes = self.carry_out(plan.kernel)
        for outcome in outcomes:
            log.info("mended: %s %s", outcome.action, outcome.error)
        with self.ledger.write() as tx:
            record.kernel(tx, outcomes, self.clock())
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
                things = wiring.eni(eni, links[eni.eni_id].name, self.settings)
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
        self._look_wanted = True
        self.capacity_changed()

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
        """Unmake what was installed for these leases, then end each for its reason, all together.

        Links are removed as one, for the kernel takes 20 ms however many they are. Returns why the
        kernel refused, by lease id: those leases stay open, since an address must not meet the rules
        of its last holder. `also` joins the transaction that ends a lease.
        """
        rows: list[model.Installed] = []
        with self.ledger.read() as tx:
            for lease, _ in ending:
                rows += reversed(reads.installed_for(tx, "lease", str(lease.id)))
        rows.sort(key=lambda row: isinstance(row.thing, model.Link))
        outcomes = self.carry_out([actions.Remove(row.thing) for row in rows])
        refused = {
            int(row.owner): f"{outcome.error}: {outcome.text}"
            for row, outcome in zip(rows, outcomes, strict=True)
            if outcome.error
        }
        now = self.clock()
        with self.ledger.write() as tx:
            for lease, reason in ending:
                if lease.id not in refused:
                    writes.forget_owner_installed(tx, "lease", str(lease.id), now)
                    writes.end(tx, lease.id, reason, now, self.settings.ip_cooldown_ms)
                    also(tx, lease)
        return refused

    def end_lease(self, lease: model.Lease, reason: str) -> None:
        """End one lease; TryLater, with the lease still open, if the kernel refuses."""
        refused = self.end_leases([(lease, reason)])
        if refused:
            raise errors.TryLater("kernel_error", refused[lease.id])

    # ----------------------------------------------------------------------- cloud

    def tick_cloud(self) -> Notes:
        """One round with EC2: who are we, what is in doubt, what does the pool want."""
        if self.settings.freeze == "cloud" or not self._identified():
            return ()
        self._settle_unknown()
        if self._look_wanted:
            self._look()
        plan = self._plan_cloud()
        for _ in range(STEPS_PER_TICK):
            if not plan.cloud and record.wants_a_look(plan) and self._may_look_again():
                plan = self._plan_cloud()
            step = self._affordable(plan)
            if step is None or not self.carry_out_cloud(step):
                break
            plan = self._plan_cloud()
        if not record.wants_a_look(plan):
            self._look_pause = LOOK_PAUSE_MS[0]
        with self.ledger.write() as tx:
            record.calm(tx, self.clock())
        return plan.notes

    def _affordable(self, plan: actions.Plan) -> actions.CloudStep | None:
        """The plan's first step that this node's share of EC2's buckets lets its lane make now."""
        now, calls = self.clock(), self._calls()
        self._budget_at = None
        for step in plan.cloud:
            at = budget.free_at(ec2.ACTION[type(step.action)], step.lane, calls, now)
            if at <= now:
                return step
            self._budget_at = min(at, self._budget_at or at)
        return None

    def _calls(self) -> list[budget.Made]:
        with self.ledger.read() as tx:
            rows = reads.calls_since(tx, self.clock() - budget.WINDOW_MS)
        return [budget.Made(op, at, not errors.is_trouble(code)) for op, at, code in rows]

    def next_cloud_at(self) -> int | None:
        """When (ms) the cloud's lane has to run again at the latest for its own sake; None if never."""
        with self.ledger.read() as tx:
            times = [reads.next_retry_at(tx, self.clock())]
            if reads.unknown_intents(tx):
                times.append(self.clock() + record.SETTLE_AFTER_MS)
        if self._down_until:
            times.append(self._down_until)
        times.append(self._budget_at)
        if self._look_pause > LOOK_PAUSE_MS[0]:
            times.append(self._look_not_before)
        return min((time for time in times if time is not None), default=None)

    def _heard(self, answer: object) -> None:
        """Keep the time for asking again in step with whether there was an answer."""
        if isinstance(answer, model.Unknown):
            self._down_until = self.clock() + self._down_pause
            self._down_pause = min(self._down_pause * 2, DOWN_PAUSE_MS[1])
        else:
            self._down_pause, self._down_until = DOWN_PAUSE_MS[0], 0

    def _may_look_again(self) -> bool:
        """Look at EC2 unless it was just done in vain; the pause doubles while it stays in vain."""
        now = self.clock()
        allowed = budget.free_at("DescribeNetworkInterfaces", "tidy", self._calls(), now) <= now
        if now < self._look_not_before or not allowed:
            return False
        self._look_not_before = now + self._look_pause
        self._look_pause = min(self._look_pause * 2, LOOK_PAUSE_MS[1])
        return self._look()

    def _identified(self) -> bool:
        with self.ledger.read() as tx:
            if reads.node(tx) is not None and not isinstance(self._seen, model.Unknown):
                return True
        node = self.cloud.identify()
        self._heard(node)
        now = self.clock()
        with self.ledger.write() as tx:
            if isinstance(node, model.Unknown):
                writes.open_finding(tx, "imds_down", "", node.why, now)
                return reads.node(tx) is not None
            writes.close_finding(tx, "imds_down", "", now)
            writes.record_node(tx, node, now)
        return True

    def _look(self) -> bool:
        """Ask EC2; remember the answer, adopt what is new, mark what is missing. False if it is down."""
        seen = self.cloud.observe()
        self._heard(seen)
        now = self.clock()
        with self.ledger.write(durable=True) as tx:
            record.calls(tx, self.cloud.calls(), now)
            if isinstance(seen, model.Unknown):
                writes.open_finding(tx, "ec2_down", "", seen.why, now)
                return False
            writes.close_finding(tx, "ec2_down", "", now)
            changed = writes.adopt(tx, seen, now)
        self._seen, self._look_wanted = seen, False
        if changed:
            self.capacity_changed()
        return True

    def _plan_cloud(self) -> actions.Plan:
        now = self.clock()
        with self.ledger.read() as tx:
            desired = reads.desired(tx, now)
        seen = self._seen
        if isinstance(seen, model.ObservedCloud) and now - seen.at > LOOK_IS_FRESH_MS:
            seen = model.Unknown("the last look at EC2 is too old to give anything back", seen.at)
        frozen = budget.freeze(self.settings.freeze, self._calls())
        self._tell_of_freeze(frozen)
        return budget.thawed(planner.cloud(desired, seen, self.settings, now), frozen)

    def _tell_of_freeze(self, frozen: budget.Freeze) -> None:
        with self.ledger.write() as tx:
            if frozen == "none":
                writes.close_finding(tx, "frozen", "", self.clock())
            else:
                writes.open_finding(tx, "frozen", "", f"freeze is {frozen!r}", self.clock())

    def carry_out_cloud(self, step: actions.CloudStep) -> bool:
        """Intent, call, outcome; True if the call did what it should."""
        log.info("EC2: %s (%s: %s)", step.action, step.lane, step.cause)
        try:
            with self.ledger.write(durable=True) as tx:
                intent = record.intend(tx, step, self.clock())
        except database.Refusal as refused:
            log.info("a pod was quicker, planning again: %s", refused)
            return True
        return self._send(intent, step)

    def _send(self, intent: model.Intent, step: actions.CloudStep) -> bool:
        assert not self.ledger.in_transaction(), "nothing outside is touched in a transaction"
        outcome = self.cloud.apply(step.action, intent.token)
        with self.ledger.write(durable=True) as tx:
            record.cloud(tx, intent, step, outcome, self.clock())
        if outcome.outcome.unknown:
            self._look_wanted = True
        elif not outcome.outcome.error:
            self.capacity_changed()
        return not outcome.outcome.unknown and not outcome.outcome.error

    def _settle_unknown(self) -> None:
        """A call whose reply was lost: repeat it where a token makes that safe, else look and compare."""
        with self.ledger.read() as tx:
            doubtful = reads.unknown_intents(tx)
        if not doubtful:
            return
        for intent in doubtful:
            again = record.repeatable(intent)
            if again is not None:
                self._send(intent, again)
        if self._look() and isinstance(self._seen, model.ObservedCloud):
            with self.ledger.write(durable=True) as tx:
                doubtful = reads.unknown_intents(tx)
                record.settle(tx, doubtful, self._seen, self.clock())
