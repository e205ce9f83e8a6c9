"""The stopwatch as a process in a namespace: compile it, give it commands, read what things took.

Times are nanoseconds by its own clock, so what Python does in between costs nobody anything. Which
figures come of them does not belong here.
"""

from __future__ import annotations

import dataclasses
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.lab import spaces

SOURCE = Path(__file__).with_name("stopwatch.c")


class BenchError(Exception):
    """The bench could not be run, or what it measured did not work; the sentence says what."""


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One start of a plugin: `netns` is the pod's path, `config` the file on its standard input."""

    verb: str
    netns: str
    container: str
    pod: str
    plugin: Path
    config: Path

    def line(self) -> str:
        """As the stopwatch reads it."""
        fields = (self.verb, self.netns, self.container, self.pod, self.plugin, self.config)
        return "\t".join(map(str, (*fields, self.plugin.parent)))


@dataclasses.dataclass(frozen=True, slots=True)
class Taken:
    """How long something took, its exit status, what it printed."""

    ns: int
    status: int
    text: str


def build(folder: Path) -> Path:
    """Compile the program into a folder, statically by musl-gcc with the kernel's own headers."""
    program = folder / "stopwatch"
    headers = ("/usr/include", f"/usr/include/{platform.machine()}-linux-gnu")
    flags = ["-std=gnu11", "-static", "-O2", "-Wall", "-Wextra", "-Werror"]
    also = [word for each in headers for word in ("-idirafter", each)]
    command = ["musl-gcc", *flags, *also, "-o", str(program), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{SOURCE.name} cannot be compiled (packages musl-tools and"
                         f" linux-libc-dev bring what it needs):\n{done.stderr}")  # fmt: skip
    return program


class Stopwatch:
    """The program at work in a namespace until `close()`."""

    def __init__(self, program: Path, netns: spaces.Netns) -> None:
        self._process = netns.run(
            subprocess.Popen,
            [str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, calls: Sequence[Call], *, together: int = 1) -> tuple[int, list[Taken]]:
        """Nanoseconds for all of them, and each; `together` are at work at any time."""
        lines = [f"calls\t{together}\t{len(calls)}", *(call.line() for call in calls)]
        whole, *each = self._ask("\n".join(lines), 1 + len(calls))
        return whole.ns, each

    def call(self, call: Call) -> int:
        """Nanoseconds of one call; BenchError with the plugin's words if it failed."""
        taken = self.run([call])[1][0]
        require(call, taken)
        return taken.ns

    def wire(self, netns: str, index: int) -> int:
        """The floor of a pod's wiring: nanoseconds of two batches of netlink messages."""
        return self._ask(f"wire\t{netns}\t{index}")[0].ns

    def unwire(self, index: int) -> int:
        """Nanoseconds to take it away again, the kernel's wait for the link included."""
        return self._ask(f"unwire\t{index}")[0].ns

    def sync(self, path: Path) -> int:
        """Nanoseconds of fdatasync after overwriting three pages of the file."""
        return self._ask(f"sync\t{path}")[0].ns

    def dump(self) -> int:
        """Nanoseconds to receive the four dumps an observation is made of."""
        return self._ask("dump")[0].ns

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, lines: str, answers: int = 1) -> list[Taken]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(lines + "\n")
        self._process.stdin.flush()
        found = []
        for _ in range(answers):
            line = self._process.stdout.readline()
            if not line:
                raise BenchError("the stopwatch ended; its last words are above")
            ns, status, text = line.rstrip("\n").split("\t", 2)
            found.append(Taken(int(ns), int(status), text))
        return found


def require(call: Call, taken: Taken) -> None:
    """BenchError with the plugin's words if the call failed."""
    if taken.status:
        raise BenchError(f"{call.plugin.name} {call.verb} of {call.pod}: {taken.text[:500]}")
