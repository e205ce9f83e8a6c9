"""A disk that takes no writes holds up a start and does not end it.

A daemon that ended for that would be started again, and end again, with pauses that the runtime makes longer each
time; here the next try is never far, and the log says what is waited for. What is tried, and what a running daemon
does while its ledger takes nothing, do not belong here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, TypeVar

from ledger import database

log = logging.getLogger(__name__)

PAUSE_S: Final = (0.5, 10.0)
"""First and longest pause between two tries; it doubles in between."""

T = TypeVar("T")


def until_it_takes(work: Callable[[], T], told_to_end: Callable[[float], bool]) -> T | None:
    """What `work` returns, tried until the disk lets it; None if we were told to end meanwhile.

    `told_to_end` waits so many seconds for that. `work` has to be harmless when it is tried again; what it
    raises for another reason passes through.
    """
    pause = PAUSE_S[0]
    while True:
        try:
            return work()
        except Exception as refused:
            if not database.is_of_the_disk(refused):
                raise
            log.error(  # noqa: TRY400 - the sentence says all, and it may come often
                "the disk does not take the ledger's writes: %s; make room or mend it, the next try"
                " is in %s s", refused, pause,
            )  # fmt: skip
        if told_to_end(pause):
            return None
        pause = min(2 * pause, PAUSE_S[1])
