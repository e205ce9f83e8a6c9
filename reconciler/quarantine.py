"""The way out of doubt: EC2 says the same twice, far enough apart, and the kernel names nobody.

An address is doubtful in quarantine, and while EC2's picture misses it and no pod has it; it is neither given
to a pod nor given back. What two looks agree on is then true: it is ours
and rests before its next pod, or it is not and its row ends. So does that of an interface which somebody else
took away. A restart begins an address's wait anew. How an address comes here does not belong here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from ledger import database, model, reads, writes

APART_MS = writes.ADOPTION_LAG_MS
"""Two looks at EC2 closer than this may be one old picture seen twice."""


@dataclass(slots=True)
class Quarantine:
    """What the looks so far have shown of each doubtful address."""

    cooling_ms: int
    _shown: dict[str, tuple[str, int]] = field(default_factory=dict)

    def begin_anew(self) -> None:
        """How long ago the looks were cannot be told any more."""
        self._shown = {}

    def judge(
        self,
        tx: database.Write,
        seen: model.ObservedCloud,
        in_use: Collection[str] | None,
        now: int,
    ) -> bool:
        """Let out what two looks agree on; True if anything changed.

        `in_use` are addresses that the kernel's routes and rules name, None if it could not tell.
        """
        doubtful = reads.quarantined(tx)
        self._shown = {
            a.address: self._shown[a.address] for a in doubtful if a.address in self._shown
        }
        changed = self._end_lost(tx, seen, now)
        for each in doubtful:
            where = _where(each, seen)
            before, since = self._shown.setdefault(each.address, (where, seen.at))
            if where != before:
                self._shown[each.address] = (where, seen.at)
            elif seen.at - since >= APART_MS and not _held(each, in_use):
                self._settle(tx, each, where, now)
                changed = True
        return changed

    def _end_lost(self, tx: database.Write, seen: model.ObservedCloud, now: int) -> bool:
        """Interfaces that somebody else took away: two pictures of EC2's miss them, and nobody is on them."""
        if seen.source != "ec2":
            return False
        shown = {each.eni.eni_id for each in seen.enis}
        lost = [e for e in reads.lost_enis(tx, seen.at - APART_MS) if e not in shown]
        for eni_id in lost:
            writes.eni_gone(tx, eni_id, "EC2 does not show it", now)
        return bool(lost)

    def _settle(self, tx: database.Write, each: model.Address, where: str, now: int) -> None:
        if where == each.eni_id:
            writes.address_trusted(tx, each.address, now, self.cooling_ms)
        else:
            reason = f"EC2 shows it on {where}" if where else "EC2 does not show it"
            writes.addresses_released(tx, [each.address], now, reason)


def _where(each: model.Address, seen: model.ObservedCloud) -> str:
    """The interface that EC2 shows the address on, or nothing."""
    name = each.prefix or each.address
    return next((o.eni.eni_id for o in seen.enis if name in o.addresses or name in o.prefixes), "")


def _held(each: model.Address, in_use: Collection[str] | None) -> bool:
    return each.leased or in_use is None or each.address in in_use
