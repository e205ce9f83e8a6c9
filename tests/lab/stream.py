"""A stream of pings, and what of it was lost when: the time a connection was without a way.

What does not belong here: what was done meanwhile.
"""

from __future__ import annotations

import itertools
import re
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Self

from tests.lab.netns import Netns

_ANSWER = re.compile(r"\[(\d+\.\d+)\] \d+ bytes from .* icmp_seq=(\d+)")


@dataclass(frozen=True, slots=True)
class Report:
    """What came back of a stream: answers, questions without one (between the first and the last answer).

    `longest_s`: the longest time between two answers that follow each other, in seconds; it began at
    `longest_at`, in seconds since the epoch.
    """

    answered: int
    lost: int
    longest_s: float
    longest_at: float


class Stream:
    """Pings from a namespace every `interval` seconds (2 ms at least), until `stop()`."""

    def __init__(self, netns: Netns, address: str, *, interval: float = 0.005) -> None:
        self._out = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the stream
        self._process = netns.run(
            subprocess.Popen,
            ["ping", "-D", "-n", "-i", str(interval), address],
            stdout=self._out,
            stderr=subprocess.STDOUT,
        )

    def stop(self) -> Report:
        """End the stream and say what became of it. AssertionError if nothing ever came back."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(10)
        self._out.seek(0)
        text = self._out.read()
        self._out.close()
        answers = [(float(when), int(n)) for when, n in _ANSWER.findall(text)]
        assert answers, f"no answer at all:\n{text[-500:]}"
        numbers = {n for _, n in answers}
        pauses = ((b[0] - a[0], a[0]) for a, b in itertools.pairwise(answers))
        longest_s, longest_at = max(pauses, default=(0.0, answers[0][0]))
        return Report(
            answered=len(numbers),
            lost=max(numbers) - min(numbers) + 1 - len(numbers),
            longest_s=longest_s,
            longest_at=longest_at,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.stop()
