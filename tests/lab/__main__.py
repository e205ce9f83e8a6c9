"""`python -m tests.lab`: the lab's commands, each in a module of its own, imported when called.

What a command does does not belong here.
"""

from __future__ import annotations

import importlib
import sys

# name -> (module with `main(argv) -> exit code`, what it does)
COMMANDS = {
    "ec2": ("tests.lab.ec2", "EC2 and IMDS over HTTP on loopback; needs no privileges"),
    "up": ("tests.lab.up", "a whole VPC in namespaces, with a daemon per node"),
    "demo": ("tests.lab.demo", "the tour: nodes, pods, pings, and what the ledger says"),
}


def usage() -> str:
    """Return the help text."""
    lines = [f"  {name:6}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        ["usage: python -m tests.lab COMMAND [options]; COMMAND --help says more", *lines]
    )


def main(argv: list[str]) -> int:
    """Run the command named first in `argv` and return its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(usage() + "\n")
        return 0
    if argv[0] not in COMMANDS:
        sys.stderr.write(f"there is no command {argv[0]!r}\n{usage()}\n")
        return 2
    module, _ = COMMANDS[argv[0]]
    return int(importlib.import_module(module).main(argv[1:]))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
