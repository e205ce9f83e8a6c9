"""The boot's id, and a file that a runtime reads whole or not at all."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from reconciler import errors
from reconciler import settings as knobs
from reconciler.providers import host


def test_the_boot_id_is_what_the_kernel_says() -> None:
    path = knobs.Settings().boot_id_path
    assert host.boot_id(path) == Path(path).read_text(encoding="ascii").strip()


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe"])
def test_a_file_that_tells_no_boot_id_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """Without a boot id every lease would look as if it were of this boot, or of none."""
    path = tmp_path / "boot_id"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(errors.Refused, match=f"no boot id in {path}"):
        host.boot_id(str(path))


def test_placing_leaves_nothing_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "10-aws.conflist"

    host.place(str(path), "one")
    host.place(str(path), "two")

    assert path.read_text(encoding="utf-8") == "two"
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    """A runtime watches the folder and reads at once whatever appears there."""
    path = tmp_path / "10-aws.conflist"
    texts = {letter * 200_000 for letter in "ab"}
    host.place(str(path), "a" * 200_000)
    seen: set[str] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_text(encoding="utf-8"))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        for text in sorted(texts):
            host.place(str(path), text)
    done.set()
    reader.join()

    assert seen == texts


def test_what_is_being_written_is_none_of_a_runtimes_names(tmp_path: Path) -> None:
    """libcni takes .conf, .conflist and .json; a crash must not leave a part under such a name."""
    path = tmp_path / "10-aws.conflist"
    (tmp_path / ".10-aws.conflist.new").mkdir()  # stands where the part would be written

    with pytest.raises(IsADirectoryError):
        host.place(str(path), "text")

    assert not path.exists()


def test_a_folder_that_is_not_there_is_an_error_and_not_made(tmp_path: Path) -> None:
    """It belongs to the host; to make it would hide a wrong mount."""
    with pytest.raises(FileNotFoundError):
        host.place(str(tmp_path / "net.d" / "10-aws.conflist"), "text")

    assert list(tmp_path.iterdir()) == []
