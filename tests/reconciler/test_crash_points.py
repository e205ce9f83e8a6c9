"""The daemon's inside ends at any point of its work, as by kill -9, and is started again (I7, I8).

A forked child serves calls; the n-th time it is about to run SQL or to send something to the kernel, or
has just done so, it is gone. Nothing in it is prepared for that. What the runtime does then is what it does
always: it deletes what was not answered, and goes on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from ledger import integrity, writes
from reconciler import recovery
from tests.lab import spaces
from tests.reconciler.door import Door, Pod

pytestmark = [pytest.mark.netns, pytest.mark.slow]

POINTS = frozenset({"execute", "send", "sendto", "sendmsg"})
"""C functions before and after each call of which the child may end: SQL, and netlink."""
STORY = (("ADD", 0), ("ADD", 1), ("CHECK", 0), ("DEL", 0), ("ADD", 2), ("DEL", 1), ("CHECK", 2))
DONE = 200
STEP = 5
"""Every so many points are tried, beginning at another one in each of so many runs."""


class Countdown:
    """Ends the process at the n-th point."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, _: FrameType, event: str, what: Any) -> None:
        if event in {"c_call", "c_return"} and getattr(what, "__name__", "") in POINTS:
            self.left -= 1
            if self.left == 0:
                os._exit(137)


def live(folder: Path, node: spaces.Netns, pods: list[Pod], point: int) -> tuple[bool, list[str]]:
    """One life that ends at `point`: whether it ended by itself before, and the calls it answered."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            door = Door(folder, addresses=(0, 6), node=node)
            with door.ledger.write(durable=True) as tx:
                writes.record_boot(tx, "boot-1", door.now)
            sys.setprofile(Countdown(point))
            for verb, number in STORY:
                answer = door.call(verb, pods[number], prevResult=pods[number].result)
                if answer.status == 0:
                    if verb == "ADD":
                        pods[number].result = answer.said
                    said = pods[number].result["ips"][0]["address"]
                    os.write(writing, f"{verb} {number} {said}\n".encode())
            sys.setprofile(None)
            status = DONE
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as told:
        answered = told.read().splitlines()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in {DONE, 137}, f"the child failed by itself: {status}"
    return status == DONE, answered


@pytest.fixture
def node() -> Iterator[spaces.Netns]:
    made = Door._machine()
    yield made
    made.close()


@pytest.mark.parametrize("first", range(1, STEP + 1))
@pytest.mark.timeout(900)
def test_it_may_end_at_any_point(tmp_path: Path, node: spaces.Netns, first: int) -> None:
    """What was answered is there, what was not can be repeated, and nothing is left over."""
    point, ended = first, False
    while not ended:
        folder = tmp_path / str(point)
        folder.mkdir()
        pods = [Pod(f"{point}-{n}") for n in range(3)]
        ended, answered = live(folder, node, pods, point)
        _expect(folder, node, pods, answered)
        for pod in pods:
            pod.close()
        point += STEP
    assert point > 10 * STEP, "the points were not counted"


def _expect(folder: Path, node: spaces.Netns, pods: list[Pod], answered: list[str]) -> None:
    assert integrity.make_sound(folder / "ledger.db") is None
    door = Door(folder, addresses=(0, 6), node=node)
    try:
        recovery.first_minute(door.ledger, door.loop, "boot-1", [folder / "spool"], door.clock)
        door.loop.reap()
        half = "SELECT state FROM v_leases WHERE state IN ('reserved', 'waiting')"
        assert door.rows(half) == [], "what nobody waits for is undone before the door opens"
        alive: dict[int, str] = {}
        for verb, who, where in (line.split() for line in answered):
            if verb == "ADD":
                alive[int(who)] = where.partition("/")[0]
            elif verb == "DEL":
                alive.pop(int(who), None)
        cut = STORY[len(answered)] if len(answered) < len(STORY) else None
        for number, address in alive.items():
            if cut == ("DEL", number):
                continue  # begun and not answered: the runtime asks again
            lease = door.lease(pods[number])
            assert lease is not None, f"an acknowledged ADD is gone: {answered}"
            assert (lease.address, lease.state) == (address, "active")
            assert pods[number].pings("10.0.0.4")
        if cut is not None:
            door.call("DEL", pods[cut[1]])  # a call that failed is followed by DEL
            assert door.lease(pods[cut[1]]) is None
        if cut is None or cut[1] != 2:
            assert door.call("ADD", pods[2]).status == 0
        open_now = {row["address"] for row in door.rows("SELECT address FROM v_pods")}
        shown = node.command("ip", "rule")
        assert sum(f"to {address} " in shown for address in open_now) == len(open_now)
        for pod in pods:
            door.call("DEL", pod)
        door.loop.reap()
        door.loop.tick()
        assert door.rows("SELECT 1 FROM v_pods") == []
        left = node.command("ip", "-o", "link")
        assert "vpcledger:" not in left
        assert " to 10.0.0." not in node.command("ip", "rule")
    finally:
        door.pods.clear()
        door.kernel.close()
        door.ledger.close()
        os.close(door.own)
