"""Every change we make, by name; each writes its journal line in the caller's transaction.

`leases` who holds an address, `cloud` what EC2 lets us have and `adoption` what it shows, `kernel` what
we installed, `intents` what was asked of EC2, `record` what was said and found, `clock` that time went
back, `scheduling` what the cluster's API said, `subnets` which are excluded, `takeover` what another CNI left. Reading does not belong here.
"""

from __future__ import annotations

from ledger.writes.adoption import ADOPTION_LAG_MS, adopt, contradict
from ledger.writes.clock import boot_began, clock_stepped_back, clock_stepped_forward
from ledger.writes.cloud import (
    address_quarantine,
    address_trusted,
    addresses_assigned,
    addresses_regained,
    addresses_released,
    addresses_releasing,
    eni_attaching,
    eni_created,
    eni_dot,
    eni_gone,
    eni_state,
    given_back,
    prefixes_assigned,
    prefixes_regained,
    prefixes_released,
    prefixes_releasing,
    record_boot,
    record_node,
)
from ledger.writes.intents import (
    intent_done,
    intent_failed,
    intent_sent,
    intent_unknown,
    plan_intent,
)
from ledger.writes.journal import line
from ledger.writes.kernel import (
    Taken,
    forget_installed,
    forget_owner_installed,
    installed_failed,
    mark_owner_installed,
    mark_owner_removing,
    plan_installed,
    retire,
)
from ledger.writes.leases import (
    activate,
    claim,
    doubt,
    end,
    identify,
    note_late_delete,
)
from ledger.writes.record import (
    close_finding,
    open_finding,
    prune,
    record_call,
    record_request,
    record_settings,
)
from ledger.writes.scheduling import record_scheduling
from ledger.writes.subnets import record_excluded
from ledger.writes.takeover import adopt_lease, hand_back, record_takeover

__all__ = [
    "ADOPTION_LAG_MS",
    "Taken",
    "activate",
    "address_quarantine",
    "address_trusted",
    "addresses_assigned",
    "addresses_regained",
    "addresses_released",
    "addresses_releasing",
    "adopt",
    "adopt_lease",
    "boot_began",
    "claim",
    "clock_stepped_back",
    "clock_stepped_forward",
    "close_finding",
    "contradict",
    "doubt",
    "end",
    "eni_attaching",
    "eni_created",
    "eni_dot",
    "eni_gone",
    "eni_state",
    "forget_installed",
    "forget_owner_installed",
    "given_back",
    "hand_back",
    "identify",
    "installed_failed",
    "intent_done",
    "intent_failed",
    "intent_sent",
    "intent_unknown",
    "line",
    "mark_owner_installed",
    "mark_owner_removing",
    "note_late_delete",
    "open_finding",
    "plan_installed",
    "plan_intent",
    "prefixes_assigned",
    "prefixes_regained",
    "prefixes_released",
    "prefixes_releasing",
    "prune",
    "record_boot",
    "record_call",
    "record_excluded",
    "record_node",
    "record_request",
    "record_scheduling",
    "record_settings",
    "record_takeover",
    "retire",
]
