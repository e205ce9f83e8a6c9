"""What instance metadata contradict: an address that they miss is no pod's to get before EC2 was asked.

Metadata allow nothing; this is what they can forbid (decision 6). They lag, and have been seen to leave
interfaces out, so EC2's answer ends it, and the same thing is not asked again until metadata have shown
it. When they are asked does not belong here.
"""

from __future__ import annotations

from ledger import database, model, reads, writes

LAG_MS = writes.ADOPTION_LAG_MS
"""Metadata lag by less: what they miss of what was ours that long ago is gone, or they are wrong."""


class Veto:
    """What they contradict now, and whether EC2 has been asked about it."""

    def __init__(self) -> None:
        self._asked: frozenset[str] = frozenset()

    def heed(self, ledger: database.Ledger, seen: model.ObservedCloud, now: int) -> bool:
        """Keep from pods what metadata miss. True if EC2 is to be asked about it."""
        with ledger.read() as tx:
            missed = reads.not_shown(tx, seen, seen.at - LAG_MS)
        fresh = missed - self._asked
        self._asked = missed
        if fresh:
            with ledger.write() as tx:
                writes.contradict(tx, fresh, seen.at, now)
        return bool(fresh)
