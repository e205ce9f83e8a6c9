"""The launcher is one static executable, and a build that cannot be says what is missing."""

from __future__ import annotations

import importlib.util
import platform
import struct
import subprocess
from pathlib import Path

import pytest

from cni import build

MACHINES = {62: "x86_64", 183: "aarch64"}  # ELF e_machine
INTERPRETER = 3  # PT_INTERP: present where a program needs a dynamic loader


def elf(path: Path) -> tuple[str, list[int]]:
    """The machine a 64-bit little-endian executable is for, and its program headers' types."""
    data = path.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01"
    (machine,) = struct.unpack_from("<H", data, 18)
    (offset,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    kinds = [struct.unpack_from("<I", data, offset + n * size)[0] for n in range(count)]
    return MACHINES[machine], kinds


def test_the_launcher_needs_nothing_of_its_host(launcher: Path) -> None:
    machine, headers = elf(launcher)
    assert machine == platform.machine()
    assert INTERPRETER not in headers
    assert launcher.stat().st_size < 100_000


def test_a_build_replaces_the_old_file_in_one_step(launcher: Path, tmp_path: Path) -> None:
    """Also while the old one runs, which a write into it would not survive (ETXTBSY)."""
    target = tmp_path / "aws-cni"
    build.build(target)
    with subprocess.Popen([target], env={"CNI_COMMAND": "GC"}, stdin=subprocess.PIPE) as running:
        build.build(target)
        running.communicate()
    assert [path.name for path in tmp_path.iterdir()] == ["aws-cni"]


@pytest.mark.parametrize("target", build.TARGETS)
def test_zig_builds_for_either_machine(tmp_path: Path, target: str) -> None:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("the ziglang wheel is for release builds and not installed here")
    machine, headers = elf(build.build(tmp_path / "aws-cni", target=target, zig=True))
    assert machine == target
    assert INTERPRETER not in headers


def test_a_machine_we_do_not_build_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(build.BuildError, match="s390x is not supported"):
        build.build(tmp_path / "aws-cni", target="s390x")


def test_musl_gcc_does_not_build_for_the_other_machine(tmp_path: Path) -> None:
    other = next(target for target in build.TARGETS if target != platform.machine())
    with pytest.raises(build.BuildError, match="--zig"):
        build.build(tmp_path / "aws-cni", target=other)


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match="musl-tools"):
        build.build(tmp_path / "aws-cni")
    assert list(tmp_path.iterdir()) == []
