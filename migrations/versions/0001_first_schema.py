"""The first schema."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STATEMENTS = (
    """\
CREATE TABLE addresses (
    id INTEGER NOT NULL,
    address TEXT NOT NULL,
    eni_id TEXT NOT NULL,
    family INTEGER NOT NULL,
    prefix TEXT,
    state TEXT NOT NULL,
    source TEXT NOT NULL,
    assigned_at INTEGER NOT NULL,
    rested_since INTEGER NOT NULL,
    cooling_until INTEGER NOT NULL,
    absent_since INTEGER,
    released_at INTEGER,
    reason TEXT NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT state_is_known CHECK (state IN ('assigned', 'quarantine', 'releasing', 'released')),
    CONSTRAINT source_is_known CHECK (source IN ('assign', 'create', 'adopted')),
    CONSTRAINT family_is_known CHECK (family IN (4, 6)),
    CONSTRAINT released_has_its_time CHECK ((state = 'released') = (released_at IS NOT NULL)),
    CONSTRAINT quarantine_has_its_reason CHECK (state <> 'quarantine' OR reason <> ''),
    FOREIGN KEY(eni_id) REFERENCES enis (eni_id)
) STRICT""",
    """\
CREATE TABLE api_calls (
    id INTEGER NOT NULL,
    at INTEGER NOT NULL,
    provider TEXT NOT NULL,
    operation TEXT NOT NULL,
    lane TEXT NOT NULL,
    cause TEXT NOT NULL,
    intent_id INTEGER,
    code TEXT NOT NULL,
    duration_us INTEGER NOT NULL,
    PRIMARY KEY (id)
) STRICT""",
    """\
CREATE TABLE boots (
    boot_id TEXT NOT NULL,
    first_seen_at INTEGER NOT NULL,
    last_start_at INTEGER NOT NULL,
    starts INTEGER NOT NULL,
    PRIMARY KEY (boot_id)
) STRICT""",
    """\
CREATE TABLE cni_requests (
    id INTEGER NOT NULL,
    at INTEGER NOT NULL,
    command TEXT NOT NULL,
    via TEXT NOT NULL,
    container_id TEXT NOT NULL,
    ifname TEXT NOT NULL,
    netns TEXT NOT NULL,
    pod_namespace TEXT NOT NULL,
    pod_name TEXT NOT NULL,
    lease_id INTEGER,
    code INTEGER NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    waits_for INTEGER,
    eta_at INTEGER,
    duration_us INTEGER NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT via_is_known CHECK (via IN ('socket', 'spool')),
    CONSTRAINT refusal_has_its_reason CHECK (code = 0 OR reason <> '')
) STRICT""",
    """\
CREATE TABLE enis (
    eni_id TEXT NOT NULL,
    mac TEXT NOT NULL,
    subnet_id TEXT NOT NULL,
    subnet_cidr TEXT NOT NULL,
    primary_ip TEXT NOT NULL,
    device INTEGER NOT NULL,
    card INTEGER NOT NULL,
    kind TEXT NOT NULL,
    is_primary INTEGER NOT NULL CONSTRAINT is_primary_is_yes_or_no CHECK (is_primary IN (0, 1)),
    managed INTEGER NOT NULL CONSTRAINT managed_is_yes_or_no CHECK (managed IN (0, 1)),
    state TEXT NOT NULL,
    attachment_id TEXT,
    delete_on_termination INTEGER NOT NULL CONSTRAINT delete_on_termination_is_yes_or_no CHECK (delete_on_termination IN (0, 1)),
    source TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    attached_at INTEGER,
    changed_at INTEGER NOT NULL,
    absent_since INTEGER,
    gone_at INTEGER,
    gone_reason TEXT,
    PRIMARY KEY (eni_id),
    CONSTRAINT state_is_known CHECK (state IN ('created', 'attaching', 'attached', 'usable', 'draining', 'detaching', 'gone')),
    CONSTRAINT source_is_known CHECK (source IN ('create', 'adopted')),
    CONSTRAINT gone_has_its_time CHECK ((state = 'gone') = (gone_at IS NOT NULL)),
    CONSTRAINT gone_has_its_reason CHECK (gone_at IS NULL OR gone_reason <> '')
) STRICT""",
    """\
CREATE TABLE findings (
    id INTEGER NOT NULL,
    code TEXT NOT NULL,
    subject TEXT NOT NULL,
    text TEXT NOT NULL,
    severity TEXT NOT NULL,
    first_seen_at INTEGER NOT NULL,
    last_seen_at INTEGER NOT NULL,
    closed_at INTEGER,
    PRIMARY KEY (id),
    CONSTRAINT severity_is_known CHECK (severity IN ('info', 'warning', 'error'))
) STRICT""",
    """\
CREATE TABLE installed (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    owner_kind TEXT NOT NULL,
    owner TEXT NOT NULL,
    place TEXT NOT NULL,
    kind TEXT NOT NULL,
    "key" TEXT NOT NULL,
    spec TEXT NOT NULL,
    state TEXT NOT NULL,
    changed_at INTEGER NOT NULL,
    error TEXT NOT NULL,
    CONSTRAINT owner_kind_is_known CHECK (owner_kind IN ('lease', 'eni', 'host')),
    CONSTRAINT state_is_known CHECK (state IN ('pending', 'present', 'removing'))
) STRICT""",
    """\
CREATE TABLE intents (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    operation TEXT NOT NULL,
    subject TEXT NOT NULL,
    arguments TEXT NOT NULL,
    token TEXT NOT NULL,
    state TEXT NOT NULL,
    cause TEXT NOT NULL,
    lane TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    sent_at INTEGER,
    ended_at INTEGER,
    retry_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    error_code TEXT NOT NULL,
    error_text TEXT NOT NULL,
    CONSTRAINT state_is_known CHECK (state IN ('planned', 'sent', 'done', 'failed', 'unknown')),
    CONSTRAINT lane_is_known CHECK (lane IN ('pod', 'warm', 'tidy')),
    CONSTRAINT end_has_its_time CHECK (state NOT IN ('done', 'failed') OR ended_at IS NOT NULL),
    CONSTRAINT failure_has_its_code CHECK (state <> 'failed' OR error_code <> '')
) STRICT""",
    """\
CREATE TABLE journal (
    id INTEGER NOT NULL,
    at INTEGER NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    lease_id INTEGER,
    eni_id TEXT,
    address TEXT,
    intent_id INTEGER,
    text TEXT NOT NULL,
    PRIMARY KEY (id)
) STRICT""",
    """\
CREATE TABLE late_deletes (
    container_id TEXT NOT NULL,
    ifname TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (container_id, ifname)
) STRICT""",
    """\
CREATE TABLE leases (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    container_id TEXT NOT NULL,
    ifname TEXT NOT NULL,
    network TEXT NOT NULL,
    netns TEXT NOT NULL,
    family INTEGER NOT NULL,
    state TEXT NOT NULL,
    address TEXT,
    eni_id TEXT,
    host_ifname TEXT NOT NULL,
    host_mac TEXT NOT NULL,
    pod_namespace TEXT NOT NULL,
    pod_name TEXT NOT NULL,
    pod_uid TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    claimed_at INTEGER,
    activated_at INTEGER,
    ended_at INTEGER,
    reason TEXT NOT NULL,
    CONSTRAINT state_is_known CHECK (state IN ('waiting', 'reserved', 'active', 'in_doubt', 'ended')),
    CONSTRAINT family_is_known CHECK (family IN (4, 6)),
    CONSTRAINT ended_has_its_time CHECK ((state = 'ended') = (ended_at IS NOT NULL)),
    CONSTRAINT ended_has_its_reason CHECK (state <> 'ended' OR reason <> ''),
    CONSTRAINT address_has_its_eni CHECK ((address IS NULL) = (eni_id IS NULL)),
    CONSTRAINT address_has_its_time CHECK ((address IS NULL) = (claimed_at IS NULL)),
    CONSTRAINT held_means_an_address CHECK (state NOT IN ('reserved', 'active', 'in_doubt') OR address IS NOT NULL),
    CONSTRAINT waiting_means_no_address CHECK (state <> 'waiting' OR address IS NULL)
) STRICT""",
    """\
CREATE TABLE node (
    id INTEGER NOT NULL CHECK (id = 1),
    instance_id TEXT NOT NULL,
    instance_type TEXT NOT NULL,
    region TEXT NOT NULL,
    availability_zone TEXT NOT NULL,
    vpc_id TEXT NOT NULL,
    subnet_id TEXT NOT NULL,
    primary_mac TEXT NOT NULL,
    primary_ip TEXT NOT NULL,
    vpc_cidrs TEXT NOT NULL,
    security_groups TEXT NOT NULL,
    seen_at INTEGER NOT NULL,
    PRIMARY KEY (id)
) STRICT""",
    """\
CREATE TABLE prefixes (
    id INTEGER NOT NULL,
    cidr TEXT NOT NULL,
    eni_id TEXT NOT NULL,
    state TEXT NOT NULL,
    source TEXT NOT NULL,
    assigned_at INTEGER NOT NULL,
    released_at INTEGER,
    PRIMARY KEY (id),
    CONSTRAINT state_is_known CHECK (state IN ('assigned', 'quarantine', 'releasing', 'released')),
    CONSTRAINT source_is_known CHECK (source IN ('assign', 'create', 'adopted')),
    CONSTRAINT released_has_its_time CHECK ((state = 'released') = (released_at IS NOT NULL)),
    FOREIGN KEY(eni_id) REFERENCES enis (eni_id)
) STRICT""",
    """\
CREATE TABLE settings (
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    raw TEXT,
    source TEXT NOT NULL,
    documented_by TEXT NOT NULL,
    was TEXT,
    since INTEGER NOT NULL,
    PRIMARY KEY (name),
    CONSTRAINT source_is_known CHECK (source IN ('environment', 'default', 'invalid'))
) STRICT""",
    """\
CREATE INDEX addresses_by_rest ON addresses (eni_id, family, rested_since) WHERE state = 'assigned'""",
    """\
CREATE INDEX calls_by_time ON api_calls (at)""",
    """\
CREATE INDEX calls_of_intent ON api_calls (intent_id)""",
    """\
CREATE INDEX installed_of ON installed (owner_kind, owner)""",
    """\
CREATE INDEX intents_backing_off ON intents (retry_at) WHERE state = 'failed'""",
    """\
CREATE INDEX journal_of_address ON journal (address) WHERE address IS NOT NULL""",
    """\
CREATE INDEX journal_of_eni ON journal (eni_id) WHERE eni_id IS NOT NULL""",
    """\
CREATE INDEX journal_of_lease ON journal (lease_id) WHERE lease_id IS NOT NULL""",
    """\
CREATE INDEX leases_by_address ON leases (address, claimed_at)""",
    """\
CREATE INDEX leases_by_container ON leases (container_id)""",
    """\
CREATE INDEX leases_by_pod ON leases (pod_name, pod_namespace)""",
    """\
CREATE INDEX live_addresses_of_eni ON addresses (eni_id, family) WHERE released_at IS NULL""",
    """\
CREATE UNIQUE INDEX one_address_per_interface ON leases (container_id, ifname, family) WHERE ended_at IS NULL""",
    """\
CREATE UNIQUE INDEX one_intent_per_token ON intents (token)""",
    """\
CREATE UNIQUE INDEX one_live_address ON addresses (address) WHERE released_at IS NULL""",
    """\
CREATE UNIQUE INDEX one_live_eni_per_mac ON enis (mac) WHERE gone_at IS NULL""",
    """\
CREATE UNIQUE INDEX one_live_prefix ON prefixes (cidr) WHERE released_at IS NULL""",
    """\
CREATE UNIQUE INDEX one_open_finding ON findings (code, subject) WHERE closed_at IS NULL""",
    """\
CREATE UNIQUE INDEX one_open_lease_per_address ON leases (address) WHERE ended_at IS NULL AND address IS NOT NULL""",
    """\
CREATE UNIQUE INDEX one_owner_per_object ON installed (place, kind, "key")""",
    """\
CREATE INDEX open_intents ON intents (id) WHERE state IN ('planned', 'sent', 'unknown')""",
    """\
CREATE INDEX open_leases_of_eni ON leases (eni_id, family) WHERE ended_at IS NULL""",
    """\
CREATE INDEX requests_by_container ON cni_requests (container_id)""",
    """\
CREATE INDEX requests_by_pod ON cni_requests (pod_name, pod_namespace, id)""",
    """\
CREATE INDEX tombstones ON addresses (released_at) WHERE released_at IS NOT NULL""",
    """\
CREATE TRIGGER lease_needs_an_assigned_address BEFORE INSERT ON leases
WHEN NEW.address IS NOT NULL AND NEW.ended_at IS NULL AND NOT EXISTS (
    SELECT 1 FROM addresses WHERE addresses.address = NEW.address AND released_at IS NULL
    AND eni_id = NEW.eni_id AND family = NEW.family AND state = 'assigned')
BEGIN SELECT RAISE(ABORT, 'lease_needs_an_assigned_address: EC2 has not confirmed this address on this interface, or it is doubtful'); END""",
    """\
CREATE TRIGGER lease_moves_to_an_assigned_address BEFORE UPDATE OF address, eni_id ON leases
WHEN NEW.address IS NOT NULL AND NEW.ended_at IS NULL AND NOT EXISTS (
    SELECT 1 FROM addresses WHERE addresses.address = NEW.address AND released_at IS NULL
    AND eni_id = NEW.eni_id AND family = NEW.family AND state = 'assigned')
BEGIN SELECT RAISE(ABORT, 'lease_moves_to_an_assigned_address: EC2 has not confirmed this address on this interface, or it is doubtful'); END""",
    """\
CREATE TRIGGER open_lease_is_never_forgotten BEFORE DELETE ON leases
WHEN OLD.ended_at IS NULL
BEGIN SELECT RAISE(ABORT, 'open_lease_is_never_forgotten: end the lease first'); END""",
    """\
CREATE TRIGGER leased_address_is_never_released BEFORE UPDATE OF state ON addresses
WHEN NEW.state IN ('releasing', 'released') AND EXISTS (SELECT 1 FROM leases WHERE leases.address = NEW.address AND ended_at IS NULL)
BEGIN SELECT RAISE(ABORT, 'leased_address_is_never_released: a pod holds it'); END""",
    """\
CREATE TRIGGER leased_address_is_never_forgotten BEFORE DELETE ON addresses
WHEN OLD.released_at IS NULL AND EXISTS (SELECT 1 FROM leases WHERE leases.address = OLD.address AND ended_at IS NULL)
BEGIN SELECT RAISE(ABORT, 'leased_address_is_never_forgotten: a pod holds it'); END""",
    """\
CREATE TRIGGER leased_eni_is_never_removed BEFORE UPDATE OF state ON enis
WHEN NEW.state IN ('detaching', 'gone') AND EXISTS (SELECT 1 FROM leases WHERE leases.eni_id = NEW.eni_id AND ended_at IS NULL)
BEGIN SELECT RAISE(ABORT, 'leased_eni_is_never_removed: pods hold its addresses'); END""",
    """\
CREATE TRIGGER primary_address_is_no_pods BEFORE INSERT ON addresses
WHEN EXISTS (SELECT 1 FROM enis WHERE primary_ip = NEW.address AND gone_at IS NULL)
BEGIN SELECT RAISE(ABORT, 'primary_address_is_no_pods: it is an interface''s primary address'); END""",
)


def upgrade() -> None:
    """Make every table, index and trigger."""
    connection = op.get_bind()
    for statement in STATEMENTS:
        connection.exec_driver_sql(statement)


def downgrade() -> None:
    """There is no way back: put the copy in place that was made before the migration."""
    raise NotImplementedError
