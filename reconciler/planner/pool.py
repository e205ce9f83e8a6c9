"""How many addresses and interfaces this node should hold, and the EC2 calls that lead there.

The targets are upstream's (WARM_IP_TARGET and MINIMUM_IP_TARGET, else WARM_ENI_TARGET or, with prefix
delegation, WARM_PREFIX_TARGET, within MAX_ENI); pods that wait come on top of them and first. Nothing is given back while anything is missing or on its
way, on a picture that EC2 itself did not just show, or before it has rested, so that a plan never undoes
the one before. The sums are in targets, what may go in release, the counting in stock, what a live pod
lost in regain; when EC2 is asked does not belong here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import actions, cards, limits, regain, release, stock, tags, targets, upkeep

Steps = tuple[actions.CloudStep, ...]
Notes = tuple[actions.Note, ...]
_ORDER: Final = {"pod": 0, "warm": 1, "tidy": 2}


@dataclass(frozen=True, slots=True)
class Capacity:
    """The most this node can carry, and whether one more address could still come."""

    max_addresses: int
    enis: int
    could_grow: bool
    reason: Literal["growing", "node_full"]


def capacity(desired: model.Desired, settings: knobs.Settings, limit: limits.Limits) -> Capacity:
    """Read from the ledger alone. `enis` are those pods may use on any card, `max_addresses` all their slots.

    `could_grow` is true too for addresses on their way and for those on interfaces not yet usable;
    calls that failed and cooling addresses are left to the caller, who knows the time.
    """
    prefixed = targets.prefixed(settings, limit)
    usable, grow = 0, False
    for card in cards.used(desired, settings, limit):
        held = stock.count(desired, model.Unknown("not asked", 0), 0, prefixed=prefixed, card=card)
        most = targets.most_enis(settings, limit, card)
        places = max(most - (held.enis - _ours(held)), 0)
        usable += min(places, _ours(held)) if _subnet_excluded(desired) else places
        arriving = any(
            h.eni.state != "usable" and len(h.leased) < len(h.addresses) for h in held.holdings
        )
        room = any(h.occupied < limit.slots for h in held.holdings)
        makes = held.enis < most and not _subnet_excluded(desired)
        grow |= arriving or room or held.coming > 0 or makes
    each = limit.slots * (stock.PREFIX_SIZE if prefixed else 1)
    return Capacity(usable * each, usable, grow, "growing" if grow else "node_full")


def _subnet_excluded(desired: model.Desired) -> bool:
    return desired.node is not None and desired.node.subnet_id in desired.excluded


def _ours(held: stock.Stock) -> int:
    asked = [call for call in held.under_way if isinstance(call, actions.CreateEni)]
    return len(held.holdings) + sum(call.card == held.card for call in asked)


def cloud_steps(
    desired: model.Desired,
    observed: model.ObservedCloud | model.Unknown,
    settings: knobs.Settings,
    limit: limits.Limits,
    now: int,
    last: model.ObservedCloud | None = None,
    *,
    keeps_enis: bool = False,
) -> tuple[Steps, Notes]:
    """What to ask of EC2 now, pods that wait first, and why; equal arguments give equal steps.

    The ledger must know the primary interface: what is attached already is not guessed. `last` is EC2's
    last picture where `observed` is too old to allow anything to be given back; see upkeep.
    `keeps_enis`: no interface can go for now, so addresses go instead; see release.surplus.
    """
    node = desired.node
    if node is None or not any(eni.primary for eni in desired.enis):
        return (), (actions.Note("starting", "this node's own interface is not known yet"),)
    steps: list[actions.CloudStep] = []
    notes: list[actions.Note] = []
    waiting = None  # all of them; for the next card those that this one cannot serve
    used = cards.used(desired, settings, limit)
    view = _View(cards.rehomed(desired, used), node, observed, last, now, keeps_enis)
    prefixed = targets.prefixed(settings, limit)
    for card in used:
        held = stock.count(
            view.desired, observed, now, prefixed=prefixed, card=card, waiting=waiting
        )
        planned, why, waiting = _card(view, held, cards.targets_of(card, settings), limit)
        steps += planned
        notes += why
    return tuple(sorted(steps, key=lambda s: _ORDER[s.lane])), tuple(notes)


def unfinished(
    desired: model.Desired, observed: model.ObservedCloud | model.Unknown, now: int
) -> tuple[Steps, Notes]:
    """What is left to do where EC2 is not to be changed: end the removals we began, so that nothing leaks.

    One that is attached to nothing and that we did not begin to remove may be somebody's who is about to.
    """
    desired = cards.rehomed(desired, ())
    held = stock.count(desired, observed, now)
    return release.confirmed([*release.finish(desired, held)], observed)


@dataclass(frozen=True, slots=True)
class _View:
    """What every card's plan is made of."""

    desired: model.Desired
    node: model.Node
    observed: model.ObservedCloud | model.Unknown
    last: model.ObservedCloud | None
    now: int
    keeps_enis: bool


def _card(
    view: _View, held: stock.Stock, settings: knobs.Settings, limit: limits.Limits
) -> tuple[Steps, Notes, int]:
    """One card's steps and why, and how many waiting pods find no room on it."""
    desired, now = view.desired, view.now
    want = _missing(held, settings, limit)
    notes = [_summary(held, want)]
    steps = [
        *regain.regain(held, desired, view.last),
        *_attach(held, view.node, settings, limit),
    ]
    grown, why, unserved = _grow(held, view.node, settings, limit, want, now, desired.excluded)
    steps += grown
    notes += why
    steps += upkeep.upkeep(held, desired, view.last, settings)
    gives = [*release.finish(desired, held), *release.unattachable(held, settings, limit)]
    if desired.excluded:
        others = stock.count(desired, view.observed, now, card=held.card, excluded=True)
        gives += release.excluded(others, now)
    # Growth, barred for now or not yet complete, and giving back exclude each other.
    if not (want or held.waiting or held.coming or held.loose):
        gives += release.surplus(held, settings, limit, now, keeps_enis=view.keeps_enis)
    elif want and not grown:  # what is on its way out may be what takes the room
        gives += release.leaving(held, targets.prefixed(settings, limit), now)
    backed, doubts = release.confirmed(gives, view.observed)
    return (*steps, *backed), (*notes, *doubts), unserved


@dataclass(frozen=True, slots=True)
class Missing:
    """`amount` of addresses, or of whole prefixes, to ask for."""

    amount: int
    prefixes: bool = False

    def __bool__(self) -> bool:
        """Is anything missing?"""
        return self.amount > 0

    def __str__(self) -> str:
        """With its unit."""
        return f"{self.amount} {'prefixes' if self.prefixes else 'addresses'}"


def _missing(held: stock.Stock, settings: knobs.Settings, limit: limits.Limits) -> Missing:
    if held.fallback:
        return Missing(targets.short_without_blocks(held, settings))
    if targets.prefixed(settings, limit):
        return Missing(targets.short_prefixes(held, settings), prefixes=True)
    return Missing(targets.short(held, settings, limit.slots))


def _summary(held: stock.Stock, want: Missing) -> actions.Note:
    cooling = held.total - held.leased - held.ready
    text = (
        f"{held.total} addresses on {len(held.holdings)} interfaces: {held.leased} leased, "
        f"{held.ready} ready, {cooling} cooling; {held.coming} on their way, "
        f"{held.waiting} pods wait, {want.amount} missing"
    )
    return actions.Note("pool", f"card {held.card}: {text}" if held.card else text)


def _grow(
    held: stock.Stock,
    node: model.Node,
    settings: knobs.Settings,
    limit: limits.Limits,
    missing: Missing,
    now: int,
    excluded: frozenset[str] = frozenset(),
) -> tuple[Steps, Notes, int]:
    """Fill the fullest interfaces that have room, each by one call, then make new ones.

    The number is of waiting pods that all of this leaves unserved.
    """
    steps: list[actions.CloudStep] = []
    want, unserved = missing.amount, held.unserved
    size = stock.PREFIX_SIZE if missing.prefixes else 1
    whole = not (targets.by_addresses(settings) or missing.prefixes or held.fallback)
    verb = actions.AssignPrefixes if missing.prefixes else actions.AssignAddresses

    def step(action: actions.CloudAction, amount: int) -> None:
        nonlocal want, unserved
        lane: actions.Lane = "pod" if unserved > 0 else "warm"
        left = dataclasses.replace(missing, amount=want)
        cause = f"{unserved} pods wait" if unserved > 0 else f"{left} below the warm target"
        steps.append(actions.CloudStep(action, lane, cause))
        want, unserved = want - amount, max(unserved - amount * size, 0)

    for each in sorted(held.holdings, key=_fullest):
        room = limit.slots - each.occupied
        amount = room if whole else min(room, want)
        fits = _fits(held, each.eni.subnet_id, missing)
        if fits is not None:  # a full subnet: only a pod is worth more tries, each for fewer
            amount = min(amount, fits, -(-unserved // size))
        if want > 0 and amount > 0 and held.may(verb.__name__, each.eni.eni_id):
            step(verb(each.eni.eni_id, amount), amount)
    places = targets.most_enis(settings, limit, held.card) - held.enis
    hindered = _hindered(held, node, missing, excluded)
    if want > 0 and places > 0 and hindered:
        return tuple(steps), (hindered,), unserved
    while want > 0 and places > 0:
        amount = limit.slots if whole else min(want, limit.slots)
        created = _create(node, amount, missing, settings, now)
        step(dataclasses.replace(created, card=held.card), amount)
        places -= 1
    if want > 0:
        text = f"{want} {'prefixes' if missing.prefixes else 'addresses'} more would not fit"
        where = f"network card {held.card}" if held.card else "this node"
        return tuple(steps), (actions.Note("node_full", f"{text} on {where}"),), unserved
    return tuple(steps), (), unserved


def _fits(held: stock.Stock, subnet_id: str, missing: Missing) -> int | None:
    """How many may still be tried in a subnet that has too few; None if it is not known to."""
    if missing.prefixes:
        return held.barred.blocks_in(subnet_id)
    return held.barred.room_in(subnet_id)


def _fullest(each: stock.Holding) -> tuple[bool, int, int, str]:
    """Those that can serve at once first, then the fullest: packed ones leave others free to go."""
    return (each.eni.state != "usable", -each.occupied, each.eni.device, each.eni.eni_id)


def _hindered(
    held: stock.Stock, node: model.Node, missing: Missing, excluded: frozenset[str]
) -> actions.Note | None:
    """Why no interface can be made though there is a place for one; None if one can."""
    if node.subnet_id in excluded:
        return actions.Note("subnet_excluded", f"{node.subnet_id}: its tags keep pods out")
    verbs = actions.CreateEni | actions.AttachEni
    if any(isinstance(call, verbs) and call.card == held.card for call in held.doubtful):
        return actions.Note("growing", "whether a new interface was made is not known yet")
    if _fits(held, node.subnet_id, missing) is not None:
        return actions.Note("subnet_full", f"{node.subnet_id} has no room; tried again later")
    if held.barred.bars("CreateEni", node.subnet_id):
        return actions.Note(
            "ec2_error", "the last try to make an interface failed; tried again later"
        )
    if not node.security_groups:  # EC2 would take the VPC's default group instead
        return actions.Note("starting", "the node's security groups are not known yet")
    return None


def _create(
    node: model.Node, amount: int, missing: Missing, settings: knobs.Settings, now: int
) -> actions.CreateEni:
    """With upstream's description and tags."""
    labels = upkeep.labels(node, settings) | {tags.CREATED: str(now)}
    return actions.CreateEni(
        subnet_id=node.subnet_id,
        security_groups=node.security_groups,
        description=f"aws-K8S-{node.instance_id}",
        secondaries=0 if missing.prefixes else amount,
        prefixes=amount if missing.prefixes else 0,
        tags=tuple(sorted(labels.items())),
    )


def _attach(
    held: stock.Stock, node: model.Node, settings: knobs.Settings, limit: limits.Limits
) -> Iterator[actions.CloudStep]:
    """Interfaces that were made and belong to nobody yet, each at the lowest free device index."""
    taken = held.devices | held.barred.devices
    lane: actions.Lane = "pod" if held.waiting else "warm"
    for each in held.loose:
        if len(taken) >= targets.most_enis(settings, limit, held.card):
            return
        if held.touches(each.eni.eni_id) or not held.may("AttachEni", each.eni.eni_id):
            continue
        device = next(index for index in range(1, len(taken) + 2) if index not in taken)
        taken |= {device}
        action = actions.AttachEni(each.eni.eni_id, node.instance_id, device, held.card)
        yield actions.CloudStep(action, lane, "made for this node and not attached yet")
