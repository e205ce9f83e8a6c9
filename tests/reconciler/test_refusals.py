"""Why there is no address: the same code, action and estimate for whoever asks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ledger import database, migrate, model, writes
from reconciler import refusals
from reconciler import settings as knobs
from tests.reconciler.door import ENIS, NODE

NOW = 1_800_000_000_000


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[database.Ledger]:
    path = tmp_path / "ledger.db"
    migrate.bring_to_head(path)
    with database.Ledger.open(path) as opened:
        yield opened


def node(ledger: database.Ledger, *addresses: int, instance_type: str = "m5.large") -> None:
    """This node with one usable interface for each number, holding that many addresses."""
    seen = tuple(
        model.ObservedEni(
            replace(eni, state="usable"),
            tuple(f"10.0.0.{10 * (eni.device + 1) + n}" for n in range(count)),
        )
        for eni, count in zip(ENIS, addresses, strict=False)
    )
    with ledger.write(durable=True) as tx:
        writes.record_node(tx, replace(NODE, instance_type=instance_type), NOW)
        writes.adopt(tx, model.ObservedCloud(NOW, "ec2", seen), NOW)


def lease(ledger: database.Ledger, count: int) -> list[model.Lease]:
    with ledger.write() as tx:
        return [
            writes.claim(
                tx, container_id=f"c{n}", ifname="eth0", network="n", netns="", pod_namespace="",
                pod_name="", pod_uid="", boot_id="b", host_ifname=f"e{n}", host_mac="", now=NOW,
            )
            for n in range(count)
        ]  # fmt: skip


def asked_of_ec2(
    ledger: database.Ledger, operation: str, subject: str, **arguments: object
) -> model.Intent:
    with ledger.write(durable=True) as tx:
        intent = writes.plan_intent(tx, operation, subject, dict(arguments), "pod", "t", NOW)
        writes.intent_sent(tx, intent.id, NOW)
        return intent


def why(ledger: database.Ledger, now: int = NOW, **environ: str) -> refusals.NoAddress:
    settings, _ = knobs.load(environ)
    with ledger.read() as tx:
        return refusals.no_address(tx, settings, now)


def test_before_the_node_is_known_it_is_starting(ledger: database.Ledger) -> None:
    said = why(ledger)
    assert (said.error.reason, said.error.cni_code, said.may_come) == ("starting", 11, True)


def test_a_type_that_no_table_has_is_named_and_not_waited_for(ledger: database.Ledger) -> None:
    node(ledger, 1, instance_type="x99.huge")
    said = why(ledger)
    assert (said.error.reason, said.may_come) == ("starting", False)
    assert "x99.huge" in str(said.error)


def test_room_that_nobody_asked_for_yet_is_growing(ledger: database.Ledger) -> None:
    node(ledger, 2)
    lease(ledger, 2)
    said = why(ledger)
    assert (said.error.reason, said.may_come, said.intent_id) == ("growing", True, None)
    assert said.eta_at == NOW + refusals.ASSIGN_MS


def test_it_names_the_call_it_waits_for(ledger: database.Ledger) -> None:
    node(ledger, 2)
    lease(ledger, 2)
    intent = asked_of_ec2(ledger, "AssignAddresses", "eni-0", eni_id="eni-0", count=3)
    said = why(ledger)
    assert (said.error.reason, said.intent_id) == ("growing", intent.id)
    assert "waiting for AssignAddresses of eni-0" in str(said.error)
    assert said.eta_at == NOW + refusals.ASSIGN_MS


def test_a_new_interface_takes_longer_than_an_address(ledger: database.Ledger) -> None:
    node(ledger, 2)
    intent = asked_of_ec2(
        ledger, "AttachEni", "eni-9", eni_id="eni-9", instance_id="i-1", device=1, card=0
    )
    said = why(ledger)
    assert (said.intent_id, said.eta_at) == (intent.id, NOW + refusals.ATTACH_MS)


def test_a_full_node_waits_only_for_an_address_that_cools_soon(ledger: database.Ledger) -> None:
    """Within the time an ADD is held it waits; later than that it is refused with the estimate."""
    node(ledger, 1, 1, instance_type="t1.micro")
    held = lease(ledger, 2)
    full = why(ledger)
    assert (full.error.reason, full.may_come) == ("node_full", False)
    assert "2 addresses on 2 interfaces" in str(full.error)
    with ledger.write() as tx:
        writes.end(tx, held[0].id, "deleted", NOW, 30_000)

    long = why(ledger, VPCLEDGER_ADD_WAIT="5")
    soon = why(ledger, NOW + 26_000, VPCLEDGER_ADD_WAIT="5")

    assert (long.error.reason, long.may_come, long.eta_at) == ("cooling", False, NOW + 30_000)
    assert (soon.error.reason, soon.may_come, soon.eta_at) == ("cooling", True, NOW + 30_000)
    assert "about 4 s" in str(soon.error)


def test_a_refused_call_is_the_reason_until_its_pause_is_over(ledger: database.Ledger) -> None:
    node(ledger, 2)
    intent = asked_of_ec2(ledger, "AssignAddresses", "eni-0", eni_id="eni-0", count=3)
    with ledger.write(durable=True) as tx:
        writes.intent_failed(tx, intent.id, "RequestLimitExceeded", "slow", NOW + 5_000, NOW)

    during, after = why(ledger, NOW + 4_999), why(ledger, NOW + 5_000)

    assert (during.error.reason, during.intent_id, during.may_come) == (
        "throttled", intent.id, False,
    )  # fmt: skip
    assert during.eta_at == NOW + 5_000
    assert after.error.reason == "growing"


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("AssignPrefixes", {"eni_id": "eni-0", "count": 1}),
        (
            "CreateEni",
            {
                "subnet_id": "subnet-1",
                "security_groups": [],
                "description": "",
                "secondaries": 0,
                "prefixes": 2,
            },
        ),
    ],
)
def test_a_prefix_that_was_refused_for_want_of_blocks_is_no_reason_for_a_pod(
    ledger: database.Ledger, operation: str, arguments: dict[str, object]
) -> None:
    """A single address comes in its place; if that is refused as well, that is the reason."""
    node(ledger, 2)
    lease(ledger, 2)
    prefix = asked_of_ec2(ledger, operation, "eni-0", **arguments)
    with ledger.write(durable=True) as tx:
        writes.intent_failed(tx, prefix.id, "InsufficientCidrBlocks", "none", NOW + 900_000, NOW)
    on = {"ENABLE_PREFIX_DELEGATION": "true", "WARM_PREFIX_TARGET": "1"}
    said = why(ledger, NOW + 1, **on)
    assert (said.error.reason, said.may_come) == ("growing", True)
    single = asked_of_ec2(ledger, "AssignAddresses", "eni-0", eni_id="eni-0", count=1)
    with ledger.write(durable=True) as tx:
        code = "InsufficientFreeAddressesInSubnet"
        writes.intent_failed(tx, single.id, code, "none", NOW + 30_000, NOW)
    said = why(ledger, NOW + 1, **on)
    assert (said.error.reason, said.may_come, said.intent_id) == ("subnet_full", False, single.id)


def test_a_refused_removal_is_nobodys_reason_to_wait(ledger: database.Ledger) -> None:
    """It bars no growth: a pod is held until the pool has grown."""
    node(ledger, 1, 1)
    lease(ledger, 1)
    intent = asked_of_ec2(
        ledger, "UnassignAddresses", "eni-1", eni_id="eni-1", addresses=["10.0.0.20"]
    )
    with ledger.write(durable=True) as tx:
        writes.intent_failed(tx, intent.id, "RequestLimitExceeded", "slow", NOW + 5_000, NOW)
    said = why(ledger)
    assert (said.error.reason, said.may_come) == ("growing", True)


def test_a_lost_ledger_comes_before_everything(ledger: database.Ledger) -> None:
    with ledger.write() as tx:
        writes.open_finding(tx, "ledger_lost", "", "links of pods", NOW)
    said = why(ledger)
    assert (said.error.reason, said.may_come) == ("ledger_lost", False)
