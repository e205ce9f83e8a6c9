"""What a person is told: tables, all about one thing, any SELECT; and nothing that writes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from ledger import database, errors, migrate, reads
from tests.ledger import sample

NOW = int(time.time() * 1000)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[database.Ledger]:
    """The sample node's ledger."""
    path = tmp_path_factory.mktemp("busy") / "ledger.db"
    migrate.bring_to_head(path)
    with database.Ledger.open(path) as ledger:
        sample.fill(ledger, NOW)
        yield ledger


@pytest.mark.parametrize("what", reads.TABLES)
def test_every_table_that_can_be_shown_has_rows_that_are_json(
    what: str, busy: database.Ledger
) -> None:
    with busy.read() as tx:
        rows = reads.show(tx, what)
    assert rows
    assert json.loads(json.dumps(rows)) == rows


def test_a_pod_is_explained_by_name_by_full_name_and_by_sandbox(busy: database.Ledger) -> None:
    """What it holds, what it was refused, what it held before, what happened to it."""
    with busy.read() as tx:
        explained = reads.explain_pod(tx, "default/db-0")
        for name in ("db-0", "sandbox-20"):
            assert reads.explain_pod(tx, name)["requests"] == explained["requests"]
            assert reads.explain_pod(tx, name)["journal"] == explained["journal"]
        assert reads.explain_pod(tx, "other/db-0") == {part: [] for part in explained}
        before = reads.explain_pod(tx, "web-0")["history"]
    assert [row["address"] for row in explained["now"]] == ["10.0.4.10"]
    assert [row["reason"] for row in explained["requests"]] == ["", "growing"]
    assert [row["kind"] for row in explained["journal"]] == [
        "lease.active",
        "lease.claimed",
        "lease.waiting",
    ]
    assert [row["address"] for row in before] == ["10.0.2.10", "10.0.1.10"]


def test_an_address_is_explained_with_its_holders_or_as_a_primary(busy: database.Ledger) -> None:
    with busy.read() as tx:
        explained = reads.explain_address(tx, "10.0.1.10")
        primary = reads.explain_address(tx, "10.0.1.4")
    assert [row["state"] for row in explained["now"]] == ["leased"]
    assert [row["pod_name"] for row in explained["history"]] == ["web-6", "web-0"]
    assert explained["journal"][-1]["kind"] == "address.assigned"
    assert primary["now"] == []
    assert [row["device"] for row in primary["primary"]] == [1]


def test_an_interface_is_explained_with_its_addresses_and_intents(busy: database.Ledger) -> None:
    with busy.read() as tx:
        explained = reads.explain_eni(tx, "eni-00000000000000003")
    assert explained["now"][0]["held"] == len(explained["addresses"]) == 5
    assert explained["intents"][0]["state"] == "unknown"
    assert "intent.unknown" in {row["kind"] for row in explained["journal"]}


def test_a_query_is_bounded_and_names_its_columns(busy: database.Ledger) -> None:
    with busy.read() as tx:
        rows = reads.query(tx, "SELECT pod_name AS pod, 1 AS one FROM v_pods ORDER BY 1", limit=2)
    assert rows == [{"pod": "db-0", "one": 1}, {"pod": "db-1", "one": 1}]


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM leases",
        "UPDATE leases SET state = 'ended'",
        "DROP VIEW v_pods",
        "CREATE TABLE t(x)",
        "CREATE TEMP TABLE t(x)",
        "ATTACH 'elsewhere.db' AS e",
        "VACUUM INTO 'elsewhere.db'",
        "PRAGMA query_only=OFF",
        "PRAGMA journal_mode=DELETE",
        "COMMIT",
        "SELECT 1; DELETE FROM leases",
        "SELECT load_extension('x')",
        "SELECT nothing FROM nowhere",
        "SELECT",
        "",
    ],
)
def test_what_is_not_one_select_is_refused_in_words(statement: str, busy: database.Ledger) -> None:
    """Nothing is written, the snapshot stays open, and the next question is answered."""
    count = "SELECT count(*) AS n FROM v_leases"
    with busy.read() as tx:
        before = reads.query(tx, count, limit=1)
        with pytest.raises(errors.LedgerError, match="only one SELECT is answered"):
            reads.query(tx, statement, limit=10)
        assert reads.query(tx, count, limit=1) == before


def test_the_sums_the_reconciler_decides_by(busy: database.Ledger) -> None:
    """Of the sample: interface 4 alone is usable, one of its two addresses is leased."""
    with busy.read() as tx:
        counts = reads.free_count(tx, NOW)
        assert counts == reads.Counts(total=19, leased=8, free=1, cooling=0, quarantine=1)
        assert [lease.pod_name for lease in reads.waiting(tx)] == ["db-1"]
        assert reads.next_cooled_at(tx, NOW) is None


def test_desired_is_the_open_rows_only(busy: database.Ledger) -> None:
    with busy.read() as tx:
        desired = reads.desired(tx, NOW)
    assert desired.node is not None
    assert desired.node.vpc_cidrs == ("10.0.0.0/16",)
    assert len(desired.enis) == 5
    assert len(desired.addresses) == 19
    assert sum(address.leased for address in desired.addresses) == 8
    assert len(desired.leases) == 9
    assert {row.owner for row in desired.installed} == {"2", "3", "4", "5", "6", "7", "8"}
    assert [intent.state for intent in desired.intents] == ["sent", "unknown"]
