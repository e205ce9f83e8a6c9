"""`python -m tests.stories SEED` tells one story; `--count 50000` many, on several processors, with progress.

A story that breaks prints its seed, what broke and the command that tells it again; the exit status is 1
then. Whoever interrupts a long run is told how to go on. What a story is does not belong here.
"""

from __future__ import annotations

import argparse
import collections
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

from tests.stories import scene, story, truths

CHUNK = 25
"""Stories a process tells in one go."""


def main(argv: list[str]) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.stories", description=__doc__)
    parser.add_argument("seed", nargs="?", type=int, help="tell this one story, event by event")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=2000, help="how many stories")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    args = parser.parse_args(argv)
    if args.seed is not None:
        return _one(args.seed)
    return _many(args.first, args.count, args.jobs)


def _one(seed: int) -> int:
    """With the daemon's own log between the events."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    with scene.folder() as folder:
        told = story.Story(seed, folder, aloud=True)
        try:
            told.tell()
        except Exception:  # noqa: BLE001 - whatever broke is what is to be shown
            traceback.print_exc()
            return 1
    print(f"story {seed}: nothing broke")
    return 0


def _many(first: int, count: int, jobs: int) -> int:
    began, done, broken = time.monotonic(), 0, 0
    total: collections.Counter[str] = collections.Counter()
    last = first + count
    chunks = [range(low, min(low + CHUNK, last)) for low in range(first, last, CHUNK)]
    print(f"{count} stories, seeds {first} to {last - 1}, {jobs} processes", flush=True)
    try:
        with ProcessPoolExecutor(jobs, initializer=_quiet) as pool:
            for chunk, (told, failures) in zip(chunks, pool.map(_chunk, chunks), strict=True):
                done += len(chunk)
                broken += len(failures)
                total.update(told)
                for failure in failures:
                    print(failure, flush=True)
                if done % (40 * CHUNK) == 0 or done == count:
                    pace = done / (time.monotonic() - began)
                    print(f"{done} of {count} told, {broken} broken, {pace:.1f}/s", flush=True)
    except KeyboardInterrupt:
        left = f"--from {first + done} --count {count - done}"
        print(f"\ninterrupted; go on with: python -m tests.stories {left}")
        return 130
    print(", ".join(f"{number} {what}" for what, number in sorted(total.items())))
    return 1 if broken else 0


def _quiet() -> None:
    logging.disable(logging.CRITICAL)


def _chunk(seeds: Iterable[int]) -> tuple[collections.Counter[str], list[str]]:
    """What happened, and a text for each story that broke."""
    told: collections.Counter[str] = collections.Counter()
    failures = list(_failures(seeds, told))
    return told, failures


def _failures(seeds: Iterable[int], told: collections.Counter[str]) -> Iterator[str]:
    for seed in seeds:
        try:
            told.update(story.tell(seed))
        except Exception as error:  # noqa: BLE001 - likewise
            name = type(error).__name__
            what = str(error) if isinstance(error, truths.Broken) else f"{name}: {error}"
            yield f"seed {seed} broke: {what[:400]}\n  again: python -m tests.stories {seed}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
