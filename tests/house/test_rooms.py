"""What the import contracts cannot say about the rooms: names of files, the standard library."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
ROOMS = ("ledger", "reconciler", "cni", "migrations", "tests")
VAGUE = {"utils", "util", "helpers", "helper", "manager", "wrapper", "base", "common", "misc"}


def test_no_file_has_a_name_that_promises_nothing() -> None:
    named = [path for room in ROOMS for path in (TREE / room).rglob("*.py") if path.stem in VAGUE]
    assert named == []


@pytest.mark.parametrize("path", sorted((TREE / "cni").rglob("*.py")), ids=lambda path: path.name)
def test_cni_imports_nothing_but_the_standard_library(path: Path) -> None:
    """The runtime's door must open on a host where only Python itself was installed."""
    known = sys.stdlib_module_names | {"cni"}
    strange: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            strange |= {alias.name for alias in node.names if alias.name.split(".")[0] not in known}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] not in known:
            strange.add(node.module or ".")
    assert strange == set()
