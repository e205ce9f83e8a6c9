"""The node's clock may be set back: noticed by the ledger's last line, and what lies ahead moved back with it.

Asked at the start and before each round with EC2, because what a wrong date holds up are pauses, cooldowns
and token buckets. Which moments there are is the ledger's business and does not belong here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from ledger import database, reads, writes

log = logging.getLogger(__name__)

STEP_MS: Final = 1_000
"""A clock that shows less by this much was set back; NTP slews what is smaller (ntpd(8), below 128 ms)."""


def heed(ledger: database.Ledger, clock: Callable[[], int]) -> bool:
    """True if the clock was set back since the ledger's last change; the ledger agrees with it then."""
    with ledger.read() as tx:
        suspected = reads.clock_step(tx, clock()) >= STEP_MS
    if not suspected:
        return False
    with ledger.write(durable=True) as tx:
        now = clock()  # asked in here: by a time from before a wait, others' lines lie ahead
        step = reads.clock_step(tx, now)
        if step >= STEP_MS:
            log.warning("the clock was set back by %d ms", step)
            writes.clock_stepped_back(tx, step, now)
    return step >= STEP_MS
