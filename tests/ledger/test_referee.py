"""The schema refuses a double booking, whoever writes and in whatever order; shown by taking it away."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ledger import database, file, model, reads, writes
from tests.ledger import node

CALLERS = 64
DOUBLY_LEASED = """SELECT address, count(*) FROM leases WHERE ended_at IS NULL AND address IS NOT NULL
    GROUP BY address HAVING count(*) > 1"""
DOUBLY_HOLDING = """SELECT container_id FROM leases WHERE ended_at IS NULL
    GROUP BY container_id, ifname, family HAVING count(*) > 1"""


def double_bookings(tx: database.Read) -> list[dict[str, object]]:
    """Addresses with two open leases and interfaces with two addresses."""
    return tx.dicts(DOUBLY_LEASED, {}) + tx.dicts(DOUBLY_HOLDING, {})


def test_64_callers_add_and_delete_namesakes_and_no_commit_shows_a_double_booking(
    ledger: database.Ledger,
) -> None:
    """Pods of a StatefulSet are replaced under their name: the new sandbox asks while the old one goes.

    Every change begins with a look at what the commit before it left, under the writer's lock, so that no
    commit escapes.
    """
    for device in (1, 2):
        node.add_eni(ledger, device, 20)
    looks: list[int] = []

    @contextlib.contextmanager
    def looking_first() -> Iterator[database.Write]:
        with ledger.write() as tx:
            assert double_bookings(tx) == []
            looks.append(ledger.revision())
            yield tx

    def caller(number: int) -> int:
        dice, held, served = random.Random(number), "", 0
        for turn in range(12):
            container, now = f"{number:02}-{turn:03}", 1_000 + turn
            with looking_first() as tx:
                lease = node.claim(tx, container, now, pod=f"web-{number % 16}")
                again = node.claim(tx, container, now, pod=f"web-{number % 16}")
                assert again == lease, "asked twice, answered twice the same"
            served += lease.address is not None
            for old in {held, container} if dice.random() < 0.3 else {held}:
                with looking_first() as tx:
                    gone = reads.open_lease(tx, old, "eth0")
                    if gone is not None:
                        writes.end(tx, gone.id, "deleted", now, cooling_ms=0)
            held = container
        return served

    with ThreadPoolExecutor(CALLERS) as pool:
        served = sum(pool.map(caller, range(CALLERS)))
    assert set(looks) >= set(range(looks[0], ledger.revision())), "every commit was looked at"
    assert served > 40, "addresses were used more than once"
    with ledger.read() as tx:
        assert double_bookings(tx) == []
        (pods,) = tx.dicts("SELECT count(*) AS n FROM v_pods WHERE address IS NOT NULL", {})
        assert 0 < pods["n"] <= 40


def race(path: Path) -> tuple[int, list[dict[str, object]]]:
    """64 careless callers choose from one and the same snapshot, then write without looking again.

    How many were refused, and the double bookings afterwards.
    """
    with database.Ledger.open(path) as ledger:
        node.add_eni(ledger, 1, 8)
        barrier = threading.Barrier(CALLERS)
        refused: list[str] = []

        def careless(number: int) -> None:
            with ledger.read() as tx:
                free = [each for each in reads.desired(tx, 10).addresses if not each.leased]
                barrier.wait()
            choice = free[number % len(free)]
            try:
                with ledger.write() as change:
                    _insert_lease(change, f"careless-{number}", choice)
            except sqlite3.IntegrityError as error:
                refused.append(str(error))

        with ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(careless, range(CALLERS)))
        with ledger.read() as tx:
            return len(refused), double_bookings(tx)


def _insert_lease(tx: database.Write, container: str, chosen: model.Address) -> None:
    tx.dicts(
        "INSERT INTO leases (container_id, ifname, network, netns, family, state, address, eni_id,"
        " host_ifname, host_mac, pod_namespace, pod_name, pod_uid, boot_id, created_at, claimed_at,"
        " reason) VALUES (:container, 'eth0', '', '', 4, 'reserved', :address, :eni_id, '', '', '',"
        " '', '', '', 10, 10, '')",
        {"container": container, "address": chosen.address, "eni_id": chosen.eni_id},
    )


def test_of_64_callers_with_the_same_choice_the_index_lets_one_through(path: Path) -> None:
    """Care in the code is not what prevents it: callers without any are refused."""
    refused, doubles = race(path)
    assert doubles == []
    assert refused == CALLERS - 8


def test_without_the_index_the_same_callers_book_doubly(path: Path) -> None:
    """The mutation: drop the index, and the test above would fail."""
    with contextlib.closing(file.connect(path, "rw")) as connection:
        connection.execute("DROP INDEX one_open_lease_per_address")
    refused, doubles = race(path)
    assert refused == 0
    assert len(doubles) == 8


def test_without_the_key_index_a_sandbox_interface_gets_two_addresses(path: Path) -> None:
    """The second referee: with it refused, without it not."""

    def twice(ledger: database.Ledger) -> None:
        with ledger.read() as tx:
            free = reads.desired(tx, 10).addresses
        for choice in free[:2]:
            with ledger.write() as change:
                _insert_lease(change, "same", choice)

    with database.Ledger.open(path) as ledger:
        node.add_eni(ledger, 1, 2)
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            twice(ledger)
        with ledger.write() as tx:
            tx.dicts("UPDATE leases SET state = 'ended', ended_at = 11, reason = 'deleted'", {})
    with contextlib.closing(file.connect(path, "rw")) as connection:
        connection.execute("DROP INDEX one_address_per_interface")
    with database.Ledger.open(path) as ledger:
        twice(ledger)
        with ledger.read() as look:
            assert look.dicts(DOUBLY_HOLDING, {}) == [{"container_id": "same"}]


def _held(ledger: database.Ledger) -> model.Lease:
    node.add_eni(ledger, 1, 2)
    with ledger.write() as tx:
        return node.claim(tx, "c1", 10)


SQL = Callable[[model.Lease], str]
REFUSED: dict[str, tuple[str, SQL]] = {
    "a lease on an address EC2 never gave": (
        "lease_moves_to_an_assigned_address",
        lambda lease: f"UPDATE leases SET address = '10.0.1.200' WHERE id = {lease.id}",
    ),
    "a lease on an interface's primary address": (
        "lease_moves_to_an_assigned_address",
        lambda lease: f"UPDATE leases SET address = '10.0.1.4' WHERE id = {lease.id}",
    ),
    "a primary address among the pods'": (
        "primary_address_is_no_pods",
        lambda lease: (
            "INSERT INTO addresses (address, eni_id, family, state, source, assigned_at,"
            f" rested_since, cooling_until, reason) VALUES ('10.0.1.4', '{lease.eni_id}', 4,"
            " 'assigned', 'assign', 1, 0, 0, '')"
        ),
    ),
    "releasing an address under an open lease": (
        "leased_address_is_never_released",
        lambda lease: f"UPDATE addresses SET state = 'releasing' WHERE address = '{lease.address}'",
    ),
    "forgetting an address under an open lease": (
        "leased_address_is_never_forgotten",
        lambda lease: f"DELETE FROM addresses WHERE address = '{lease.address}'",
    ),
    "detaching an interface under open leases": (
        "leased_eni_is_never_removed",
        lambda lease: f"UPDATE enis SET state = 'detaching' WHERE eni_id = '{lease.eni_id}'",
    ),
    "forgetting an open lease": (
        "open_lease_is_never_forgotten",
        lambda lease: f"DELETE FROM leases WHERE id = {lease.id}",
    ),
    "ending a lease without a reason": (
        "ended_has_its_reason",
        lambda lease: f"UPDATE leases SET state = 'ended', ended_at = 1 WHERE id = {lease.id}",
    ),
    "ending a lease without a time": (
        "ended_has_its_time",
        lambda lease: f"UPDATE leases SET state = 'ended', reason = 'gc' WHERE id = {lease.id}",
    ),
    "an active lease without an address": (
        "held_means_an_address",
        lambda lease: (
            "UPDATE leases SET address = NULL, eni_id = NULL, claimed_at = NULL"
            f" WHERE id = {lease.id}"
        ),
    ),
    "a state nobody knows": (
        "state_is_known",
        lambda lease: f"UPDATE leases SET state = 'lost' WHERE id = {lease.id}",
    ),
    "an address on an interface nobody knows": (
        "FOREIGN KEY",
        lambda lease: f"UPDATE addresses SET eni_id = 'eni-x' WHERE address <> '{lease.address}'",
    ),
    "a refusal without a reason": (
        "refusal_has_its_reason",
        lambda lease: (
            "INSERT INTO cni_requests (at, command, via, container_id, ifname, netns,"
            " pod_namespace, pod_name, code, reason, detail, duration_us) VALUES (1, 'ADD', 'socket',"
            f" '{lease.container_id}', 'eth0', '', '', '', 11, '', '', 1)"
        ),
    ),
    "a text where a number belongs": (
        "cannot store TEXT",
        lambda lease: f"UPDATE leases SET created_at = 'noon' WHERE id = {lease.id}",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_the_schema_refuses(what: str, ledger: database.Ledger) -> None:
    """Each rule is named in the refusal, and the row is as it was."""
    rule, sql = REFUSED[what]
    lease = _held(ledger)
    with pytest.raises(sqlite3.IntegrityError, match=rule), ledger.write() as tx:
        tx.dicts(sql(lease), {})
    with ledger.read() as tx:
        assert reads.lease(tx, lease.id) == lease


def test_every_trigger_is_seen_to_refuse() -> None:
    """A rule nobody has seen at work is none; the insert's twin is in the next test."""
    from ledger import schema

    seen = {rule for rule, _ in REFUSED.values()} | {"lease_needs_an_assigned_address"}
    assert {trigger.name for trigger in schema.TRIGGERS} <= seen


def test_a_doubtful_or_released_address_gets_no_lease(ledger: database.Ledger) -> None:
    """In quarantine, about to be released, or released: the trigger refuses also a careless writer."""
    made = node.add_eni(ledger, 1, 3)
    doubtful, leaving, gone = (model.Address(a, made.eni_id) for a in node.addresses(1, 3))
    with ledger.write(durable=True) as tx:
        writes.address_quarantine(tx, doubtful.address, "seen in an unknown pod", 2)
        writes.addresses_releasing(tx, made.eni_id, [leaving.address], 2)
        writes.addresses_released(tx, [gone.address], 2)
    for each in (doubtful, leaving, gone):
        refused = pytest.raises(sqlite3.IntegrityError, match="lease_needs_an_assigned_address")
        with refused, ledger.write() as tx:
            _insert_lease(tx, "careless", each)
