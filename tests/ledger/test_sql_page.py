"""Every question on the SQL page works and is answered, on a ledger of some busy hours."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger import database, integrity, migrate, reads
from tests.ledger import sample

PAGE = (Path(__file__).parents[2] / "deploy" / "docs" / "sql.md").read_text()
QUESTIONS: dict[str, str] = dict(
    re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```sql\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
)
THIRD = "eni-00000000000000003"

ANSWERS: dict[str, dict[str, Any]] = {
    "Who had an address at a certain time?": {"pod_name": "web-0", "reason": "deleted"},
    "Who else had it, and how long did it rest in between?": {
        "pod_name": "web-6",
        "rested_ms": 8 * sample.MINUTE,
    },
    "Which addresses has this pod had on this node?": {"address": "10.0.2.10", "reason": ""},
    "What happened to this address?": {"kind": "address.released", "text": "released"},
    "How many pods did each interface carry an hour ago?": {"pods": 4},
    "Why is this pod stuck?": {"reason": "growing", "waits_for_operation": "CreateEni"},
    "Which pods are stuck now, by cause?": {"reason": "growing", "pods": 1, "which": "db-1"},
    "What was refused in the last hour, and why?": {"command": "ADD", "times": 2},
    "Which pods are cut off, because EC2 no longer shows their address?": {"pod_name": "web-1"},
    "Which leases are in doubt after a reboot?": {"pod_name": "web-1", "boot_id": "6f1c3c3e-0001"},
    "Which addresses are in quarantine, and why?": {"reason": "seen in an unknown pod"},
    "Is any address held twice?": {"leases": 8, "addresses": 8},
    "Which kernel objects are missing, and what did the kernel say?": {"error": "ENETUNREACH"},
    "What is wrong, the oldest first?": {"code": "throttled", "minutes": 9},
    "Which changes are half done?": {"operation": "CreateEni", "state": "sent"},
    "Which calls may have happened though nobody saw the reply?": {"operation": "DetachEni"},
    "How many calls were made in the last hour, how many failed, how slow were they?": {
        "operation": "AssignAddresses",
        "failed": 3,
        "p95_ms": 180,
    },
    "What caused the calls, and who burns the budget?": {"lane": "warm", "throttled": 3},
    "Is the same failure repeating?": {"subject": THIRD, "times": 3},
    "Is the warm pool growing and shrinking by turns?": {"grew": 1, "shrank": 1},
    "Was an interface that is not ours ever changed?": {"managed": 0, "changes": 0},
    "How many more pods fit right now, and what do the other addresses do?": {
        "state": "free",
        "addresses": 1,
    },
    "Which interfaces serve nobody, and what do they hold?": {"eni_id": THIRD, "held": 5},
    "What is held but idle, and since when?": {"eni_id": THIRD, "never_used": 4},
    "How long did pods wait for an address?": {"waited": 1, "longest_ms": 9_000},
    "How fast is ADD, served at once or after a refusal?": {"refused_before": 1, "p99_us": 1_900},
    "Which deletions came while the daemon was away, and are they settled?": {"settled": 1},
    "Which sandboxes were added or deleted more than once?": {"container_id": "sandbox-0"},
    "What has happened since the last start?": {"kind": "lease.in_doubt", "times": 7},
    "Which settings are in force, and what did they replace?": {"value": "2", "was": "5"},
    "How soon are addresses used again?": {"reuses": 1, "shortest_s": 480},
}


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[database.Ledger]:
    """The sample node's ledger, read-only, as an operator opens it."""
    path = tmp_path_factory.mktemp("busy") / "ledger.db"
    migrate.bring_to_head(path)
    with database.Ledger.open(path) as ledger:
        sample.fill(ledger, int(time.time() * 1000))
    assert integrity.quick_check(path) == integrity.SOUND
    with database.Ledger.open(path, read_only=True) as ledger:
        yield ledger


def test_every_statement_of_the_page_is_under_a_question() -> None:
    """None is left out by the way this test reads the page."""
    assert len(QUESTIONS) == PAGE.count("```sql\n") >= 20
    assert set(QUESTIONS) == set(ANSWERS)


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_question_is_answered(question: str, busy: database.Ledger) -> None:
    """The answer holds what the sample's story says."""
    with busy.read() as tx:
        rows = reads.query(tx, QUESTIONS[question], limit=1000)
    wanted = ANSWERS[question].items()
    assert any(wanted <= row.items() for row in rows), rows


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_question_is_asked_of_public_views_only(question: str) -> None:
    """Tables may change with any release, so the page must not teach them."""
    named = set(re.findall(r"\b(?:FROM|JOIN) (\w+)", QUESTIONS[question]))
    own = set(re.findall(r"(\w+)(?:\(\w+\))? AS \(\s*SELECT", QUESTIONS[question]))
    assert {name for name in named - own if not name.startswith("v_")} == set()
