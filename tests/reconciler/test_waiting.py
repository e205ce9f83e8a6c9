"""An ADD that finds no address: a row at once, an answer when one came, when time is up, or at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger import writes
from tests.reconciler.door import Door

pytestmark = pytest.mark.netns


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    """No address is free, and an ADD is held for five seconds."""
    made = Door(tmp_path, addresses=(0, 0), VPCLEDGER_ADD_WAIT="5")
    yield made
    made.verbs.release_waiting()
    made.close()


def grow(door: Door, *addresses: str) -> None:
    """EC2 answers with addresses for the second interface."""
    with door.ledger.write(durable=True) as tx:
        writes.addresses_assigned(tx, "eni-1", addresses, "assign", door.now)


def test_it_is_a_row_and_a_bell_before_it_is_answered(door: Door) -> None:
    pod = door.pod()

    door.begin("ADD", pod)

    assert door.replies == []
    lease = door.lease(pod)
    assert lease is not None
    assert (lease.state, lease.address, lease.reason) == ("waiting", None, "growing")
    assert door.rings == [True]
    assert door.wakes == [door.now + 5_000]


def test_it_is_answered_when_an_address_came_the_oldest_first(door: Door) -> None:
    first, second = door.pod(), door.pod()
    door.begin("ADD", first)
    door.begin("ADD", second)

    grow(door, "10.0.0.20")
    door.verbs.retry_waiting()

    assert [answer.status for answer in door.replies] == [0]
    first.result = door.replies[0].said
    assert first.address == "10.0.0.20"
    assert first.pings("10.0.0.4")
    lease = door.lease(second)
    assert lease is not None
    assert lease.state == "waiting"


def test_it_is_refused_when_its_time_is_up_and_waits_on_in_the_ledger(door: Door) -> None:
    pod = door.pod()
    door.begin("ADD", pod)

    door.now += 4_999
    door.verbs.retry_waiting()
    assert door.replies == []
    door.now += 1
    door.verbs.retry_waiting()

    assert [(a.code, a.reason) for a in door.replies] == [(11, "growing")]
    assert "try again in about" in door.replies[0].said["msg"]
    lease = door.lease(pod)
    assert lease is not None
    assert lease.state == "waiting"


def test_asking_again_after_a_refusal_is_the_same_row(door: Door) -> None:
    pod = door.pod()
    door.begin("ADD", pod)
    door.now += 5_000
    door.verbs.retry_waiting()
    before = door.lease(pod)

    grow(door, "10.0.0.20")
    answer = door.call("ADD", pod)

    after = door.lease(pod)
    assert answer.status == 0
    assert before is not None
    assert after is not None
    assert after.id == before.id


def test_a_deletion_ends_the_wait_and_answers_both(door: Door) -> None:
    pod = door.pod()
    door.begin("ADD", pod)

    door.begin("DEL", pod)

    assert [(a.status, a.reason) for a in door.replies] == [(0, ""), (1, "gave_up_waiting")]
    assert door.lease(pod) is None
    assert door.verbs.waiting == {}


def test_a_ledger_that_fails_meanwhile_is_each_ones_answer_and_loses_none(door: Door) -> None:
    door.begin("ADD", door.pod())
    door.begin("ADD", door.pod())
    door.ledger.close()

    door.verbs.retry_waiting()

    assert [(a.code, a.reason) for a in door.replies] == [(11, "ledger_error")] * 2
    assert door.verbs.waiting == {}


def test_the_end_of_the_daemon_answers_who_waits(door: Door) -> None:
    door.begin("ADD", door.pod())

    door.verbs.release_waiting()

    assert [(a.code, a.reason) for a in door.replies] == [(11, "stopping")]
