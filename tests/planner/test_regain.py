"""An address of a live pod that EC2 shows gone is asked back by name; nothing else is."""

from __future__ import annotations

import dataclasses

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import actions, cordon, pool
from tests.planner.rows import START, UNKNOWN, addresses, desired, eni, intent, small

WARM = knobs.Settings(warm_ip_target=1)
GONE = START - 1


def picture(*enis: model.Eni) -> model.ObservedCloud:
    """EC2's, of interfaces that are as they should be but for their addresses."""
    seen = (
        model.ObservedEni(
            each,
            tags={"node.k8s.amazonaws.com/instance_id": "i-1"},
            security_groups=("sg-1",),
        )
        for each in enis
    )
    return model.ObservedCloud(START - 1_000, "ec2", tuple(seen))


def asked(
    rows: model.Desired, last: model.ObservedCloud | None, slots: int = 9
) -> list[tuple[str, actions.CloudAction]]:
    """What is asked back, and in whose lane."""
    steps, _ = pool.cloud_steps(rows, UNKNOWN, WARM, small(3, slots), START, last=last)
    back = (actions.RegainAddresses, actions.RegainPrefixes)
    return [(step.lane, step.action) for step in steps if isinstance(step.action, back)]


def block(absent: int | None, leased: int) -> list[model.Address]:
    """The addresses of one /28 on eni-1."""
    return [
        model.Address(
            f"10.0.9.{n}", "eni-1", prefix="10.0.9.0/28", leased=n < leased, absent_since=absent
        )
        for n in range(16)
    ]


def test_it_is_asked_back_by_name_before_everything_else() -> None:
    """Two single ones in one call, a prefix whole; its other addresses come with it."""
    held = [*addresses(0, 3, 2, absent_since=GONE), *block(GONE, leased=3)]
    rows = dataclasses.replace(
        desired(enis=[eni(0), eni(1)], rows=held),
        prefixes=(model.Prefix("10.0.9.0/28", "eni-1"),),
    )
    assert asked(rows, picture(eni(0), eni(1))) == [
        ("pod", actions.RegainAddresses("eni-0", ("10.0.0.0", "10.0.0.1"))),
        ("pod", actions.RegainPrefixes("eni-1", ("10.0.9.0/28",))),
    ]


def test_nothing_is_asked_back_that_no_pod_holds_or_that_is_there() -> None:
    """Whoever took a free address meant it."""
    free = addresses(0, 3, 0, absent_since=GONE)
    there = [*addresses(1, 3, 3), *block(None, leased=16)]
    rows = desired(enis=[eni(0), eni(1)], rows=[*free, *there])
    assert asked(rows, picture(eni(0), eni(1))) == []


def test_nor_from_an_interface_that_is_foreign_gone_or_not_shown() -> None:
    """Only EC2's own picture shows an interface."""
    dark = addresses(1, 1, 1, absent_since=GONE)
    known = desired(enis=[eni(0), eni(1)], rows=dark)
    imds = model.ObservedCloud(START, "imds", picture(eni(0), eni(1)).enis)
    for last in (None, imds, picture(eni(0))):
        assert asked(known, last) == []
    foreign = desired(enis=[eni(0), eni(1, managed=False)], rows=dark)
    assert asked(foreign, picture(eni(0), eni(1))) == []
    leaving = desired(enis=[eni(0), eni(1, state="detaching")], rows=dark)
    assert asked(leaving, picture(eni(0), eni(1))) == []


def test_it_waits_for_a_lost_reply_and_for_a_refusals_back_off() -> None:
    action = actions.RegainAddresses("eni-0", ("10.0.0.0",))
    for state in ("unknown", "failed"):
        rows = desired(
            rows=addresses(0, 1, 1, absent_since=GONE),
            intents=[intent(action, state, "InternalError: x", retry_at=START + 5)],
        )
        assert asked(rows, picture(eni(0))) == []


def test_a_cordoned_node_asks_back_too() -> None:
    """Nothing is added for pods to come; this pod lives here."""
    step = actions.CloudStep(actions.RegainAddresses("eni-0", ("10.0.0.0",)), "pod", "test")
    rows = dataclasses.replace(desired(), scheduling=model.Scheduling(False, None, START))
    settings = knobs.Settings(node_name="n", kubernetes_host="h")
    plan = cordon.held_back(actions.Plan(cloud=(step,)), rows, settings, START)
    assert plan.cloud == (step,)
