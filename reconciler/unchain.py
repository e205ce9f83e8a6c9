"""`vpcledger unchain`: the last step of a takeover, or of a hand-back, once the other side's rules work.

`theirs` removes the VPC CNI's iptables rules and chains and its nftables table, if ours is there to do
their work; `ours` removes our table, if theirs are. So there is no moment without source translation.
The daemon does neither: it has no business in other people's tables. What is whose is chains'.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

from ledger import model
from reconciler import errors, host_loop
from reconciler.planner import actions, chains, nat
from reconciler.providers import iptables, nftables

Whose = Literal["theirs", "ours"]


def unchain(whose: Whose, *, look: bool) -> Iterator[str]:
    """Do it, or with `look` only say what would be done; yields a line for each thing found.

    Refused while the other side's rules are not in place; TryLater if the kernel does not take a change.
    """
    with contextlib.closing(host_loop.hands()) as hands:
        yield from _unchain(hands, whose, look=look)


def _unchain(hands: nftables.Nftables, whose: Whose, *, look: bool) -> Iterator[str]:
    if whose == "theirs":
        if not _has(hands):
            raise errors.Refused(
                "bad_request", "our table is not there yet: start the daemon first"
            )
        yield from _theirs(look=look)
    else:
        found = [chains.removal(text, adopted=True) for text in iptables.observe().values()]
        if not any(each.translates for each in found):
            raise errors.Refused(
                "bad_request", "the VPC CNI's rules are not there yet: start its agent first"
            )
        yield f"nftables: table ip {nat.TABLE}"
        if not look:
            _remove(hands, nat.TABLE)


def _theirs(*, look: bool) -> Iterator[str]:
    for backend, saved in iptables.observe().items():
        found = chains.removal(saved, adopted=True)
        yield from (f"iptables-{backend}: {table} {rule}" for table, rule in found.rules)
        yield from (f"iptables-{backend}: {table} chain {chain}" for table, chain in found.chains)
        if found.script and not look:
            iptables.apply(backend, found.script)
    with contextlib.closing(nftables.Nftables(chains.TABLE, ())) as hands:
        if _has(hands):
            yield f"nftables: table ip {chains.TABLE}"
            if not look:
                _remove(hands, chains.TABLE)


def _has(hands: nftables.Nftables) -> bool:
    seen = hands.observe()
    if isinstance(seen, model.Unknown):
        raise errors.TryLater("nat_failed", f"{seen.why}; run this as root")
    return seen.table is not None


def _remove(hands: nftables.Nftables, name: str) -> None:
    (outcome,) = hands.apply([actions.RemoveTable(name)])
    if outcome.error:
        raise errors.TryLater("nat_failed", f"{outcome.error}: {outcome.text}")
