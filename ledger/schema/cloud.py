"""What EC2 lets this node have: the node itself, its interfaces, prefixes and addresses.

Rows stay after the thing is gone: they are tombstones by which a late answer is recognised as old.
Who holds an address does not belong here.
"""

from __future__ import annotations

from typing import get_args

from sqlalchemy import CheckConstraint, ForeignKey, Index, MetaData, Table
from sqlalchemy import text as sql

from ledger import model
from ledger.schema.columns import flag, moment, number, one_of, text

metadata = MetaData()

node = Table(
    "node",
    metadata,
    number("id", "Always 1: a ledger is one node's.", CheckConstraint("id = 1"), key=True),
    text("instance_id", "EC2 instance id."),
    text("instance_type", "EC2 instance type; it decides how many interfaces and addresses fit."),
    text("region", "AWS region."),
    text("availability_zone", "Availability zone."),
    text("vpc_id", "The VPC the instance is in."),
    text("subnet_id", "The primary interface's subnet."),
    text("primary_mac", "The primary interface's MAC address."),
    text("primary_ip", "The node's own primary IPv4 address; never a pod's."),
    text("vpc_cidrs", "The VPC's networks, a JSON list of texts."),
    text("security_groups", "The primary interface's security groups, a JSON list of ids."),
    moment("seen_at", "When instance metadata last said so."),
    comment="Who this machine is, as the instance metadata service says. One row.",
    sqlite_strict=True,
)

scheduling = Table(
    "scheduling",
    metadata,
    number("id", "Always 1: a ledger is one node's.", CheckConstraint("id = 1"), key=True),
    flag("schedulable", "0 while the node is cordoned or tainted as unschedulable."),
    number(
        "max_pods", "How many pods fit (capacity.pods), NULL if the API does not say.", null=True
    ),
    moment("seen_at", "When the cluster's API last said so."),
    comment="What the cluster's API says of this node. One row, none before its first answer.",
    sqlite_strict=True,
)

excluded_subnets = Table(
    "excluded_subnets",
    metadata,
    text("subnet_id", "EC2's id.", key=True),
    text("reason", "The tag that says so."),
    moment("seen_at", "When EC2 first showed it."),
    comment="Subnets that their tags keep pods out of (VPCLEDGER_SUBNET_TAGS).",
    sqlite_strict=True,
)

boots = Table(
    "boots",
    metadata,
    text("boot_id", "The kernel's random id of this boot.", key=True),
    moment("first_seen_at", "The first start of the daemon in this boot."),
    moment("last_start_at", "The last start of the daemon in this boot."),
    number("starts", "How often the daemon was started in this boot."),
    moment(
        "booted_at",
        "When this boot began by the clock as it was last seen: what the clock shows less the time since.",
        null=True,
    ),
    comment="One row per boot of the machine; a lease of another boot has lost its sandbox.",
    sqlite_strict=True,
)

enis = Table(
    "enis",
    metadata,
    text("eni_id", "EC2's id; never given twice.", key=True),
    text("mac", "MAC address, by which the kernel's link is found."),
    text("subnet_id", "Its subnet."),
    text("subnet_cidr", "The subnet's IPv4 network, empty while unknown."),
    text("primary_ip", "Its primary IPv4 address; never a pod's."),
    number("device", "Device index of the attachment, -1 while unattached."),
    number("card", "Network card index of the attachment."),
    text("kind", "EC2's InterfaceType."),
    flag("is_primary", "1 for the instance's first interface, which is never changed or removed."),
    flag("managed", "1 if pods may use it and we may change it; foreign ones are 0."),
    text("state", "created, attaching, attached, usable, draining, detaching or gone."),
    text("attachment_id", "EC2's id of the attachment.", null=True),
    flag("delete_on_termination", "1 if EC2 removes it together with the instance."),
    text("source", "create if we made it, adopted if an observation showed it first."),
    moment("created_at", "When the ledger first knew of it."),
    moment("attached_at", "When its attachment was confirmed.", null=True),
    moment("changed_at", "When its state last changed."),
    moment("absent_since", "Since when observations miss it; empty while they show it.", null=True),
    moment("gone_at", "When its removal was confirmed.", null=True),
    text("gone_reason", "Why it went.", null=True),
    one_of("state", get_args(model.EniState)),
    one_of("source", ("create", "adopted")),
    CheckConstraint("(state = 'gone') = (gone_at IS NOT NULL)", name="gone_has_its_time"),
    CheckConstraint("gone_at IS NULL OR gone_reason <> ''", name="gone_has_its_reason"),
    comment="Elastic network interfaces, ours and foreign, also those that are gone.",
    sqlite_strict=True,
)
Index("one_live_eni_per_mac", enis.c.mac, unique=True, sqlite_where=sql("gone_at IS NULL"))

prefixes = Table(
    "prefixes",
    metadata,
    number("id", "Row number.", key=True),
    text("cidr", "The delegated network, a /28 or an IPv6 /80."),
    text("eni_id", "The interface it is delegated to.", ForeignKey("enis.eni_id")),
    text("state", "assigned, quarantine, releasing or released."),
    text("source", "assign, create or adopted."),
    moment("assigned_at", "When EC2 confirmed it, or an observation first showed it."),
    moment("released_at", "When EC2 confirmed the release.", null=True),
    one_of("state", get_args(model.AddressState)),
    one_of("source", ("assign", "create", "adopted")),
    CheckConstraint(
        "(state = 'released') = (released_at IS NOT NULL)", name="released_has_its_time"
    ),
    comment="Networks delegated to an interface; their addresses are rows of addresses.",
    sqlite_strict=True,
)
Index("one_live_prefix", prefixes.c.cidr, unique=True, sqlite_where=sql("released_at IS NULL"))

addresses = Table(
    "addresses",
    metadata,
    number("id", "Row number.", key=True),
    text("address", "The address in canonical text."),
    text("eni_id", "The interface EC2 delivers it to.", ForeignKey("enis.eni_id")),
    number("family", "4 or 6."),
    text("prefix", "The delegated network it is part of, if any.", null=True),
    text("state", "assigned, quarantine (doubtful), releasing (EC2 is asked) or released."),
    text("source", "assign or create if EC2 answered us with it, adopted if it was seen first."),
    moment("assigned_at", "When EC2 confirmed it, or an observation first showed it."),
    moment("rested_since", "When its last lease ended; 0 if it never had one."),
    moment("cooling_until", "No lease before this time."),
    moment("absent_since", "Since when observations miss it; not leased meanwhile.", null=True),
    moment(
        "released_at", "When EC2 confirmed the release; the row is then a tombstone.", null=True
    ),
    text("reason", "Why it is in quarantine or was released."),
    one_of("state", get_args(model.AddressState)),
    one_of("source", ("assign", "create", "adopted")),
    CheckConstraint("family IN (4, 6)", name="family_is_known"),
    CheckConstraint(
        "(state = 'released') = (released_at IS NOT NULL)", name="released_has_its_time"
    ),
    CheckConstraint("state <> 'quarantine' OR reason <> ''", name="quarantine_has_its_reason"),
    comment="Secondary addresses a pod can hold, also those given back. Primaries have no row here.",
    sqlite_strict=True,
)
Index("one_live_address", addresses.c.address, unique=True, sqlite_where=sql("released_at IS NULL"))
Index(
    "addresses_by_rest",
    addresses.c.eni_id,
    addresses.c.family,
    addresses.c.rested_since,
    sqlite_where=sql("state = 'assigned'"),
)
Index(
    "live_addresses_of_eni",
    addresses.c.eni_id,
    addresses.c.family,
    sqlite_where=sql("released_at IS NULL"),
)
Index(
    "addresses_of_prefix",
    addresses.c.prefix,
    addresses.c.rested_since,
    sqlite_where=sql("state = 'assigned' AND prefix IS NOT NULL"),
)
Index("tombstones", addresses.c.released_at, sqlite_where=sql("released_at IS NOT NULL"))
