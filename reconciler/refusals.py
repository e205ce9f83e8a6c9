"""Why there is no address, in one code and one sentence: the same for ADD, STATUS and explain.

Read from the ledger and the planner's view of the node's capacity; deciding what to do about it does
not belong here.
"""

from __future__ import annotations

from dataclasses import dataclass

from ledger import database, reads
from reconciler import errors
from reconciler import settings as knobs
from reconciler.planner import limits, pool


class NotReady(errors.VpcledgerError):
    """STATUS's answer: the plugin cannot serve an ADD now (CNI specification, error 50)."""

    cni_code = 50


@dataclass(frozen=True, slots=True)
class NoAddress:
    """`may_come` says whether waiting makes sense."""

    error: errors.VpcledgerError
    may_come: bool


def no_address(tx: database.Read, settings: knobs.Settings, now: int) -> NoAddress:
    """The reason that no address is free, with what is waited for and an estimate where there is one."""
    desired = reads.desired(tx, now)
    if desired.node is None:
        return NoAddress(errors.TryLater("starting"), may_come=True)
    limit = limits.lookup(desired.node.instance_type)
    if limit is None:
        detail = f"the type {desired.node.instance_type} is not in the table of instance types"
        return NoAddress(errors.TryLater("starting", detail), may_come=False)
    for intent in desired.intents:
        if intent.state == "failed" and intent.retry_at > now:
            seconds = (intent.retry_at - now) / 1000
            known = errors.from_ec2(intent.error.partition(":")[0], intent.error)
            detail = f"{intent.operation}: {intent.error}; tried again in {seconds:.0f} s"
            return NoAddress(type(known)(known.reason, detail), may_come=False)
    capacity = pool.capacity(desired, settings, limit)
    if capacity.could_grow:
        under_way = ", ".join(
            i.operation for i in desired.intents if i.state in {"planned", "sent"}
        )
        detail = f"waiting for {under_way}" if under_way else "EC2 is being asked for more"
        return NoAddress(errors.TryLater("growing", detail), may_come=True)
    cooled_at = reads.next_cooled_at(tx, now)
    if cooled_at is not None:
        seconds = max(cooled_at - now, 0) / 1000
        detail = f"the next address has cooled down in {seconds:.0f} s"
        return NoAddress(
            errors.TryLater("cooling", detail),
            may_come=cooled_at - now <= settings.add_wait_ms,
        )
    detail = f"{capacity.max_addresses} addresses on {capacity.enis} interfaces, all leased"
    return NoAddress(errors.Full("node_full", detail), may_come=False)
