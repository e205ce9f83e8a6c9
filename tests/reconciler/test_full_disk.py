"""The disk is full: whoever asks is told so, nothing is half done, and with room again it goes on by itself.

Each thing the daemon writes, refused at each write of it; and a real disk that fills up under a real daemon.
"""

from __future__ import annotations

import ctypes
import dataclasses
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger import database, integrity, model, writes
from reconciler import cloud, record, recovery
from reconciler.planner import actions
from tests.lab import spaces
from tests.lab.kubelet import CniError
from tests.lab.whole import Lab
from tests.ledger import disk
from tests.reconciler import live
from tests.reconciler.door import NODE, Door, Pod

pytestmark = [pytest.mark.netns, pytest.mark.slow]

PROGRAM = "from tests.reconciler import test_full_disk; test_full_disk.every_write({folder!r})"
STEP = 3
"""Every so many-th write of a round: a commit has a dozen, of a header and a page in turn."""


class RefusedError(Exception):
    """A call that was told why not."""


class Round:
    """What a daemon writes in its life, once through; it leaves the node as it was."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.pods: list[Pod] = []
        self.steps: list[Callable[[], None]] = [
            lambda: self.add(0),
            lambda: self.add(1),
            lambda: self.check(0),
            lambda: self.collect(0, 1),
            lambda: self.delete(0),
            lambda: self.add(2),
            self.lose,
            lambda: self.collect(1),
            self.observe,
            lambda: self.intend(actions.AssignAddresses("eni-1", 1)),
            lambda: self.answered({"addresses": ["10.0.0.99"]}),
            lambda: self.intend(actions.UnassignAddresses("eni-1", ("10.0.0.99",))),
            lambda: self.answered({}),
            lambda: self.intend(actions.AssignAddresses("eni-1", 1)),
            self.lost,
            self.settle,
            self.find,
            self.tidy,
            lambda: door.ledger.checkpoint() and None,
            self.start_again,
            lambda: self.delete(1),
        ]

    def _call(self, verb: str, pod: Pod | None, **config: Any) -> dict[str, Any]:
        answer = self.door.call(verb, pod, cniVersion="1.1.0", **config)
        if answer.status:
            assert (answer.code, answer.reason) == (11, "ledger_error"), answer.said
            assert "full" in answer.said["msg"]
            assert "disk space" in answer.said["details"]
            raise RefusedError
        return answer.said

    def add(self, number: int) -> None:
        """As the runtime does: what was refused is deleted, and a new sandbox tried."""
        pod = self.door.pod(f"web-{number}")
        self.pods[number:] = [pod]
        try:
            pod.result = self._call("ADD", pod)
        except RefusedError:
            self._call("DEL", pod)
            raise

    def check(self, number: int) -> None:
        self._call("CHECK", self.pods[number], prevResult=self.pods[number].result)

    def collect(self, *valid: int) -> None:
        listed = [{"containerID": self.pods[n].container, "ifname": "eth0"} for n in valid]
        self._call("GC", None, **{"cni.dev/valid-attachments": listed})

    def delete(self, number: int) -> None:
        self._call("DEL", self.pods[number])

    def lose(self) -> None:
        """The last pod's sandbox goes without a word."""
        lease = self.door.lease(self.pods[2])
        if lease is not None and lease.host_ifname in self.door.node.command("ip", "link"):
            self.door.node.command("ip", "link", "del", lease.host_ifname)

    def observe(self) -> None:
        self.door.adopt((0, 6))

    def intend(self, action: actions.CloudAction) -> None:
        self.step = actions.CloudStep(action, "warm", "a test")
        with self.door.ledger.write(durable=True) as tx:
            self.intent = record.intend(tx, self.step, self.door.now)

    def answered(self, result: dict[str, object]) -> None:
        self._record(actions.Outcome(self.step.action, result=result), "ok")

    def lost(self) -> None:
        code = "ReadTimeout"
        self._record(actions.Outcome(self.step.action, code, "no reply", unknown=True), code)

    def _record(self, outcome: actions.Outcome, code: str) -> None:
        done = cloud.CloudOutcome(outcome, "AssignPrivateIpAddresses", code, 1)
        with self.door.ledger.write(durable=True) as tx:
            record.cloud(tx, self.intent, self.step, done, self.door.now)

    def settle(self) -> None:
        now = self.door.now = self.door.now + record.SETTLE_AFTER_MS
        with self.door.ledger.write(durable=True) as tx:
            record.settle(tx, [self.intent], model.ObservedCloud(now, "ec2", ()), now)

    def find(self) -> None:
        with self.door.ledger.write() as tx:
            writes.open_finding(tx, "ec2_down", "a test", "x" * 5_000, self.door.now)
        with self.door.ledger.write() as tx:
            writes.close_finding(tx, "ec2_down", "a test", self.door.now)

    def tidy(self) -> None:
        self.door.loop.reap()
        self.door.loop.tick()
        with self.door.ledger.write() as tx:
            writes.record_node(
                tx, dataclasses.replace(NODE, security_groups=("sg-2",)), self.door.now
            )
            writes.prune(tx, self.door.now)

    def start_again(self) -> None:
        """What a start writes, in the midst of the pods."""
        door = self.door
        with door.ledger.write() as tx:
            writes.record_settings(
                tx, [("WARM_IP_TARGET", str(door.now), None, "default")], door.now
            )
        recovery.first_minute(door.ledger, door.loop, "boot-1", [door.spool], door.clock)


def every_write(folder: str) -> None:
    """The disk is full at the n-th write of a round, for an n that grows until nobody is refused."""
    fill_after = ctypes.CDLL(None).disk_full_after
    door = Door(Path(folder), addresses=(0, 6))
    bare, writes_seen = door.picture(), 0
    refused: set[int] = {0}
    while refused:
        writes_seen += STEP
        refused = set()
        round_ = Round(door)
        fill_after(writes_seen)
        for number, step in enumerate(round_.steps):
            try:
                step()
            except (RefusedError, database.Failure) as why:
                if isinstance(why, database.Failure) and not database.is_of_the_disk(why):
                    raise
                refused.add(number)
                _nothing_is_half_done(door)
                fill_after(0)
                door.drain()
                step()
        fill_after(0)
        door.drain()
        door.loop.reap()
        door.loop.tick()
        door.now += door.settings.ip_cooldown_ms
        assert door.rows("SELECT * FROM v_pods") == [], writes_seen
        assert door.rows("SELECT * FROM v_intents WHERE ended_at IS NULL") == [], writes_seen
        assert door.picture() == bare, writes_seen
        for pod in door.pods:
            pod.close()
        door.pods.clear()
    assert writes_seen > 100, "the writes were not heard"
    _copy(door, Path(folder) / "copy.db", fill_after)
    assert integrity.check(door.ledger.path) == integrity.SOUND
    print(writes_seen)


def _copy(door: Door, copy: Path, fill_after: Callable[[int], None]) -> None:
    """A copy that cannot be written to its end leaves nothing in its place."""
    number, refused = 1, True
    while refused:
        fill_after(number)
        try:
            door.ledger.backup(copy)
            refused = False
        except database.Failure:
            assert not list(copy.parent.glob("copy.db*"))
        fill_after(0)
        number *= 2
    assert number > 16, "a copy is made of many writes"
    assert integrity.check(copy) == integrity.SOUND


def _nothing_is_half_done(door: Door) -> None:
    """The ledger can be read, is true to itself, and who has an address in the kernel has it there."""
    leases = {row["address"] for row in door.rows("SELECT address FROM v_pods")}
    named = {
        line.split(" to ")[1].split()[0]
        for line in door.node.command("ip", "rule").splitlines()
        if " to 10." in line
    }
    assert named <= leases


@pytest.mark.timeout(600)
def test_the_disk_may_be_full_at_any_write_of_the_daemons(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """ADD, DEL, CHECK, GC, a start, looks at EC2, calls to it, findings, checkpoints, copies."""
    folder = tmp_path / "disk"
    folder.mkdir()
    story = PROGRAM.format(folder=str(folder))
    disk.run(story, folder, None, tmp_path_factory.getbasetemp())


@pytest.fixture
def small(lab: Lab) -> Iterator[Lab]:
    """A node whose state lies on a disk of four megabytes."""
    node = lab.nodes[0]
    size = ["-o", "size=4m,mode=755"]
    subprocess.run(["mount", "-t", "tmpfs", *size, "disk", str(node.state)], check=True)
    yield lab
    node.stop_daemon()
    subprocess.run(["umount", str(node.state)], check=True)


def fill(lab: Lab) -> Path:
    """Take all the room there is, as somebody's logs would."""
    filler = lab.nodes[0].state / "filler"
    with filler.open("wb", buffering=0) as out:
        size = 1 << 16
        while size:
            try:
                out.write(bytes(size))
            except OSError:
                size //= 2
    return filler


def use_up(lab: Lab) -> None:
    """Have the ledger use the room that it has already: what was written before is written over."""
    kubelet = lab.kubelets[0]
    for number in range(500):
        box = kubelet.sandbox(f"more-{number}")
        try:
            kubelet.add(box)
        except CniError:
            return
        finally:
            kubelet.remove(box)
    raise AssertionError("the disk never was full")


@pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))
def test_a_daemon_outlives_a_full_disk(small: Lab) -> None:
    """Pods keep their traffic, DEL succeeds, ADD is told why not; with room it goes on by itself."""
    small.start()
    node, kubelet = small.nodes[0], small.kubelets[0]
    pods = kubelet.start_all(f"web-{n}" for n in range(3))
    live.settle(node)
    filler = fill(small)
    use_up(small)

    told = live.refused(kubelet, "refused")
    assert (told.code, told.message.partition(":")[0]) == (11, "ledger_error")
    assert "disk space" in told.details
    with pytest.raises(CniError, match="ledger_error"):
        kubelet.status()
    kubelet.stop(pods.pop())
    assert all(pod.ping(node.address) for pod in pods)
    told_by_cli = node.product("backup", str(node.state / "copy.db"))
    assert told_by_cli.returncode == 1
    assert "there is room on the disk" in told_by_cli.stderr
    assert not list(node.state.glob("copy.db*"))
    assert node.daemon is not None
    assert node.daemon.poll() is None

    filler.unlink()
    pods.append(kubelet.start("after"))
    held = {pod.address for pod in pods}
    live.same(
        lambda: {row["address"] for row in live.rows(node, "SELECT address FROM v_pods")},
        lambda: held,
        "the leases of those that live",
    )
    live.until(lambda: not live.findings(node), "no finding left")
    for pod in pods:
        kubelet.check(pod)


@pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))
def test_a_start_waits_for_room_and_does_not_end(small: Lab) -> None:
    """SIGKILL with a full disk: the next daemon is the last one, and its log says what it waits for."""
    small.start()
    node, kubelet = small.nodes[0], small.kubelets[0]
    pods = kubelet.start_all(f"web-{n}" for n in range(3))
    live.settle(node)
    filler = fill(small)
    use_up(small)
    node.kill_daemon()

    node.begin_daemon()
    live.until(lambda: "make room" in node.tail(), "what it waits for")
    assert node.daemon is not None
    assert node.daemon.poll() is None
    kubelet.stop(pods.pop())
    assert all(pod.ping(node.address) for pod in pods)

    filler.unlink()
    node.await_ready()
    pods.append(kubelet.start("after"))
    for pod in pods:
        kubelet.check(pod)
    live.until(lambda: len(live.rows(node, "SELECT 1 FROM v_pods")) == 3, "three pods")


@pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))
def test_a_start_that_waits_for_room_ends_when_it_is_told_to(small: Lab) -> None:
    """SIGTERM is heard in the pause, and is no failure."""
    small.start()
    node = small.nodes[0]
    fill(small)
    use_up(small)
    node.kill_daemon()
    node.begin_daemon()
    live.until(lambda: "make room" in node.tail(), "what it waits for")
    assert node.stop_daemon() == 0
