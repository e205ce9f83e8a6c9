"""`python -m tests.bench`, what `make bench` runs: all figures in one run, shown and written down.

Everything is proved to work before it is measured, and nothing may be left after. What is measured,
and how, does not belong here.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench import busy, ec2calls, figures, plots, rivals, stopwatch
from tests.lab import spaces, world
from tests.lab.node import Node
from tests.lab.whole import Lab

HISTORY = Path(__file__).with_name("history.jsonl")
LARGE = "m5.24xlarge"
SOAK = 100_000
CASES: dict[Callable[[figures.Bench], Iterator[figures.Figure]], tuple[str, ...]] = {
    busy.busy: ("add_p99_busy_vs_idle", "add_p50_throttled_vs_idle"),
    figures.sequential: ("add_p50_vs_ptp", "add_p50_vs_floor", "del_p50_vs_ptp"),
    figures.rate: ("add_rate30_vs_ptp", "del_rate30_vs_ptp"),
    figures.crowded: (
        "add_p50_250_vs_10",
        "add_p50_1000_vs_10",
        "observe_250_vs_recv",
        "observe_1000_vs_recv",
    ),
    figures.memory: ("rss_mib", "rss_last_vs_first"),
    figures.start: ("start_to_add_s",),
    ec2calls.ec2_calls: ("ec2_calls_vs_upstream",),
}
"""Which case measures which figures."""

INSTALL = "apt-get install --no-install-recommends containernetworking-plugins"


def main(argv: list[str]) -> int:
    """Measure and print; 0 unless something that was measured did not work."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    names = list(figures.REACH)
    parser.add_argument("--only", choices=names, action="append", help="this figure (repeatable)")
    parser.add_argument("--quick", action="store_true", help="fewer calls, a smaller large node")
    parser.add_argument("--soak", action="store_true",
                        help=f"the memory after {SOAK} pods have come and gone, and nothing else")  # fmt: skip
    parser.add_argument("--no-history", action="store_true", help="do not write the run down")
    args = parser.parse_args(argv)
    if not spaces.is_main():
        if reason := spaces.forbidden():
            sys.stderr.write(f"{reason}\n")
            return 2
        spaces.enter([sys.executable, "-m", "tests.bench", *argv])
    found: list[figures.Figure] = []
    failed = ""
    wanted = set(CASES[figures.memory]) if args.soak else set(args.only or names)
    try:
        found.extend(measure(wanted, quick=args.quick, soak=SOAK if args.soak else 0))
    except stopwatch.BenchError as why:  # what was measured until then was proved, before and after
        failed = str(why)
    found = [each for each in found if each.figure in wanted]
    show(found)
    if not args.no_history:
        write_down(found, quick=args.quick)
        plots.draw(HISTORY)
    if failed:
        sys.stderr.write(f"{failed}\n")
    return 1 if failed else 0


def measure(wanted: set[str], *, quick: bool, soak: int = 0) -> Iterator[figures.Figure]:
    """Build a node and its rivals; prove before each case and after it that they work and leave nothing."""
    # On a disk and not on the session's tmpfs: a flush must cost what it costs.
    folder = Path(tempfile.mkdtemp(prefix="vpcledger-bench-", dir="/var/tmp"))
    program = stopwatch.build(folder)
    cases = [case for case, names in CASES.items() if wanted & set(names)]
    with Lab(nodes=0, attach_delay=0.0, throttle=None, directory=folder) as lab:
        n, crowd, many = (60, 60, 250) if quick else (300, 240, 1000)
        node = large_node(lab)
        # Room for all from the start: growth is the cloud lane's, and not what is measured.
        room = (many if figures.crowded in cases else max(crowd, figures.LEASES_AT_START)) + 32
        node.start_daemon(
            ENABLE_PREFIX_DELEGATION="true",
            MINIMUM_IP_TARGET=str(room),
            WARM_IP_TARGET="1",
            IP_COOLDOWN_PERIOD="0",
        )
        ours, ptp = rivals.ours(node, program), rivals.ptp(folder, program)
        floor = rivals.Floor(folder, node.bin / "aws-cni", program)
        if ptp is None:
            say(f"ptp is not installed, so what is compared with it is left out: {INSTALL}")
        bench = figures.Bench(lab, node, ours, ptp, floor, n, crowd, many, soak)
        say("waiting for the node's addresses")
        figures.await_free(node, room - 1)
        try:
            prove(bench)
            for case in cases:
                say(f"measuring {', '.join(CASES[case])}")
                found = list(case(bench))
                prove(bench)
                yield from found
        finally:
            floor.close()
            for plugin in bench.plugins():
                plugin.close()
            if ptp:
                ptp.host.close()


def large_node(lab: Lab) -> Node:
    """A node in a subnet with room for all its pods."""
    zone = f"{lab.ec2.meta.region_name}a"
    made = lab.ec2.create_subnet(
        VpcId=lab.world.vpc, CidrBlock="10.0.16.0/20", AvailabilityZone=zone
    )
    [group] = lab.world.security_groups
    [instance] = world.launch(lab.ec2, made["Subnet"]["SubnetId"], group, 1, LARGE)
    node = Node("node1", instance, lab.fabric)
    lab.nodes.append(node)
    node.boot()
    return node


def prove(bench: figures.Bench) -> None:
    """All plugins work and leave nothing."""
    for plugin in bench.plugins():
        plugin.prove()
    if left := figures.leases(bench.node):
        raise stopwatch.BenchError(f"{left} leases are left")


def say(text: str) -> None:
    """Progress, beside the results."""
    sys.stderr.write(f"{text}\n")


def record(each: figures.Figure) -> dict[str, object]:
    """A figure as one JSON object."""
    return {
        "figure": each.figure,
        "ratio": round(each.ratio, 3),
        "reach": each.reach,
        "p50_us": round(each.p50_us),
        "p99_us": round(each.p99_us),
        "n": each.n,
    }


def show(found: list[figures.Figure]) -> None:
    """A table, then one JSON line for each figure."""
    print(f"{'figure':22} {'ratio':>8} {'reach':>8}  {'p50 us':>8} {'p99 us':>8} {'n':>6}")
    for each in found:
        sign = ">=" if "rate" in each.figure else "<="
        verdict = "reached" if each.reached else "not yet"
        print(
            f"{each.figure:22} {each.ratio:8.3f} {sign}{each.reach:6g}  {each.p50_us:8.0f}"
            f" {each.p99_us:8.0f} {each.n:6}  {verdict}; {each.note}"
        )
    for each in found:
        print(json.dumps(record(each)))


def write_down(found: list[figures.Figure], *, quick: bool) -> None:
    """Append the run to the history, with what it was run on."""
    git = ["git", "-C", str(HISTORY.parent), "describe", "--always", "--dirty"]
    run = {
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "quick": quick,
    }
    with HISTORY.open("a") as history:
        for each in found:
            note = {**dataclasses.asdict(each), **record(each)}["note"]
            history.write(json.dumps({**run, **record(each), "note": note}) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
