"""Thirty days of pods coming and going: how many /28s are free to be given back, dense against random choice.

`make churn` tells it twice, with the same pods, by the real planner in an ideal world: once with the
addresses chosen as the ledger chooses them, once at random as the VPC CNI does (ranges over Go maps), and
draws both into deploy/docs/churn.svg. Prints the figures. What a call to EC2 costs does not belong here.
"""

from __future__ import annotations

import dataclasses
import math
import random
import sys
from pathlib import Path
from statistics import fmean

from ledger import model
from reconciler import ideal
from reconciler import settings as knobs
from reconciler.planner import limits

DAYS, MINUTE = 30, 60_000
TYPE = "m5.xlarge"
SETTINGS = knobs.Settings(prefix_delegation=True, warm_prefix_target=1)
PICTURE = Path(__file__).parents[2] / "deploy" / "docs" / "churn.svg"


class Scattered(ideal.World):
    """The same node, choosing any free address with equal chance."""

    def __init__(self, settings: knobs.Settings, limit: limits.Limits, seed: int = 1) -> None:
        self._random = random.Random(seed)
        super().__init__(settings, limit)

    def _free(self) -> model.Address | None:
        held = {lease.address for lease in self.pods.values()}
        free = [
            a
            for a in self.rows.values()
            if a.address not in held
            and a.cooling_until <= self.now
            and self.enis[a.eni_id].state == "usable"
        ]
        return self._random.choice(free) if free else None


@dataclasses.dataclass(frozen=True, slots=True)
class Hour:
    """A node at the end of an hour."""

    pods: int
    prefixes: int
    free: int
    """Prefixes without a pod: what can be given back, or taken for something else."""


def story(days: int = DAYS, seed: int = 7) -> list[tuple[int, int]]:
    """(minute of coming, minutes of life): a day's rhythm, many short lives and few long ones."""
    rng, pods = random.Random(seed), []
    for minute in range(days * 24 * 60):
        rate = 0.06 + 0.05 * math.sin(2 * math.pi * minute / (24 * 60))
        if rng.random() < rate:
            long = rng.random() < 0.15
            pods.append((minute, int(rng.expovariate(1 / (2880 if long else 90))) + 1))
    return pods


def live(world: ideal.World, pods: list[tuple[int, int]], days: int = DAYS) -> list[Hour]:
    """Let the story happen; a row for each hour."""
    comes, goes, hours = dict[int, list[int]](), dict[int, list[int]](), []
    for nth, (minute, life) in enumerate(pods):
        comes.setdefault(minute, []).append(nth)
        goes.setdefault(minute + life, []).append(nth)
    numbers: dict[int, int] = {}
    world.rest()
    for minute in range(days * 24 * 60):
        world.pass_time(MINUTE)
        for nth in goes.pop(minute, ()):
            world.end(numbers.pop(nth))
        for nth in comes.pop(minute, ()):
            numbers[nth] = world.add()
        world.settle()
        if minute % 60 == 59:
            hours.append(_hour(world))
            if minute % 1440 == 1439:
                sys.stderr.write(f"\r{type(world).__name__}: day {minute // 1440 + 1} of {days} ")
    sys.stderr.write("\n")
    return hours


def _hour(world: ideal.World) -> Hour:
    used = {world.rows[lease.address].prefix for lease in world.pods.values() if lease.address}
    return Hour(len(world.pods), len(world.prefixes), len(set(world.prefixes) - used))


def tell() -> tuple[list[Hour], list[Hour]]:
    """The story dense and at random."""
    limit = limits.lookup(TYPE)
    assert limit is not None
    pods = story()
    return live(ideal.World(SETTINGS, limit), pods), live(Scattered(SETTINGS, limit), pods)


def picture(dense: list[Hour], scattered: list[Hour]) -> str:
    """Prefixes held over the days, and below the pods that had needed them."""
    width, height, left, top = 720, 300, 44, 26
    most = max(hour.prefixes for hour in (*dense, *scattered)) + 1

    def line(hours: list[Hour], what: str, colour: str) -> str:
        points = " ".join(
            f"{left + n * (width - left - 10) / len(hours):.1f},"
            f"{top + (height - top - 30) * (1 - getattr(hour, what) / most):.1f}"
            for n, hour in enumerate(hours)
        )
        return f'<polyline fill="none" stroke="{colour}" stroke-width="1.4" points="{points}"/>'

    needed = [dataclasses.replace(hour, prefixes=math.ceil(hour.pods / 16)) for hour in dense]
    labels = "".join(
        f'<text x="{left - 6}" y="{top + (height - top - 30) * (1 - n / most) + 4:.1f}" '
        f'text-anchor="end">{n}</text>'
        for n in range(0, most + 1, max(most // 6, 1))
    )
    days = "".join(
        f'<text x="{left + day * (width - left - 10) / DAYS:.1f}" y="{height - 12}">{day}</text>'
        for day in range(0, DAYS + 1, 5)
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">
<title>/28 prefixes held over {DAYS} days of churn on {TYPE}: dense and random choice</title>
<rect width="{width}" height="{height}" fill="white"/>
{labels}{days}
{line(needed, "prefixes", "#bbbbbb")}
{line(scattered, "prefixes", "#c0392b")}
{line(dense, "prefixes", "#1f6fb2")}
<text x="{left}" y="16"><tspan fill="#1f6fb2">dense (the ledger's choice)</tspan>
<tspan dx="14" fill="#c0392b">random</tspan><tspan dx="14" fill="#888888">the fewest that hold the pods</tspan>
<tspan dx="14" fill="black">prefixes held, by day</tspan></text>
</svg>
"""


def main() -> int:
    """Tell it, print the figures, draw."""
    dense, scattered = tell()
    for name, hours in (("dense", dense), ("random", scattered)):
        print(
            f"{name}: {fmean(h.prefixes for h in hours):.1f} prefixes held on average, "
            f"{max(h.prefixes for h in hours)} at most, {fmean(h.free for h in hours):.2f} of them free; "
            f"{fmean(h.pods for h in hours):.1f} pods"
        )
    PICTURE.write_text(picture(dense, scattered))
    print(f"drawn: {PICTURE.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
