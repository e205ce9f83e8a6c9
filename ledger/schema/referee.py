"""Rules between tables that an index cannot hold, as triggers that refuse.

Together with the unique indexes they make the invariants I1 to I3 a property of the file: whoever
writes, in whatever order, is refused. A rule that needs to know the time does not belong here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trigger:
    """`name` refuses `event` where `when` holds, with the sentence `says`."""

    name: str
    event: str
    when: str
    says: str

    @property
    def ddl(self) -> str:
        """The CREATE TRIGGER statement."""
        return (
            f"CREATE TRIGGER {self.name} BEFORE {self.event}\nWHEN {self.when}\n"
            f"BEGIN SELECT RAISE(ABORT, '{self.name}: {self.says}'); END"
        )


_NOT_FREE = """NEW.address IS NOT NULL AND NEW.ended_at IS NULL AND NOT EXISTS (
    SELECT 1 FROM addresses WHERE addresses.address = NEW.address AND released_at IS NULL
    AND eni_id = NEW.eni_id AND family = NEW.family AND state = 'assigned')"""
_UNDER_LEASE = "EXISTS (SELECT 1 FROM leases WHERE leases.{0} = {1} AND ended_at IS NULL)"

TRIGGERS = (
    Trigger(
        "lease_needs_an_assigned_address",
        "INSERT ON leases",
        _NOT_FREE,
        "EC2 has not confirmed this address on this interface, or it is doubtful",
    ),
    Trigger(
        "lease_moves_to_an_assigned_address",
        "UPDATE OF address, eni_id ON leases",
        _NOT_FREE,
        "EC2 has not confirmed this address on this interface, or it is doubtful",
    ),
    Trigger(
        "open_lease_is_never_forgotten",
        "DELETE ON leases",
        "OLD.ended_at IS NULL",
        "end the lease first",
    ),
    Trigger(
        "leased_address_is_never_released",
        "UPDATE OF state ON addresses",
        "NEW.state IN ('releasing', 'released') AND "
        + _UNDER_LEASE.format("address", "NEW.address"),
        "a pod holds it",
    ),
    Trigger(
        "leased_address_is_never_forgotten",
        "DELETE ON addresses",
        "OLD.released_at IS NULL AND " + _UNDER_LEASE.format("address", "OLD.address"),
        "a pod holds it",
    ),
    Trigger(
        "leased_eni_is_never_removed",
        "UPDATE OF state ON enis",
        "NEW.state IN ('detaching', 'gone') AND " + _UNDER_LEASE.format("eni_id", "NEW.eni_id"),
        "pods hold its addresses",
    ),
    Trigger(
        "primary_address_is_no_pods",
        "INSERT ON addresses",
        "EXISTS (SELECT 1 FROM enis WHERE primary_ip = NEW.address AND gone_at IS NULL)",
        "it is an interface''s primary address",
    ),
)
