"""The daemon ends and starts again: what it keeps, what it takes in, what it leaves alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab import spaces
from tests.lab.kubelet import CniError
from tests.lab.node import DaemonFailed, Node
from tests.lab.whole import Lab
from tests.reconciler import live
from tests.reconciler.live import changes, findings, rows, until

pytestmark = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))


@contextmanager
def kernel_news(node: Node, file: Path) -> Iterator[Path]:
    """What rtnetlink(7) tells of links, addresses, routes and rules meanwhile, in a file of lines.

    Whoever reads it sees `mark-end` when all that came before has been written.
    """
    with file.open("wb") as out:
        heard = node.netns.run(
            subprocess.Popen,
            ["ip", "-o", "monitor", "link", "address", "route", "rule"],
            stdout=out,
        )
    try:
        _mark(node, file, "mark-begin")
        yield file
        _mark(node, file, "mark-end")
    finally:
        heard.kill()
        heard.wait()


def _mark(node: Node, file: Path, name: str) -> None:
    """Make and remove a link until it is heard of."""

    def heard() -> bool:
        node.netns.command("ip", "link", "add", name, "type", "veth", "peer", "name", "mark-peer")
        node.netns.command("ip", "link", "del", name)
        return name in file.read_text()

    until(heard, f"{name} in the kernel's news")


def test_a_restart_writes_nothing_and_looks_at_ec2_once(lab: Lab, tmp_path: Path) -> None:
    """Twelve pods on three interfaces: no news from the kernel, no mutation, one call."""
    lab.start()
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    pods = kubelet.start_all(f"web-{n}" for n in range(12))
    live.settle(node)
    # New links find out for a second or two whether their own address is unique (RFC 4862, 5.4).
    until(lambda: "tentative" not in node.netns.command("ip", "-6", "address"), "that")
    leases = rows(node, "SELECT * FROM v_leases ORDER BY id")
    before = live.picture(node)
    mended = "SELECT count(*) AS n FROM v_journal WHERE kind = 'kernel.mended'"
    count = rows(node, mended)
    assert node.stop_daemon() == 0
    lab.front.journal.clear()

    with kernel_news(node, tmp_path / "news") as news:
        node.start_daemon()
        for pod in pods:
            kubelet.check(pod)
        until(lab.front.journal.rows, "the look at EC2 after a start")
        live.settle(node)

    assert [line for line in news.read_text().splitlines() if "mark-" not in line] == []
    assert rows(node, mended) == count
    assert live.picture(node) == before
    assert rows(node, "SELECT * FROM v_leases ORDER BY id") == leases
    assert live.calls(lab) == {"DescribeNetworkInterfaces": 1}


def test_sigterm_ends_in_time_and_tells_who_waits(lab: Lab) -> None:
    """EC2 hangs, an ADD is held: it is refused with a sentence, and the end is a clean one."""
    lab.start(VPCLEDGER_ADD_WAIT="60")
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    with lab.cloud.lock:
        lab.front.faults.add(op="CreateNetworkInterface", delay=30.0)
    kubelet.start_all(f"web-{n}" for n in range(9))
    waits = kubelet.sandbox("waits")

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(kubelet.add, waits)
        until(lambda: rows(node, "SELECT 1 FROM v_pods WHERE state = 'waiting'"), "a waiting pod")
        began = time.monotonic()
        status = node.stop_daemon()
        taken = time.monotonic() - began
        with pytest.raises(CniError) as told:
            asked.result()

    assert status == 0
    assert taken < 5
    assert (told.value.code, told.value.message.partition(":")[0]) == (11, "stopping")


def test_sigterm_is_heard_whichever_thread_takes_it(lab: Lab) -> None:
    """The kernel may give it to any (signal(7)), and does after a stop; the main one has to wake up."""
    lab.start()
    daemon = lab.nodes[0].daemon
    assert daemon
    threads = {int(task.name) for task in Path(f"/proc/{daemon.pid}/task").iterdir()}

    os.kill(max(threads - {daemon.pid}), signal.SIGTERM)

    assert daemon.wait(timeout=live.PATIENCE_S) == 0


def test_a_thread_that_dies_ends_the_daemon() -> None:
    """Exit status 1, for whoever starts it again; a door without a thread would serve nobody."""
    program = (
        "import threading; from reconciler import process; end = process.End();"
        "threading.Thread(target=lambda: 1 / 0).start(); end.wait(); print(end.broken)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "True\n"
    assert "ZeroDivisionError" in done.stderr


def test_a_socket_that_cannot_be_made_is_told(lab: Lab) -> None:
    """A folder stands in its place: the last word says so."""
    node = lab.nodes[0]
    in_the_way = node.run / "vpcledger.sock" / "occupied"
    in_the_way.mkdir(parents=True)
    with pytest.raises(DaemonFailed) as told:
        node.start_daemon()
    assert "ended with 1" in str(told.value)
    assert "vpcledger.sock" in node.tail(1)


FAILS_TO_START = """
import sys
from reconciler import cli, recovery

def fails(*_):
    raise OSError("the first minute failed")

recovery.first_minute = fails
sys.exit(cli.main(["daemon"]))
"""


def test_a_start_that_fails_says_why_and_nothing_else(lab: Lab) -> None:
    """That is the last word, not what stopping half a daemon would meet."""
    node = lab.nodes[0]
    done = node.python(FAILS_TO_START)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("vpcledger: the first minute failed;")
    assert "Traceback" not in done.stderr
    assert '"stopping"' not in done.stderr


def test_a_reboot_costs_ec2_nothing(lab: Lab) -> None:
    """The old leases end for that reason, late deletions succeed, new pods get the addresses kept."""
    lab.start()
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    old = kubelet.start_all(f"old-{n}" for n in range(12))
    live.settle(node)
    known = {row["address"] for row in rows(node, "SELECT address FROM v_addresses")}
    node.reboot()
    lab.front.journal.clear()

    node.start_daemon()
    new = kubelet.start_all(f"new-{n}" for n in range(10))

    assert changes(lab) == {}
    assert {pod.address for pod in new} < known
    assert all(pod.ping(node.address) for pod in new)
    ended = "SELECT reason, count(*) AS n FROM v_leases WHERE state = 'ended' GROUP BY reason"
    assert rows(node, ended) == [{"reason": "reboot", "n": 12}]
    kubelet.stop_all(old)
    for pod in new:
        kubelet.check(pod)
    assert len(rows(node, "SELECT 1 FROM v_pods")) == 10


def test_deletions_while_it_is_away_are_taken_in(lab: Lab) -> None:
    lab.start()
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    pods = kubelet.start_all(f"web-{n}" for n in range(5))
    node.kill_daemon()

    kubelet.stop_all(pods[:3])
    node.start_daemon()

    ended = rows(node, "SELECT DISTINCT reason FROM v_leases WHERE state = 'ended'")
    assert ended == [{"reason": "deleted_late"}]
    for pod in (*pods[3:], kubelet.start("next")):
        kubelet.check(pod)
    rules = node.netns.command("ip", "rule")
    assert not [pod for pod in pods[:3] if pod.address in rules]


def test_what_a_dead_launcher_left_half_written_is_removed(lab: Lab) -> None:
    node = lab.nodes[0]
    unfinished = node.state / "spool" / "tmp"
    unfinished.mkdir(parents=True, exist_ok=True)
    node.start_daemon()
    old, new = unfinished / "1000-1-0.del", unfinished / f"{time.time_ns()}-1-0.del"
    old.write_bytes(b"CNI")
    new.write_bytes(b"CNI")

    assert node.daemon
    os.kill(node.daemon.pid, signal.SIGUSR1)

    until(lambda: not old.exists(), "the old one removed")
    assert new.exists()


def test_with_everything_dead_pods_are_served_from_stock(lab: Lab) -> None:
    """Decision 8: EC2 and metadata are gone; the ledger has addresses; the door is open in a second."""
    lab.start()
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    old = kubelet.start("old")
    node.kill_daemon()
    with lab.cloud.lock:
        lab.front.faults.add(error="InternalError")

    dead = {
        "AWS_EC2_ENDPOINT": "http://198.51.100.9",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://198.51.100.9",
    }
    began = time.monotonic()
    node.start_daemon(**dead)
    new = kubelet.start("new")
    taken = time.monotonic() - began

    assert new.ping(node.address)
    kubelet.stop(old)
    until(lambda: "imds_down" in findings(node), "the finding imds_down")
    assert taken < 5, "far beyond a second even on a busy machine"
    node.kill_daemon()
    with lab.cloud.lock:
        lab.front.faults.clear()
    for name in dead:
        del node.environment[name]
    node.start_daemon()
    until(lambda: not findings(node), "no finding left")


def test_a_dead_ec2_is_noticed_and_so_is_its_return(lab: Lab) -> None:
    """The finding opens and closes by itself; pods come and go meanwhile."""
    lab.start()
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    old = kubelet.start("old")
    live.settle(node)
    node.stop_daemon()
    with lab.cloud.lock:
        lab.front.faults.add(error="InternalError")

    node.start_daemon()
    new = kubelet.start("new")
    kubelet.stop(old)
    until(lambda: "ec2_down" in findings(node), "the finding ec2_down")
    with lab.cloud.lock:
        lab.front.faults.clear()

    until(lambda: findings(node) == set(), "its end")
    kubelet.check(new)
    assert new.ping(node.address)


def test_a_fresh_node_is_not_announced_before_a_pod_can_be_served(lab: Lab) -> None:
    """Without EC2 there is no conflist; with EC2 there is one, and it outlives the daemon."""
    node = lab.nodes[0]
    with lab.cloud.lock:
        lab.front.faults.add(error="InternalError")

    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(lab.start)
        until((node.run / "vpcledger.sock").exists, "the door")
        until(lambda: "ec2_down" in findings(node), "the finding ec2_down")
        assert list(node.conf.iterdir()) == []
        with lab.cloud.lock:
            lab.front.faults.clear()
        started.result()

    conflist = json.loads((node.conf / "10-aws.conflist").read_text())
    assert (conflist["cniVersion"], conflist["plugins"][0]["type"]) == ("0.4.0", "aws-cni")
    lab.kubelets[0].status()
    node.stop_daemon()
    assert (node.conf / "10-aws.conflist").exists()
