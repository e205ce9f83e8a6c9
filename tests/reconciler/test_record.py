"""A call to EC2 is a row before it is made, and the ledger says after it what EC2 is known to have done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ledger import model, reads
from reconciler import record
from reconciler.cloud import CloudOutcome
from reconciler.planner import actions
from tests.reconciler.door import ENIS, Door

pytestmark = pytest.mark.netns

DETACH = actions.DetachEni("eni-1", "eni-attach-1")
UNASSIGN = actions.UnassignAddresses("eni-1", ("10.0.0.20",))


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    made = Door(tmp_path, addresses=(0, 1))
    yield made
    made.close()


def intend(door: Door, action: actions.CloudAction) -> tuple[model.Intent, actions.CloudStep]:
    step = actions.CloudStep(action, "tidy", "test")
    with door.ledger.write(durable=True) as tx:
        return record.intend(tx, step, door.now), step


def answered(door: Door, action: actions.CloudAction, code: str = "", text: str = "") -> None:
    """The call was made and EC2 answered so."""
    intent, step = intend(door, action)
    outcome = actions.Outcome(action, code, text)
    with door.ledger.write(durable=True) as tx:
        done = CloudOutcome(outcome, type(action).__name__, code or "ok", 1_000)
        record.cloud(tx, intent, step, done, door.now)


def lost(door: Door, action: actions.CloudAction) -> None:
    """The call was made and its reply did not come."""
    intent, step = intend(door, action)
    outcome = actions.Outcome(action, "ReadTimeout", "no reply", unknown=True)
    with door.ledger.write(durable=True) as tx:
        done = CloudOutcome(outcome, type(action).__name__, "ReadTimeout", 1_000)
        record.cloud(tx, intent, step, done, door.now)


def settle(door: Door, *shown: model.ObservedEni, after: int = record.SETTLE_AFTER_MS) -> None:
    """EC2 is looked at so many ms later and shows this."""
    door.now += after
    seen = model.ObservedCloud(door.now, "ec2", shown)
    with door.ledger.write(durable=True) as tx:
        record.settle(tx, reads.unknown_intents(tx), seen, door.now)


def states(door: Door) -> list[str]:
    return [row["state"] for row in door.rows("SELECT state FROM v_intents ORDER BY id")]


def address(door: Door) -> str:
    (row,) = door.rows("SELECT state FROM v_addresses WHERE address = '10.0.0.20'")
    return str(row["state"])


def eni(door: Door) -> str:
    (row,) = door.rows("SELECT state FROM v_enis WHERE eni_id = 'eni-1'")
    return str(row["state"])


# --------------------------------------------------------------------------- before the call


def test_what_is_to_be_given_back_is_given_to_nobody_from_the_intent_on(door: Door) -> None:
    intend(door, UNASSIGN)
    assert address(door) == "releasing"
    assert door.call("ADD", door.pod()).code == 11


def test_a_removal_of_what_a_pod_holds_is_never_intended(door: Door) -> None:
    """A pod was quicker than the plan: the schema refuses, and no row says that anything was asked."""
    pod = door.added()
    for action in (UNASSIGN, DETACH):
        with pytest.raises(Exception, match="lease"):
            intend(door, action)
    assert states(door) == []
    assert pod.pings("10.0.0.4")


# --------------------------------------------------------------------------- EC2 says no


def test_an_interface_that_could_not_be_detached_gets_no_pod_before_it_is_wired_again(
    door: Door,
) -> None:
    """It was unwired when its removal was written down; its next pod waits for the kernel's turn."""
    intent, step = intend(door, DETACH)
    door.loop.tick()
    assert "10.0.0.5" not in door.node.command("ip", "rule")
    refused = actions.Outcome(DETACH, "RequestLimitExceeded", "slow")
    with door.ledger.write(durable=True) as tx:
        done = CloudOutcome(refused, "DetachNetworkInterface", refused.error, 1_000)
        record.cloud(tx, intent, step, done, door.now)

    early = door.call("ADD", door.pod())
    assert early.code == 11
    door.loop.tick()
    pod = door.added()

    assert eni(door) == "usable"
    assert "from 10.0.0.5 lookup 2" in door.node.command("ip", "rule")
    assert pod.pings("10.0.0.4")


def test_an_address_that_could_not_be_given_back_is_in_use_again(door: Door) -> None:
    answered(door, UNASSIGN, "InternalError", "sorry")
    assert address(door) == "free"
    door.now += record.BACKOFF_MOST_MS
    assert door.added().address == "10.0.0.20"


@pytest.mark.parametrize(
    ("code", "pauses"),
    [
        ("InternalError", [2_000, 4_000, 8_000]),
        ("RequestLimitExceeded", [5_000, 10_000, 20_000]),
        ("InsufficientFreeAddressesInSubnet", [30_000, 60_000, 120_000, 120_000]),
        ("UnauthorizedOperation", [60_000, 120_000, 120_000]),
    ],
)
def test_the_pause_grows_with_each_refusal_up_to_two_minutes(
    door: Door, code: str, pauses: list[int]
) -> None:
    """As a call that keeps being refused is tried again when its pause is over."""
    seen = []
    for _ in pauses:
        answered(door, actions.AssignAddresses("eni-1", 1), code, "no")
        with door.ledger.read() as tx:
            retry_at = reads.next_retry_at(tx, door.now)
        assert retry_at is not None
        seen.append(retry_at - door.now)
        door.now = retry_at
    assert seen == pauses


@pytest.mark.parametrize(
    "action",
    [
        actions.AssignPrefixes("eni-1", 1),
        actions.CreateEni("subnet-1", ("sg-1",), "d", 0, prefixes=1),
    ],
)
def test_a_subnet_without_blocks_is_tried_ever_less_often_and_stays_so(
    door: Door, action: actions.CloudAction
) -> None:
    """Half a minute, then doubled up to half an hour, for as many hours as it takes."""
    pauses = []
    for _ in range(12):
        answered(door, action, "InsufficientCidrBlocks", "no")
        with door.ledger.read() as tx:
            retry_at = reads.next_retry_at(tx, door.now)
        assert retry_at is not None
        pauses.append((retry_at - door.now) // 1_000)
        door.now = retry_at
    assert pauses == [30, 60, 120, 240, 480, 960, *[1_800] * 6]


def test_tries_for_fewer_within_a_pause_are_one_refusal(door: Door) -> None:
    """A subnet had not four, nor two, nor one: one pause for the three, and the next is twice as long."""
    for pause in (30_000, 60_000, 120_000):
        for count in (4, 2, 1):
            action = actions.AssignAddresses("eni-1", count)
            answered(door, action, "InsufficientFreeAddressesInSubnet", "no")
        with door.ledger.read() as tx:
            assert reads.next_retry_at(tx, door.now) == door.now + pause
        door.now += pause


def test_a_refusal_is_a_finding_until_nobody_waits_to_repeat_it(door: Door) -> None:
    answered(door, actions.AssignAddresses("eni-1", 1), "UnauthorizedOperation", "no")
    open_ones = "SELECT code, subject FROM v_findings WHERE closed IS NULL"
    with door.ledger.write() as tx:
        record.calm(tx, door.now)
    assert door.rows(open_ones) == [{"code": "ec2_denied", "subject": "AssignAddresses"}]

    door.now += 120_000
    with door.ledger.write() as tx:
        record.calm(tx, door.now)
    assert door.rows(open_ones) == []


# --------------------------------------------------------------------------- the reply was lost

ONCE = (
    actions.CreateEni("subnet-1", ("sg-1",), "d", 1),
    actions.AttachEni("eni-1", "i-1", 1),
    actions.SetDeleteOnTermination("eni-1", "eni-attach-1"),
    UNASSIGN,
    DETACH,
    actions.DeleteEni("eni-1"),
)
ASSIGN = actions.AssignAddresses("eni-1", 1)


def test_what_cannot_be_done_twice_is_sent_again_after_pauses_that_grow(door: Door) -> None:
    """EC2 tells of this moment what a picture tells of some minutes ago."""
    pauses = []
    intent, step = intend(door, UNASSIGN)
    for _ in range(3):
        outcome = actions.Outcome(UNASSIGN, "ReadTimeout", "no reply", unknown=True)
        with door.ledger.write(durable=True) as tx:
            done = CloudOutcome(outcome, "UnassignPrivateIpAddresses", "ReadTimeout", 1_000)
            record.cloud(tx, intent, step, done, door.now)
            (open_one,) = reads.unknown_intents(tx)
            pauses.append(record.due_at(open_one) - door.now)
            record.resend(tx, open_one, door.now)
            intent = open_one
        assert (states(door), address(door)) == (["sent"], "releasing")
    assert pauses == [5_000, 10_000, 20_000]


@pytest.mark.parametrize(
    "code",
    [
        "RequestLimitExceeded",
        "UnauthorizedOperation",
        "InternalError",
        "InvalidSubnetID.NotFound",  # what a subnet's block is asked for, by a picture too old
    ],
)
def test_a_repetition_that_is_turned_away_does_not_undo_the_first_call(
    door: Door, code: str
) -> None:
    """Seeds 570, 690 and 60057 of the stories: what the lost call did was taken for not done."""
    lost(door, UNASSIGN)
    with door.ledger.write(durable=True) as tx:
        (open_one,) = reads.unknown_intents(tx)
        record.resend(tx, open_one, door.now)
        done = CloudOutcome(actions.Outcome(UNASSIGN, code, "no"), "Unassign", code, 1_000)
        record.cloud(tx, open_one, actions.CloudStep(UNASSIGN, "tidy", "test"), done, door.now)
    assert (states(door), address(door)) == (["unknown"], "releasing")


def test_a_picture_does_not_end_the_doubt_about_what_can_be_sent_again(door: Door) -> None:
    """It may be older than the call, and show as ours what was given back."""
    lost(door, UNASSIGN)
    settle(door, model.ObservedEni(ENIS[1], ("10.0.0.20",)))
    assert (states(door), address(door)) == (["unknown"], "releasing")
    settle(door, model.ObservedEni(ENIS[1]))
    assert (states(door), address(door)) == (["unknown"], "releasing")


def test_addresses_asked_for_by_number_are_looked_for_and_never_asked_for_again(door: Door) -> None:
    lost(door, ASSIGN)
    settle(door, model.ObservedEni(ENIS[1]), after=record.SETTLE_AFTER_MS - 1)
    assert states(door) == ["unknown"], "a picture as young as the call proves nothing"
    settle(door, model.ObservedEni(ENIS[1]), after=1)
    assert states(door) == ["done"]


def test_only_asking_for_a_number_of_addresses_is_not_repeated(door: Door) -> None:
    for action in ONCE:
        intent = model.Intent(
            1, type(action).__name__, "eni-1", fields(action), "unknown", "t", "c", 0
        )
        again = record.repeatable(intent)
        assert again is not None
        assert again.action == action
    intent = model.Intent(1, "AssignAddresses", "eni-1", fields(ASSIGN), "unknown", "t", "c", 0)
    assert record.repeatable(intent) is None


def fields(action: actions.CloudAction) -> dict[str, object]:
    return {name: getattr(action, name) for name in type(action).__slots__}


def test_the_same_interface_answered_twice_is_one_row(door: Door) -> None:
    """EC2 answers a repeated token with the interface it made the first time."""
    new = replace(ENIS[1], eni_id="eni-7", mac="02:aa:00:00:00:07", device=-1, state="created")
    fields = {name: getattr(new, name) for name in model.Eni.__slots__}
    create = actions.CreateEni("subnet-1", ("sg-1",), "d", 1)
    for _ in range(2):
        intent, step = intend(door, create)
        result: dict[str, object] = {
            "eni": fields,
            "addresses": ("10.0.0.70",),
            "prefixes": (),
        }
        done = CloudOutcome(actions.Outcome(create, result=result), "CreateEni", "ok", 1_000)
        with door.ledger.write(durable=True) as tx:
            record.cloud(tx, intent, step, done, door.now)
    assert len(door.rows("SELECT eni_id FROM v_enis WHERE eni_id = 'eni-7'")) == 1
    assert len(door.rows("SELECT address FROM v_addresses WHERE address = '10.0.0.70'")) == 1
    assert states(door) == ["done", "done"]


def test_every_call_is_accounted_for_with_its_intent(door: Door) -> None:
    answered(door, UNASSIGN, "InternalError", "sorry")
    lost(door, UNASSIGN)
    rows = door.rows("SELECT operation, code FROM v_api_calls ORDER BY id")
    assert [row["code"] for row in rows] == ["InternalError", "ReadTimeout"]
