"""What calls that failed forbid until their time comes, as narrow as EC2's reason allows.

How long a failure bars is written down with it (see record); what to do instead does not belong here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ledger import model
from reconciler import errors
from reconciler.planner import actions, notation

_WHOLE_ACTION: Final = frozenset({"throttled", "ec2_denied", "ec2_down"})
"""Reasons that would meet the same action for any interface."""


@dataclass(frozen=True, slots=True)
class Barred:
    """What calls that failed forbid until their time comes."""

    operations: frozenset[str] = frozenset()
    subjects: frozenset[tuple[str, str]] = frozenset()
    subnets: tuple[tuple[str, int], ...] = ()
    """Full subnets, with the number of addresses that one of them had not."""
    blocks: tuple[tuple[str, int], ...] = ()
    """Subnets without free /28 blocks, with the number of blocks that one of them had not."""
    devices: frozenset[int] = frozenset()
    """Device indexes that turned out to be taken."""

    def bars(self, operation: str, subject: str) -> bool:
        """True if the operation must not be tried on the subject now."""
        return operation in self.operations or (operation, subject) in self.subjects

    def room_in(self, subnet_id: str) -> int | None:
        """How many addresses may still be tried in a full subnet (0: none); None if it is not full."""
        return _half(self.subnets, subnet_id)

    def blocks_in(self, subnet_id: str) -> int | None:
        """How many prefixes may still be tried in a subnet without free blocks; None if it has some."""
        return _half(self.blocks, subnet_id)


def _half(short: tuple[tuple[str, int], ...], subnet_id: str) -> int | None:
    """Half of the least that was refused; None if nothing was."""
    missing = [count for subnet, count in short if subnet == subnet_id]
    return min(missing) // 2 if missing else None


def of(desired: model.Desired, now: int, card: int) -> Barred:
    """What failed and may not be tried again yet, as narrow as EC2's reason allows."""
    operations: set[str] = set()
    subjects: set[tuple[str, str]] = set()
    subnets: list[tuple[str, int]] = []
    blocks: list[tuple[str, int]] = []
    devices: set[int] = set()
    subnet_of = {eni.eni_id: eni.subnet_id for eni in desired.enis}
    for intent in desired.intents:
        if intent.state != "failed" or intent.retry_at <= now:
            continue
        action = notation.action(intent)
        reason = errors.from_ec2(intent.error.partition(":")[0], intent.error).reason
        if reason in _WHOLE_ACTION:
            operations.add(intent.operation)
        elif reason == "subnet_full" and isinstance(action, actions.AssignPrefixes):
            blocks.append((subnet_of.get(action.eni_id, ""), action.count))
        elif reason == "subnet_full" and isinstance(action, actions.CreateEni) and action.prefixes:
            blocks.append((action.subnet_id, action.prefixes))
        elif reason == "subnet_full" and isinstance(action, actions.CreateEni):
            subnets.append((action.subnet_id, action.secondaries + 1))
        elif reason == "subnet_full" and isinstance(action, actions.AssignAddresses):
            subnets.append((subnet_of.get(action.eni_id, ""), action.count))
        elif isinstance(action, actions.AttachEni) and "device index" in intent.error:
            if action.card == card:
                devices.add(action.device)
        else:
            subjects.add((intent.operation, intent.subject))
    return Barred(
        frozenset(operations),
        frozenset(subjects),
        tuple(subnets),
        tuple(blocks),
        frozenset(devices),
    )
