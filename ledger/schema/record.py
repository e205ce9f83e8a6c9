"""What was meant, what was called, what was found and what happened.

Intents are the promise made before EC2 is called; the journal has a line for every change. What a
change does does not belong here.
"""

from __future__ import annotations

from typing import get_args

from sqlalchemy import CheckConstraint, Index, Table
from sqlalchemy import text as sql

from ledger import model
from ledger.schema.cloud import metadata
from ledger.schema.columns import moment, number, one_of, text

intents = Table(
    "intents",
    metadata,
    number("id", "Intent number, never given twice.", key=True),
    text("operation", "The EC2 API action."),
    text("subject", "What it is about: an interface, or the subnet of one to be made."),
    text("arguments", "The call's arguments, a JSON object."),
    text("token", "The ClientToken; also what finds its result again."),
    text("state", "planned, sent (a reply is due), done, failed or unknown (the reply was lost)."),
    text("cause", "Why it was wanted; carried into the calls."),
    text("lane", "Who waits: pod, warm or tidy."),
    moment("created_at", "When it was committed, always before the call."),
    moment("sent_at", "When the call was last made.", null=True),
    moment("ended_at", "When its outcome was known.", null=True),
    moment("retry_at", "Not to be tried again before this time; 0 if nothing forbids."),
    number("attempts", "How often the call was made."),
    text("error_code", "The last error's code, empty if none."),
    text("error_text", "The last error's sentence."),
    one_of("state", get_args(model.IntentState)),
    one_of("lane", ("pod", "warm", "tidy")),
    CheckConstraint(
        "state NOT IN ('done', 'failed') OR ended_at IS NOT NULL", name="end_has_its_time"
    ),
    CheckConstraint("state <> 'failed' OR error_code <> ''", name="failure_has_its_code"),
    comment="EC2 changes: the row first, the call after, the outcome last.",
    sqlite_strict=True,
    sqlite_autoincrement=True,
)
Index("one_intent_per_token", intents.c.token, unique=True)
Index("open_intents", intents.c.id, sqlite_where=sql("state IN ('planned', 'sent', 'unknown')"))
Index("intents_backing_off", intents.c.retry_at, sqlite_where=sql("state = 'failed'"))

api_calls = Table(
    "api_calls",
    metadata,
    number("id", "Row number.", key=True),
    moment("at", "When the call ended."),
    text("provider", "ec2 or imds."),
    text("operation", "The API action or path."),
    text("lane", "Who waited: pod, warm or tidy."),
    text("cause", "Why it was made."),
    number("intent_id", "The intent it carried out; reading calls have none.", null=True),
    text("code", "Error code, empty on success."),
    number("duration_us", "Microseconds the call took."),
    comment="Every call to EC2 and instance metadata with its cause, the newest ones.",
    sqlite_strict=True,
)
Index("calls_by_time", api_calls.c.at)
Index("calls_of_intent", api_calls.c.intent_id)

settings = Table(
    "settings",
    metadata,
    text("name", "The environment variable.", key=True),
    text("value", "What is in force."),
    text("raw", "What was given; empty if nothing was.", null=True),
    text("source", "environment, default, or invalid (what was given cannot be used)."),
    text("documented_by", "Where it is explained."),
    text("was", "The value before the last change.", null=True),
    moment("since", "When the value in force came into force."),
    one_of("source", ("environment", "default", "invalid")),
    comment="The settings in force and where each comes from.",
    sqlite_strict=True,
)

findings = Table(
    "findings",
    metadata,
    number("id", "Row number.", key=True),
    text("code", "What kind of finding."),
    text("subject", "What it is about."),
    text("text", "The sentence for whoever looks."),
    text("severity", "info, warning or error."),
    moment("first_seen_at", "Since when."),
    moment("last_seen_at", "Until when it was seen to hold."),
    moment("closed_at", "When it was no longer so.", null=True),
    one_of("severity", ("info", "warning", "error")),
    comment="What is wrong or doubtful, with its age.",
    sqlite_strict=True,
)
Index(
    "one_open_finding",
    findings.c.code,
    findings.c.subject,
    unique=True,
    sqlite_where=sql("closed_at IS NULL"),
)

takeovers = Table(
    "takeovers",
    metadata,
    number("id", "Row number.", key=True),
    moment("at", "When."),
    text("origin", "What ran the node's network before."),
    text("checkpoint", "The file its allocations were read from."),
    number("leases", "Pods whose leases were taken over."),
    number("stale", "Allocations whose sandbox was gone already."),
    number("quarantined", "Addresses in use by somebody nobody could name; no pod gets them."),
    moment("handed_back_at", "When the node was given back.", null=True),
    comment="When this node was taken over from another CNI, and what was found.",
    sqlite_strict=True,
)

journal = Table(
    "journal",
    metadata,
    number("id", "Row number, in the order of commits.", key=True),
    moment("at", "When."),
    text("kind", "What happened, such as lease.claimed or address.released."),
    text("subject", "To what."),
    number("lease_id", "The lease concerned.", null=True),
    text("eni_id", "The interface concerned.", null=True),
    text("address", "The address concerned.", null=True),
    number("intent_id", "The intent concerned.", null=True),
    text("text", "The particulars."),
    comment="One line per change, written in the same transaction; the newest ones are kept.",
    sqlite_strict=True,
)
Index("journal_of_lease", journal.c.lease_id, sqlite_where=sql("lease_id IS NOT NULL"))
Index("journal_of_address", journal.c.address, sqlite_where=sql("address IS NOT NULL"))
Index("journal_of_eni", journal.c.eni_id, sqlite_where=sql("eni_id IS NOT NULL"))
