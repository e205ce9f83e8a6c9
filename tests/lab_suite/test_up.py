"""`python -m tests.lab up`, seen from outside by the one line of JSON it prints."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.lab import spaces

pytestmark = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))

ASK_METADATA = """\
import urllib.request as u
at = "http://169.254.169.254/latest/"
put = u.Request(at + "api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"})
token = u.urlopen(put, timeout=5).read().decode()
get = u.Request(at + "meta-data/instance-id", headers={"X-aws-ec2-metadata-token": token})
print(u.urlopen(get, timeout=5).read().decode())
"""


@contextlib.contextmanager
def up(*options: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The process and what it said."""
    line = [sys.executable, "-m", "tests.lab", "up", "--json", *options]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def on(node: dict[str, Any], *argv: str) -> str:
    """Run a program on a node, the way the JSON says."""
    return subprocess.check_output([*node["enter"], *argv], text=True)


def folder_of(said: dict[str, Any]) -> Path:
    """The lab's files: the folder above all nodes' ledgers."""
    return Path(said["nodes"][0]["ledger"]).parents[3]


def wait_until_gone(path: Path) -> None:
    # Removed by a process that is not ours: nothing tells us, so we look until a deadline.
    deadline = time.monotonic() + 10
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not path.exists()


def test_the_line_has_what_an_outsider_needs() -> None:
    """EC2 on loopback, the nodes' paths, no daemon when none is asked for."""
    with up("--no-daemon", "--nodes", "3", "--type", "t3.medium") as (_, said):
        assert [i["type"] for i in said["instances"]] == 3 * ["t3.medium"]
        assert [node["instance_id"] for node in said["nodes"]] == [
            i["id"] for i in said["instances"]
        ]
        assert [node["daemon_pid"] for node in said["nodes"]] == [None, None, None]
        for node in said["nodes"]:
            assert Path(node["cni_bin_dir"]).is_dir()
            assert Path(node["cni_conf"]).parent.is_dir()
            inside = on(node, "readlink", "/proc/self/ns/net").strip()
            by_path = ["nsenter", f"--net={node['netns']}", "readlink", "/proc/self/ns/net"]
            assert subprocess.check_output(by_path, text=True).strip() == inside


def test_ec2_answers_outside_and_metadata_on_the_nodes() -> None:
    """The endpoint works with any credentials; each node is told which instance it is."""
    with up("--no-daemon") as (_, said):
        ec2 = boto3.client(
            "ec2",
            region_name=said["region"],
            endpoint_url=said["endpoint"],
            aws_access_key_id="any",
            aws_secret_access_key="any",
        )
        [reservation] = ec2.describe_instances()["Reservations"]
        found = {i["InstanceId"]: i["PrivateIpAddress"] for i in reservation["Instances"]}
        assert set(found) == {i["id"] for i in said["instances"]}
        for node in said["nodes"]:
            asked = on(node, sys.executable, "-c", ASK_METADATA).strip()
            assert asked == node["instance_id"]
            assert found[asked] in on(node, "ip", "-br", "address", "show", "eth0")
        one, two = said["nodes"]
        assert "1 received" in on(one, "ping", "-c1", "-W2", found[two["instance_id"]])


ADD_A_POD = """\
unshare --net sh -c '
    export CNI_COMMAND=ADD CNI_CONTAINERID=outsiders CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin
    CNI_NETNS=/proc/$$/ns/net nsenter --net=/proc/$PPID/ns/net "$0" && ip -o -4 address show eth0
' "$0"; exit $?
"""


def test_with_daemons_an_outsider_can_be_the_runtime_and_read_the_ledger() -> None:
    """A pod added by the line's paths alone has an address; the ledger, opened from outside, has it."""
    with up("--nodes", "1") as (process, said):
        [node] = said["nodes"]
        told = Path(f"/proc/{node['daemon_pid']}/status").read_text()
        assert "CapEff:\t0000000000001000" in told
        conflist = json.loads(Path(node["cni_conf"]).read_text())
        named = {key: conflist[key] for key in ("name", "cniVersion")}
        launcher = f"{node['cni_bin_dir']}/aws-cni"

        added = subprocess.run(
            [*node["enter"], "sh", "-c", ADD_A_POD, launcher],
            input=json.dumps(conflist["plugins"][0] | named),
            capture_output=True,
            text=True,
            check=True,
        )

        product = Path(sys.executable).with_name("vpcledger")
        asked = [product, "show", "pods", "--json", "--ledger", node["ledger"]]
        [pod] = json.loads(subprocess.check_output(asked))
        assert pod["container_id"] == "outsiders"
        assert f'"{pod["address"]}/32"' in added.stdout
        assert f"inet {pod['address']}/32" in added.stdout
        process.terminate()
        assert process.wait(20) == 0
        wait_until_gone(folder_of(said))


def test_sigterm_ends_it_cleanly() -> None:
    """Exit code 0 and nothing left."""
    with up("--no-daemon") as (process, said):
        process.terminate()
        assert process.wait(20) == 0
        wait_until_gone(folder_of(said))


def test_sigkill_leaves_nothing_either() -> None:
    """Neither the files, which have to lie where both sides see them, nor a namespace."""
    with up("--no-daemon") as (process, said):
        node = said["nodes"][0]
        init = int(node["enter"][node["enter"].index("--target") + 1])
        os.kill(process.pid, signal.SIGKILL)
        process.wait(5)
        wait_until_gone(folder_of(said))
        assert not Path(node["netns"]).exists()
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            assert Path(f"/proc/{init}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("command", ["up", "demo"])
def test_where_namespaces_are_forbidden_it_says_so(command: str) -> None:
    """Exit code 2, one sentence, no traceback; nothing was made."""
    script = (
        "import pathlib, subprocess\n"
        "pathlib.Path('/proc/sys/user/max_user_namespaces').write_text('0')\n"
        f"lab = ['setpriv', '--bounding-set=-all', sys.executable, '-m', 'tests.lab', {command!r}]\n"
        "sys.exit(subprocess.run(lab).returncode)"
    )
    session = [sys.executable, "-m", "tests.lab.spaces", "--"]
    program = [sys.executable, "-c", f"import sys\n{script}"]
    # The limit is that of the user namespace around it, not the host's.
    line = ["unshare", "--user", "--map-root-user", *session, *program]
    done = subprocess.run(line, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "user.max_user_namespaces is 0" in done.stderr
