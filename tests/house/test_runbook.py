"""Every finding the product can raise has a section in the runbook, and every section is run by a test."""

from __future__ import annotations

import ast
from pathlib import Path

from reconciler import errors, record
from tests.reconciler import runbook

TREE = Path(__file__).parents[2]
RAISES = {"open_finding": 1, "_find": 0}
"""Functions that open a finding, and which of their arguments is its code."""


def constants(tree: ast.Module) -> dict[str, str]:
    """Names of a module that are strings."""
    found: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            names = node.targets[0] if isinstance(node, ast.Assign) else node.target
            values = node.value
            pairs = (
                zip(names.elts, values.elts, strict=True)
                if isinstance(names, ast.Tuple) and isinstance(values, ast.Tuple)
                else [(names, values)]
            )
            for name, value in pairs:
                if isinstance(name, ast.Name) and isinstance(value, ast.Constant):
                    found[name.id] = str(value.value)
    return found


def raised() -> set[str]:
    """The codes in the source, and those that EC2's answers become."""
    found = set(record.EC2_TROUBLE)
    trees = {path: ast.parse(path.read_text()) for path in (TREE / "reconciler").rglob("*.py")}
    named = {name: text for tree in trees.values() for name, text in constants(tree).items()}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name not in RAISES or (name == "_find" and path.name != "host_loop.py"):
                continue
            code = node.args[RAISES[name]]
            if isinstance(code, ast.Constant):
                found.add(str(code.value))
            elif isinstance(code, ast.Name) and code.id in named | constants(tree):
                found.add((named | constants(tree))[code.id])
            else:  # a parameter: of _find, which is looked at itself, or what EC2's answer became
                assert (path.name, ast.unparse(code)) in {
                    ("host_loop.py", "code"),
                    ("record.py", "reason"),
                }, f"{path.name} opens a finding of which no code is to be seen"
    return found


def test_every_finding_has_a_section_and_no_section_is_of_none() -> None:
    assert set(runbook.sections()) == raised()
    assert raised() <= errors.REASONS.keys()


def test_what_ec2_answers_becomes_a_finding_that_closes() -> None:
    """Whatever a refused call is called, `calm` knows it."""
    codes = {
        "RequestLimitExceeded",
        "UnauthorizedOperation",
        "InvalidParameterValue",
        "Unavailable",
    }
    codes |= {"InsufficientFreeAddressesInSubnet", "PrivateIpAddressLimitExceeded", "ReadTimeout"}
    assert {errors.from_ec2(code, "").reason for code in codes} <= {*record.EC2_TROUBLE}


def test_every_section_is_run_by_a_test() -> None:
    for code in runbook.sections():
        assert callable(getattr(runbook, code, None)), f"tests/reconciler/runbook.py has no {code}"
