"""Each import contract of pyproject.toml is broken once on purpose, in a copy of the tree.

A contract that cannot fail holds nothing up. What the contracts say is not repeated here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
ROOMS = ("ledger", "reconciler", "cni", "migrations", "tests")
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"

BREACHES = [
    ("floors", "reconciler/settings.py", "import reconciler.loop"),
    ("floors", "reconciler/loop.py", "import reconciler.verbs"),
    ("floors", "reconciler/verbs.py", "import reconciler.server"),
    ("floors", "reconciler/server.py", "import reconciler.daemon"),
    ("floors", "reconciler/daemon.py", "import reconciler.cli"),
    ("floors", "reconciler/providers/host.py", "import reconciler.cloud"),
    ("floors", "ledger/database.py", "import ledger.reads"),
    ("floors", "ledger/model.py", "import ledger.schema"),
    ("ledger", "ledger/writes/leases.py", "import reconciler.settings"),
    ("ledger", "ledger/model.py", "import cni"),
    ("planner", "reconciler/planner/pool.py", "import time"),
    ("planner", "reconciler/planner/wiring.py", "import socket"),
    ("planner", "reconciler/planner/plan.py", "import ledger.database"),
    ("hands", "reconciler/providers/ec2.py", "import ledger.writes"),
    ("hands", "reconciler/providers/kernel.py", "import ledger.database"),
    ("strangers", "reconciler/providers/ec2.py", "import reconciler.providers.imds"),
    ("strangers", "reconciler/providers/host.py", "import reconciler.providers.kernel"),
    ("decisions", "reconciler/providers/ec2.py", "import reconciler.planner.pool"),
    ("sql", "reconciler/verbs.py", "import sqlite3"),
    ("sql", "reconciler/cli.py", "from sqlalchemy import select"),
    ("boto3", "reconciler/daemon.py", "import boto3"),
    ("boto3", "reconciler/providers/imds.py", "from botocore import session"),
    ("pyroute2", "reconciler/providers/kernel.py", "from pyroute2 import IPRoute"),
    ("kubernetes", "reconciler/recovery.py", "import kubernetes"),
    ("apscheduler", "reconciler/loop.py", "import apscheduler"),
    ("doorbell", "cni/wire.py", "import reconciler.errors"),
    ("doorbell", "cni/spool.py", "import yaml"),
    ("lab", "tests/lab/cloud.py", "import ledger.model"),
    ("lab", "tests/lab/kubelet.py", "import cni.wire"),
    ("house", "reconciler/cli.py", "import tests.lab"),
]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of every Python file and the contracts."""
    copy = tmp_path_factory.mktemp("house")
    for room in ROOMS:
        shutil.copytree(
            TREE / room,
            copy / room,
            ignore=lambda folder, names: [
                name
                for name in names
                if not name.endswith(".py") and not (Path(folder) / name).is_dir()
            ],
        )
    shutil.copy(TREE / "pyproject.toml", copy)
    return copy


def lint(house: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LINT, "--no-logo", *options],
        cwd=house,
        env={**os.environ, "PYTHONPATH": str(house), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def contracts() -> dict[str, str]:
    config = tomllib.loads((TREE / "pyproject.toml").read_text())
    return {c["id"]: c["name"] for c in config["tool"]["importlinter"]["contracts"]}


def test_every_module_stands_on_a_floor() -> None:
    """A new file is placed before it is imported: by its own name or by its package's."""
    config = tomllib.loads((TREE / "pyproject.toml").read_text())
    (floors,) = (c for c in config["tool"]["importlinter"]["contracts"] if c["id"] == "floors")
    placed = {name for layer in floors["layers"] for name in re.split(r"[\s:|()]+", layer) if name}
    for room in ("ledger", "reconciler"):
        for path in (TREE / room).iterdir():
            if path.stem.startswith("__") or not (
                path.suffix == ".py" or (path / "__init__.py").exists()
            ):
                continue
            assert f"{room}.{path.stem}" in placed


def test_the_floors_hold(house: Path) -> None:
    done = lint(house)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_contract_is_broken_somewhere_below() -> None:
    assert {contract for contract, _, _ in BREACHES} == set(contracts())


@pytest.mark.parametrize(("contract", "file", "breach"), BREACHES)
def test_a_breach_is_seen(house: Path, contract: str, file: str, breach: str) -> None:
    """With one forbidden import the contract that forbids it is reported broken, by its name."""
    path = house / file
    sound = path.read_text()
    try:
        path.write_text(f"{sound}\n{breach}\n")
        done = lint(house, "--contract", contract)
    finally:
        path.write_text(sound)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{contracts()[contract]} BROKEN" in done.stdout
    importer = file.removesuffix(".py").replace("/", ".")
    assert f"{importer} -> {breach.split()[1]}" in done.stdout
