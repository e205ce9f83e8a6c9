"""What is idle is given back; what is used, young, doubtful or unseen is not."""

from __future__ import annotations

import dataclasses

import pytest

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import actions, pool, release
from tests.planner.rows import (
    BY_ENI,
    BY_IP,
    START,
    UNKNOWN,
    addresses,
    desired,
    eni,
    intent,
    shown,
    small,
    steps,
    verbs,
    waiting,
)


def idle(**changes: object) -> model.Desired:
    """A primary with one free address, and an idle second interface with one."""
    return desired(enis=[eni(0), eni(1, **changes)], rows=[*addresses(0, 2), *addresses(1, 2)])


def test_an_idle_interface_goes_before_single_addresses() -> None:
    """One detach instead of two releases; one interface at a time."""
    assert verbs(steps(idle())) == [actions.DetachEni("eni-1", "attach-1")]


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(idle(managed=False), id="not ours"),
        pytest.param(idle(kind="trunk"), id="a trunk"),
        pytest.param(idle(attached_at=START - 59_000), id="too young"),
        pytest.param(idle(attached_at=None), id="of unknown age"),
        pytest.param(idle(attachment_id=None), id="without attachment"),
        pytest.param(idle(state="attaching"), id="not there yet"),
    ],
)
def test_an_interface_is_kept_if(rows: model.Desired) -> None:
    """Each of these alone keeps the second interface; its addresses may still go."""
    planned = verbs(steps(rows))
    assert not [a for a in planned if isinstance(a, actions.DetachEni | actions.DeleteEni)]


def on_second(**changes: object) -> model.Desired:
    rows = idle()
    first, *others = addresses(1, 2)
    changed = dataclasses.replace(first, **changes)  # type: ignore[arg-type]  # fields by name
    return dataclasses.replace(rows, addresses=(*addresses(0, 2), changed, *others))


def with_lease(state: model.LeaseState, address: str | None) -> model.Desired:
    lease = model.Lease(1, "c", "eth0", "n", "/ns", state, address=address, eni_id="eni-1")
    return dataclasses.replace(idle(), leases=(lease,))


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(on_second(leased=True), id="leased"),
        pytest.param(with_lease("in_doubt", "10.0.1.0"), id="in doubt"),
        pytest.param(with_lease("reserved", "10.0.1.0"), id="reserved"),
        pytest.param(on_second(state="quarantine"), id="in quarantine"),
        pytest.param(on_second(cooling_until=START + 1), id="cooling"),
        pytest.param(on_second(rested_since=START - 59_000), id="not rested"),
    ],
)
def test_an_address_that_is(rows: model.Desired) -> None:
    """Each of these keeps the address, and with it the interface."""
    planned = verbs(steps(rows))
    assert not [a for a in planned if isinstance(a, actions.DetachEni)]
    released = [x for a in planned if isinstance(a, actions.UnassignAddresses) for x in a.addresses]
    assert "10.0.1.0" not in released


def test_addresses_go_from_the_emptiest_interface_and_the_primary_last() -> None:
    """Packing makes interfaces idle; no interface is asked for what it has leased."""
    rows = desired(
        enis=[eni(0), eni(1), eni(2)],
        rows=[*addresses(0, 3), *addresses(1, 3, 2), *addresses(2, 3, 1)],
    )
    settings = knobs.Settings(warm_ip_target=3)
    assert verbs(steps(rows, settings)) == [
        actions.UnassignAddresses("eni-2", ("10.0.2.1", "10.0.2.2")),
        actions.UnassignAddresses("eni-1", ("10.0.1.2",)),
    ]


def test_whole_interfaces_are_kept_whole() -> None:
    """WARM_ENI_TARGET never releases single addresses, and keeps a spare interface's worth."""
    rows = desired(enis=[eni(0), eni(1)], rows=[*addresses(0, 3, 1), *addresses(1, 3)])
    assert steps(rows, BY_ENI) == []
    more = desired(
        enis=[eni(0), eni(1), eni(2)],
        rows=[*addresses(0, 3), *addresses(1, 3, 1), *addresses(2, 3)],
    )
    assert verbs(steps(more, BY_ENI)) == [actions.DetachEni("eni-2", "attach-2")]


@pytest.mark.parametrize(
    "look",
    [
        UNKNOWN,
        model.ObservedCloud(START, "imds", shown(idle()).enis),
        model.ObservedCloud(START, "ec2", shown(idle()).enis[:1]),
    ],
    ids=["nobody", "metadata", "EC2 without it"],
)
def test_nothing_is_given_back_unless_ec2_shows_it(
    look: model.ObservedCloud | model.Unknown,
) -> None:
    """No removal on an incomplete picture; a note asks for a look."""
    planned, said = pool.cloud_steps(idle(), look, BY_IP, small(), START)
    assert planned == ()
    assert release.LOOK_FIRST in {note.code for note in said}


def test_only_addresses_that_ec2_shows_are_released() -> None:
    """One that is gone there would make EC2 refuse the whole call."""
    rows = desired(rows=addresses(0, 3))
    look = model.ObservedCloud(START, "ec2", (model.ObservedEni(eni(0), ("10.0.0.0",)),))
    assert verbs(steps(rows, look=look)) == [actions.UnassignAddresses("eni-0", ("10.0.0.0",))]


@pytest.mark.parametrize("state", ["planned", "sent", "unknown"])
def test_nothing_is_given_back_while_something_is_on_its_way(state: model.IntentState) -> None:
    """Growth under way first shows what it brings."""
    coming = intent(actions.AssignAddresses("eni-0", 1), state)
    assert steps(dataclasses.replace(idle(), intents=(coming,))) == []


def test_nothing_is_given_back_while_a_pod_waits() -> None:
    """The waiting pod may be about to take what looks idle."""
    rows = dataclasses.replace(idle(), leases=tuple(waiting(1)))
    assert steps(rows) == []


def test_a_begun_removal_is_finished() -> None:
    """`draining` is detached, `detaching` deleted once EC2 does not show it attached any more."""
    draining = idle(state="draining")
    assert actions.DetachEni("eni-1", "attach-1") in verbs(steps(draining))
    detaching = idle(state="detaching")
    assert actions.DeleteEni("eni-1") not in verbs(steps(detaching))  # EC2 shows it attached
    off = desired(enis=[eni(0), eni(1, state="detaching", device=-1)], rows=addresses(0, 2))
    assert actions.DeleteEni("eni-1") in verbs(steps(off))
    gone = model.ObservedCloud(START, "ec2", shown(off).enis[:1])
    assert actions.DeleteEni("eni-1") in verbs(steps(off, look=gone))
    assert actions.DeleteEni("eni-1") not in verbs(steps(off, look=UNKNOWN))
    sent = intent(actions.DeleteEni("eni-1"), "sent")
    assert actions.DeleteEni("eni-1") not in verbs(steps(dataclasses.replace(off, intents=(sent,))))
