"""Which network cards of the node have a pool, and what each of them is to hold.

The first always has; the others with ENABLE_MULTI_NIC, on the VPC CNI's terms. What a card has of its own
is counted by stock and summed by targets, which know one card at a time.
"""

from __future__ import annotations

import dataclasses

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import limits


def used(desired: model.Desired, settings: knobs.Settings, limit: limits.Limits) -> tuple[int, ...]:
    """Indexes of the cards that carry pods, the first card first.

    A card whose only interfaces of ours are efa-only ones is left to them, as upstream does: it was made
    for RDMA alone. One with none gets some.
    """
    if not settings.multi_nic:
        return (0,)
    return (0, *(card for card in range(1, len(limit.cards)) if not _for_rdma_alone(desired, card)))


def _for_rdma_alone(desired: model.Desired, card: int) -> bool:
    there = [eni for eni in desired.enis if eni.card == card and eni.state != "gone"]
    ip = any(eni.managed and eni.kind != "efa-only" for eni in there)
    return not ip and any(eni.kind == "efa-only" for eni in there)


def rehomed(desired: model.Desired, cards: tuple[int, ...]) -> model.Desired:
    """With what is attached to nothing and was meant for a card no longer used given to the first card."""
    lost = {"created", "detaching"}
    enis = tuple(
        dataclasses.replace(eni, card=0, device=-1)
        if eni.state in lost and eni.card not in cards
        else eni
        for eni in desired.enis
    )
    return dataclasses.replace(desired, enis=enis)


def targets_of(card: int, settings: knobs.Settings) -> knobs.Settings:
    """The settings as they are meant for that card: after the first, one address free and one at all."""
    if card == 0:
        return settings
    return dataclasses.replace(settings, warm_ip_target=1, minimum_ip_target=1)
