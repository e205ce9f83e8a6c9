"""What must be true after every step of a story, and once its faults have stopped: the invariants.

Numbers are those of ARCHITECTURE.md. Each function raises Broken, which names the invariant. How a story
got there does not belong here.
"""

from __future__ import annotations

import collections
from typing import Any

from ledger import model
from reconciler.planner import budget, limits, plan, targets
from reconciler.providers import ec2
from tests.stories import door
from tests.stories.machine import Machine
from tests.stories.runtime import Runtime


class Broken(AssertionError):
    """An invariant does not hold."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant


def check(invariant: str, holds: bool, what: str) -> None:
    """Raise Broken unless it holds."""
    if not holds:
        raise Broken(invariant, what)


# ----------------------------------------------------------------------- at every EC2 call


def before_a_call(machine: Machine, action: str, params: dict[str, Any]) -> None:
    """I1: no mutating call names a thing under an open lease, or a thing not ours."""
    if action.startswith("Describe"):
        return
    desired = machine.desired()
    eni_id = params.get("NetworkInterfaceId", "")
    if action == "DetachNetworkInterface":
        wanted = params["AttachmentId"]
        eni_id = next((e.eni_id for e in desired.enis if e.attachment_id == wanted), "unknown")
    named = {*params.get("PrivateIpAddresses", ())} if action.startswith("Unassign") else set()
    leased = {lease.address for lease in desired.leases if lease.address}
    check("I1", not named & leased, f"{action} of {sorted(named & leased)}, which pods hold")
    if action in {"DetachNetworkInterface", "DeleteNetworkInterface"}:
        under = [lease.address for lease in desired.leases if lease.eni_id == eni_id]
        check("I1", not under, f"{action} of {eni_id}, on which pods hold {under}")
    if eni_id:
        known = {eni.eni_id: eni for eni in desired.enis}
        eni = known.get(eni_id)
        check("I1", eni is not None and eni.managed, f"{action} of {eni_id}, which is not ours")
        assert eni is not None
        away = action in {"DetachNetworkInterface", "DeleteNetworkInterface"}
        check("I1", not (away and eni.primary), f"{action} of the primary interface")


# ----------------------------------------------------------------------- after every step


def after_a_step(machine: Machine, runtime: Runtime) -> None:
    """I1 to I4 as they can be seen at any moment."""
    desired = machine.desired()
    held = door.truth(machine.ec2.cloud, machine.ec2.node)
    _no_address_twice(machine, runtime, desired)
    _pods_are_routed(runtime, desired, held)
    _free_is_ours(desired, held)
    _ends_have_reasons(machine)
    _tokens_make_one(machine)


def _no_address_twice(machine: Machine, runtime: Runtime, desired: model.Desired) -> None:
    """I2, in the ledger and in the kernel."""
    leased = [lease.address for lease in desired.leases if lease.address]
    twice = [a for a, n in collections.Counter(leased).items() if n > 1]
    check("I2", not twice, f"two open leases of {twice}")
    shown = collections.Counter(
        address for pod in machine.kernel.pods.values() if pod.alive for address in pod.shown
    )
    twice = [address for address, n in shown.items() if n > 1]
    check("I2", not twice, f"two namespaces show {twice}")
    for each in runtime.sandboxes:
        if each.state == "up" and each.space.alive:
            check(
                "I2", each.space.shown == {each.address},
                f"{each.container} was told {each.address} and shows {each.space.shown}",
            )  # fmt: skip


def _pods_are_routed(
    runtime: Runtime, desired: model.Desired, held: dict[str, dict[str, Any]]
) -> None:
    """I1 as a pod sees it: what it was told is its lease, and EC2 delivers it here."""
    leases = {lease.container_id: lease for lease in desired.leases}
    for each in runtime.sandboxes:
        if each.state != "up":
            continue
        lease = leases.get(each.container)
        check("I1", lease is not None, f"{each.container} runs with {each.address} and no lease")
        assert lease is not None
        check(
            "I1",
            lease.address == each.address,
            f"{each.container} runs with another lease's address",
        )
        eni = held.get(lease.eni_id or "")
        here = eni is not None and each.address in door.secondaries(eni)
        check(
            "I1", here, f"EC2 does not deliver {each.address} of {each.container} to {lease.eni_id}"
        )


def _free_is_ours(desired: model.Desired, held: dict[str, dict[str, Any]]) -> None:
    """I3: what the next pod could be given is assigned to that interface in EC2 at this moment."""
    usable = {eni.eni_id for eni in desired.enis if eni.state == "usable" and eni.managed}
    primaries = {eni.get("PrivateIpAddress") for eni in held.values()}
    for each in desired.addresses:
        if each.state != "assigned" or each.leased or each.absent_since is not None:
            continue
        check("I3", each.address not in primaries, f"{each.address} is a primary address")
        if each.eni_id in usable:
            eni = held.get(each.eni_id)
            ours = eni is not None and each.address in door.secondaries(eni)
            check(
                "I3", ours, f"{each.address} is free, and EC2 does not deliver it to {each.eni_id}"
            )


def _ends_have_reasons(machine: Machine) -> None:
    """I4."""
    bare = machine.rows("SELECT id FROM v_leases WHERE state = 'ended' AND reason = ''")
    check("I4", not bare, f"leases that ended for no reason: {bare}")
    bare = machine.rows("SELECT id FROM v_requests WHERE code <> 0 AND reason = ''")
    check("I4", not bare, f"calls refused for no reason: {bare}")


def _tokens_make_one(machine: Machine) -> None:
    """Decision 4: at most one interface for a token, whatever is repeated."""
    tags = [
        tag["Value"]
        for eni in door.truth(machine.ec2.cloud, machine.ec2.node).values()
        for tag in eni.get("TagSet", ())
        if tag["Key"] == "vpcledger/intent"
    ]
    twice = [token for token, n in collections.Counter(tags).items() if n > 1]
    check("tokens", not twice, f"two interfaces for the token {twice}")


# ----------------------------------------------------------------------- when the faults have stopped


def at_the_end(machine: Machine, runtime: Runtime) -> None:
    """I5: ledger, EC2, kernel and runtime agree, and nothing is left to do. I7, if there were crashes."""
    desired = machine.desired()
    held = door.truth(machine.ec2.cloud, machine.ec2.node)
    open_ = [i for i in desired.intents if i.state in {"planned", "sent", "unknown"}]
    check("I5", not open_, f"calls without an outcome: {open_}")
    _runtime_agrees(machine, runtime, desired)
    _ec2_agrees(desired, held)
    _kernel_agrees(machine, desired)
    _nothing_left(machine, desired)


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
    check("I5", not codes, f"findings stay open: {codes}")


# ----------------------------------------------------------------------- over the whole story


def budget_kept(machine: Machine, *, slack: int) -> None:
    """I6: in every window no more calls of one action than the node's bucket gives.

    Counted at EC2's door, which takes no token for what it throttles; `slack` is for calls that a crash kept
    from being written down, and for clocks that jumped. A look that begins with the last token may be two
    questions, each repeated.
    """
    slack += 2 * ec2.READ_ATTEMPTS - 1
    times: dict[str, list[float]] = collections.defaultdict(list)
    for row in machine.ec2.journal.rows(who=machine.ec2.node):
        if row.outcome != "RequestLimitExceeded":
            times[row.action].append(row.at * 1000)
    for action, at in times.items():
        bucket = budget.LOOKS if action.startswith("Describe") else budget.CHANGES
        level, last = 0.0, at[0]
        for moment in at:
            level = max(level - (moment - last) / bucket.every_ms, 0) + 1
            last = moment
            check(
                "I6", level <= bucket.capacity + slack,
                f"{level:.1f} calls of {action} at once, the bucket holds {bucket.capacity}",
            )  # fmt: skip
