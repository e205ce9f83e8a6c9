"""What may be given back to EC2: addresses beyond the targets, idle interfaces, begun removals.

Only what has rested, what nobody uses and what EC2 itself was just seen to show as the ledger has it.
How many addresses the node should hold belongs to targets; whether this is the time to give anything
back is the pool's business and does not belong here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Final

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import actions, limits, stock, targets

LOOK_FIRST: Final = "look_first"
"""Code of the note saying that something would be given back if EC2 were looked at first."""

MIN_AGE_MS: Final = 60_000
"""An interface attached for less is kept (upstream's minimum age)."""


def finish(desired: model.Desired, held: stock.Stock) -> Iterator[actions.CloudStep]:
    """Interfaces whose removal was begun: `draining` is to be detached, `detaching` to be deleted."""
    for eni in desired.enis:
        if not eni.managed or eni.primary or held.touches(eni.eni_id) or eni.card != held.card:
            continue
        if eni.state == "draining" and eni.attachment_id:
            if held.may("DetachEni", eni.eni_id):
                action: actions.CloudAction = actions.DetachEni(eni.eni_id, eni.attachment_id)
                yield actions.CloudStep(action, "tidy", "its removal was begun")
        elif eni.state == "detaching" and held.may("DeleteEni", eni.eni_id):
            yield actions.CloudStep(
                actions.DeleteEni(eni.eni_id), "tidy", "detached and not needed"
            )


def unattachable(
    held: stock.Stock, settings: knobs.Settings, limit: limits.Limits
) -> Iterator[actions.CloudStep]:
    """Interfaces that were made and find no place, because somebody else took the last one."""
    if len(held.devices) < targets.most_enis(settings, limit, held.card):
        return
    for each in held.loose:
        if not each.busy and held.may("DeleteEni", each.eni.eni_id):
            yield actions.CloudStep(actions.DeleteEni(each.eni.eni_id), "tidy", "no place is left")


def excluded(held: stock.Stock, now: int) -> Iterator[actions.CloudStep]:
    """What no pod uses in subnets that pods are kept out of: interfaces, else addresses and prefixes.

    `held` has those interfaces alone.
    """
    cause = "its subnet's tags keep pods out"
    for each in held.holdings:
        eni_id = each.eni.eni_id
        if _idle(each, held, now):
            assert each.eni.attachment_id is not None
            step: actions.CloudAction = actions.DetachEni(eni_id, each.eni.attachment_id)
            yield actions.CloudStep(step, "tidy", cause)
            continue
        if each in held.loose and not each.busy and held.may("DeleteEni", eni_id):
            yield actions.CloudStep(actions.DeleteEni(eni_id), "tidy", cause)
            continue
        free = (*each.rested(now), *each.leavers(now))
        singles = tuple(a.address for a in free if a.prefix is None)
        blocks = stock.whole(free, (*each.addresses, *each.others))
        if singles and held.may("UnassignAddresses", eni_id):
            yield actions.CloudStep(actions.UnassignAddresses(eni_id, singles), "tidy", cause)
        if blocks and held.may("UnassignPrefixes", eni_id):
            yield actions.CloudStep(actions.UnassignPrefixes(eni_id, blocks), "tidy", cause)


def surplus(
    held: stock.Stock,
    settings: knobs.Settings,
    limit: limits.Limits,
    now: int,
    *,
    keeps_enis: bool = False,
) -> Iterator[actions.CloudStep]:
    """One idle interface that the targets can do without; else addresses or prefixes beyond them.

    The latter as well if the interface has to stay for now (`keeps_enis`), as a cordoned node's. What is
    of the kind that is on its way out goes in any case.
    """
    prefixed = targets.prefixed(settings, limit)
    for each in reversed(held.holdings):
        if _idle(each, held, now) and _dispensable(each, held, settings, limit, now):
            assert each.eni.attachment_id is not None
            action = actions.DetachEni(each.eni.eni_id, each.eni.attachment_id)
            yield actions.CloudStep(action, "tidy", "idle, and the others keep the warm target")
            if not keeps_enis:
                return
            break
    yield from leaving(held, prefixed, now)
    # The emptiest first, so that it becomes idle; the primary interface, which stays, last.
    emptiest = sorted(
        held.holdings, key=lambda h: (h.eni.primary, len(h.leased), -h.eni.device, h.eni.eni_id)
    )
    if held.fallback:
        return  # single addresses stand in for prefixes: they go when those are there
    if prefixed:
        yield from _prefixes(emptiest, held, settings, now)
    else:
        yield from _addresses(emptiest, held, settings, now)


def _addresses(
    emptiest: list[stock.Holding], held: stock.Stock, settings: knobs.Settings, now: int
) -> Iterator[actions.CloudStep]:
    left = targets.over(held, settings)
    for each in emptiest:
        gone = tuple(a.address for a in each.rested(now)[:left])
        if gone and held.may("UnassignAddresses", each.eni.eni_id):
            cause = f"{left} addresses above the warm target"
            yield actions.CloudStep(actions.UnassignAddresses(each.eni.eni_id, gone), "tidy", cause)
            left -= len(gone)


def _prefixes(
    emptiest: list[stock.Holding], held: stock.Stock, settings: knobs.Settings, now: int
) -> Iterator[actions.CloudStep]:
    rested = {each.eni.eni_id: each.rested_prefixes(now) for each in emptiest}
    left = targets.over_prefixes(held, settings, sum(map(len, rested.values())))
    for each in emptiest:
        gone = rested[each.eni.eni_id][:left]
        if gone and held.may("UnassignPrefixes", each.eni.eni_id):
            cause = f"{left} prefixes above the warm target"
            yield actions.CloudStep(actions.UnassignPrefixes(each.eni.eni_id, gone), "tidy", cause)
            left -= len(gone)


def leaving(held: stock.Stock, prefixed: bool, now: int) -> Iterator[actions.CloudStep]:
    """After prefix delegation was switched: free addresses of the other kind."""
    cause = f"prefix delegation is {'on' if prefixed else 'off'}"
    for each in held.holdings:
        free = each.leavers(now)
        singles = tuple(a.address for a in free if a.prefix is None)
        blocks = stock.whole(free, each.others)
        if singles and held.may("UnassignAddresses", each.eni.eni_id):
            action: actions.CloudAction = actions.UnassignAddresses(each.eni.eni_id, singles)
            yield actions.CloudStep(action, "tidy", cause)
        if blocks and held.may("UnassignPrefixes", each.eni.eni_id):
            action = actions.UnassignPrefixes(each.eni.eni_id, blocks)
            yield actions.CloudStep(action, "tidy", cause)


def _idle(each: stock.Holding, held: stock.Stock, now: int) -> bool:
    """Nobody uses it and nobody did for a while."""
    eni = each.eni
    return (
        not each.busy
        and not eni.primary
        and eni.kind == "interface"
        and eni.attachment_id is not None
        and eni.state in {"attached", "usable"}
        and eni.attached_at is not None
        and now - eni.attached_at >= MIN_AGE_MS
        and len(each.rested(now)) == len(each.addresses)
        and len(each.leavers(now)) == len(each.others)
        and held.may("DetachEni", eni.eni_id)
    )


def _dispensable(
    each: stock.Holding,
    held: stock.Stock,
    settings: knobs.Settings,
    limit: limits.Limits,
    now: int,
) -> bool:
    """The other interfaces' rested addresses reach the targets, in whole prefixes where those count."""
    rested = held.rested - len(each.rested(now))
    total = held.total - len(each.addresses)
    prefixed = targets.prefixed(settings, limit)
    if targets.by_addresses(settings):
        unit = stock.PREFIX_SIZE if prefixed else 1
        warm = -(-settings.warm_ip_target // unit) * unit
        return rested >= warm and total >= settings.minimum_ip_target
    if prefixed:
        free = held.free_prefixes - len(each.free_prefixes)
        keep = settings.warm_prefix_target
        return rested >= max(keep * stock.PREFIX_SIZE, 1) and free >= keep
    return rested >= targets.warm_enis(settings, limit.slots)


def confirmed(
    gives: list[actions.CloudStep], observed: model.ObservedCloud | model.Unknown
) -> tuple[tuple[actions.CloudStep, ...], tuple[actions.Note, ...]]:
    """Those steps, or parts of them, that a look at EC2 supports; one note for all the others.

    Instance metadata is no such look: it can contradict, not allow.
    """
    seen: dict[str, model.ObservedEni] | None = None
    if isinstance(observed, model.ObservedCloud) and observed.source == "ec2":
        seen = {o.eni.eni_id: o for o in observed.enis}
    backed: list[actions.CloudStep] = []
    held_back: list[str] = []
    for step in gives:
        action = _shown(step.action, seen) if seen is not None else None
        if action is not None:
            backed.append(dataclasses.replace(step, action=action))
        else:
            held_back.append(type(step.action).__name__)
    if not held_back:
        return tuple(backed), ()
    text = f"{', '.join(held_back)}: EC2 has to show first that nothing speaks against it"
    return tuple(backed), (actions.Note(LOOK_FIRST, text),)


def _shown(
    action: actions.CloudAction, seen: dict[str, model.ObservedEni]
) -> actions.CloudAction | None:
    """The action as far as its object is shown in the state it needs."""
    match action:
        case actions.UnassignAddresses(eni_id, addresses):
            there = seen[eni_id].addresses if eni_id in seen else ()
            shown = tuple(a for a in addresses if a in there)
            return actions.UnassignAddresses(eni_id, shown) if shown else None
        case actions.UnassignPrefixes(eni_id, prefixes):
            there = seen[eni_id].prefixes if eni_id in seen else ()
            shown = tuple(p for p in prefixes if p in there)
            return actions.UnassignPrefixes(eni_id, shown) if shown else None
        case actions.DetachEni(eni_id):
            return action if eni_id in seen and seen[eni_id].eni.device >= 0 else None
        case actions.DeleteEni(eni_id):  # one that is not shown may be gone already: success
            return action if eni_id not in seen or seen[eni_id].eni.device < 0 else None
    return None
