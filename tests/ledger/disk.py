"""Run a story in a process whose disk tells what was written, and rebuild what a power cut would leave.

What a test expects of the rebuilt files does not belong here.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("disk.c")
SECTOR = 512
"""What a disk writes whole or not at all."""


@dataclass(frozen=True, slots=True)
class Record:
    """One thing that happened: a write (W), sync (S), cut (T), removal (U), or a note (N) of the story's."""

    kind: str
    name: str
    offset: int
    data: bytes


def run(story: str, folder: Path, log: Path | None, built: Path) -> list[Record]:
    """Run a Python program on the recording disk; what it did to files below `folder`, in order, if there is a log."""
    library = built / "disk.so"
    if not library.exists():
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True
        )
    done = subprocess.run(
        [sys.executable, "-c", story],
        env=os.environ
        | {"LD_PRELOAD": str(library), "DISK_FOLDER": str(folder)}
        | ({"DISK_LOG": str(log)} if log else {}),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return list(_read(log.read_bytes())) if log and log.exists() else []


def _read(raw: bytes) -> Iterator[Record]:
    at = 0
    while at < len(raw):
        kind, length = struct.unpack_from("=cH", raw, at)
        name = raw[at + 3 : at + 3 + length].decode()
        at += 3 + length
        offset, size = struct.unpack_from("=QI", raw, at)
        at += 12
        data = raw[at : at + size] if kind == b"W" else b""
        at += len(data)
        yield Record(kind.decode(), name, offset, data)


def image(records: list[Record], keep: random.Random | None) -> dict[str, bytes]:
    """The files after a power cut at the end of `records`.

    What was synced is there. Of the rest, sector by sector, whatever `keep` decides; None keeps nothing.
    """
    files: dict[str, bytearray] = {}
    pending: dict[str, list[Record]] = {}
    for record in records:
        if record.kind == "S":
            for each in pending.pop(record.name, []):
                _apply(files, each, None)
        elif record.kind == "U":
            pending.pop(record.name, None)
            files.pop(record.name, None)
        elif record.kind in {"W", "T"}:
            pending.setdefault(record.name, []).append(record)
    for unsynced in pending.values():
        for each in unsynced if keep else ():
            _apply(files, each, keep)
    return {name: bytes(data) for name, data in files.items()}


def _apply(files: dict[str, bytearray], record: Record, keep: random.Random | None) -> None:
    data = files.setdefault(record.name, bytearray())
    if record.kind == "T":
        if keep is None or keep.random() < 0.5:
            del data[record.offset :]
            data.extend(bytes(record.offset - len(data)))
        return
    for start in range(0, len(record.data), SECTOR):
        if keep is not None and keep.random() < 0.5:
            continue
        part = record.data[start : start + SECTOR]
        at = record.offset + start
        data.extend(bytes(max(0, at + len(part) - len(data))))
        data[at : at + len(part)] = part
