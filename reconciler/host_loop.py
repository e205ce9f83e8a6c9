"""What a node has beside rules and routes, compared and mended: our nftables table and a few sysctls.

A tick comes with each look at the kernel, and after each change of nftables by anybody; while the table
is the one last agreed on, that costs one question. What the table and the sysctls should say is the
planner's business, the kernel's links, rules and routes are loop's.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

from ledger import database, model, reads, writes
from reconciler import settings as knobs
from reconciler.planner import actions, nat
from reconciler.planner import plan as planner
from reconciler.providers import host, nftables

log = logging.getLogger(__name__)

Notes = tuple[actions.Note, ...]


def hands() -> nftables.Nftables:
    """Those that hold the table of this process's namespace."""
    return nftables.Nftables(nat.TABLE, nat.CHAINS)


def outlook(
    desired: model.Desired, observed: model.ObservedKernel, settings: knobs.Settings
) -> tuple[tuple[actions.NatAction, ...], Notes]:
    """What a tick would do to nftables now; it does nothing."""
    with contextlib.closing(hands()) as look:
        primary = planner.primary_link(desired, observed)
        return nat.plan(desired, primary, look.observe(), settings)


class HostLoop:
    """Keeps one node's table and sysctls true; threads may share it."""

    def __init__(
        self,
        ledger: database.Ledger,
        hands: nftables.Nftables,
        settings: knobs.Settings,
        clock: Callable[[], int],
    ) -> None:
        self.ledger, self.nftables = ledger, hands
        self.settings, self.clock = settings, clock
        self._lock = threading.Lock()
        self.left_to_launcher: tuple[model.Sysctl, ...] = ()
        """Sysctls of the node that this process may not write: the launcher does, with the next ADD."""
        self._said: dict[str, str] = {}
        self._agreed: object = None
        self._primary = ""

    def tick(self, desired: model.Desired, observed: model.ObservedKernel) -> Notes:
        """Compare with the rows as they are now; what differs is mended at once."""
        with self._lock:
            self._primary = planner.primary_link(desired, observed)
            self._sysctls()
            return self._nat(desired)

    def look(self) -> None:
        """Somebody changed nftables: mend our table if it was that which changed."""
        with self._lock:
            observed = self.nftables.observe()
            if isinstance(observed, model.Unknown) or observed.table == self._agreed:
                return
            with self.ledger.read() as tx:
                desired = reads.desired(tx, self.clock())
            self._nat(desired)

    def _nat(self, desired: model.Desired) -> Notes:
        observed = self.nftables.observe()
        steps, notes = nat.plan(desired, self._primary, observed, self.settings)
        if isinstance(observed, model.Unknown):
            self._find("nat_failed", observed.why)
            return notes
        if not steps:
            self._agreed = observed.table
            self._find("nat_failed", "")
            return notes
        assert not self.ledger.in_transaction(), "nothing outside is touched in a transaction"
        outcomes = self.nftables.apply(steps)
        for outcome in outcomes:
            log.info("mended: table %s %s", nat.TABLE, outcome.error)
        failed = [f"{each.error}: {each.text}" for each in outcomes if each.error]
        with self.ledger.write() as tx:
            text = "replaced" if not failed else f"replaced: {failed[0]}"
            writes.line(tx, self.clock(), "kernel.mended", f"table ip {nat.TABLE}", text)
        self._find("nat_failed", "; ".join(failed))
        return notes

    def _sysctls(self) -> None:
        """Set those that differ; what a read-only /proc/sys keeps from us is left to the launcher."""
        wanted = nat.sysctls(self._primary, self.settings) if self._primary else ()
        differ = [each for each in wanted if host.sysctl(each.path) not in {each.value, None}]
        refused = [(each, why) for each in differ if (why := host.set_sysctl(each))]
        for each in differ:
            log.info("set: net/%s = %s", each.path, each.value)
        self.left_to_launcher = tuple(each for each, _ in refused)
        self._find("sysctl_unwritable", "; ".join(why for _, why in refused))

    def _find(self, code: str, text: str) -> None:
        """Open the finding, or close it when there is nothing to say; said again it is no write."""
        if self._said.get(code) == text:
            return
        self._said[code] = text
        with self.ledger.write() as tx:
            if text:
                writes.open_finding(tx, code, "", text, self.clock())
            else:
                writes.close_finding(tx, code, "", self.clock())
