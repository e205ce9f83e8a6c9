"""ADD while everything else has the most to do: the kernel drifts all the time, EC2 refuses every call.

Idle and busy take turns, so that the machine's own moods meet both. What else is measured does not
belong here.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench import figures
from tests.bench.figures import Bench, Figure

STANDING = 100
"""Pods that are there all the time and lose a rule again and again."""
EVERY_S = 0.01
"""Between two pieces of drift; each is news for the reconciler, and something to mend."""


def busy(bench: Bench) -> Iterator[Figure]:
    """The 99th percentile against an idle daemon's, and the median with nothing but EC2 against it."""
    standing = min(STANDING, bench.crowd - figures.ROUND)
    pods = range(standing, standing + figures.ROUND)
    bench.ours.have(standing + figures.ROUND)
    bench.ours.many("ADD", range(standing))
    idle: list[int] = []
    throttled: list[int] = []
    hardest: list[int] = []
    for _ in range(max(3, bench.n // figures.ROUND)):
        idle += figures.additions(bench.ours, pods, 1)
        with _ec2_refusing(bench):
            throttled += figures.additions(bench.ours, pods, 1)
            with _drifting(bench, range(standing)):
                hardest += figures.additions(bench.ours, pods, 1)
    bench.ours.many("DEL", range(standing))
    p99, p50 = figures.p99(idle), figures.p50(idle)
    yield Figure(
        "add_p99_busy_vs_idle", figures.p99(hardest) / p99, figures.p50(hardest),
        figures.p99(hardest), len(hardest), f"idle p50 {p50:.0f}, p99 {p99:.0f}",
    )  # fmt: skip
    yield figures.times("add_p50_throttled_vs_idle", throttled, p50, f"idle {p50:.0f}")


@contextmanager
def _ec2_refusing(bench: Bench) -> Iterator[None]:
    """Each of EC2's answers is a throttling error."""
    with bench.lab.front.cloud.lock:
        bench.lab.front.faults.add(error="RequestLimitExceeded")
    try:
        yield
    finally:
        with bench.lab.front.cloud.lock:
            bench.lab.front.faults.clear()


@contextmanager
def _drifting(bench: Bench, pods: range) -> Iterator[None]:
    """Somebody removes pods' routes all the time, one after the other."""
    shown = bench.node.netns.command("ip", "rule").splitlines()
    rules = [line.split()[line.split().index("to") + 1] for line in shown if line[:4] == "512:"]
    ending = threading.Event()

    def drift() -> None:
        nth = 0
        while not ending.wait(EVERY_S):
            assert changer.stdin is not None
            changer.stdin.write(f"rule del priority 512 to {rules[nth % len(rules)]}\n")
            changer.stdin.flush()
            nth += 1

    changer = bench.node.netns.run(
        subprocess.Popen,
        ["ip", "-force", "-batch", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    thread = threading.Thread(target=drift)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
        changer.communicate()
