"""Builds the launcher: `python -m cni.build` makes cni/bin/aws-cni, a static executable.

By Debian's musl-gcc (package musl-tools) for this machine, or with --zig by the compiler in the
`ziglang` wheel for either machine. Where the product is installed does not belong here.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("launcher.c")
TARGETS: Final = ("x86_64", "aarch64")
FLAGS: Final = ("-std=c11", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror")


class BuildError(Exception):
    """The launcher could not be built; the sentence says what to install or correct."""


def compiler(target: str, *, zig: bool) -> list[str]:
    """The command that compiles for the target, without flags and files."""
    if zig:
        if importlib.util.find_spec("ziglang") is None:
            raise BuildError("the ziglang wheel is not installed: run `pip install ziglang`")
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{target}-linux-musl"]
    if target != platform.machine():
        raise BuildError(f"musl-gcc builds for {platform.machine()} only: use --zig for {target}")
    found = shutil.which("musl-gcc")
    if found is None:
        raise BuildError(
            "musl-gcc is not installed: run `apt-get install musl-tools`, or use --zig"
        )
    return [found]


def build(output: Path, *, target: str | None = None, zig: bool = False) -> Path:
    """Compile the launcher into `output` for the target, this machine's by default; returns it.

    The file appears in one step, so a runtime never starts half of it.
    """
    target = target or platform.machine()
    if target not in TARGETS:
        raise BuildError(f"{target} is not supported: build for {' or '.join(TARGETS)}")
    output.parent.mkdir(parents=True, exist_ok=True)
    new = output.with_name(f".{output.name}.new")
    command = [*compiler(target, zig=zig), *FLAGS, "-o", str(new), str(SOURCE)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise BuildError(f"the compiler refused launcher.c:\n{run.stderr}")
    new.replace(output)
    return output


def main() -> int:
    """The command line; exit status 0 if there is a new launcher."""
    parser = argparse.ArgumentParser(prog="python -m cni.build", description=__doc__)
    parser.add_argument("--target", choices=TARGETS, help="machine to build for (this one)")
    parser.add_argument("--zig", action="store_true", help="use the ziglang wheel")
    parser.add_argument("--output", type=Path, default=SOURCE.parent / "bin" / "aws-cni")
    options = parser.parse_args()
    try:
        print(build(options.output, target=options.target, zig=options.zig))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
