"""Addresses of live pods that EC2 shows gone from their interface: asked back, each by its name.

A name can be repeated after a lost reply, and the pod gets its own address again. Free addresses that are
gone are not asked back: whoever took them meant it, and any other serves the next pod. How many addresses
a node should hold does not belong here.
"""

from __future__ import annotations

from collections.abc import Iterator

from ledger import model
from reconciler.planner import actions, stock

_CAUSE = "a live pod's address is gone from its interface"


def regain(
    held: stock.Stock, desired: model.Desired, last: model.ObservedCloud | None
) -> Iterator[actions.CloudStep]:
    """`last` is EC2's last picture, however old: an interface that it does not show gets no call.

    An address is `absent_since` by a picture that cannot be older than EC2's confirmation of it, so it is
    gone; a prefix is missed with all of its addresses, and asked back whole.
    """
    if last is None or last.source != "ec2":
        return
    leased = {lease.address for lease in desired.leases if lease.address}
    shown = {each.eni.eni_id: each for each in last.enis}
    for eni in desired.enis:
        seen = shown.get(eni.eni_id)
        if not eni.managed or eni.state not in stock.SERVING or seen is None:
            continue
        if eni.card != held.card:
            continue
        gone = [
            a
            for a in desired.addresses
            if a.eni_id == eni.eni_id
            and a.family == 4
            and a.state == "assigned"
            and a.absent_since is not None
            and (a.leased or a.address in leased)
        ]
        singles = tuple(a.address for a in gone if a.prefix is None)
        blocks = tuple(sorted({a.prefix for a in gone if a.prefix is not None}))
        if singles and held.may("RegainAddresses", eni.eni_id):
            yield actions.CloudStep(actions.RegainAddresses(eni.eni_id, singles), "pod", _CAUSE)
        if blocks and held.may("RegainPrefixes", eni.eni_id):
            yield actions.CloudStep(actions.RegainPrefixes(eni.eni_id, blocks), "pod", _CAUSE)
