"""The undelivered deletions: what the launcher wrote while the daemon was away, oldest first.

The launcher reported each of them as done, so each must be taken in once it is here, and may be
taken in twice. A file leaves the spool only after its deletion is recorded elsewhere, or to
`bad/` with its reason beside it when it cannot be read. Carrying deletions out does not belong here.

    <unix ns>-<pid>-<n>.del    a request body (see wire)
    tmp/                       files the launcher has not finished
    bad/                       files nobody could read, each with a .reason

There are two such folders: one on the disk, and one in memory beside the socket, for when the disk takes
nothing. What order they are taken in is of no importance.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cni import spec, wire

_NAME = re.compile(r"(\d{1,20})-(\d{1,10})-(\d{1,10})\.del", re.ASCII)


@dataclass(frozen=True, slots=True)
class Deletion:
    """One DEL the runtime believes done: whose, and when it was asked for (Unix milliseconds).

    `at` tells people, and is no order of events: the clock may have been set since.
    """

    path: Path
    at: int
    container_id: str
    ifname: str
    request: wire.Request

    @property
    def sandbox(self) -> tuple[str, str]:
        """Whose: container id and interface."""
        return self.container_id, self.ifname


class UnreadableError(Exception):
    """A file of the spool that holds no deletion; `set_aside` is what is left to do with it."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: {reason}")


def may_wait(folder: Path) -> bool:
    """Is there a file that waits, or a folder that cannot be read? A few microseconds."""
    try:
        return any(name.endswith(".del") for name in os.listdir(folder))  # noqa: PTH208 - the quick way
    except FileNotFoundError:
        return False
    except OSError:
        return True


def pending(folder: Path) -> list[Path]:
    """The files that wait, in the order they were written; none if there is no spool yet."""
    try:
        return sorted((p for p in folder.iterdir() if p.suffix == ".del"), key=_order)
    except FileNotFoundError:
        return []


def read(path: Path) -> Deletion:
    """The deletion in a file; UnreadableError says why there is none.

    The configuration that came with it is not judged: it cannot make a deletion undone.
    """
    name = _NAME.fullmatch(path.name)
    if not name:
        raise UnreadableError(path, "its name is not <unix ns>-<pid>-<n>.del")
    try:
        with path.open("rb") as file:
            request = wire.decode_request(file.read(wire.MAX_REQUEST + 1))
        if request.env.get("CNI_COMMAND") != "DEL":
            raise UnreadableError(path, "it is not a DEL")
        container_id = request.env.get("CNI_CONTAINERID", "")
        ifname = request.env.get("CNI_IFNAME", "")
        spec.check_container_id(container_id)
        spec.check_ifname(ifname)
    except (OSError, spec.CniError) as error:
        raise UnreadableError(path, str(error)) from error
    return Deletion(path, int(name[1]) // 1_000_000, container_id, ifname, request)


def remove(folder: Path, paths: Iterable[Path]) -> None:
    """Remove files whose deletions are recorded, durably; those already gone are fine."""
    for path in paths:
        path.unlink(missing_ok=True)
    _flush(folder)


def set_aside(folder: Path, error: UnreadableError) -> Path:
    """Move the file into bad/ with its reason in a file beside it, durably; returns where it is.

    Doing it again is fine, also after a crash half-way.
    """
    bad = folder / "bad"
    bad.mkdir(mode=0o700, exist_ok=True)
    kept = bad / error.path.name
    reason = bad / f"{error.path.name}.reason"
    with reason.open("w") as file:
        file.write(error.reason + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        error.path.replace(kept)
    except FileNotFoundError:
        if not kept.exists():
            reason.unlink()
    _flush(bad)
    _flush(folder)
    return kept


def set_aside_in(folder: Path) -> list[Path]:
    """What lies in bad/ because nobody could read it, without the reasons beside."""
    try:
        return sorted(path for path in (folder / "bad").iterdir() if path.suffix == ".del")
    except (FileNotFoundError, NotADirectoryError):
        return []


def forget_unfinished(folder: Path, before: int) -> int:
    """Remove files in tmp/ begun before `before` (Unix ms) and never finished; returns how many.

    Their launcher died before it could report success, so the runtime asks again. What may not be
    removed stays: the folder is a launcher's until the next start gives it to the daemon's user.
    """
    removed = 0
    for path in (folder / "tmp").glob("*.del"):
        if _order(path)[0] < before * 1_000_000:
            with contextlib.suppress(OSError):
                path.unlink()
                removed += 1
    return removed


def _order(path: Path) -> tuple[int, int, int, str]:
    name = _NAME.fullmatch(path.name)
    if not name:
        return (0, 0, 0, path.name)
    return (int(name[1]), int(name[2]), int(name[3]), path.name)


def _flush(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
