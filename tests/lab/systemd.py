"""systemd's own programs on a node: udevd, which may give new links other MACs, and networkd, which flushes.

    with Systemd(node.netns, folder) as systemd:  # udevd with the distribution's 99-default.link
        systemd.networkd({"eth0": "[Network]..."})  # networkd with one file per interface

Both run in the node's network namespace and in a mount namespace of their own, with an empty /run and the
/sys of that network namespace; no bus, no init. networkd needs udevd: only on a link that udev has told of does
it take away what it finds. Links made before udevd ran are triggered, as at boot.

What does not belong here: what a node should do about either.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Self

from tests.lab import spaces

NETWORKD = Path("/lib/systemd/systemd-networkd")
UDEVD = Path("/lib/systemd/systemd-udevd")
_LINK = "/lib/systemd/network/99-default.link"  # MACAddressPolicy=persistent
_RULES = "/lib/udev/rules.d/80-net-setup-link.rules"

_WORLD = f"""
mount --make-rprivate /
mount -t sysfs none /sys
mount -t tmpfs none /run
mkdir -p /run/udev/rules.d /run/systemd/network /run/systemd/netif /run/shown
mount --bind /run/shown /etc/systemd/network
[ -s /etc/machine-id ] || {{ echo {"0123456789abcdef" * 2} >/run/id; mount --bind /run/id /etc/machine-id; }}
mount -t tmpfs none /lib/udev/rules.d -o size=64k
cat >/run/udev/rules.d/80-net-setup-link.rules
exec {UDEVD} --debug
"""
_NETWORKD = f"""
chown -R systemd-network /run/systemd/netif
exec {NETWORKD}
"""


def missing() -> str | None:
    """Why they cannot run here, in one sentence; None when they can."""
    if not spaces.inside() or spaces.tier() != "root":
        return "udevd and networkd need root: networkd becomes a user of its own"
    absent = [str(each) for each in (NETWORKD, UDEVD) if not each.exists()]
    return f"{' and '.join(absent)} must be there: run deploy/machine as root" if absent else None


class Systemd:
    """udevd of one node, from construction to `close()`; networkd beside it if asked for."""

    def __init__(self, netns: spaces.Netns, directory: Path) -> None:
        """`directory` is where their logs go."""
        self._netns, self._directory = netns, directory
        self._networkd: subprocess.Popen[bytes] | None = None
        rules = Path(_RULES).read_bytes()
        self._udevd = self._started("udevd", ["unshare", "--mount", "sh", "-ec", _WORLD], rules)
        _until(self._answers, "udevd")
        self._inside("udevadm", "trigger", "--subsystem-match=net", "--action=add", "--settle")

    def networkd(self, files: Mapping[str, str]) -> None:
        """Start it with these .network files, by the interface's name, or start it once more with them.

        Returns when every one of the interfaces is configured.
        """
        if self._networkd is not None:
            self._networkd.terminate()
            self._networkd.wait(10)
        for name, text in files.items():
            path = f"/run/systemd/network/10-{name}.network"
            self._inside("sh", "-c", f"cat >{path}", stdin=f"[Match]\nName={name}\n{text}")
        self._networkd = self._started("networkd", [*self._enter, "sh", "-ec", _NETWORKD])
        for name in files:
            done = f"{name}: State changed: configuring -> configured"
            _until(partial(self._said, done), f"networkd's {name}")

    def removed(self) -> list[str]:
        """What networkd says that it has removed since it was started: addresses, routes, rules."""
        return re.findall(r"Removing foreign ([a-z ]+) \(", self.log("networkd"))

    def log(self, program: str) -> str:
        """What `udevd` or `networkd` has said since it was started."""
        return (self._directory / f"{program}.log").read_text(errors="replace")

    def close(self) -> None:
        """End both; what they did to the kernel stays."""
        for process in (self._networkd, self._udevd):
            if process is not None:
                process.terminate()
                process.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _said(self, words: str) -> bool:
        return words in self.log("networkd")

    def _answers(self) -> bool:
        """Does udevd serve its control socket?"""
        try:
            self._inside("udevadm", "control", "--ping", "--timeout=5")
        except RuntimeError:
            return False
        return True

    @property
    def _enter(self) -> list[str]:
        return ["nsenter", f"--mount=/proc/{self._udevd.pid}/ns/mnt"]

    def _started(self, name: str, argv: list[str], stdin: bytes = b"") -> subprocess.Popen[bytes]:
        with (self._directory / f"{name}.log").open("wb") as log:
            process = self._netns.run(
                subprocess.Popen,
                argv,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "SYSTEMD_LOG_LEVEL": "debug", "SYSTEMD_LOG_TARGET": "console"},
            )
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        return process

    def _inside(self, *argv: str, stdin: str = "") -> str:
        return self._netns.command(*self._enter, *argv, stdin=stdin)


def _until(seen: Callable[[], bool], what: str) -> None:
    """Another process's doing, of which only its log or its socket tells."""
    deadline = time.monotonic() + 20
    while not seen():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} is not ready")
        time.sleep(0.005)
