"""A thousand deletions in each state a daemon and its disk can be in: success at once, none of it lost.

The real launcher asks, as often at a time as a runtime would; the node has a thousand pods each time. That
a single deletion is kept as it should be is tests/cni's business.
"""

from __future__ import annotations

import json
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ledger import database, reads
from tests.bench import stopwatch
from tests.lab import spaces, world
from tests.lab.whole import Lab
from tests.reconciler import live

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing())),
]

PODS = 1_000
LIMIT_S = 2.0
"""How long the runtime may be kept waiting by a deletion."""


class Town:
    """A node with a thousand addresses, and a thousand namespaces whose pods come and go."""

    def __init__(self, lab: Lab, watch: stopwatch.Stopwatch, boxes: list[spaces.Netns]) -> None:
        self.lab, self.node, self.watch, self.boxes = lab, lab.nodes[0], watch, boxes
        conflist = json.loads(next(self.node.conf.glob("*.conflist")).read_text())
        self.config = self.node.root / "config"
        named = {"cniVersion": conflist["cniVersion"], "name": conflist["name"]}
        self.config.write_text(json.dumps(conflist["plugins"][0] | named))
        self.bare = live.picture(self.node)

    @property
    def spools(self) -> tuple[Path, Path]:
        return self.node.state / "spool", self.node.run / "spool"

    def waiting(self) -> list[Path]:
        return [path for spool in self.spools for path in spool.glob("*.del")]

    def calls(self, verb: str, ids: list[str]) -> list[stopwatch.Call]:
        plugin = self.node.bin / "aws-cni"
        return [
            stopwatch.Call(verb, box.path, each, f"pod-{n}", plugin, self.config)
            for n, (box, each) in enumerate(zip(self.boxes, ids, strict=True))
        ]

    def add(self) -> list[str]:
        """A thousand pods with network; their container ids."""
        ids = [uuid.uuid4().hex for _ in self.boxes]
        calls = self.calls("ADD", ids)
        for call, taken in zip(calls, self.watch.run(calls, together=16)[1], strict=True):
            stopwatch.require(call, taken)
        return ids

    def delete(self, ids: list[str], together: int = 16) -> float:
        """Each is deleted, with success; the seconds of the longest answer."""
        calls = self.calls("DEL", ids)
        each = self.watch.run(calls, together=together)[1]
        for call, taken in zip(calls, each, strict=True):
            stopwatch.require(call, taken)
        longest = max(taken.ns for taken in each) / 1e9
        assert longest < LIMIT_S
        return longest

    def open_leases(self) -> int:
        with database.Ledger.open(self.node.ledger, read_only=True) as book, book.read() as tx:
            return len(reads.open_leases(tx))

    def assert_all_effective(self) -> None:
        """After a restart; and the same files once more change nothing."""
        kept = {path: path.read_bytes() for path in self.waiting()}
        self.restart()
        live.until(lambda: not self.waiting(), "an empty spool")
        assert self.open_leases() == 0
        live.until(lambda: live.picture(self.node) == self.bare, "a kernel as before the first pod")
        leases = "SELECT * FROM v_leases ORDER BY id"
        before = live.rows(self.node, leases)
        for path, body in kept.items():
            path.write_bytes(body)
        self.restart()
        live.until(lambda: not self.waiting(), "an empty spool once more")
        assert live.rows(self.node, leases) == before
        assert live.picture(self.node) == self.bare

    def restart(self) -> None:
        self.node.kill_daemon()
        self.node.start_daemon()


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    program = stopwatch.build(tmp_path_factory.mktemp("stopwatch"))
    with Lab(
        nodes=1,
        instance_type="m5.4xlarge",
        nodes_in=world.WIDE_CIDR,
        attach_delay=0.1,
        throttle=None,
    ) as lab:
        node = lab.nodes[0]
        disk = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=755", "disk", str(node.state)]
        subprocess.run(disk, check=True)
        node.start_daemon(
            ENABLE_PREFIX_DELEGATION="true",
            MINIMUM_IP_TARGET=str(PODS),
            WARM_IP_TARGET="1",
            IP_COOLDOWN_PERIOD="0",
        )
        free = "SELECT count(*) AS n FROM v_addresses WHERE state = 'free'"
        live.until(lambda: live.rows(node, free)[0]["n"] >= PODS, "a thousand addresses")
        live.settle(node)
        boxes = [spaces.Netns(f"box-{n}", directory=node.pods) for n in range(PODS)]
        with stopwatch.Stopwatch(program, node.netns) as watch:
            yield Town(lab, watch, boxes)
        for box in boxes:
            box.close()
        node.kill_daemon()
        subprocess.run(["umount", str(node.state)], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Not a page is left on this file system."""
    filler = folder / "filler"
    done = subprocess.run(["dd", "if=/dev/zero", f"of={filler}"], capture_output=True, check=False)
    assert b"No space left" in done.stderr
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)


def told(town: Town, longest: float) -> None:
    """What `pytest -s` shows of it."""
    print(f"longest answer {longest * 1000:.0f} ms; {len(town.waiting())} were kept")


def test_with_a_daemon_that_is_killed_while_they_come(town: Town) -> None:
    """Some were answered by it, some were in its hands, some came after."""
    ids = town.add()
    half = threading.Thread(target=_kill_at, args=(town, PODS // 2))
    half.start()
    longest = town.delete(ids)
    half.join()
    told(town, longest)
    assert 0 < len(town.waiting()) < PODS
    town.assert_all_effective()


def _kill_at(town: Town, left: int) -> None:
    live.until(lambda: town.open_leases() <= left, "half of them done")
    town.node.kill_daemon()


def test_with_a_daemon_that_is_stopped(town: Town) -> None:
    """It has all of them in its socket, and does them when it goes on; the spool has them as well."""
    ids = town.add()
    town.node.pause_daemon()
    longest = town.delete(ids, together=250)
    told(town, longest)
    assert len(town.waiting()) == PODS
    town.node.resume_daemon()
    live.until(lambda: town.open_leases() == 0, "what waited in the socket")
    town.assert_all_effective()


def test_with_a_stale_socket(town: Town) -> None:
    """The daemon was killed and has left its socket."""
    ids = town.add()
    town.node.kill_daemon()
    assert (town.node.run / "vpcledger.sock").is_socket()
    told(town, town.delete(ids))
    assert len(town.waiting()) == PODS
    town.assert_all_effective()


def test_with_a_read_only_disk(town: Town) -> None:
    ids = town.add()
    town.node.kill_daemon()
    with read_only(town.node.state):
        told(town, town.delete(ids))
    assert len(list(town.spools[1].glob("*.del"))) == PODS
    town.assert_all_effective()


def test_with_a_full_disk_under_a_daemon(town: Town) -> None:
    """It cannot write one down, and gives it back to the launcher, which keeps it in memory."""
    ids = town.add()
    with full(town.node.state):
        told(town, town.delete(ids))
    assert len(list(town.spools[1].glob("*.del"))) > 0
    town.assert_all_effective()
