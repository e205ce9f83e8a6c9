"""What is shipped: the wheel's content, its tag, and the locks it is installed with."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-release.lock")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel for this machine, built from a copy of the sources without anything built before."""
    if shutil.which("musl-gcc") is None:
        pytest.skip("musl-gcc is not installed (Debian package musl-tools)")
    copy = tmp_path_factory.mktemp("sources")
    for name in ("ledger", "reconciler", "cni", "migrations", "deploy", "tests"):
        shutil.copytree(
            TREE / name, copy / name, ignore=shutil.ignore_patterns("bin", "ec2_model", "*.pyc")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(TREE / name, copy)
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel"],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


def test_the_wheel_holds_the_four_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"ledger", "reconciler", "cni", "migrations", "vpcledger-0.1.0.dist-info"}


def test_every_source_file_of_the_packages_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    """Migrations and tables such as limits.json as well: a node has no repository."""
    sources = {
        str(path.relative_to(TREE))
        for room in ("ledger", "reconciler", "cni", "migrations")
        for path in (TREE / room).rglob("*")
        if path.suffix in {".py", ".json", ".mako", ".sql", ".txt"}
        and "ec2_model" not in path.parts
        and "__pycache__" not in path.parts
    }
    assert sources <= set(wheel.namelist())


def test_the_wheel_carries_a_static_launcher_that_may_be_executed(wheel: zipfile.ZipFile) -> None:
    member = wheel.getinfo("cni/bin/aws-cni")
    assert (member.external_attr >> 16) & 0o111
    program = wheel.read(member)
    assert program.startswith(b"\x7fELF")
    assert b"ld-linux" not in program
    assert b"ld-musl" not in program


def test_the_wheel_carries_the_pruned_model(wheel: zipfile.ZipFile) -> None:
    model = [name for name in wheel.namelist() if "providers/ec2_model/" in name]
    assert any("service-2.json" in name for name in model), model
    assert sum(wheel.getinfo(name).file_size for name in model) < 1_000_000


def test_the_wheel_says_which_machine_it_is_for(wheel: zipfile.ZipFile) -> None:
    """All its Python is pure, and still it must not be installed on another processor."""
    said = wheel.read("vpcledger-0.1.0.dist-info/WHEEL").decode()
    assert f"Tag: py3-none-linux_{platform.machine()}" in said
    assert "Root-Is-Purelib: false" in said
    points = wheel.read("vpcledger-0.1.0.dist-info/entry_points.txt").decode()
    assert "vpcledger = reconciler.cli:main" in points


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_hashes(name: str) -> None:
    requirements = re.split(r"\n(?=[a-z])", (TREE / name).read_text().strip())
    for requirement in requirements:
        assert "==" in requirement
        assert "--hash=sha256:" in requirement, requirement


def test_every_dependency_is_locked() -> None:
    """A dependency that was added to pyproject.toml and not locked would not be installed."""
    config = tomllib.loads((TREE / "pyproject.toml").read_text())
    asked = {
        "requirements.lock": config["project"]["dependencies"],
        "requirements-dev.lock": config["project"]["dependencies"]
        + config["dependency-groups"]["dev"],
        "requirements-release.lock": config["dependency-groups"]["release"],
    }
    for name, requirements in asked.items():
        locked = set(re.findall(r"^([a-z0-9-]+)==", (TREE / name).read_text(), re.MULTILINE))
        assert {re.split(r"[<>=!]", each)[0] for each in requirements} <= locked
