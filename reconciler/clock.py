"""The node's clock may be set: noticed by the ledger's last line or the time since boot, and moments move along.

Asked at the start and before each round with EC2, because what a wrong date holds up are pauses, cooldowns
and token buckets, and what it shortens is the doubt about an old picture of EC2's. Which moments there are is
the ledger's business and does not belong here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from ledger import database, reads, writes

log = logging.getLogger(__name__)

STEP_MS: Final = 1_000
"""A clock that shows less by this much was set back; NTP slews what is smaller (ntpd(8), below 128 ms)."""


Uptime = Callable[[], int]
"""How long this boot lasts, in ms, suspended time included; nobody sets it."""


def uptime() -> int:
    """The kernel's own (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def heed(
    ledger: database.Ledger, clock: Callable[[], int], boot_id: str = "", up: Uptime | None = None
) -> bool:
    """True if the clock was set since the ledger's last change; the ledger agrees with it then.

    That it was set forward shows only in a boot that is known, by `up`.
    """
    back = _back(ledger, clock)
    return (up is not None and _forward(ledger, clock, boot_id, up)) or back


def boots(
    tx: database.Write, clock: Callable[[], int], boot_id: str, up: Uptime | None = None
) -> bool:
    """Note a start of the daemon; True if the machine was booted since the last one.

    How long it was off nobody can tell from a clock that may be wrong at power on: that time does not count.
    """
    before = reads.latest_at(tx)
    new = writes.record_boot(tx, boot_id, clock())
    if new and up is not None:
        now = clock()
        writes.boot_began(tx, boot_id, now - up())
        off = now - up() - (before or now)
        if off >= STEP_MS:
            writes.clock_stepped_forward(tx, off, now)
    return new


def _forward(ledger: database.Ledger, clock: Callable[[], int], boot_id: str, up: Uptime) -> bool:
    with ledger.read() as tx:
        known = reads.booted_at(tx, boot_id)
    began = clock() - up()
    if known is not None and abs(began - known) < STEP_MS:
        return False
    with ledger.write(durable=True) as tx:
        writes.boot_began(tx, boot_id, began)
        step = 0 if known is None else began - known
        if step >= STEP_MS:
            log.warning("the clock was set forward by %d ms", step)
            writes.clock_stepped_forward(tx, step, clock())
    return step >= STEP_MS


def _back(ledger: database.Ledger, clock: Callable[[], int]) -> bool:
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
