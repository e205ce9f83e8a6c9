"""The command line on a live node and on a copied ledger: answers, JSON, refusals, exit codes."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ledger import migrate, reads
from tests.lab import spaces
from tests.lab.whole import Lab
from tests.reconciler import live
from tests.reconciler.door import Door


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A ledger with two pods, one of them deleted, copied from its node by the backup API."""
    (tmp_path / "live").mkdir()
    door = Door(tmp_path / "live")
    try:
        door.added("web-1")
        gone = door.added("web-2")
        door.call("DEL", gone)
        door.call("ADD", door.pod("nowhere"), {"CNI_NETNS": ""})
        door.ledger.backup(tmp_path / "copy.db")
    finally:
        door.close()
    return tmp_path / "copy.db"


def run(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    path = Path(sys.executable).with_name("vpcledger")
    env = {"PATH": os.environ["PATH"], **environ}
    return subprocess.run([str(path), *argv], capture_output=True, text=True, check=False, env=env)


def asked(*argv: str) -> Any:
    done = run(*argv)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("what", sorted(reads.TABLES))
def test_every_table_can_be_shown(copied: Path, what: str) -> None:
    """As JSON and as a table, with the same number of rows."""
    rows = asked("show", what, "--ledger", str(copied), "--json")
    table = run("show", what, "--ledger", str(copied)).stdout.splitlines()

    assert isinstance(rows, list)
    assert len(table) == (len(rows) + 1 if rows else 1)


def test_explain_tells_a_pods_story(copied: Path) -> None:
    told = asked("explain", "pod", "default/web-2", "--ledger", str(copied), "--json")

    assert told["now"] == []
    assert [row["reason"] for row in told["history"]] == ["deleted"]
    assert {row["command"] for row in told["requests"]} == {"ADD", "DEL"}


def test_explain_tells_who_had_an_address_and_what_an_interface_carries(copied: Path) -> None:
    held = asked("show", "pods", "--ledger", str(copied), "--json")[0]

    address = asked("explain", "ip", held["address"], "--ledger", str(copied), "--json")
    eni = asked("explain", "eni", held["eni_id"], "--ledger", str(copied), "--json")

    assert address["now"][0]["pod_name"] == "web-1"
    assert held["address"] in {row["address"] for row in eni["addresses"]}


def test_explaining_what_nobody_knows_says_nothing_and_ends_with_1(copied: Path) -> None:
    done = run("explain", "ip", "192.0.2.1", "--ledger", str(copied))
    assert (done.returncode, done.stdout) == (1, "")


def test_sql_answers_a_select_and_refuses_all_else(copied: Path) -> None:
    rows = asked("sql", "SELECT count(*) AS n FROM v_leases", "--ledger", str(copied), "--json")
    before = copied.read_bytes()

    refused = [
        run("sql", statement, "--ledger", str(copied))
        for statement in (
            "DELETE FROM leases",
            "DROP TABLE leases",
            "PRAGMA journal_mode=DELETE",
            "ATTACH '/tmp/x' AS x",
            "SELECT 1; DELETE FROM leases",
            "SELECT nonsense",
        )
    ]

    assert rows == [{"n": 2}]
    assert [done.returncode for done in refused] == [1] * 6
    assert all(done.stderr.startswith("vpcledger: ") for done in refused)
    assert copied.read_bytes() == before


def test_plan_of_a_copied_ledger_does_not_ask_this_machine(copied: Path) -> None:
    told = asked("plan", "--offline", "--ledger", str(copied), "--json")
    assert told["notes"][0]["code"] == "kernel_unknown"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("show", "--ledger", "/nonexistent"), "/nonexistent"),
        (("show", "--ledger", "/etc/passwd"), "/etc/passwd"),
        (("show", "nonsense"), "invalid choice"),
        (("explain", "cow", "x"), "invalid choice"),
        ((), "COMMAND"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(argv: tuple[str, ...], said: str) -> None:
    done = run(*argv)
    assert done.returncode in {1, 2}
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_setting_that_cannot_be_used_is_said_in_a_sentence() -> None:
    done = run("show", IP_COOLDOWN_PERIOD="soon")
    assert done.returncode == 1
    assert "IP_COOLDOWN_PERIOD='soon' is not a whole number of at least 0" in done.stderr


def test_a_newer_ledger_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    migrate.bring_to_head(path)
    with closing(sqlite3.connect(path)) as book:
        book.execute("UPDATE alembic_version SET version_num = '9999'")
        book.commit()
    before = path.read_bytes()

    done = run("show", "--ledger", str(path))

    assert done.returncode == 1
    assert "9999" in done.stderr
    assert path.read_bytes() == before


@pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))
def test_a_live_node_answers_beside_its_daemon() -> None:
    """show, explain, sql and plan while the daemon writes; plan sees the kernel and what is missing."""
    with Lab(nodes=1, attach_delay=0.1) as lab:
        lab.start()
        node, kubelet = lab.nodes[0], lab.kubelets[0]
        pods = kubelet.start_all(f"web-{n}" for n in range(3))
        live.settle(node)

        shown = json.loads(node.product("show", "pods", "--json").stdout)
        story = json.loads(node.product("explain", "pod", "default/web-1", "--json").stdout)
        node.pause_daemon()
        quiet = json.loads(node.product("plan", "--json").stdout)
        node.netns.command("ip", "rule", "del", "to", pods[0].address, "lookup", "main")
        wanted = json.loads(node.product("plan", "--json").stdout)
        node.resume_daemon()

        assert {row["address"] for row in shown} == {pod.address for pod in pods}
        assert story["now"][0]["state"] == "active"
        assert [a["action"] for a in quiet["actions"] if a["action"].startswith("Put")] == []
        assert [a["action"] for a in wanted["actions"] if a["action"].startswith("Put")] == [
            "Put Rule"
        ]
