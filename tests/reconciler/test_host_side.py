"""What the daemon leaves on the host: the conflist, the launcher, log lines; and the privileges it drops."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from reconciler import errors, install, logs, privileges, settings
from reconciler.providers import conflist, host
from tests.lab import spaces


def test_the_boot_id_is_the_files_and_a_missing_one_is_said(tmp_path: Path) -> None:
    path = tmp_path / "boot_id"
    path.write_text("b1\n")
    assert host.boot_id(str(path)) == "b1"
    for bad in (tmp_path / "none", tmp_path):
        with pytest.raises(errors.Refused, match="no boot id"):
            host.boot_id(str(bad))


def test_the_conflist_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "10-aws.conflist"
    host.place(str(target), conflist.render(settings.Settings()))
    host.place(str(target), conflist.render(settings.Settings()))

    plugin = json.loads(target.read_text())["plugins"][0]

    assert (plugin["type"], plugin["mtu"], plugin["vethPrefix"]) == ("aws-cni", "9001", "eni")
    assert [entry.name for entry in tmp_path.iterdir()] == ["10-aws.conflist"]


def test_the_publisher_publishes_once_as_the_user_it_was_started_by(tmp_path: Path) -> None:
    target = tmp_path / "conf"
    publisher = privileges.Publisher(lambda text: host.place(str(target), text))

    assert publisher.publish("one") == ""
    assert publisher.publish("one") == ""
    assert "restart" in publisher.publish("two")
    publisher.close()
    assert target.read_text() == "one"


def test_a_folder_that_refuses_is_said_and_tried_again(tmp_path: Path) -> None:
    target = tmp_path / "later" / "conf"
    publisher = privileges.Publisher(lambda text: host.place(str(target), text))

    assert "No such file" in publisher.publish("one")
    target.parent.mkdir()
    assert publisher.publish("one") == ""
    publisher.close()


@pytest.mark.netns
def test_what_is_left_is_one_capability_for_good() -> None:
    """In a child: an ordinary user, CAP_NET_ADMIN, an empty bounding set besides, no_new_privs."""
    told, tell = os.pipe()
    uid = 0 if spaces.tier() == "single" else 65532
    pid = os.fork()
    if pid == 0:
        try:
            privileges.become(uid)
            status = Path("/proc/self/status").read_text()
            os.write(tell, status.encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(tell)
    lines = os.read(told, 1 << 16).decode().splitlines()
    os.close(told)
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    one = 1 << privileges.CAP_NET_ADMIN
    assert {int(fields[f"Cap{which}"], 16) for which in ("Eff", "Prm", "Bnd")} == {one}
    assert (int(fields["CapInh"], 16), int(fields["CapAmb"], 16)) == (0, 0)
    assert set(fields["Uid"].split()) == {str(uid)}
    assert fields["NoNewPrivs"] == "1"


def test_the_launcher_is_installed_and_told_unusual_paths(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    unusual, _ = settings.load(
        {
            "HOST_CNI_BIN_PATH": str(folder),
            "VPCLEDGER_STATE_DIR": str(tmp_path / "state"),
            "VPCLEDGER_RUN_DIR": str(tmp_path / "run"),
        }
    )
    list(install.launcher(unusual))

    assert len(list(install.launcher(unusual))) == 2
    assert os.access(folder / "aws-cni", os.X_OK)
    assert (folder / "aws-cni.conf").read_text() == (
        "socket=../run/vpcledger.sock\nspool=../state/spool\n"
    )
    usual, _ = settings.load({"HOST_CNI_BIN_PATH": str(folder)})
    list(install.launcher(usual))
    assert not (folder / "aws-cni.conf").exists()


def test_log_lines_are_json_and_a_bad_file_falls_back_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    kept = (list(root.handlers), root.level)
    try:
        logs.start("info", str(tmp_path / "deep" / "ipamd.log"))
        logging.getLogger("x").info("hello %s", "world")
        logging.getLogger("x").debug("not this")
        root.handlers[0].close()
        (line,) = (tmp_path / "deep" / "ipamd.log").read_text().splitlines()

        logs.start("warn", str(tmp_path))
    finally:
        root.handlers[:], root.level = kept
    told = json.loads(line)
    assert (told["level"], told["msg"]) == ("info", "hello world")
    assert "could not be opened" in json.loads(capsys.readouterr().err)["msg"]
