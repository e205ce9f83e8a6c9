"""A node whose ledger is damaged while the daemon is down: pods live on, and nobody gets their addresses.

What SQLite makes of a damaged file is shown in tests/ledger.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.lab import spaces
from tests.lab.stream import Stream
from tests.lab.whole import Lab
from tests.reconciler import live
from tests.reconciler.live import findings, rows, until

pytestmark = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))


def test_a_damaged_ledger_is_rebuilt_with_pods_alive(lab: Lab, tmp_path: Path) -> None:
    lab.start()
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    pods = kubelet.start_all(f"web-{n}" for n in range(6))
    live.settle(node)
    held = {pod.container: pod.address for pod in pods}
    copy = tmp_path / "copy.db"
    assert node.product("backup", str(copy)).returncode == 0
    assert node.stop_daemon() == 0
    with node.ledger.open("r+b") as raw:
        raw.seek(4096 * 2)
        raw.write(b"\xa5" * 4096 * 20)
    assert node.product("integrity").returncode == 1

    node.start_daemon()

    until(lambda: rows(node, "SELECT 1 FROM v_pods"), "the rebuilt leases")
    assert "ledger_damaged" in findings(node)
    rebuilt = rows(node, "SELECT container_id, address FROM v_leases WHERE ended_at IS NULL")
    assert {row["container_id"]: row["address"] for row in rebuilt} == held
    fresh = kubelet.start("fresh")
    assert fresh.address not in held.values()
    assert all(pod.ping(node.address) for pod in (*pods, fresh))
    kubelet.stop_all(pods)
    (aside,) = node.state.glob("*.damaged")
    assert node.product("integrity", "--ledger", str(aside), "--quick").returncode == 1
    sound = node.product("integrity", "--ledger", str(copy), "--json")
    assert json.loads(sound.stdout) == {"sound": True, "text": "ok"}
    for part in node.state.glob("*.damaged*"):
        part.unlink()
    assert node.stop_daemon() == 0
    node.start_daemon()
    until(lambda: "ledger_damaged" not in findings(node), "the finding's end")


@pytest.mark.parametrize("how", ["damaged", "lost"])
def test_without_ledger_and_records_kernel_and_ec2_tell(lab: Lab, how: str) -> None:
    """No checkpoint, no cached result: pods that live keep address and traffic, what only a rule names is doubtful.

    Their sandboxes have no name then, so a deletion is not enough to end such a lease: the witnesses do.
    """
    lab.start(WARM_IP_TARGET="3", VPCLEDGER_SANDBOX_INTERVAL="5")
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    pods = kubelet.start_all(f"web-{n}" for n in range(4))
    gone = kubelet.start("gone")
    live.settle(node)
    held = {pod.address for pod in pods}
    node.kill_daemon()
    link = next(
        row["ifname"]
        for row in json.loads(node.netns.command("ip", "-j", "route", "show", gone.address))
        for row in [{"ifname": row["dev"]}]
    )
    node.netns.command("ip", "link", "del", link)
    for record in (*node.run.glob("ipam*.json"), *node.cache.iterdir()):
        record.unlink()
    if how == "lost":
        for part in node.state.glob("ledger.db*"):
            part.unlink()
    else:
        with node.ledger.open("r+b") as raw:
            raw.seek(4096 * 2)
            raw.write(b"\xa5" * 4096 * 20)
    streams = [Stream(pod.netns, node.address, interval=0.02) for pod in pods]

    node.start_daemon()

    named = "SELECT container_id, address FROM v_leases WHERE ended_at IS NULL"
    live.same(lambda: {row["address"] for row in rows(node, named)}, lambda: held, "their leases")
    assert all(row["container_id"].startswith("unknown-") for row in rows(node, named))
    doubtful = "SELECT address FROM v_addresses WHERE state = 'quarantine'"
    assert [row["address"] for row in rows(node, doubtful)] == [gone.address]
    live.settle(node)
    fresh = kubelet.start_all(f"new-{n}" for n in range(3))
    assert not {pod.address for pod in fresh} & {*held, gone.address}
    assert [stream.stop().lost for stream in streams] == [0] * len(streams)
    assert ("ledger_damaged" in findings(node)) == (how == "damaged")
    assert all(pod.ping(pods[0].address) for pod in (*pods[1:], *fresh))
    assert lab.fabric.drops() == {}

    kubelet.stop_all(pods)
    live.same(
        lambda: {row["address"] for row in rows(node, named)},
        lambda: {pod.address for pod in fresh},
        "the end of those that were stopped",
    )


def test_a_backup_is_never_written_over_the_ledger(lab: Lab) -> None:
    lab.start()
    node = lab.nodes[0]
    for name in ("ledger.db", "ledger.db-wal"):
        refused = node.product("backup", str(node.state / name))
        assert refused.returncode == 1
        assert "is the ledger itself" in refused.stderr
    assert node.product("integrity").stdout == "ok\n"
