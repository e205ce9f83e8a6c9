"""Every way of packets in every mode of source translation: none is missing, and the page shows them all.

The ways are the rows of deploy/docs/network.md, "Which way packets go"; tests are marked with them, and a
marked test that walks nothing fails by itself.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.lab.kubeproxy import MODES
from tests.paths.town import INTERFACES, SETTINGS

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "deploy/docs/network.md"

ONE_INTERFACE = {"node off the VPC", "internet to NodePort Cluster, pod on another node"}
"""Ways on which the pod's interface plays no part."""

IN_ONE_TEST = {"pod to pod on one node", "pod to pod on another node"}
"""Each pair of interfaces is walked within one test."""


def rows() -> list[str]:
    """The first column of the page's table."""
    part = PAGE.read_text().partition("## Which way packets go")[2].partition("\n## ")[0]
    return re.findall(r"^\| ([^|]+?) \|", part, re.MULTILINE)[1:]


class Collected:
    """A pytest plugin that prints what is marked: way, mode, interface, kube-proxy's mode."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Each marked test as a line of JSON."""
        for item in items:
            for mark in item.iter_markers("path"):
                assert isinstance(item, pytest.Function)
                asked: dict[str, Any] = item.callspec.params
                told = [mark.args[0], *(asked.get(k) for k in ("mode", "interface", "proxies"))]
                print("marked", json.dumps(told))


def walked() -> dict[str, set[tuple[str, int | None, str | None]]]:
    """Way -> the modes, interfaces and modes of kube-proxy in which a test walks it."""
    program = "import sys, pytest; from tests.paths.test_matrix import Collected;"
    program += f"sys.exit(pytest.main(['--collect-only', '-q', {str(HERE)!r}], [Collected()]))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=HERE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = defaultdict(set)
    for line in done.stdout.splitlines():
        if line.startswith("marked "):
            way, *how = json.loads(line.removeprefix("marked "))
            found[way].add(tuple(how))
    return found


def test_every_way_is_walked_in_every_mode_by_pods_of_every_interface() -> None:
    ways = walked()
    assert sorted(ways) == sorted(rows())
    missing = []
    for way, how in ways.items():
        interfaces = [None] if way in ONE_INTERFACE | IN_ONE_TEST else INTERFACES
        proxies = MODES if "ClusterIP" in way or "NodePort" in way else [None]
        wanted = set(itertools.product(SETTINGS, interfaces, proxies))
        missing += [(way, *each) for each in wanted - how]
    assert not missing
