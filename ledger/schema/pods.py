"""What the pods hold: leases, the kernel objects made for them, and what the runtime asked.

The two partial unique indexes on leases are the referee (they, not careful code, make a double
booking impossible). Which address a lease should get does not belong here.
"""

from __future__ import annotations

from typing import get_args

from sqlalchemy import CheckConstraint, Index, Table
from sqlalchemy import text as sql

from ledger import model
from ledger.schema.cloud import metadata
from ledger.schema.columns import flag, moment, number, one_of, text

leases = Table(
    "leases",
    metadata,
    number("id", "Lease number, never given twice.", key=True),
    text("container_id", "The sandbox's id (CNI_CONTAINERID): with ifname and family the key."),
    text("ifname", "The interface's name in the sandbox (CNI_IFNAME)."),
    text("network", "The CNI network's name."),
    text("netns", "Path of the sandbox's network namespace (CNI_NETNS)."),
    number("family", "4 or 6."),
    text("state", "waiting (no address yet), reserved, active, in_doubt or ended."),
    text("address", "The address held; empty while waiting.", null=True),
    text("eni_id", "The interface that address is delivered to.", null=True),
    text("host_ifname", "The host's end of the veth pair."),
    text("host_mac", "The MAC address of the host's end."),
    text("pod_namespace", "The pod's Kubernetes namespace; an attribute, not a key."),
    text("pod_name", "The pod's name; an attribute, not a key."),
    text("pod_uid", "The pod's uid, empty if the runtime did not say."),
    text("boot_id", "The boot in which it was claimed."),
    moment("created_at", "When the runtime first asked."),
    moment("claimed_at", "When it got its address.", null=True),
    moment("activated_at", "When the sandbox was wired.", null=True),
    moment("ended_at", "When it ended.", null=True),
    text("reason", "Why it ended, or what it waits for: a reason code."),
    flag("adopted", "1 if another CNI had wired it and this one took it over.", usual="0"),
    one_of("state", get_args(model.LeaseState)),
    CheckConstraint("family IN (4, 6)", name="family_is_known"),
    CheckConstraint("(state = 'ended') = (ended_at IS NOT NULL)", name="ended_has_its_time"),
    CheckConstraint("state <> 'ended' OR reason <> ''", name="ended_has_its_reason"),
    CheckConstraint("(address IS NULL) = (eni_id IS NULL)", name="address_has_its_eni"),
    CheckConstraint("(address IS NULL) = (claimed_at IS NULL)", name="address_has_its_time"),
    CheckConstraint(
        "state NOT IN ('reserved', 'active', 'in_doubt') OR address IS NOT NULL",
        name="held_means_an_address",
    ),
    CheckConstraint("state <> 'waiting' OR address IS NULL", name="waiting_means_no_address"),
    comment="Addresses held by sandbox interfaces, and every lease there was.",
    sqlite_strict=True,
    sqlite_autoincrement=True,
)
Index(
    "one_open_lease_per_address",
    leases.c.address,
    unique=True,
    sqlite_where=sql("ended_at IS NULL AND address IS NOT NULL"),
)
Index(
    "one_address_per_interface",
    leases.c.container_id,
    leases.c.ifname,
    leases.c.family,
    unique=True,
    sqlite_where=sql("ended_at IS NULL"),
)
Index(
    "open_leases_of_eni",
    leases.c.eni_id,
    leases.c.family,
    sqlite_where=sql("ended_at IS NULL"),
)
Index("leases_by_address", leases.c.address, leases.c.claimed_at)
Index("leases_by_pod", leases.c.pod_name, leases.c.pod_namespace)
Index("leases_by_container", leases.c.container_id)

installed = Table(
    "installed",
    metadata,
    number("id", "Row number, never given twice.", key=True),
    text("owner_kind", "lease, eni or host."),
    text("owner", "The lease's number, the interface's id, or empty for the host."),
    text("place", "host, or pod: and the owner for an object inside a pod's namespace."),
    text("kind", "link, address, route, rule, neighbour or sysctl."),
    text("key", "What the kernel tells such objects apart by."),
    text("spec", "The whole object, JSON of the model's noun."),
    text("state", "pending (about to be made), present or removing."),
    moment("changed_at", "When the state last changed."),
    text("error", "The last failure to make or remove it, empty if none."),
    one_of("owner_kind", get_args(model.OwnerKind)),
    one_of("state", get_args(model.InstalledState)),
    comment="Kernel objects that are there, about to be made, or about to go; gone ones have no row.",
    sqlite_strict=True,
    sqlite_autoincrement=True,
)
Index("one_owner_per_object", installed.c.place, installed.c.kind, installed.c.key, unique=True)
Index("installed_of", installed.c.owner_kind, installed.c.owner)

cni_requests = Table(
    "cni_requests",
    metadata,
    number("id", "Row number.", key=True),
    moment("at", "When the answer was given."),
    text("command", "ADD, DEL, CHECK, GC, STATUS or VERSION."),
    text("via", "socket, or spool for a deletion taken in after the daemon was away."),
    text("container_id", "CNI_CONTAINERID, empty where the command has none."),
    text("ifname", "CNI_IFNAME, empty where the command has none."),
    text("netns", "CNI_NETNS, empty where the command has none."),
    text("pod_namespace", "From CNI_ARGS."),
    text("pod_name", "From CNI_ARGS."),
    number("lease_id", "The lease it was about.", null=True),
    number("code", "CNI error code; 0 is success."),
    text("reason", "Reason code of a refusal, empty on success."),
    text("detail", "The refusal's sentence."),
    number("waits_for", "The intent it waits for.", null=True),
    moment("eta_at", "When another try is expected to work.", null=True),
    number("duration_us", "Microseconds from request to answer."),
    one_of("via", ("socket", "spool")),
    CheckConstraint("code = 0 OR reason <> ''", name="refusal_has_its_reason"),
    comment="What the runtime asked and what it was told, the newest ones.",
    sqlite_strict=True,
)
Index("requests_by_pod", cni_requests.c.pod_name, cni_requests.c.pod_namespace, cni_requests.c.id)
Index("requests_by_container", cni_requests.c.container_id)

late_deletes = Table(
    "late_deletes",
    metadata,
    text("container_id", "The sandbox a deletion named though no lease was open.", key=True),
    text("ifname", "Its interface.", key=True),
    moment("at", "When the deletion came."),
    comment="Deletions for unknown sandboxes: a takeover brings in no lease for one.",
    sqlite_strict=True,
)
