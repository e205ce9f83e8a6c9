"""Some hours of a node's life, written by the changes the reconciler makes: something for each question.

A pod was replaced under its name, one waits for EC2, one is cut off, one is in doubt after a reboot
that left the first interfaces unwired; a call was lost, others throttled; the pool grew and shrank.
Assertions do not belong here.
"""

from __future__ import annotations

from ledger import database, model, reads, writes
from ledger.writes.intents import Lane
from tests.ledger import node

MINUTE = 60_000


def fill(ledger: database.Ledger, now: int) -> None:
    """The story ends at `now` (ms)."""
    _start(ledger, now - 180 * MINUTE)
    _pods_come_and_go(ledger, now)
    _pool_grows_and_shrinks(ledger, now)
    _reboot(ledger, now - 30 * MINUTE)
    _pod_waits(ledger, now)
    _things_go_wrong(ledger, now)


def _start(ledger: database.Ledger, at: int) -> None:
    with ledger.write() as tx:
        writes.record_boot(tx, node.BOOT, at)
        me = model.Node(
            "i-0123456789abcdef0", "m5.large", "eu-central-1", "eu-central-1a", "vpc-1", node.SUBNET,
            "0e:00:00:00:00:01", "10.0.1.4", ("10.0.0.0/16",), ("sg-1",),
        )  # fmt: skip
        writes.record_node(tx, me, at)
        for moment, warm in ((at, "5"), (at + 60 * MINUTE, "2")):
            readings = [
                ("WARM_IP_TARGET", warm, warm, "environment"),
                ("WARM_ENI_TARGET", "1", None, "default"),
                ("MAX_ENI", "None", "lots", "invalid"),
            ]
            writes.record_settings(tx, readings, moment)
    for device in (1, 2, 3):
        node.add_eni(ledger, device, 6, at)
    with ledger.write(durable=True) as tx:
        writes.eni_created(tx, node.eni(9, managed=False), (), at)


def _pods_come_and_go(ledger: database.Ledger, now: int) -> None:
    for number in range(5):
        _add(ledger, f"sandbox-{number}", f"web-{number}", now - (120 - number) * MINUTE, 900)
    _del(ledger, "sandbox-0", now - 60 * MINUTE)
    for number in range(
        5, 10
    ):  # web-0 is replaced under its name, and its old address is another's now
        pod = "web-0" if number == 7 else f"web-{number}"
        _add(ledger, f"sandbox-{number}", pod, now - (58 - number) * MINUTE, 1_400)
    _del(ledger, "sandbox-9", now - MINUTE, cooling_ms=10 * 365 * 24 * 60 * MINUTE)
    _del(ledger, "sandbox-8", now - 2 * MINUTE, via="spool")
    with ledger.write() as tx:  # the runtime repeats itself
        writes.record_request(
            tx, command="DEL", container_id="sandbox-0", ifname="eth0", now=now - 59 * MINUTE
        )
        writes.note_late_delete(tx, "sandbox-0", "eth0", now - 59 * MINUTE)


def _add(ledger: database.Ledger, container: str, pod: str, at: int, took_us: int) -> model.Lease:
    with ledger.write() as tx:
        lease = node.claim(tx, container, at, pod=pod)
        writes.plan_installed(tx, "lease", str(lease.id), node.wiring(lease), at)
        _answer(tx, lease, pod, at, took_us)
    with ledger.write() as tx:
        writes.activate(tx, lease.id, at + 2)
        writes.mark_owner_installed(tx, "lease", str(lease.id), at + 2)
    return lease


def _answer(tx: database.Write, lease: model.Lease, pod: str, at: int, took_us: int) -> None:
    writes.record_request(
        tx,
        command="ADD",
        container_id=lease.container_id,
        ifname="eth0",
        netns=lease.netns,
        pod_namespace="default",
        pod_name=pod,
        lease_id=lease.id,
        duration_us=took_us,
        now=at + 2,
    )


def _del(
    ledger: database.Ledger,
    container: str,
    at: int,
    cooling_ms: int = 30_000,
    via: str = "socket",
) -> None:
    reason = "deleted" if via == "socket" else "deleted_late"
    with ledger.write() as tx:
        (row,) = tx.dicts(
            "SELECT id, pod_name FROM leases WHERE container_id = :c AND ended_at IS NULL",
            {"c": container},
        )
        writes.forget_owner_installed(tx, "lease", str(row["id"]), at)
        writes.end(tx, row["id"], reason, at, cooling_ms)
        writes.record_request(
            tx,
            command="DEL",
            container_id=container,
            ifname="eth0",
            pod_namespace="default",
            pod_name=row["pod_name"],
            lease_id=row["id"],
            via=via,
            duration_us=600,
            now=at,
        )


def _call(
    ledger: database.Ledger, operation: str, subject: str, lane: Lane, cause: str, at: int
) -> model.Intent:
    with ledger.write(durable=True) as tx:
        intent = writes.plan_intent(tx, operation, subject, {}, lane, cause, at)
        writes.intent_sent(tx, intent.id, at)
    return intent


def _ended(
    ledger: database.Ledger, intent: model.Intent, lane: str, at: int, code: str = ""
) -> None:
    with ledger.write(durable=True) as tx:
        writes.record_call(
            tx,
            provider="ec2",
            operation=intent.operation,
            lane=lane,
            cause=intent.cause,
            intent_id=intent.id,
            code=code,
            duration_us=180_000,
            now=at,
        )
        if code:
            writes.intent_failed(tx, intent.id, code, "Request limit exceeded.", at + 5_000, at)
        else:
            writes.intent_done(tx, intent.id, at)


def _pool_grows_and_shrinks(ledger: database.Ledger, now: int) -> None:
    """Within one slot of ten minutes: a warm target that is too tight costs calls."""
    at = now - (now % (10 * MINUTE)) - 49 * MINUTE
    third = node.eni(3).eni_id
    grown = _call(ledger, "AssignAddresses", third, "warm", "1 below the target", at)
    _ended(ledger, grown, "warm", at + 200)
    shrunk = _call(
        ledger, "UnassignAddresses", third, "tidy", "1 above the target", at + 3 * MINUTE
    )
    with ledger.write(durable=True) as tx:
        writes.addresses_releasing(tx, third, ["10.0.3.15"], at + 3 * MINUTE)
        writes.addresses_released(tx, ["10.0.3.15"], at + 3 * MINUTE)
    _ended(ledger, shrunk, "tidy", at + 3 * MINUTE + 200)


def _reboot(ledger: database.Ledger, at: int) -> None:
    """All leases were in doubt; all but one of them were found alive."""
    with ledger.write() as tx:
        writes.record_boot(tx, "another-boot", at)
        for lease in reads.open_leases(tx):
            writes.doubt(tx, lease.id, at)
        for row in tx.dicts("SELECT id FROM leases WHERE state = 'in_doubt' AND id > 2", {}):
            writes.activate(tx, row["id"], at + 500)


def _pod_waits(ledger: database.Ledger, now: int) -> None:
    """One waited for EC2 and was served, another still waits behind a call that is under way."""
    at = now - 20 * MINUTE
    for eni in (node.eni(1), node.eni(2), node.eni(3)):
        with ledger.write() as tx:
            writes.eni_state(tx, eni.eni_id, "attached", at)
    for container, pod, served in (("sandbox-20", "db-0", True), ("sandbox-21", "db-1", False)):
        asked = at if served else now - 40_000
        lane: Lane = "pod"
        intent = _call(ledger, "CreateEni", node.SUBNET, lane, f"default/{pod} waits", asked)
        with ledger.write() as tx:
            lease = node.claim(tx, container, asked, pod=pod)
            writes.record_request(
                tx,
                command="ADD",
                container_id=container,
                ifname="eth0",
                netns=lease.netns,
                pod_namespace="default",
                pod_name=pod,
                lease_id=lease.id,
                code=11,
                reason="growing",
                detail="No free address yet.",
                waits_for=intent.id,
                eta_at=asked + 15_000,
                duration_us=700,
                now=asked + 1,
            )
        if served:
            _ended(ledger, intent, lane, asked + 3_000)
            made = node.add_eni(ledger, 4, 1, asked + 8_000)
            assert made.device == 4
            with ledger.write() as tx:
                lease = node.claim(tx, container, asked + 9_000, pod=pod)
                writes.activate(tx, lease.id, asked + 9_003)
                _answer(tx, lease, pod, asked + 9_000, 1_900)


def _things_go_wrong(ledger: database.Ledger, now: int) -> None:
    third = node.eni(3).eni_id
    for attempt in range(3):
        at = now - (12 - attempt) * MINUTE
        refused = _call(ledger, "AssignAddresses", third, "warm", "2 below the target", at)
        _ended(ledger, refused, "warm", at + 90, "RequestLimitExceeded")
    lost = _call(ledger, "DetachEni", third, "tidy", "empty for 10 minutes", now - 8 * MINUTE)
    with ledger.write(durable=True) as tx:
        at = now - 8 * MINUTE
        writes.intent_unknown(tx, lost.id, "ReadTimeout", "no reply in 10 s", at + 5_000, at)
        writes.address_quarantine(tx, "10.0.3.10", "seen in an unknown pod", now - 7 * MINUTE)
        writes.open_finding(tx, "throttled", "AssignAddresses", "3 in 3 minutes", now - 9 * MINUTE)
        writes.open_finding(tx, "ec2_down", "", "no reply in 10 s", now - 8 * MINUTE)
        writes.close_finding(tx, "ec2_down", "", now - 6 * MINUTE)
        known = {1: 6, 2: 6, 3: 5, 4: 1}
        picture = [
            model.ObservedEni(node.eni(device), node.addresses(device, count))
            for device, count in known.items()
        ]
        picture[0] = model.ObservedEni(node.eni(1), ("10.0.1.10", *node.addresses(1, 6)[2:]))
        picture.append(model.ObservedEni(node.eni(9, managed=False), ("10.0.9.10",)))
        writes.adopt(tx, model.ObservedCloud(now - MINUTE, "ec2", tuple(picture)), now - MINUTE)
        writes.addresses_assigned(tx, node.eni(4).eni_id, ["10.0.4.11"], "assign", now - 20_000)
    with ledger.write() as tx:
        broken = reads.installed_for(tx, "lease", "2")[1].thing
        writes.installed_failed(tx, broken, "ENETUNREACH", now - 5 * MINUTE)
