"""The loop's twin for EC2: who are we, what is in doubt, what does the pool want; then call and record.

A mutation is a committed intent before it is sent and a committed outcome after. A reply that was lost
is settled by its token or by looking. What to ask for is the planner's business, how EC2 is called the
child's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from ledger import database, model, reads, writes
from reconciler import cloud as clouds
from reconciler import errors, record
from reconciler import settings as knobs
from reconciler.planner import actions, budget
from reconciler.planner import plan as planner
from reconciler.providers import ec2

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
        self.heritage: Callable[[], Heritage | None] = lambda: None
        self._seen: model.ObservedCloud | model.Unknown = model.Unknown("not asked yet", 0)
        self._look_wanted = True
        self._look_pause, self._look_not_before = LOOK_PAUSE_MS[0], 0
        self._down_pause, self._down_until = DOWN_PAUSE_MS[0], 0
        self._budget_at: int | None = None

    def look_again(self) -> None:
        """Have the next tick look at EC2, whatever was seen before."""
        self._look_wanted = True

    def tick(self) -> Notes:
        """One round with EC2: who are we, what is in doubt, what does the pool want."""
        if self.settings.freeze == "cloud" or not self._identified():
            return ()
        self._settle_unknown()
        if self._look_wanted or 0 < self._down_until <= self.clock():
            self._look()
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

    def next_at(self) -> int | None:
        """When (ms) the cloud's lane has to run again at the latest for its own sake; None if never.

        Never now or earlier: what the tick just passed over at its time waits for something else.
        """
        now = self.clock()
        with self.ledger.read() as tx:
            times = [reads.next_retry_at(tx, now), self._budget_at]
            if reads.unknown_intents(tx):
                times.append(now + record.SETTLE_AFTER_MS)
        times.append(self._down_until)
        if self._look_pause > LOOK_PAUSE_MS[0]:
            times.append(self._look_not_before)
        return min((time for time in times if time is not None and time > now), default=None)

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
        heritage = self.heritage()
        now = self.clock()
        with self.ledger.write(durable=True) as tx:
            record.calls(tx, self.cloud.calls(), now)
            if isinstance(seen, model.Unknown):
                writes.open_finding(tx, "ec2_down", "", seen.why, now)
                return False
            writes.close_finding(tx, "ec2_down", "", now)
            changed = writes.adopt(tx, seen, now)
            if heritage is not None:
                heritage.enter(tx, seen)
        self._seen, self._look_wanted = seen, False
        if heritage is not None:
            heritage.settle()
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

    def carry_out(self, step: actions.CloudStep) -> bool:
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
        elif not outcome.outcome.error or isinstance(step.action, actions.DetachEni):
            self.capacity_changed()  # an interface that stays has to be wired again
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
            self.capacity_changed()
