"""Write down what a call to EC2 or the kernel is meant to do, and what became of it.

Each function runs inside the caller's transaction: `intend` before a call, `cloud` after it, `look`
and `settle` after an observation. Calling anything outside does not belong here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ledger import database, model, reads, writes
from reconciler import errors
from reconciler.cloud import CloudOutcome
from reconciler.planner import actions, budget, notation, release
from reconciler.providers import ec2

SETTLE_AFTER_MS = 5_000
"""EC2's picture may lag a call by seconds: one younger than this proves nothing."""
BACKOFF_MS = {"throttled": 5_000, "subnet_full": 30_000, "ec2_denied": 60_000}
EC2_TROUBLE = ("throttled", "subnet_full", "node_full", "ec2_denied", "ec2_error", "ec2_down")
"""Reasons that a refused call may have; see `calm`."""
BACKOFF_DEFAULT_MS = 2_000
BACKOFF_MOST_MS = 120_000
BLOCKS_MOST_MS = 1_800_000
"""The longest pause of a call for /28s in a subnet that has none: single addresses stand in, so nobody
waits, and a fragmented subnet may stay so for ever."""
FORGOTTEN_AFTER = 5
"""A refusal longer ago than so many longest pauses does not make the next pause longer."""


def intend(tx: database.Write, step: actions.CloudStep, now: int) -> model.Intent:
    """The intent's row, sent state included, with what must not be used any more from now on."""
    action = step.action
    intent = writes.plan_intent(
        tx,
        operation=type(action).__name__,
        subject=subject(action),
        arguments=dataclasses.asdict(action),
        lane=step.lane,
        cause=step.cause,
        now=now,
    )
    if isinstance(action, actions.UnassignAddresses):
        writes.addresses_releasing(tx, action.eni_id, action.addresses, now)
    elif isinstance(action, actions.UnassignPrefixes):
        writes.prefixes_releasing(tx, action.eni_id, action.prefixes, now)
    elif isinstance(action, actions.DetachEni):
        writes.eni_state(tx, action.eni_id, "detaching", now)
    writes.intent_sent(tx, intent.id, now)
    return intent


def subject(action: actions.CloudAction) -> str:
    """What an intent is about: the interface, or the subnet in which one is to be made."""
    return action.subnet_id if isinstance(action, actions.CreateEni) else action.eni_id


def cloud(
    tx: database.Write,
    intent: model.Intent,
    step: actions.CloudStep,
    done: CloudOutcome,
    now: int,
) -> None:
    """The outcome of a mutation: its api_calls row, the intent's end, and what it changed."""
    outcome = done.outcome
    writes.record_call(
        tx,
        provider="ec2",
        operation=done.operation,
        lane=step.lane,
        cause=step.cause,
        intent_id=intent.id,
        code="" if done.code == "ok" else done.code,
        duration_us=done.duration_us,
        now=now,
    )
    if outcome.unknown:
        writes.intent_unknown(tx, intent.id, outcome.error, outcome.text, now + _pause(intent), now)
        return
    if outcome.error and intent.attempts and _says_nothing(outcome):
        # Sent before, with a reply that was lost: that it may not be sent now does not undo it.
        writes.intent_unknown(tx, intent.id, outcome.error, outcome.text, now + _pause(intent), now)
        return
    if outcome.error:
        _failed(tx, intent, step.action, outcome, now)
        return
    _succeeded(tx, step.action, outcome.result, now)
    writes.intent_done(tx, intent.id, now)


def _pause(intent: model.Intent) -> int:
    """How long to wait before an intent whose reply was lost is seen to again."""
    return min(SETTLE_AFTER_MS << min(intent.attempts, 5), BACKOFF_MOST_MS)


def _says_nothing(outcome: actions.Outcome) -> bool:
    """Was the call turned away before EC2 looked at what it was about?"""
    reason = errors.from_ec2(outcome.error, outcome.text).reason
    # Trouble is what a question before the call met: a mutation that meets it itself is `unknown`.
    if outcome.error == "InvalidSubnetID.NotFound":  # its block was asked for, of too old a picture
        return True
    return reason in {"throttled", "ec2_denied", "ec2_down"} or errors.is_trouble(outcome.error)


def _succeeded(
    tx: database.Write, action: actions.CloudAction, result: dict[str, Any], now: int
) -> None:
    match action:
        case actions.CreateEni():
            eni = model.Eni(**result["eni"])
            writes.eni_created(tx, eni, result["addresses"], now, result["prefixes"])
        case actions.AttachEni():
            writes.eni_attaching(
                tx, action.eni_id, action.device, action.card, result["attachment_id"], now
            )
        case actions.SetDeleteOnTermination():
            writes.eni_dot(tx, action.eni_id, now)
        case actions.AssignAddresses():
            writes.addresses_assigned(tx, action.eni_id, tuple(result["addresses"]), "assign", now)
        case actions.UnassignAddresses():
            writes.given_back(tx, action.eni_id, now, addresses=action.addresses)
        case actions.RegainAddresses() | actions.RegainPrefixes():
            _regained(tx, action, result, now)
        case actions.AssignPrefixes():
            writes.prefixes_assigned(tx, action.eni_id, result["prefixes"], "assign", now)
        case actions.UnassignPrefixes():
            writes.given_back(tx, action.eni_id, now, cidrs=action.prefixes)
        case actions.DeleteEni():
            writes.eni_gone(tx, action.eni_id, "deleted", now)
        case actions.SetSecurityGroups() | actions.TagEni():
            pass  # EC2 alone keeps these; a look tells
        case actions.DetachEni():
            pass  # `detaching` was written with the intent; the delete that follows ends it


def _regained(
    tx: database.Write,
    action: actions.RegainAddresses | actions.RegainPrefixes,
    result: dict[str, Any],
    now: int,
) -> None:
    """What is back, and what EC2 had given to somebody else: its pod has to be made anew."""
    if isinstance(action, actions.RegainPrefixes):
        writes.prefixes_regained(tx, action.eni_id, result["regained"], now)
    else:
        writes.addresses_regained(tx, action.eni_id, result["regained"], now)
    for address, holder in result["lost"]:
        text = f"EC2 took {address} from a live pod and gave it to {holder}"
        writes.address_quarantine(tx, address, text, now)
        writes.open_finding(tx, "address_lost", address, text, now)


def _failed(
    tx: database.Write,
    intent: model.Intent,
    action: actions.CloudAction,
    outcome: actions.Outcome,
    now: int,
) -> None:
    """EC2 said no: nothing happened there, so what was taken out of use comes back."""
    reason = errors.from_ec2(outcome.error, outcome.text).reason
    first = BACKOFF_MS.get(reason, BACKOFF_DEFAULT_MS)
    most = (
        BLOCKS_MOST_MS if reason == "subnet_full" and _asks_for_blocks(action) else BACKOFF_MOST_MS
    )
    since = now - FORGOTTEN_AFTER * most
    before, until = reads.last_pause(tx, intent.operation, intent.subject, since)
    if until > now:  # half as much was tried at once, for a pod that waits: one refusal, one pause
        retry_at = max(until, now + first)
    else:
        retry_at = now + min(max(first, 2 * before), most)
    writes.intent_failed(tx, intent.id, outcome.error, outcome.text, retry_at, now)
    writes.open_finding(tx, reason, intent.operation, f"{outcome.error}: {outcome.text}", now)
    _take_back(tx, action, now)


def _asks_for_blocks(action: actions.CloudAction) -> bool:
    return isinstance(action, actions.AssignPrefixes) or (
        isinstance(action, actions.CreateEni) and action.prefixes > 0
    )


def _take_back(tx: database.Write, action: actions.CloudAction, now: int) -> None:
    """A removal that did not happen: what was taken out of use for it is in use again."""
    if isinstance(action, actions.UnassignAddresses):
        writes.addresses_assigned(tx, action.eni_id, action.addresses, "assign", now)
    elif isinstance(action, actions.UnassignPrefixes):
        writes.prefixes_assigned(tx, action.eni_id, action.prefixes, "assign", now)
    elif isinstance(action, actions.DetachEni):
        # The kernel may have been unwired in the meantime, so it has to be wired before it has pods.
        writes.eni_state(tx, action.eni_id, "attached", now)


def calm(tx: database.Write, now: int) -> None:
    """Close the findings of refused calls that nothing waits to repeat: done since, or not wanted.

    And those of addresses that were lost to others, once their pods are gone.
    """
    backing_off = {i.operation for i in reads.intents(tx, now) if i.state == "failed"}
    findings = reads.open_findings(tx)
    lost = {subject for code, subject in findings if code == "address_lost"}
    held = {lease.address for lease in reads.open_leases(tx)} if lost else set()
    for address in lost - held:
        writes.close_finding(tx, "address_lost", address, now)
    for code, subject in findings:
        if code in EC2_TROUBLE and subject and subject not in backing_off:
            writes.close_finding(tx, code, subject, now)


def kernel(tx: database.Write, outcomes: Sequence[actions.Outcome], now: int) -> None:
    """What mending the kernel led to: forgotten rows for what is gone, a finding for what failed."""
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in outcomes:
        thing = (
            outcome.action.thing
            if isinstance(outcome.action, actions.Put | actions.Remove | actions.Rename)
            else None
        )
        if thing is None:
            continue
        text = "put" if isinstance(outcome.action, actions.Put) else "removed"
        if isinstance(outcome.action, actions.Rename):
            text = f"was called {outcome.action.name}"
        text += f": {outcome.error} {outcome.text}" if outcome.error else ""
        writes.line(tx, now, "kernel.mended", " ".join(thing.key), text)
        said = f"{outcome.error}: {outcome.text}" if outcome.error else ""
        writes.installed_failed(tx, thing, said, now)
    if failed:
        text = "; ".join(f"{o.error}: {o.text}" for o in failed[:5])
        writes.open_finding(tx, "kernel_error", "", text, now)
    else:
        writes.close_finding(tx, "kernel_error", "", now)


def wants_a_look(plan: actions.Plan) -> bool:
    """Would something be given back if EC2 were looked at first?"""
    return any(note.code == release.LOOK_FIRST for note in plan.notes)


def calls(tx: database.Write, made: Sequence[ec2.Call], now: int) -> None:
    """Rows for the reading calls the child made (mutations have theirs by `cloud`)."""
    for call in made:
        if call.operation.startswith("Describe"):
            writes.record_call(
                tx,
                provider="ec2",
                operation=call.operation,
                lane="tidy",
                cause="a look at EC2",
                code="" if call.code == "ok" else call.code,
                duration_us=call.duration_us,
                now=now,
            )


def repeatable(intent: model.Intent) -> actions.CloudStep | None:
    """The step of an intent whose reply was lost, if sending it again does nothing twice.

    EC2 answers a repeated ClientToken with the interface it made the first time. The other calls name
    what is there once: an interface, an attachment, addresses that only we assign to that interface;
    done already, EC2 says so, and that counts as done (see ec2.Ec2.apply). Such an answer is of this
    moment, while a picture may be minutes old and show as ours what was given back. Asking for a number
    of addresses is another matter: asked twice, EC2 gives twice (decision 48).
    """
    action = notation.action(intent)
    if isinstance(action, actions.AssignAddresses | actions.AssignPrefixes):
        return None
    lane: actions.Lane = "tidy" if budget.gives_back(action) else "warm"
    return actions.CloudStep(action, lane, intent.cause)


def due_at(intent: model.Intent) -> int:
    """When (ms) to see to an intent whose reply was lost."""
    if repeatable(intent) is not None:
        return intent.retry_at
    return max(intent.retry_at, intent.created_at + SETTLE_AFTER_MS)


def resend(tx: database.Write, intent: model.Intent, now: int) -> None:
    """The intent is about to be sent once more."""
    writes.intent_sent(tx, intent.id, now)


def settle(
    tx: database.Write,
    doubtful: Sequence[model.Intent],
    seen: model.ObservedCloud,
    now: int,
) -> None:
    """End intents whose reply was lost and that cannot be sent again, by a picture taken after they were.

    Whatever came of them was adopted from it; the planner decides anew. A picture too young to be trusted
    leaves it open.
    """
    for intent in doubtful:
        if repeatable(intent) is None and seen.at >= intent.created_at + SETTLE_AFTER_MS:
            writes.intent_done(tx, intent.id, now)
