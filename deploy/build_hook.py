"""Puts into the wheel what no commit holds: the compiled launcher and the pruned EC2 model.

A wheel built here for this machine uses the C compiler at hand (musl-gcc). A release wheel for a
named processor, VPCLEDGER_WHEEL=x86_64 or aarch64, is compiled with ziglang and says so in its tag;
the launcher is static, so one file serves glibc and musl hosts alike. How either product is made
does not belong here: cni.build and reconciler.providers.prune know.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROCESSORS = ("x86_64", "aarch64")


class LauncherAndModel(BuildHookInterface[Any]):
    """Runs before the files of a wheel are collected."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make both products and tag the wheel with the processor its launcher is for.

        An sdist carries sources alone. An editable install carries nothing: its tree is made ready
        by `make setup`.
        """
        if self.target_name != "wheel" or version == "editable":
            return
        wanted = os.environ.get("VPCLEDGER_WHEEL", "")
        if wanted and wanted not in PROCESSORS:
            raise ValueError(f"VPCLEDGER_WHEEL={wanted}: expected {' or '.join(PROCESSORS)}")
        processor = wanted or platform.machine()
        launcher = f"build/aws-cni-{processor}"
        zig = ("--zig",) if wanted else ()
        self._make("cni.build", "--target", processor, "--output", launcher, *zig)
        self._make("reconciler.providers.prune")
        build_data["force_include"][launcher] = "cni/bin/aws-cni"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platforms(processor) if wanted else f'linux_{processor}'}"

    def _make(self, module: str, *arguments: str) -> None:
        subprocess.run([sys.executable, "-m", module, *arguments], cwd=self.root, check=True)


def _platforms(processor: str) -> str:
    """Every Linux of this processor that pip knows: PEP 600 and PEP 656, and PEP 599's older name."""
    return f"manylinux2014_{processor}.manylinux_2_17_{processor}.musllinux_1_1_{processor}"
