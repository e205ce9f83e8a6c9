"""The figures: each a ratio of two things measured in the same run, turn and turn about.

Absolute times on a shared machine drift by a factor of two within an hour; ratios of interleaved
measurements do not. `REACH` says what is aimed at. How a figure is shown does not belong here.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

from reconciler.providers import kernel
from tests.bench import rivals
from tests.bench.stopwatch import BenchError
from tests.lab import node as nodes
from tests.lab.node import Node
from tests.lab.whole import Lab

REACH = {
    "add_p50_vs_ptp": 0.20,
    "add_p50_vs_floor": 1.4,
    "del_p50_vs_ptp": 0.3,
    "add_p99_busy_vs_idle": 1.5,
    "add_p50_throttled_vs_idle": 1.5,
    "add_p50_250_vs_10": 1.5,
    "add_rate30_vs_ptp": 10.0,
    "del_rate30_vs_ptp": 5.0,
    "add_p50_1000_vs_10": 1.5,
    "observe_250_vs_recv": 3.0,
    "observe_1000_vs_recv": 3.0,
    "start_to_add_s": 1.0,
    "rss_mib": 120.0,
    "rss_last_vs_first": 1.05,
    "ec2_calls_vs_upstream": 1.0,
}
"""What is aimed at; a rate should be above, everything else below."""

ROUND = 10
"""Pods that are there at most while one call at a time is measured."""
LEASES_AT_START = 250
_FILL_DEADLINE = 60.0


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """One result; `note` says what the ratio is made of, in microseconds or per second."""

    figure: str
    ratio: float
    p50_us: float
    p99_us: float
    n: int
    note: str

    @property
    def reach(self) -> float:
        """What is aimed at."""
        return REACH[self.figure]

    @property
    def reached(self) -> bool:
        """Is it there?"""
        return self.ratio >= self.reach if "rate" in self.figure else self.ratio <= self.reach


@dataclasses.dataclass(frozen=True, slots=True)
class Bench:
    """Who takes part, and how thorough to be: `n` calls of each kind, `many` pods for a large node.

    `soak` is how many pods come and go before the memory is read, 0 for as many as take a few seconds.
    """

    lab: Lab
    node: Node
    ours: rivals.Plugin
    ptp: rivals.Plugin | None
    floor: rivals.Floor
    n: int
    crowd: int
    many: int
    soak: int = 0

    def plugins(self) -> tuple[rivals.Plugin, ...]:
        """Ours and, where it is installed, ptp."""
        return (self.ours, self.ptp) if self.ptp else (self.ours,)


Times = dict[str, list[int]]


def sequential(bench: Bench) -> Iterator[Figure]:
    """One call at a time: floor, ours and ptp for the same pod number, in an order that turns."""
    bench.floor.have(ROUND)
    for plugin in bench.plugins():
        plugin.have(ROUND)
    add: Times = {}
    gone: Times = {}
    actors: list[Callable[[int, bool], None]] = [
        lambda pod, there: _floor(bench, pod, add, gone, there=there),
        *(_caller(plugin, add, gone) for plugin in bench.plugins()),
    ]
    for turn in range(max(1, bench.n // ROUND)):
        order = actors[turn % len(actors) :] + actors[: turn % len(actors)]
        for there, pod, act in itertools.product((True, False), range(ROUND), order):
            act(pod, there)
    floor = sum(statistics.median(add[part]) for part in ("wiring", "sync", "echo")) / 1e3
    parts = ", ".join(f"{part} {p50(add[part]):.0f}" for part in ("wiring", "sync", "echo"))
    if bench.ptp:
        yield times("add_p50_vs_ptp", add["ours"], p50(add["ptp"]), f"ptp {p50(add['ptp']):.0f}")
    yield times("add_p50_vs_floor", add["ours"], floor, f"floor {floor:.0f}: {parts}")
    if bench.ptp:
        waits = f"ptp {p50(gone['ptp']):.0f}, the kernel's own {p50(gone['wiring']):.0f}"
        yield times("del_p50_vs_ptp", gone["ours"], p50(gone["ptp"]), waits)


def _caller(plugin: rivals.Plugin, add: Times, gone: Times) -> Callable[[int, bool], None]:
    def act(pod: int, there: bool) -> None:
        verb, into = ("ADD", add) if there else ("DEL", gone)
        into.setdefault(plugin.name, []).append(plugin.one(verb, pod))

    return act


def _floor(bench: Bench, pod: int, add: Times, gone: Times, *, there: bool) -> None:
    if there:
        add.setdefault("wiring", []).append(bench.floor.wire(pod))
        add.setdefault("sync", []).append(bench.floor.sync())
        add.setdefault("echo", []).append(bench.floor.echo(bench.ours.call("ADD", pod)))
    else:
        gone.setdefault("wiring", []).append(bench.floor.unwire(pod))


def rate(bench: Bench) -> Iterator[Figure]:
    """Thirty callers: a phase of additions, then one of deletions, for each in turn."""
    for each in bench.plugins():
        each.have(bench.crowd)
    whole: dict[tuple[str, str], int] = collections.Counter()
    by_verb: dict[str, list[int]] = {"ADD": [], "DEL": []}
    for turn in range(2):
        for plugin in bench.plugins()[:: 1 if turn % 2 else -1]:
            for verb, took in by_verb.items():
                together, calls = plugin.many(verb, range(bench.crowd))
                whole[plugin.name, verb] += together
                if plugin is bench.ours:
                    took.extend(calls)
    if not bench.ptp:
        return
    for verb, took in by_verb.items():
        us, them = (len(took) / whole[who, verb] * 1e9 for who in ("ours", "ptp"))
        note = f"ours {us:.0f}/s, ptp {them:.0f}/s"
        name = f"{verb.lower()}_rate30_vs_ptp"
        yield Figure(name, us / them, p50(took), p99(took), len(took), note)


def crowded(bench: Bench) -> Iterator[Figure]:
    """The same additions with ten pods on the node and with very many, namespaces made beforehand."""
    ours, probes = bench.ours, range(bench.many, bench.many + ROUND)
    await_free(bench.node, bench.many + 2 * ROUND)
    ours.have(bench.many + ROUND)
    turns = max(2, bench.n // ROUND // 2)
    ours.many("ADD", range(ROUND))
    few = additions(ours, probes, turns)
    some = min(LEASES_AT_START, bench.many)
    ours.many("ADD", range(ROUND, some))
    half = additions(ours, probes, turns)
    observed_half = _observing(bench, "observe_250_vs_recv", some)
    ours.many("ADD", range(some, bench.many))
    full = additions(ours, probes, turns)
    against = f"pods against {ROUND}: {p50(few):.0f}"
    yield times("add_p50_250_vs_10", half, p50(few), f"{some} {against}")
    yield times("add_p50_1000_vs_10", full, p50(few), f"{bench.many} {against}")
    yield observed_half
    yield _observing(bench, "observe_1000_vs_recv", bench.many)
    ours.many("DEL", range(bench.many))


def additions(ours: rivals.Plugin, pods: Sequence[int], turns: int) -> list[int]:
    """Nanoseconds of one ADD after the other for these pods, which go again together, so many times."""
    took = []
    for _ in range(turns):
        took += [ours.one("ADD", pod) for pod in pods]
        ours.many("DEL", pods)
    return took


def _observing(bench: Bench, name: str, pods: int) -> Figure:
    """The daemon's look at the kernel beside a program that only receives the same dumps."""
    looking, receiving = [], []
    eye = bench.node.netns.run(kernel.Kernel)
    for _ in range(20):
        receiving.append(bench.ours.watch.dump())
        began = time.perf_counter_ns()
        eye.observe()
        looking.append(time.perf_counter_ns() - began)
    eye.close()
    note = f"receiving {p50(receiving):.0f}, {pods} pods"
    return times(name, looking, p50(receiving), note)


def memory(bench: Bench) -> Iterator[Figure]:
    """What the daemon and its children hold after many additions and deletions, and whether it grows.

    Whether it does is told of a soak alone: before that, what is kept on purpose is being filled.
    """
    bench.ours.have(bench.crowd)
    assert bench.node.daemon is not None
    held, count = [], 0
    rounds = max(8, bench.n // 25, -(-bench.soak // bench.crowd))
    for _ in range(rounds):
        for verb in ("ADD", "DEL"):
            bench.ours.many(verb, range(bench.crowd))
        count += bench.crowd
        held.append(rivals.resident_mib(bench.node.daemon.pid))
    tenth = max(1, len(held) // 10)
    first, last = statistics.fmean(held[:tenth]), statistics.fmean(held[-tenth:])
    most = f"MiB; {max(held):.0f} at most in {len(held)} rounds"
    yield Figure("rss_mib", held[-1], 0, 0, count, most)
    if bench.soak:
        note = f"the last tenth {last:.1f} MiB, the first {first:.1f}"
        yield Figure("rss_last_vs_first", last / first, 0, 0, count, note)


def start(bench: Bench) -> Iterator[Figure]:
    """SIGKILL, no way to EC2 or instance metadata, then from the start of the process to an ADD."""
    node, ours = bench.node, bench.ours
    leases = min(LEASES_AT_START, bench.many)
    ours.have(leases + 1)
    await_free(node, leases + 1)
    ours.many("ADD", range(leases))
    took = []
    node.netns.command("nft", "-f", "-", stdin=_DEAD)
    for _ in range(3):
        node.kill_daemon()
        began = time.perf_counter_ns()
        _spawn(node)
        while ours.watch.run([ours.call("ADD", leases)])[1][0].status:
            if time.perf_counter_ns() - began > 30e9:
                raise BenchError(f"no pod was served in 30 s after a start:\n{node.tail()}")
            time.sleep(0.002)  # a refused connection is no event to wait for
        took.append(time.perf_counter_ns() - began)
        ours.one("DEL", leases)
    node.netns.command("nft", "delete", "table", "ip", "dead")
    ours.many("DEL", range(leases))
    yield Figure("start_to_add_s", statistics.median(took) / 1e9, p50(took), max(took) / 1e3,
                 len(took), f"seconds, with {leases} leases, EC2 and metadata dead")  # fmt: skip


def _spawn(node: Node) -> None:
    """The daemon's process and nothing else: `start_daemon` installs first, and waits for more."""
    with node.log.open("ab") as log:
        node.daemon = node.netns.run(
            subprocess.Popen,
            [nodes._product(), "daemon"],
            env=node.environment_of_product(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


_DEAD = """
table ip dead {
  chain out {
    type filter hook output priority 0;
    ip daddr 169.254.0.0/16 drop
  }
}
"""


def await_free(node: Node, count: int) -> None:
    """Wait until the daemon has so many free addresses; EC2's pace is no event, so look now and then."""
    deadline, free = time.monotonic() + _FILL_DEADLINE, 0
    while free < count:
        if time.monotonic() > deadline:
            raise BenchError(f"only {free} of {count} addresses are free:\n{node.tail()}")
        said = node.product(
            "sql", "--json", "SELECT count(*) AS n FROM v_addresses WHERE state = 'free'"
        )
        free = json.loads(said.stdout)[0]["n"] if said.returncode == 0 else 0
        if free < count:
            time.sleep(0.2)


def leases(node: Node) -> int:
    """Leases that are open."""
    return len(json.loads(node.product("show", "pods", "--json").stdout))


def times(name: str, ours: list[int], other_us: float, note: str) -> Figure:
    """The ratio of medians."""
    return Figure(name, p50(ours) / other_us, p50(ours), p99(ours), len(ours), note)


def p50(ns: list[int]) -> float:
    """Microseconds of the median."""
    return statistics.median(ns) / 1e3


def p99(ns: list[int]) -> float:
    """Microseconds of the 99th percentile."""
    return sorted(ns)[min(len(ns) - 1, int(len(ns) * 0.99))] / 1e3
