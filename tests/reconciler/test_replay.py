"""What a recorded demand would have met under other settings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ledger import database, migrate
from reconciler import refusals, whatif
from reconciler import settings as knobs
from reconciler.planner import limits
from tests.ledger import sample

HOUR = 3_600_000
SMALL = limits.Limits(3, 10, (3,), "nitro")


def targets(warm: int) -> knobs.Settings:
    return knobs.Settings(warm_ip_target=warm, minimum_ip_target=warm)


def test_a_burst_waits_where_the_warm_target_is_smaller() -> None:
    """Four pods at once: with one address warm three wait, for one call; with four none does."""
    burst = [whatif.Demand(HOUR, 2 * HOUR) for _ in range(4)]
    tight, wide = (whatif.replay(targets(warm), SMALL, burst) for warm in (1, 4))
    assert (tight.waits, wide.waits) == (3, 0)
    assert tight.waited_ms == 3 * refusals.ASSIGN_MS
    assert (tight.pods, tight.hours, tight.unserved) == (4, 1.0, 0)
    assert tight.held_mean < wide.held_mean


def test_a_pod_that_needs_an_interface_waits_longer_and_one_without_room_is_not_served() -> None:
    pods = [whatif.Demand(HOUR * n, None) for n in range(30)]
    found = whatif.replay(targets(1), SMALL, pods)
    assert found.longest_wait_ms in {0, refusals.ASSIGN_MS}  # the warm one is always there before
    assert (found.unserved, found.held_most) == (3, 27)
    assert found.ec2_calls["CreateNetworkInterface"] == 2
    bare = whatif.replay(knobs.Settings(warm_eni_target=0), SMALL, [whatif.Demand(0, None)] * 10)
    assert bare.longest_wait_ms == refusals.ATTACH_MS


def test_what_is_held_is_averaged_over_the_time() -> None:
    """One pod for an hour, then none for another, as long as something else happens at its end."""
    pods = [whatif.Demand(0, HOUR), whatif.Demand(2 * HOUR, 2 * HOUR)]
    found = whatif.replay(targets(2), SMALL, pods)
    assert found.held_most == 3
    assert 2.4 < found.held_mean < 2.6  # given back a minute or two after the first one went


def test_nothing_recorded_is_an_answer() -> None:
    assert whatif.replay(targets(1), SMALL, []).pods == 0


def test_the_command_reads_a_ledger(tmp_path: Path) -> None:
    """The node's own type, every pod of the record; without a warm target some wait."""
    path = tmp_path / "ledger.db"
    migrate.bring_to_head(path)
    with database.Ledger.open(path) as ledger:
        sample.fill(ledger, 1_800_000_000_000)
        with ledger.read() as tx:
            [row] = tx.dicts("SELECT count(*) AS pods FROM leases", {})
    program = str(Path(sys.executable).with_name("vpcledger"))
    found = []
    for warm in ("0", "9"):
        argv = [program, "whatif", "--recorded", "--ledger", str(path), "--json"]
        argv += ["--set", f"WARM_IP_TARGET={warm}", "--set", "MINIMUM_IP_TARGET=1"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found += json.loads(done.stdout)
    none, nine = found
    assert none["pods"] == nine["pods"] == row["pods"]
    assert none["waits"] > nine["waits"]
    assert none["held_mean"] < nine["held_mean"]
    assert sum(none["ec2_calls"].values()) > 0
