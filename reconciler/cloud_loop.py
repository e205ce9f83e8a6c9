"""The loop's twin for EC2: who are we, what is in doubt, what does the pool want; then call and record.

A mutation is a committed intent before it is sent and a committed outcome after. A reply that was lost
is settled by asking again what cannot be done twice, or by looking. What to ask for is the planner's
business, how EC2 is called the child's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Protocol

from ledger import database, model, reads, writes
from reconciler import clock as clocks
from reconciler import cloud as clouds
from reconciler import errors, pause, quarantine, record, scheduling, veto
from reconciler import settings as knobs
from reconciler.planner import actions, budget, cordon, leaks, subnets, upkeep
from reconciler.planner import plan as planner
from reconciler.providers import ec2

log = logging.getLogger(__name__)

Notes = tuple[actions.Note, ...]

STEPS_PER_TICK = 32
"""A tick ends after so many EC2 mutations; the next one goes on where it stopped."""
LOOK = "DescribeNetworkInterfaces"
LOOK_PAUSE_MS = (2_000, 120_000)
"""First and longest pause between looks that are made to give something back."""
DOWN_PAUSE_MS = (1_000, 60_000)
"""First and longest pause before instance metadata or EC2, found down, is asked again unasked."""
AUDIT_MS = 3_600_000
"""How often EC2 is looked at though nothing is to be given back and nothing is in doubt."""
IDENTIFY_MS = 30_000
"""How often instance metadata is asked for what may change while we run: networks, security groups."""
LOOK_IS_FRESH_MS = 60_000
"""How old a look at EC2 may be and still allow something to be given back."""


class Heritage(Protocol):
    """What another CNI gave out before us, to be entered together with the interfaces."""

    def enter(self, tx: database.Write, seen: model.ObservedCloud) -> None:
        """Write it down."""

    def settle(self) -> None:
        """Do what follows, once it is written down."""


class CloudLoop:
    """Converges one node's interfaces and addresses, for one thread at a time."""

    def __init__(
        self,
        ledger: database.Ledger,
        cloud: clouds.Cloud,
        settings: knobs.Settings,
        clock: Callable[[], int],
    ) -> None:
        self.ledger, self.cloud, self.settings, self.clock = ledger, cloud, settings, clock
        self.capacity_changed: Callable[[], None] = lambda: None
        self.boot_id = ""
        self.uptime: clocks.Uptime | None = None
        self.clock_was_set: Callable[[], None] = lambda: None
        self.heritage: Callable[[], Heritage | None] = lambda: None
        self.in_use: Callable[[], Collection[str] | None] = lambda: None
        self._quarantine = quarantine.Quarantine(settings.ip_cooldown_ms)
        self._veto = veto.Veto()
        self.scheduling = scheduling.Scheduling(ledger, cloud, settings, clock)
        self._seen: model.ObservedCloud | model.Unknown = model.Unknown("not asked yet", 0)
        self._introduced = False
        """Metadata have said in this run who this machine is."""
        self._look_at = 0
        """When to look at EC2 at the latest."""
        with ledger.read() as tx:
            self._calls_may_show_until = (reads.last_sent_at(tx) or 0) + writes.ADOPTION_LAG_MS
        self._look_pause, self._look_not_before = LOOK_PAUSE_MS[0], 0
        self._identify_at = 0
        self._ec2_down = pause.Pause(*DOWN_PAUSE_MS)
        self._imds_down = pause.Pause(*DOWN_PAUSE_MS)
        self._sweep_wanted = False
        self._budget_at: int | None = None

    def sweep_again(self) -> None:
        """Have the next tick look for interfaces that nodes of the cluster left behind."""
        self._sweep_wanted = True

    def ask_everybody(self) -> None:
        """Have the next tick look at EC2 and ask instance metadata, also if they were down just now."""
        self._look_at = self._identify_at = 0
        self._ec2_down.until = self._imds_down.until = 0

    def look_again(self) -> None:
        """Have the next tick look at EC2, whatever was seen before."""
        self._look_at = 0

    def tick(self) -> Notes:
        """One round with EC2: who are we, what is in doubt, what does the pool want."""
        if self.settings.freeze == "cloud" or not self._identified():
            return ()
        self._budget_at = None
        if clocks.heed(self.ledger, self.clock, self.boot_id, self.uptime):
            self._clock_was_set()
        self._settle_unknown()
        if (self._ec2_down.until or self._look_at) <= self.clock():
            self._look_if_affordable()
        plan = self._plan_cloud()
        for _ in range(STEPS_PER_TICK):
            if not plan.cloud and record.wants_a_look(plan) and self._may_look_again():
                plan = self._plan_cloud()
            step = self._affordable(plan)
            if step is None or not self.carry_out(step):
                break
            plan = self._plan_cloud()
        if not record.wants_a_look(plan):
            self._look_pause = LOOK_PAUSE_MS[0]
        if self._sweep_wanted:
            self._sweep_wanted = False
            self._sweep()
        with self.ledger.write() as tx:
            record.calm(tx, self.clock())
        self._follow_node()
        return plan.notes

    def _affordable(self, plan: actions.Plan) -> actions.CloudStep | None:
        """The plan's first step that this node's share of EC2's buckets lets its lane make now."""
        calls = self._calls()
        for step in plan.cloud:
            if self._has_token(ec2.ACTION[type(step.action)], step.lane, calls):
                return step
        return None

    def _has_token(self, operation: str, lane: actions.Lane, calls: list[budget.Made]) -> bool:
        """May this call be made now? If not, remember when."""
        now = self.clock()
        at = budget.free_at(operation, lane, calls, now)
        if at > now:
            self._budget_at = min(at, self._budget_at or at)
        return at <= now

    def _calls(self) -> list[budget.Made]:
        with self.ledger.read() as tx:
            rows = reads.calls_since(tx, self.clock() - budget.WINDOW_MS)
        return [budget.Made(op, at, not errors.is_trouble(code)) for op, at, code in rows]

    def next_at(self) -> int | None:
        """When (ms) the cloud's lane has to run again at the latest for its own sake; None if never.

        Never now or earlier: what the tick just passed over at its time waits for something else.
        """
        now = self.clock()
        with self.ledger.read() as tx:
            times = [reads.next_retry_at(tx, now), self._budget_at]
            doubtful = reads.unknown_intents(tx)
        times += [record.due_at(intent) for intent in doubtful]
        times += [self._imds_down.until, self._ec2_down.until or self._look_at, self._identify_at]
        if self._look_pause > LOOK_PAUSE_MS[0]:
            times.append(self._look_not_before)
        return min((time for time in times if time is not None and time > now), default=None)

    def _may_look_again(self) -> bool:
        """Look at EC2 unless it was just done in vain; the pause doubles while it stays in vain."""
        now = self.clock()
        if now < self._look_not_before:
            return False
        self._look_not_before = now + self._look_pause
        self._look_pause = min(self._look_pause * 2, LOOK_PAUSE_MS[1])
        return self._look_if_affordable()

    def _look_if_affordable(self) -> bool:
        """Look, if the bucket lets us: housekeeping may wait, not so what a pod or the first sight needs."""
        with self.ledger.read() as tx:
            fresh = not any(eni.primary for eni in reads.enis(tx))
            waiting = bool(reads.waiting(tx))
        lane: actions.Lane = "pod" if fresh or waiting else "tidy"
        return self._has_token(LOOK, lane, self._calls()) and self._look()

    def _clock_was_set(self) -> None:
        """What is kept here of times is forgotten; the ledger has set its own right."""
        self._seen = model.Unknown("the clock was set since", 0)
        self._ec2_down.until = self._imds_down.until = 0
        self._look_not_before = self._look_at = self._identify_at = 0
        self._calls_may_show_until = self.clock() + writes.ADOPTION_LAG_MS
        self._quarantine.begin_anew()
        self.clock_was_set()
        self.scheduling.forget()
        self.capacity_changed()

    def _identified(self) -> bool:
        """Do we know who this machine is? Metadata are asked once in each run."""
        if self._introduced:
            return True
        with self.ledger.read() as tx:
            known = reads.node(tx) is not None
        if self._imds_down.until > self.clock():
            return known
        node = self.cloud.identify()
        self._introduced = not isinstance(node, model.Unknown)
        self._imds_down.heard(node, self.clock())
        return self._meet(node) or known

    def _follow_node(self) -> None:
        """Ask now and then for what of the node may change: the VPC's networks, the security groups.

        When everything else is done, and seldom while there is no answer: waiting for one may take seconds.
        """
        if self.clock() < self._identify_at:
            return
        with self.ledger.read() as tx:
            known = reads.node(tx)
        node = self.cloud.identify()
        if self._meet(node, known) and node != known:
            self.capacity_changed()  # the node's table exempts the VPC's networks
            # What was made with the groups of before may not be in a picture yet.
            self._look_at = min(self._look_at, self.clock() + writes.ADOPTION_LAG_MS)
        self._heed_metadata()

    def _heed_metadata(self) -> None:
        """Ask EC2 about what metadata miss, and once more when its picture cannot be older than that."""
        seen = self.cloud.metadata
        if seen is None or self.settings.imds_only:
            return
        if self._veto.heed(self.ledger, seen, self.clock()):
            log.info("instance metadata miss addresses that are ours: EC2 is asked")
            self._look_at = 0
            if self._look_if_affordable():
                self._look_at = min(self._look_at, self.clock() + veto.LAG_MS)

    def _meet(self, node: model.Node | model.Unknown, known: model.Node | None = None) -> bool:
        """Write down who we are, if that is not `known`, or why nobody says."""
        now = self.clock()
        with self.ledger.write() as tx:
            if isinstance(node, model.Unknown):
                self._identify_at = now + 10 * IDENTIFY_MS
                writes.open_finding(tx, "imds_down", "", node.why, now)
                return False
            self._identify_at = now + IDENTIFY_MS
            writes.close_finding(tx, "imds_down", "", now)
            if node != known:
                writes.record_node(tx, node, now)
        return True

    def _look(self) -> bool:
        """Ask EC2; remember the answer, adopt what is new, mark what is missing. False if it is down."""
        with self.ledger.read() as tx:
            known = reads.enis(tx)
        seen = self.cloud.observe("imds" if self.settings.imds_only else "ec2", known=known)
        self._ec2_down.heard(seen, self.clock())
        heritage = self.heritage()
        with self.ledger.read() as tx:
            in_use = self.in_use() if reads.quarantined(tx) else None
        now = self.clock()
        with self.ledger.write(durable=True) as tx:
            record.calls(tx, self.cloud.calls(), now)
            if isinstance(seen, model.Unknown):
                writes.open_finding(tx, "ec2_down", "", seen.why, now)
                return False
            writes.close_finding(tx, "ec2_down", "", now)
            changed = writes.adopt(tx, seen, now, imds_only=self.settings.imds_only)
            if seen.subnets is not None:
                reasons = subnets.excluded(seen.subnets, self.settings)
                changed |= writes.record_excluded(tx, reasons, now)
            if heritage is not None:
                heritage.enter(tx, seen)
            changed |= self._quarantine.judge(tx, seen, in_use, now)
            # What a picture misses for the first time the next may show: a pod may be on it.
            doubtful = bool(reads.quarantined(tx)) or reads.missed_at(tx, seen.at)
        self._seen, self._look_at = seen, now + (quarantine.APART_MS if doubtful else AUDIT_MS)
        if self._calls_may_show_until > now:
            self._look_at = min(self._look_at, self._calls_may_show_until)
        if heritage is not None:
            heritage.settle()
        if changed:
            self.capacity_changed()
        return True

    def _plan_cloud(self) -> actions.Plan:
        """On what is known; a cordon is asked about only where it would make a difference."""
        plan = self._planned()
        if not self.scheduling.asked_about(plan):
            return plan
        plan = self._planned()
        if any(note.code == cordon.CORDONED for note in plan.notes):
            self.capacity_changed()  # pods that wait for growth are told that none comes
        return plan

    def _planned(self) -> actions.Plan:
        now = self.clock()
        with self.ledger.read() as tx:
            desired = reads.desired(tx, now)
        seen = self._seen
        if isinstance(seen, model.ObservedCloud) and not 0 <= now - seen.at <= LOOK_IS_FRESH_MS:
            seen = model.Unknown("the last look at EC2 is too old to give anything back", seen.at)
        frozen = budget.freeze(self.settings.freeze, self._calls())
        self._tell_of_freeze(frozen)
        last = self._seen if isinstance(self._seen, model.ObservedCloud) else None
        return budget.thawed(planner.cloud(desired, seen, self.settings, now, last), frozen)

    def _sweep(self) -> None:
        """Delete what nodes of this cluster left behind in EC2; what is not affordable waits for the next."""
        with self.ledger.read() as tx:
            node = reads.node(tx)
        if node is None or not leaks.wanted(self.settings):
            return
        frozen = budget.freeze(self.settings.freeze, self._calls())
        if frozen != "none" or not self._has_token(LOOK, "tidy", self._calls()):
            return
        seen = self.cloud.observe_leaked()
        with self.ledger.write() as tx:
            record.calls(tx, self.cloud.calls(), self.clock())
        if isinstance(seen, model.Unknown):
            log.info("leaked interfaces could not be looked for: %s", seen.why)
            return
        for step in leaks.leaked(seen, node, self.settings, self.clock()):
            if not self._has_token(ec2.ACTION[type(step.action)], step.lane, self._calls()):
                return
            if not self.carry_out(step):
                return

    def _tell_of_freeze(self, frozen: budget.Freeze) -> None:
        with self.ledger.write() as tx:
            if frozen == "none":
                writes.close_finding(tx, "frozen", "", self.clock())
            else:
                writes.open_finding(tx, "frozen", "", f"freeze is {frozen!r}", self.clock())

    def carry_out(self, step: actions.CloudStep) -> bool:
        """Intent, call, outcome; True if another call makes sense now.

        After a refusal it does: what was refused is barred, and there may be another way. After a lost
        reply, or one that says that EC2 itself is in trouble, it does not.
        """
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
            self._look_at = 0
        elif isinstance(step.action, actions.SetSecurityGroups | actions.TagEni):
            self._confirmed(step.action, outcome.outcome)
        elif not outcome.outcome.error or isinstance(step.action, actions.DetachEni):
            self.capacity_changed()  # an interface that stays has to be wired again
        return not outcome.outcome.unknown and not errors.is_trouble(outcome.outcome.error)

    def _confirmed(self, action: actions.CloudAction, outcome: actions.Outcome) -> None:
        """EC2 keeps it, not the ledger: believe its answer now, and look once its picture can show it."""
        if outcome.error or not isinstance(self._seen, model.ObservedCloud):
            return
        self._seen = upkeep.shown(self._seen, action)
        self._look_at = min(self._look_at, self.clock() + writes.ADOPTION_LAG_MS)

    def _settle_unknown(self) -> None:
        """Calls whose reply was lost: sent again where that does nothing twice, else looked for.

        Where EC2 is not to be changed any more they wait until it is again, but for those that give back:
        what we began to remove would be nobody's.
        """
        if self.settings.imds_only:
            return
        now = self.clock()
        with self.ledger.read() as tx:
            due = [i for i in reads.unknown_intents(tx) if record.due_at(i) <= now]
        frozen = budget.freeze(self.settings.freeze, self._calls()) if due else "none"
        for intent in due:
            again = record.repeatable(intent)
            if again is None:
                self._look_at = 0
            elif self._may_send_again(again.action, frozen):
                self._send_again(intent, again)
        if all(record.repeatable(intent) for intent in due) or not self._look_if_affordable():
            return
        assert isinstance(self._seen, model.ObservedCloud)
        with self.ledger.write(durable=True) as tx:
            record.settle(tx, reads.unknown_intents(tx), self._seen, self.clock())
        # What they did may show as late as EC2's picture lags, and is adopted then.
        self._calls_may_show_until = self.clock() + writes.ADOPTION_LAG_MS
        self._look_at = min(self._look_at, self._calls_may_show_until)
        self.capacity_changed()

    def _may_send_again(self, action: actions.CloudAction, frozen: budget.Freeze) -> bool:
        if budget.gives_back(action):
            return frozen == "none"
        return not self.settings.no_provisioning

    def _send_again(self, intent: model.Intent, step: actions.CloudStep) -> None:
        if self._has_token(ec2.ACTION[type(step.action)], step.lane, self._calls()):
            with self.ledger.write(durable=True) as tx:
                record.resend(tx, intent, self.clock())
            self._send(intent, step)
