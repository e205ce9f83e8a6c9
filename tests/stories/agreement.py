"""What has to agree once faults have stopped: I5, and that a restart at rest changes nothing, I7.

What the ledger, EC2, the kernel and the runtime say is compared; how many addresses the node should hold is
counted here from EC2's own truth and from what settings.md promises, not by the planner that decided it. What
holds at any moment is in truths and does not belong here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import limits, plan, targets
from tests.lab import types
from tests.stories import door
from tests.stories.machine import Machine
from tests.stories.runtime import Runtime
from tests.stories.verdict import check

BLOCK = 16
"""Addresses of a /28."""


def at_the_end(machine: Machine, runtime: Runtime) -> None:
    """I5: ledger, EC2, kernel and runtime agree, the pool is as large as it was asked to be, nothing is left to do."""
    desired = machine.desired()
    held = door.truth(machine.ec2.cloud, machine.ec2.node)
    open_ = [i for i in desired.intents if i.state in {"planned", "sent", "unknown"}]
    check("I5", not open_, f"calls without an outcome: {open_}")
    _runtime_agrees(machine, runtime, desired)
    _ec2_agrees(desired, held)
    _groups_follow(desired, held)
    _kernel_agrees(machine, desired)
    _pods_leave_by_their_interface(machine, desired)
    for wrong in _pool(machine, desired, held):
        check("I5", False, f"the pool: {wrong}")
    _nothing_left(machine, desired)


@dataclass(frozen=True, slots=True)
class State:
    """What of a node outlives its daemon."""

    ec2: dict[str, frozenset[str]]
    """Addresses by interface."""
    leases: frozenset[tuple[str, str | None]]
    kernel: frozenset[object]


def state(machine: Machine) -> State:
    """As it is at this moment."""
    held = door.truth(machine.ec2.cloud, machine.ec2.node)
    seen = machine.kernel.observe()
    assert isinstance(seen, model.ObservedKernel)
    return State(
        {eni_id: frozenset(door.secondaries(eni)) for eni_id, eni in held.items()},
        frozenset((lease.container_id, lease.address) for lease in machine.desired().leases),
        frozenset((*seen.links, *seen.addresses, *seen.routes, *seen.rules, *seen.neighbours)),
    )


def unchanged(before: State, after: State, changes: list[str]) -> None:
    """I7: a daemon that was killed at rest and started again finds nothing to do."""
    check("I7", not changes, f"a restart at rest asked EC2 for {changes}")
    for what in State.__slots__:
        was, is_ = getattr(before, what), getattr(after, what)
        check("I7", was == is_, f"a restart at rest changed {what}: {was} became {is_}")


def _runtime_agrees(machine: Machine, runtime: Runtime, desired: model.Desired) -> None:
    going = [each.container for each in runtime.sandboxes if each.state in {"refused", "going"}]
    check("I5", not going, f"deletions that never succeed: {going}")
    boxes = {each.container: each.address for each in runtime.sandboxes if each.state == "up"}
    leases = {lease.container_id: lease.address for lease in desired.leases}
    check("I5", boxes == leases, f"the runtime has {boxes}, the ledger {leases}")
    unserved = [name for name, box in runtime.wanted.items() if box is None or box.state != "up"]
    if unserved:
        limit = limits.lookup(desired.node.instance_type) if desired.node else None
        assert limit is not None
        most = targets.most_enis(machine.settings, limit) * limit.slots
        full = len(boxes) >= most or runtime.full()
        check(
            "I5",
            full,
            f"{unserved} never get an address, the last refusal was {runtime.refusals[-1:]}",
        )


def _ec2_agrees(desired: model.Desired, held: dict[str, dict[str, Any]]) -> None:
    ours = {eni.eni_id for eni in desired.enis}
    check("I5", ours == {*held}, f"EC2 has {sorted(held)}, the ledger {sorted(ours)}")
    for eni in desired.enis:
        if not eni.managed:
            continue
        rows = {a.address for a in desired.addresses if a.eni_id == eni.eni_id}
        there = door.secondaries(held[eni.eni_id])
        check("I5", rows == there, f"{eni.eni_id} has {sorted(there)}, the ledger {sorted(rows)}")
        dies = held[eni.eni_id].get("Attachment", {}).get("DeleteOnTermination")
        check("I5", bool(dies), f"{eni.eni_id} would outlive the instance")
    doubtful = [a.address for a in desired.addresses if a.state != "assigned" or a.absent_since]
    check("I5", not doubtful, f"addresses that stay doubtful: {doubtful}")


def _kernel_agrees(machine: Machine, desired: model.Desired) -> None:
    observed = machine.kernel.observe()
    left = plan.kernel(desired, observed, machine.settings).kernel
    check("I5", not left, f"the kernel differs: {left[:3]}")
    assert isinstance(observed, model.ObservedKernel)
    here = {link.name for link in observed.links if link.kind == "veth"}
    named = {lease.host_ifname for lease in desired.leases}
    check("I5", here == named, f"links {sorted(here ^ named)} are nobody's or are missing")


def _nothing_left(machine: Machine, desired: model.Desired) -> None:
    now = machine.time.now_ms()
    unknown = model.Unknown("not asked", now)
    steps = plan.cloud(desired, unknown, machine.settings, now).cloud
    check("I5", not steps, f"the pool is not at rest: {steps[:2]}")
    codes = machine.rows("SELECT code, text FROM v_findings WHERE closed IS NULL")
    assert desired.node is not None
    if not door.free_blocks(machine.ec2.cloud, desired.node.subnet_id):
        codes = [row for row in codes if row["code"] != "subnet_full"]  # which is true
    check("I5", not codes, f"findings stay open: {codes}")


def _groups_follow(desired: model.Desired, held: dict[str, dict[str, Any]]) -> None:
    """The node's interfaces have the primary one's security groups."""
    groups = {i: {group["GroupId"] for group in eni["Groups"]} for i, eni in held.items()}
    [primary] = [eni.eni_id for eni in desired.enis if eni.primary]
    for eni in desired.enis:
        alike = not eni.managed or groups[eni.eni_id] == groups[primary]
        check(
            "I5", alike, f"{eni.eni_id} has the groups {groups[eni.eni_id]}, not {groups[primary]}"
        )


def _pods_leave_by_their_interface(machine: Machine, desired: model.Desired) -> None:
    """The VPC drops what leaves by another interface than the one that owns its address."""
    seen = machine.kernel.observe()
    assert isinstance(seen, model.ObservedKernel)
    names = {link.mac: link.name for link in seen.links if link.kind != "veth"}
    enis = {eni.eni_id: eni for eni in desired.enis}
    for lease in desired.leases:
        eni, host = enis[lease.eni_id or ""], f"{lease.address}/32"
        here = [r.link for r in seen.routes if r.dst == host]
        check("I5", here == [lease.host_ifname], f"{host} is routed to {here}")
        tables = {rule.table for rule in seen.rules if rule.src == host}
        defaults = {r.link for r in seen.routes if r.dst == "0.0.0.0/0" and r.table in tables}
        wanted = set() if eni.primary else {names.get(eni.mac)}
        check("I5", defaults == wanted, f"{host} leaves by {defaults}, its interface is {wanted}")


# ----------------------------------------------------------------------- how many


@dataclass(frozen=True, slots=True)
class _Carrier:
    """An interface that carries pods: its addresses of the kind that is asked for, and of the other."""

    whole: bool
    """It can be given back whole: not the primary one, and of the plain kind."""
    blocks: tuple[frozenset[str], ...]
    single: frozenset[str]
    used: frozenset[str]

    def counted(self, prefixed: bool) -> frozenset[str]:
        return frozenset().union(*self.blocks) if prefixed else self.single

    @property
    def free_blocks(self) -> int:
        return sum(not block & self.used for block in self.blocks)


def _carrier(eni: model.Eni, item: dict[str, Any], leased: frozenset[str]) -> _Carrier:
    blocks = tuple(
        frozenset(map(str, ipaddress.ip_network(each["Ipv4Prefix"])))
        for each in item.get("Ipv4Prefixes", ())
    )
    single = door.secondaries(item) - frozenset().union(*blocks)
    used = leased & door.secondaries(item)
    return _Carrier(not eni.primary and eni.kind == "interface", blocks, frozenset(single), used)


def _pool(
    machine: Machine, desired: model.Desired, held: dict[str, dict[str, Any]]
) -> Iterator[str]:
    """What is wrong with how much the node holds, by the settings' own paragraphs."""
    settings, kind = machine.settings, types.table()[machine.instance_type]
    prefixed = settings.prefix_delegation and kind.takes_prefixes
    leased = frozenset(lease.address for lease in desired.leases if lease.address)
    carriers = [
        _carrier(eni, held[eni.eni_id], leased)
        for eni in desired.enis
        if eni.managed and eni.card == 0 and eni.kind in {"interface", "efa"}
    ]
    assert desired.node is not None
    if prefixed and not door.free_blocks(machine.ec2.cloud, desired.node.subnet_id):
        return  # single addresses stand in for blocks
    slots = kind.ipv4_per_eni - 1
    places = min(settings.max_eni or kind.cards[0], kind.cards[0])
    there = sum(eni.get("Attachment", {}).get("NetworkCardIndex", 0) == 0 for eni in held.values())
    full = there >= places and all(len(c.single) + len(c.blocks) >= slots for c in carriers)
    yield from _of_the_other_kind(carriers, prefixed)
    total = sum(len(c.counted(prefixed)) for c in carriers)
    free = total - sum(len(c.used & c.counted(prefixed)) for c in carriers)
    most = settings.max_pods or (desired.scheduling.max_pods if desired.scheduling else None)
    short = _short(settings, prefixed, slots, total, free)
    if short > 0 and not full and not (most is not None and total >= most):
        yield f"{short} addresses are missing of {total}, {free} of them free, with room for more"
    yield from _too_many(settings, prefixed, slots, carriers, total, free)


def _short(settings: knobs.Settings, prefixed: bool, slots: int, total: int, free: int) -> int:
    """How many addresses fewer than the targets ask for."""
    if settings.warm_ip_target or settings.minimum_ip_target:
        return max(settings.warm_ip_target - free, settings.minimum_ip_target - total)
    each, size = (
        (settings.warm_prefix_target, BLOCK) if prefixed else (settings.warm_eni_target, slots)
    )
    return max(each * size, 1) - free


def _too_many(
    settings: knobs.Settings,
    prefixed: bool,
    slots: int,
    carriers: list[_Carrier],
    total: int,
    free: int,
) -> Iterator[str]:
    """What could go and the targets would be met still: addresses, blocks, an idle interface."""
    size = BLOCK if prefixed else 1

    def met(gone: int, blocks: int = 0, *, whole: bool = False) -> bool:
        """Would they be? For an interface's sake only in whole blocks, as in the VPC CNI."""
        if settings.warm_ip_target or settings.minimum_ip_target:
            warm = settings.warm_ip_target
            warm = -(-warm // size) * size if whole else warm
            return free - gone >= warm and total - gone >= settings.minimum_ip_target
        if not prefixed:
            return free - gone >= max(settings.warm_eni_target * slots, 1)
        keep = settings.warm_prefix_target
        left = sum(c.free_blocks for c in carriers) - blocks
        return free - gone >= max(keep * BLOCK, 1) and left >= keep

    by_single = not prefixed and (settings.warm_ip_target or settings.minimum_ip_target)
    if by_single and met(1) and any(c.single - c.used for c in carriers):
        yield f"one of {total} addresses could go, {free} are free"
    if prefixed and met(BLOCK, 1) and any(c.free_blocks for c in carriers):
        yield f"a free block of {total} addresses could go, {free} are free"
    for each in carriers:
        count = len(each.counted(prefixed))
        if each.whole and not each.used and met(count, each.free_blocks, whole=True):
            yield f"an idle interface with {count} of {total} addresses could go, {free} are free"


def _of_the_other_kind(carriers: list[_Carrier], prefixed: bool) -> Iterator[str]:
    """After prefix delegation was switched: nothing free of the kind that was."""
    for each in carriers:
        if prefixed and each.single - each.used:
            yield f"free single addresses under prefix delegation: {sorted(each.single - each.used)}"
        if not prefixed and each.free_blocks:
            yield f"{each.free_blocks} free prefixes without prefix delegation"
