"""Asks the cluster's API about this node when a plan hangs on it, and writes the answer down.

Not on a timer: an idle node asks nothing. An API that is down is a finding and asked again after a pause
that doubles, until it answers; meanwhile its last answer ages (planner.cordon says what that means). How it is
asked is the child's business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

from ledger import database, model, reads, writes
from reconciler import cloud as clouds
from reconciler import pause
from reconciler import settings as knobs
from reconciler.planner import actions, cordon

ASKED_MS: Final = 1_000
"""An answer younger than this is not asked for again: one decision may take several plans."""
DOWN: Final = "api_server_down"
DOWN_PAUSE_MS: Final = (2_000, 60_000)
"""First and longest pause before an API that did not answer is asked again."""


class Scheduling:
    """What Kubernetes says of this node, for one thread at a time."""

    def __init__(
        self,
        ledger: database.Ledger,
        cloud: clouds.Cloud,
        settings: knobs.Settings,
        clock: Callable[[], int],
    ) -> None:
        self.ledger, self.cloud, self.settings, self.clock = ledger, cloud, settings, clock
        self._down = pause.Pause(*DOWN_PAUSE_MS)

    def asked_about(self, plan: actions.Plan) -> bool:
        """Ask, if the plan hangs on it and the last answer is old. True if there is a new answer.

        One that was missing is asked for until it comes, or the finding would outlive its cause.
        """
        now = self.clock()
        if now < self._down.until:
            return False
        with self.ledger.read() as tx:
            before, waiting = reads.scheduling(tx), bool(reads.waiting(tx))
            missing = (DOWN, "") in reads.open_findings(tx)
        if not self.settings.in_cluster:
            self._forget_finding(missing)
            return False
        if before is not None and 0 <= now - before.at <= ASKED_MS and not missing:
            return False
        return (waiting or missing or cordon.wants_an_answer(plan)) and self._ask()

    def _forget_finding(self, there: bool) -> None:
        """Nobody is asked any more, so nobody is down."""
        if there:
            with self.ledger.write() as tx:
                writes.close_finding(tx, DOWN, "", self.clock())

    def forget(self) -> None:
        """The clock was set: a pause that was counted by it is over."""
        self._down.until = 0

    def _ask(self) -> bool:
        said = self.cloud.schedule()
        now = self.clock()
        self._down.heard(said, now)
        with self.ledger.write() as tx:
            if isinstance(said, model.Unknown):
                writes.open_finding(tx, DOWN, "", said.why, now)
                return False
            writes.close_finding(tx, DOWN, "", now)
            writes.record_scheduling(tx, dataclasses.replace(said, at=now))
        return True
