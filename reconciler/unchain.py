"""The last step of a takeover, and of a hand-back, once the other side's packet rules work.

`theirs` removes the VPC CNI's iptables rules and chains and its nftables table, if ours is there to do
their work; `ours` removes our table, if theirs are. So there is no moment without source translation.
The daemon does neither: it has no business in other people's tables. What is whose is chains'.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ledger import model
from reconciler import errors, host_loop
from reconciler.planner import actions, chains, nat
from reconciler.providers import iptables, nftables


def theirs(*, look: bool) -> Iterator[str]:
    """Remove what is the VPC CNI's, or with `look` only say so; yields a line for each thing found.

    Refused while our table is not there; TryLater if the kernel does not take a change.
    """
    with contextlib.closing(host_loop.hands()) as hands:
        if not _has(hands):
            raise errors.Refused(
                "bad_request", "our table is not there yet: start the daemon first"
            )
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


def ours() -> Iterator[str]:
    """Remove our table; again is no harm. Refused while the VPC CNI has no translation of its own."""
    found = [chains.removal(text, adopted=True) for text in iptables.observe().values()]
    if not any(each.translates for each in found):
        text = "the VPC CNI's iptables rules are not there yet: start its agent first"
        raise errors.Refused("bad_request", text)
    with contextlib.closing(host_loop.hands()) as hands:
        _remove(hands, nat.TABLE)
    yield f"table ip {nat.TABLE} is gone"


def _has(hands: nftables.Nftables) -> bool:
    seen = hands.observe()
    if isinstance(seen, model.Unknown):
        raise errors.TryLater("nat_failed", f"{seen.why}; run this as root")
    return seen.table is not None


def _remove(hands: nftables.Nftables, name: str) -> None:
    (outcome,) = hands.apply([actions.RemoveTable(name)])
    if outcome.error:
        raise errors.TryLater("nat_failed", f"{outcome.error}: {outcome.text}")
