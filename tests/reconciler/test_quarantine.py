"""Into quarantine by a contradiction, and out of it by two looks that agree and a kernel that is silent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger import database, migrate, model, reads, writes
from reconciler import quarantine
from tests.ledger import node

LAG = quarantine.APART_MS
OURS, THEIRS = node.eni(1), node.eni(2)
DOUBTFUL = node.addresses(1, 1)[0]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[database.Ledger]:
    """One interface with two addresses, the first of them doubtful."""
    path = tmp_path / "ledger.db"
    migrate.bring_to_head(path)
    with database.Ledger.open(path) as book:
        node.add_eni(book, 1, 2)
        with book.write() as tx:
            writes.address_quarantine(tx, DOUBTFUL, "EC2 shows it elsewhere", 2)
        yield book


def shown(at: int, on: model.Eni | None) -> model.ObservedCloud:
    """EC2's picture: the doubtful address is on that interface, or nowhere."""
    enis = [
        model.ObservedEni(each, (DOUBTFUL,) if on is not None and each.eni_id == on.eni_id else ())
        for each in (OURS, THEIRS)
    ]
    return model.ObservedCloud(at, "ec2", tuple(enis))


def judge(
    ledger: database.Ledger,
    judged: quarantine.Quarantine,
    seen: model.ObservedCloud,
    in_use: frozenset[str] | None = frozenset(),
) -> str:
    """Show it a look; the address's state after."""
    with ledger.write(durable=True) as tx:
        judged.judge(tx, seen, in_use, seen.at)
    with ledger.read() as tx:
        live = {a.address: a.state for a in reads.desired(tx, 0).addresses}
    return live.get(DOUBTFUL, "released")


def test_two_looks_that_show_it_on_our_interface_give_it_back_after_a_rest(
    ledger: database.Ledger,
) -> None:
    judged = quarantine.Quarantine(cooling_ms=30_000)
    assert judge(ledger, judged, shown(1_000, OURS)) == "quarantine"
    assert judge(ledger, judged, shown(1_000 + LAG - 1, OURS)) == "quarantine"  # too close
    assert judge(ledger, judged, shown(1_000 + LAG, OURS)) == "assigned"
    with ledger.read() as tx:
        [address] = [a for a in reads.desired(tx, 0).addresses if a.address == DOUBTFUL]
    assert address.cooling_until == 1_000 + LAG + 30_000


@pytest.mark.parametrize("on", [THEIRS, None], ids=["elsewhere", "nowhere"])
def test_two_looks_that_do_not_show_it_on_ours_end_its_row(
    ledger: database.Ledger, on: model.Eni | None
) -> None:
    judged = quarantine.Quarantine(0)
    assert judge(ledger, judged, shown(1_000, on)) == "quarantine"
    assert judge(ledger, judged, shown(1_000 + LAG, on)) == "released"


def test_looks_that_disagree_begin_the_wait_anew(ledger: database.Ledger) -> None:
    judged = quarantine.Quarantine(0)
    for at, on in ((0, OURS), (LAG, THEIRS), (2 * LAG, OURS), (3 * LAG - 1, OURS)):
        assert judge(ledger, judged, shown(at, on)) == "quarantine"
    assert judge(ledger, judged, shown(3 * LAG, OURS)) == "assigned"


@pytest.mark.parametrize("in_use", [frozenset({DOUBTFUL}), None], ids=["named", "silent kernel"])
def test_what_the_kernel_names_stays_where_it_is(
    ledger: database.Ledger, in_use: frozenset[str] | None
) -> None:
    """Or might name, if it cannot be read."""
    judged = quarantine.Quarantine(0)
    for n in range(3):
        assert judge(ledger, judged, shown(n * LAG, OURS), in_use) == "quarantine"
    assert judge(ledger, judged, shown(3 * LAG, OURS)) == "assigned"


def test_a_restart_waits_again(ledger: database.Ledger) -> None:
    assert judge(ledger, quarantine.Quarantine(0), shown(0, OURS)) == "quarantine"
    assert judge(ledger, quarantine.Quarantine(0), shown(LAG, OURS)) == "quarantine"


def test_an_address_that_two_looks_miss_ends_unless_a_pod_has_it(ledger: database.Ledger) -> None:
    """Somebody took both back in EC2: the free one's row ends, the pod's stays until its deletion."""
    with ledger.write(durable=True) as tx:
        writes.address_trusted(tx, DOUBTFUL, 3, 0)
    with ledger.write() as tx:
        leased = node.claim(tx, "c1", 4).address
    judged = quarantine.Quarantine(0)
    late = writes.ADOPTION_LAG_MS + 10

    def left(at: int) -> set[str]:
        seen = shown(at, None)
        with ledger.write(durable=True) as tx:
            writes.adopt(tx, seen, at)
            judged.judge(tx, seen, frozenset(), at)
        with ledger.read() as tx:
            return {a.address for a in reads.desired(tx, 0).addresses}

    assert len(left(late)) == 2
    assert len(left(late + LAG - 1)) == 2
    assert left(late + LAG) == {leased}
    assert left(late + 9 * LAG) == {leased}
