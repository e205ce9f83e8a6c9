"""What must be true at every EC2 call and after every step of a story, and of its calls over all: I1 to I4, I6.

Each function raises Broken, which names the invariant. What has to agree once faults have stopped is in
agreement; how a story got there does not belong here.
"""

from __future__ import annotations

import collections
import ipaddress
from collections.abc import Collection
from typing import Any

from ledger import model
from reconciler.planner import budget
from reconciler.providers import ec2
from tests.stories import door
from tests.stories.machine import Machine
from tests.stories.runtime import Runtime
from tests.stories.verdict import Broken, check

__all__ = ["Broken", "after_a_step", "before_a_call", "budget_kept", "check"]


# ----------------------------------------------------------------------- at every EC2 call


def before_a_call(
    machine: Machine, strangers: Collection[str], action: str, params: dict[str, Any]
) -> None:
    """I1: no mutating call names a thing under an open lease, or a thing not ours."""
    if action.startswith("Describe"):
        return
    desired = machine.desired()
    away = action in {"DetachNetworkInterface", "DeleteNetworkInterface"}
    gone = _given_back(params) if action.startswith("Unassign") else set()
    leased = {lease.address for lease in desired.leases if lease.address}
    check("I1", not gone & leased, f"{action} of {sorted(gone & leased)}, which pods hold")
    for eni_id in _named(desired, action, params):
        check("I1", eni_id not in strangers, f"{action} of {eni_id}, which is somebody else's")
        under = [lease.address for lease in desired.leases if lease.eni_id == eni_id]
        check("I1", not (away and under), f"{action} of {eni_id}, on which pods hold {under}")
        eni = next((eni for eni in desired.enis if eni.eni_id == eni_id), None)
        check("I1", eni is not None and eni.managed, f"{action} of {eni_id}, which is not ours")
        assert eni is not None
        check("I1", not (away and eni.primary), f"{action} of the primary interface")


def _given_back(params: dict[str, Any]) -> set[str]:
    """Every address that goes with the call, those of whole prefixes included."""
    blocks = [ipaddress.ip_network(each) for each in params.get("Ipv4Prefixes", ())]
    return {*params.get("PrivateIpAddresses", ()), *(str(a) for block in blocks for a in block)}


def _named(desired: model.Desired, action: str, params: dict[str, Any]) -> list[str]:
    """The interfaces that the call is about."""
    if action == "DetachNetworkInterface":
        wanted = params["AttachmentId"]
        return [next((e.eni_id for e in desired.enis if e.attachment_id == wanted), "unknown")]
    if action == "CreateTags":
        return [*params["Resources"]]
    return [params["NetworkInterfaceId"]] if "NetworkInterfaceId" in params else []


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
