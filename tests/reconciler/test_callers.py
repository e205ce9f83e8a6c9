"""Sixty-four callers at once on one real daemon, pods replaced under their names, every commit looked at."""

from __future__ import annotations

import json
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.lab import spaces
from tests.lab.kubelet import Sandbox
from tests.lab.node import Node
from tests.lab.whole import Lab
from tests.reconciler import live

pytestmark = [
    pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing())),
    pytest.mark.slow,
]

CALLERS, ROUNDS, NAMES = 64, 4, 24
DOUBLE = (
    "SELECT address, count(*) FROM leases WHERE ended_at IS NULL AND address IS NOT NULL"
    " GROUP BY address HAVING count(*) > 1"
)


@contextmanager
def watching(ledger: Path) -> Iterator[Counter[str]]:
    """Another process's eye on the ledger: at each new revision no address has two open leases."""
    seen: Counter[str] = Counter()
    ended = threading.Event()

    def look() -> None:
        with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as book:
            last = -1
            while not ended.is_set():
                (version,) = book.execute("PRAGMA data_version").fetchone()
                if version == last:
                    continue
                last = version
                seen["looks"] += 1
                for address, count in book.execute(DOUBLE):
                    seen[f"{address} x {count}"] += 1

    eye = threading.Thread(target=look)
    eye.start()
    try:
        yield seen
    finally:
        ended.set()
        eye.join()


def in_namespaces(sandboxes: list[Sandbox]) -> Counter[str]:
    """The IPv4 addresses that pods really have, counted (a replaced pod's link is its namesake's)."""
    found: Counter[str] = Counter()
    for box in sandboxes:
        for line in box.netns.command("ip", "-o", "-4", "address", "show", "up").splitlines():
            _, device, _, cidr, *_ = line.split()
            if device == "eth0":
                found[cidr.partition("/")[0]] += 1
    return found


def wired(node: Node) -> set[tuple[str, int]]:
    """Addresses and priorities of the pods' rules that bear our mark, and (priority 0) of their routes."""
    shown = json.loads(node.netns.command("ip", "-4", "-d", "-j", "rule"))
    rules = {
        (rule["dst"] if rule["priority"] == 512 else rule["src"], rule["priority"])
        for rule in shown
        if rule.get("protocol") == "201" and rule["priority"] in {512, 1536}
    }
    routes = json.loads(
        node.netns.command("ip", "-4", "-d", "-j", "route", "show", "table", "main")
    )
    return rules | {(route["dst"], 0) for route in routes if route.get("protocol") == "201"}


def leased(node: Node) -> set[tuple[str, int]]:
    """What the open leases whose sandboxes have their link say should be there."""
    with closing(sqlite3.connect(f"file:{node.ledger}?mode=ro", uri=True)) as book:
        found = book.execute(
            "SELECT address, device FROM leases JOIN enis USING (eni_id) WHERE ended_at IS NULL"
            " AND EXISTS (SELECT 1 FROM installed WHERE owner_kind = 'lease'"
            " AND owner = CAST(leases.id AS TEXT))"
        ).fetchall()
    expected = {(address, priority) for address, _ in found for priority in (0, 512)}
    return expected | {(address, 1536) for address, device in found if device}


def left_in_ledger(node: Node) -> tuple[int, int]:
    """Open leases, and things in the kernel that the ledger remembers for any lease.

    A retired link is forgotten when the kernel has removed it, behind the reply to its deletion.
    """
    with closing(sqlite3.connect(f"file:{node.ledger}?mode=ro", uri=True)) as book:
        found: tuple[int, int] = book.execute(
            "SELECT (SELECT count(*) FROM leases WHERE ended_at IS NULL),"
            " (SELECT count(*) FROM installed WHERE owner_kind = 'lease')"
        ).fetchone()
    return found


def test_64_callers_never_share_an_address() -> None:
    """Each replaces pods of a few names again and again; nothing is doubled, nothing is left."""
    with Lab(nodes=1, instance_type="m5.4xlarge", attach_delay=0.1, throttle=None) as lab:
        lab.start(WARM_IP_TARGET="40", IP_COOLDOWN_PERIOD="0")
        node, kubelet = lab.nodes[0], lab.kubelets[0]
        living: dict[int, Sandbox] = {}

        def caller(number: int) -> None:
            """Start a pod, and start its replacement before the old one is stopped, as can happen."""
            dice = random.Random(number)
            for _ in range(ROUNDS):
                fresh = kubelet.start(f"web-{number % NAMES}-{dice.randrange(3)}", patience=90)
                old = living.get(number)
                living[number] = fresh
                if old is not None:
                    kubelet.stop(old)

        with watching(node.ledger) as seen:
            with ThreadPoolExecutor(CALLERS) as pool:
                list(pool.map(caller, range(CALLERS)))
            held = in_namespaces(list(living.values()))
            live.same(lambda: wired(node), lambda: leased(node), "the kernel has what leases say")
            assert len(wired(node)) > 2 * NAMES
            with ThreadPoolExecutor(CALLERS) as pool:
                list(pool.map(kubelet.stop, list(living.values())))

        assert seen.pop("looks") > CALLERS
        assert sum(held.values()) >= NAMES
        assert seen == {}, "an address had two open leases after a commit"
        assert [pair for pair in held.items() if pair[1] > 1] == []
        assert wired(node) == leased(node) == set()
        assert ": eni" not in node.netns.command("ip", "-o", "link")
        assert lab.fabric.drops() == {}
        live.until(
            lambda: left_in_ledger(node) == (0, 0), "no open lease, nothing in the kernel for one"
        )
