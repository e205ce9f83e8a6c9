"""Why there is no address, in one code and one sentence: the same for ADD, STATUS and explain.

Read from the ledger and the planner's view of the node's capacity; deciding what to do about it does
not belong here.
"""

from __future__ import annotations

from dataclasses import dataclass

from ledger import database, model, reads
from reconciler import errors
from reconciler import settings as knobs
from reconciler.planner import cordon, limits, pool


class NotReady(errors.VpcledgerError):
    """STATUS's answer: the plugin cannot serve an ADD now (CNI specification, error 50)."""

    cni_code = 50


@dataclass(frozen=True, slots=True)
class NoAddress:
    """`may_come` says whether waiting makes sense, `eta_at` (ms) until when, `intent_id` for what."""

    error: errors.VpcledgerError
    may_come: bool
    eta_at: int | None = None
    intent_id: int | None = None


GROWTH = frozenset({"CreateEni", "AttachEni", "AssignAddresses", "AssignPrefixes"})
"""Calls that a pod may wait for; that something could not be given back is no reason to wait."""
ASSIGN_MS, ATTACH_MS = 1_000, 6_000
"""What EC2 usually takes to add addresses to an interface, and to make and attach a new one."""


def no_address(tx: database.Read, settings: knobs.Settings, now: int) -> NoAddress:
    """The reason that no address is free, with what is waited for and an estimate where there is one."""
    if ("ledger_lost", "") in reads.open_findings(tx):
        return NoAddress(errors.TryLater("ledger_lost"), may_come=False)
    desired = reads.desired(tx, now)
    if desired.node is None:
        return NoAddress(errors.TryLater("starting"), may_come=True)
    limit = limits.lookup(desired.node.instance_type)
    if limit is None:
        detail = f"the type {desired.node.instance_type} is not in the table of instance types"
        return NoAddress(errors.TryLater("starting", detail), may_come=False)
    refused = [i for i in desired.intents if i.state == "failed" and _is_growth(i)]
    if refused:
        return _backing_off(refused[-1], now)
    capacity = pool.capacity(desired, settings, limit)
    rests = cordon.cordoned(desired, settings, now) is True
    if capacity.could_grow and not rests:
        return _growing(desired, now)
    cooled_at = reads.next_cooled_at(tx, now)
    if cooled_at is not None:
        soon = cooled_at - now <= settings.add_wait_ms
        return NoAddress(errors.TryLater("cooling", _in(cooled_at - now)), soon, cooled_at)
    if rests and capacity.could_grow:
        return NoAddress(errors.TryLater(cordon.CORDONED), may_come=False)
    if desired.node.subnet_id in desired.excluded and not rests:
        return NoAddress(errors.Full("subnet_excluded", desired.node.subnet_id), may_come=False)
    detail = f"{capacity.max_addresses} addresses on {capacity.enis} interfaces, all leased"
    return NoAddress(errors.Full("node_full", detail), may_come=False)


def _is_growth(intent: model.Intent) -> bool:
    """One that was refused for want of free /28s is none: single addresses are asked for in their place."""
    blocks = intent.operation == "AssignPrefixes" or bool(intent.arguments.get("prefixes"))
    code, _, text = intent.error.partition(": ")
    no_room = blocks and errors.from_ec2(code, text).reason == "subnet_full"
    return intent.operation in GROWTH and not no_room


def _backing_off(intent: model.Intent, now: int) -> NoAddress:
    """EC2 said no a moment ago and is asked again when `retry_at` has come."""
    code, _, text = intent.error.partition(": ")
    known = errors.from_ec2(code, text)
    detail = f"{intent.operation}: {intent.error}; {_in(intent.retry_at - now)}"
    # Whoever has to act on it, the runtime can only try again: no refusal of EC2's is its fault.
    told = errors.Full if isinstance(known, errors.Full) else errors.TryLater
    return NoAddress(told(known.reason, detail), False, intent.retry_at, intent.id)


def _growing(desired: model.Desired, now: int) -> NoAddress:
    intent = next((i for i in reversed(desired.intents) if i.state != "failed"), None)
    attaching = any(eni.state in {"created", "attaching", "attached"} for eni in desired.enis)
    if intent is not None:
        attaching = attaching or intent.operation in {"CreateEni", "AttachEni"}
        waits = f"waiting for {intent.operation} of {intent.subject}"
    elif attaching:
        waits = "waiting for a new interface to appear"
    else:
        waits = "EC2 is being asked for more"
    takes = ATTACH_MS if attaching else ASSIGN_MS
    error = errors.TryLater("growing", f"{waits}; {_in(takes)}")
    return NoAddress(error, True, now + takes, None if intent is None else intent.id)


def _in(pause: int) -> str:
    return f"try again in about {max(pause, 0) / 1000:.0f} s"
