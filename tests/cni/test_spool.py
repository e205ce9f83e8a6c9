"""Undelivered deletions are read oldest first, removed for good, and set aside when unreadable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from cni import spool, wire

ENV: Mapping[str, str] = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "abc", "CNI_IFNAME": "eth0"}


def write(folder: Path, name: str, **env: str) -> Path:
    path = folder / name
    path.write_bytes(wire.encode_request(wire.Request({**ENV, **env}, b"{}")))
    return path


def test_no_spool_yet_means_nothing_waits(tmp_path: Path) -> None:
    assert spool.pending(tmp_path / "absent") == []


def test_files_come_in_the_order_of_time_not_of_text(tmp_path: Path) -> None:
    names = ["9-5-0.del", "10-5-0.del", "10-5-1.del", "10-40-0.del", "1700000000000000000-1-0.del"]
    for name in reversed(names):
        write(tmp_path, name)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "README").touch()
    assert [path.name for path in spool.pending(tmp_path)] == names


def test_a_deletion_says_whose_and_when(tmp_path: Path) -> None:
    path = write(tmp_path, "1700000000123456789-77-0.del", CNI_NETNS="/run/netns/x")
    deletion = spool.read(path)
    assert (deletion.container_id, deletion.ifname) == ("abc", "eth0")
    assert deletion.at == 1_700_000_000_123
    assert deletion.request.env["CNI_NETNS"] == "/run/netns/x"
    assert deletion.request.stdin == b"{}"


@pytest.mark.parametrize(
    "change",
    [
        {"CNI_COMMAND": "ADD"},
        {"CNI_CONTAINERID": ""},
        {"CNI_CONTAINERID": "../x"},
        {"CNI_IFNAME": "much-too-long-a-name"},
    ],
    ids=str,
)
def test_a_file_that_names_no_attachment_is_unreadable(
    tmp_path: Path, change: dict[str, str]
) -> None:
    path = write(tmp_path, "1-1-0.del", **change)
    with pytest.raises(spool.UnreadableError) as unreadable:
        spool.read(path)
    assert unreadable.value.path == path


def test_a_torn_misnamed_or_impossible_file_is_unreadable(tmp_path: Path) -> None:
    torn = write(tmp_path, "1-1-0.del")
    torn.write_bytes(torn.read_bytes()[:-1])
    misnamed = write(tmp_path, "x.del")
    folder = tmp_path / "2-1-0.del"
    folder.mkdir()
    for path in (torn, misnamed, folder):
        with pytest.raises(spool.UnreadableError):
            spool.read(path)


def test_what_is_removed_does_not_come_back_and_twice_is_fine(tmp_path: Path) -> None:
    first, second = write(tmp_path, "1-1-0.del"), write(tmp_path, "2-1-0.del")
    spool.remove(tmp_path, [first])
    spool.remove(tmp_path, [first])
    assert spool.pending(tmp_path) == [second]


def test_an_unreadable_file_is_kept_with_its_reason_and_waits_no_more(tmp_path: Path) -> None:
    path = tmp_path / "1-1-0.del"
    path.write_bytes(b"rubbish")
    with pytest.raises(spool.UnreadableError) as unreadable:
        spool.read(path)
    for _ in range(2):
        kept = spool.set_aside(tmp_path, unreadable.value)
        assert kept.read_bytes() == b"rubbish"
        assert "does not begin" in kept.with_name("1-1-0.del.reason").read_text()
    assert spool.pending(tmp_path) == []


def test_setting_aside_what_is_gone_leaves_no_reason_behind(tmp_path: Path) -> None:
    spool.set_aside(tmp_path, spool.UnreadableError(tmp_path / "1-1-0.del", "why"))
    assert list((tmp_path / "bad").iterdir()) == []


def test_only_old_unfinished_files_are_forgotten(tmp_path: Path) -> None:
    unfinished = tmp_path / "tmp"
    unfinished.mkdir()
    old, new = write(unfinished, "1000000000-1-0.del"), write(unfinished, "2000000000-1-0.del")
    assert spool.forget_unfinished(tmp_path, before=2_000) == 1
    assert (old.exists(), new.exists()) == (False, True)
