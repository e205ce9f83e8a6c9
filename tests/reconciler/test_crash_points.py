"""The daemon ends by SIGKILL at any point of its work and is started again (I7, I8).

Nothing in it is prepared for that. What the runtime does then is what it does always: it deletes what was not
answered, and goes on. Once one call after the other, where each point of a short story is tried and everything is
looked at after each; once with sixteen callers, where a thousand deaths follow each other.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from ledger import integrity, writes
from reconciler import recovery
from tests.lab import spaces
from tests.lab.node import Node
from tests.lab.stream import Stream
from tests.lab.whole import Lab
from tests.reconciler import live, mortal
from tests.reconciler.crowd import Crowd
from tests.reconciler.door import Door, Pod
from tests.reconciler.test_callers import leased, wired
from tests.reconciler.test_kill import agree

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
                os.kill(os.getpid(), signal.SIGKILL)


def lived(folder: Path, node: spaces.Netns, pods: list[Pod], point: int) -> tuple[bool, list[str]]:
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
    assert status in {DONE, -signal.SIGKILL}, f"the child failed by itself: {status}"
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
        ended, answered = lived(folder, node, pods, point)
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


CALLERS, LIVES = 16, 1_000
ACTS = 151
"""A life ends at one of so many acts, each of them as often: a prime number of them."""
STRIDE = 67
BORN = 100
"""One life in so many is a process with nothing of another's in it."""
POOL = {"WARM_IP_TARGET": "1", "MINIMUM_IP_TARGET": "70", "IP_COOLDOWN_PERIOD": "0"}
"""Addresses enough for all of them, so that none waits for EC2."""


def die_a_thousand_times(node: Node, crowd: Crowd, library: Path) -> tuple[list[int], Counter[str]]:
    """The crowd's steps while one life follows another, and before what those ended."""
    over, steps = threading.Event(), []
    working = threading.Thread(target=lambda: steps.extend(crowd.run(over)))
    with mortal.Mortal(node, library) as daemon:
        working.start()
        for number in range(1, LIVES + 1):
            one = daemon.born if number % BORN == 0 else daemon.live
            assert one(1 + number * STRIDE % ACTS) == -signal.SIGKILL, node.tail()
        over.set()
    node.start_daemon()  # the last one lives, and the steps that were begun end
    working.join()
    return steps, daemon.deaths()


def end_state(node: Node, crowd: Crowd) -> dict[str, object]:
    """Wait until ledger, kernel and runtime agree, and say what there is, without numbers and addresses."""
    crowd.collect()
    pods = {(box.name, box.address) for box in crowd.pods()}
    open_now = "SELECT pod_name, address, state FROM v_pods WHERE pod_namespace = 'crowd'"

    def held() -> set[tuple[str, str]]:
        return {(row["pod_name"], row["address"]) for row in live.rows(node, open_now)}

    live.same(held, lambda: pods, "a lease for each pod of the runtime's and no other")
    live.same(lambda: wired(node), lambda: leased(node), "the kernel has what leases say")
    live.until(lambda: not live.findings(node), f"no finding left: {live.findings(node)}")
    live.settle(node)
    counted = "SELECT state, count(*) AS n FROM v_addresses GROUP BY state ORDER BY state"
    return {
        "pods": {name for name, _ in pods},
        "states": {row["state"] for row in live.rows(node, open_now)},
        "addresses": live.rows(node, counted),
        "in doubt": live.rows(node, "SELECT 1 FROM v_intents WHERE ended_at IS NULL"),
        "out of service": live.rows(node, "SELECT 1 FROM v_objects WHERE state = 'removing'"),
        "spooled": [each for at in (node.state, node.run) for each in at.glob("spool/*.del")],
    }


@pytest.mark.timeout(900)
def test_a_thousand_deaths_among_sixteen_callers(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing that was answered is lost, nothing is there twice or left over, and who is not concerned notices nothing.

    Afterwards the same steps are made on another node whose daemon nobody kills: it ends as this one.
    """
    with Lab(nodes=2, instance_type="m5.4xlarge", attach_delay=0.1, throttle=None) as lab:
        lab.start(**POOL)
        node, other = lab.nodes
        still = lab.kubelets[0].start_all(["still-0", "still-1"])
        peer, _ = lab.kubelets[1].start_all(["peer", "spare"])
        lab.on_each(live.settle, lab.nodes)
        node.stop_daemon()
        crowd = Crowd(lab.kubelets[0], CALLERS)
        streams = [
            Stream(still[0].netns, peer.address, interval=0.05),
            Stream(peer.netns, still[1].address, interval=0.05),
        ]

        steps, deaths = die_a_thousand_times(
            node, crowd, mortal.built(tmp_path_factory.getbasetemp())
        )
        end = end_state(node, crowd)
        reports = [stream.stop() for stream in streams]

        assert crowd.wrong == []
        assert sum(deaths.values()) == LIVES
        assert min(deaths["a write"], deaths["a message to the kernel"]) > LIVES // 5, deaths
        assert min(deaths["a sync"], deaths["a message to a process"]) > LIVES // 100, deaths
        assert min(crowd.calls.values()) > LIVES // 100, crowd.calls
        assert [report.lost for report in reports] == [0, 0]
        assert lab.fabric.drops() == {}
        agree(lab)
        for box in crowd.pods():
            assert f" {box.address}/32 " in box.netns.command("ip", "-o", "-4", "address")
            box.netns.command("ping", "-c1", "-w5", node.address)

        unkilled = Crowd(lab.kubelets[1], CALLERS)
        assert unkilled.run(threading.Event(), steps) == steps
        assert end_state(other, unkilled) == end
        assert unkilled.wrong == []

        crowd.stop_all()
        unkilled.stop_all()
        assert wired(node) == leased(node)
        assert len(live.rows(node, "SELECT 1 FROM v_pods")) == len(still)
