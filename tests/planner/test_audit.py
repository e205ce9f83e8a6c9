"""Every contradiction between the ledger and EC2 is named; rows that agree, and those of others, are none."""

from __future__ import annotations

import dataclasses

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import audit, sweep
from tests.planner import rows

SETTINGS, _ = knobs.load({})
NOBODY = sweep.Witnesses(model.Unknown("not asked", 0), {}, model.Unknown("not asked", 0))
DESIRED = model.Desired(
    rows.NODE,
    (rows.eni(0), rows.eni(1), rows.eni(2, managed=False)),
    (model.Prefix("10.0.7.0/28", "eni-1"),),
    (*rows.addresses(0, 2), *rows.addresses(1, 1, prefix="10.0.7.0/28")),
)
SHOWN = model.ObservedCloud(
    rows.START,
    "ec2",
    (
        model.ObservedEni(rows.eni(0), ("10.0.0.0", "10.0.0.1")),
        model.ObservedEni(rows.eni(1), (), ("10.0.7.0/28",)),
        model.ObservedEni(rows.eni(2, managed=False), ("10.0.9.9",)),
    ),
)


def found(
    seen: model.ObservedCloud | model.Unknown, desired: model.Desired = DESIRED
) -> set[tuple[str, str]]:
    told = audit.differences(desired, seen, NOBODY, (), (), SETTINGS, rows.START)
    assert all(each.kind in audit.KINDS for each in told)
    return {(each.kind, each.subject) for each in told}


def without(number: int) -> model.ObservedCloud:
    return dataclasses.replace(SHOWN, enis=SHOWN.enis[:number] + SHOWN.enis[number + 1 :])


def test_what_agrees_is_no_difference_nor_is_what_nobody_could_say() -> None:
    assert found(SHOWN) == set()
    assert found(model.Unknown("no reply", 0)) == set()


def test_an_interface_that_ec2_does_not_show_is_one_and_not_its_addresses() -> None:
    assert found(without(1)) == {("eni_not_in_ec2", "eni-1")}
    assert found(without(2)) == set(), "somebody else's may come and go"


def test_an_interface_of_ours_that_no_row_has_is_one() -> None:
    more = dataclasses.replace(
        SHOWN, enis=(*SHOWN.enis, *(model.ObservedEni(rows.eni(n, managed=n == 3)) for n in (3, 4)))
    )
    assert found(more) == {("eni_not_in_ledger", "eni-3")}


def test_addresses_and_prefixes_are_compared_by_interface() -> None:
    swapped = dataclasses.replace(
        SHOWN,
        enis=(
            model.ObservedEni(rows.eni(0), ("10.0.0.0",), ("10.0.7.0/28",)),
            model.ObservedEni(rows.eni(1), ("10.0.0.9",)),
        ),
    )
    assert found(swapped) == {
        ("address_not_in_ec2", "10.0.0.1"),
        ("address_not_in_ec2", "10.0.7.0/28"),
        ("address_not_in_ledger", "10.0.7.0/28"),
        ("address_not_in_ledger", "10.0.0.9"),
    }


def test_a_pod_the_ledger_never_knew_is_one_and_its_objects_are_not() -> None:
    link = model.Link("eni1", alias="vpcledger lease 9", mac="02:00:00:00:09:09")
    seen = model.ObservedKernel(rows.START, links=(link,), peers={"eni1": True})
    told = audit.differences(
        model.Desired(rows.NODE),
        model.Unknown("not asked", 0),
        sweep.Witnesses(seen, {}, model.Unknown("not asked", 0)),
        (),
        ((link, "10.0.0.9"),),
        SETTINGS,
        rows.START,
    )
    unlinked = [(each.kind, each.subject) for each in told if each.kind == "link_without_lease"]
    assert unlinked == [("link_without_lease", "eni1")]
    assert "10.0.0.9" in next(each.text for each in told if each.kind == "link_without_lease")
