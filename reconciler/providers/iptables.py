"""iptables of this host, read and changed through its own programs, as root: `observe`, `apply`.

The daemon never calls them: they are for the commands with which an operator ends a takeover or a
hand-back. Both backends are looked at, for either may hold rules. Which rules are whose does not belong
here.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import Final

from reconciler import errors

BACKENDS: Final = ("legacy", "nft")
_WAIT_S: Final = 60


def observe() -> dict[str, str]:
    """What iptables-save prints, by backend; a backend whose program is not installed is left out.

    TryLater with the program's words if it fails.
    """
    return {
        backend: _run(f"iptables-{backend}-save", "")
        for backend in BACKENDS
        if shutil.which(f"iptables-{backend}-save")
    }


def apply(backend: str, script: str) -> None:
    """Have iptables-restore carry out a script beside what is there, each table whole or not at all."""
    _run(f"iptables-{backend}-restore", script, "--noflush", "--wait", str(_WAIT_S))


def _run(program: str, stdin: str, *options: str) -> str:
    done = subprocess.run(
        [program, *options], input=stdin, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise errors.TryLater("kernel_error", f"{program}: {done.stderr.strip()}")
    return done.stdout
