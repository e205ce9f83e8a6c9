"""Bad input, through the launcher, to a live daemon: a code, a sentence, and nothing is left of it."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.lab import spaces
from tests.lab.node import Node
from tests.lab.whole import Lab
from tests.reconciler import live

pytestmark = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))

CONFIG = json.dumps({"cniVersion": "1.0.0", "name": "aws-cni", "type": "aws-cni"}).encode()
HELD = "SELECT address, state FROM v_addresses ORDER BY address"
LEASES = "SELECT * FROM v_leases ORDER BY id"


def call(node: Node, stdin: bytes, env: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """One run of the launcher on the node: exit status and the object it printed."""
    done = node.netns.run(
        subprocess.run,
        [str(node.bin / "aws-cni")],
        input=stdin,
        env=env,
        capture_output=True,
        check=False,
        timeout=30,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else {}


@contextmanager
def pod(node: Node) -> Iterator[dict[str, str]]:
    """A sandbox, as the variables of its ADD."""
    with spaces.Netns("bad-input", directory=node.pods) as netns:
        before = netns.command("ip", "-o", "link")
        yield {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": "badc0ffee",
            "CNI_NETNS": netns.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(node.bin),
            "CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=bad;IgnoreUnknown=1",
        }
        assert netns.command("ip", "-o", "link") == before


@contextmanager
def nothing_happens(lab: Lab) -> Iterator[None]:
    """No address is given, no lease made, no call to EC2, no change in the kernel."""
    before = everything(lab)
    yield
    assert everything(lab) ^ before == set()


def everything(lab: Lab) -> set[str]:
    """What a call could change, as lines."""
    node = lab.nodes[0]
    told = [f"{row}" for sql in (HELD, LEASES) for row in live.rows(node, sql)]
    return {*live.picture(node), *told, f"{live.changes(lab)}"}


# Variables that replace the good ones (None: left out), the configuration, the code, words of the text.
BAD: dict[str, tuple[dict[str, str | None], bytes, int, str]] = {
    "no command": ({"CNI_COMMAND": None}, CONFIG, 4, "CNI_COMMAND"),
    "unknown command": ({"CNI_COMMAND": "ADDD"}, CONFIG, 4, "CNI_COMMAND"),
    "no container id": ({"CNI_CONTAINERID": None}, CONFIG, 4, "CNI_CONTAINERID"),
    "no namespace": ({"CNI_NETNS": None}, CONFIG, 4, "CNI_NETNS"),
    "no interface name": ({"CNI_IFNAME": None}, CONFIG, 4, "CNI_IFNAME"),
    "no path": ({"CNI_PATH": None}, CONFIG, 4, "CNI_PATH"),
    "wild container id": ({"CNI_CONTAINERID": "../../etc"}, CONFIG, 4, "CNI_CONTAINERID"),
    "long interface name": ({"CNI_IFNAME": "e" * 16}, CONFIG, 4, "CNI_IFNAME"),
    "interface name with a slash": ({"CNI_IFNAME": "a/b"}, CONFIG, 4, "CNI_IFNAME"),
    "absent namespace": ({"CNI_NETNS": "/absent"}, CONFIG, 4, "/absent"),
    "a file for a namespace": ({"CNI_NETNS": "/etc/passwd"}, CONFIG, 4, "/etc/passwd"),
    "the node's own namespace": ({"CNI_NETNS": "/proc/self/ns/net"}, CONFIG, 4, "netns_is_host"),
    "a pid namespace": ({"CNI_NETNS": "/proc/self/ns/pid"}, CONFIG, 4, "/proc/self/ns/pid"),
    "arguments in pieces": ({"CNI_ARGS": "K8S_POD_NAME"}, CONFIG, 4, "CNI_ARGS"),
    "nothing": ({}, b"", 6, "JSON"),
    "half a configuration": ({}, CONFIG[:20], 6, "JSON"),
    "deep nesting": ({}, b"[" * 200_000, 6, ""),
    "no text": ({}, b"\xff\xfe\x00", 6, ""),
    "a list": ({}, b"[1]", 6, "object"),
    "no name": ({}, b'{"cniVersion": "1.0.0", "type": "aws-cni"}', 7, "name"),
    "a version to come": ({}, b'{"cniVersion": "9.0.0", "name": "a", "type": "b"}', 1, "9.0.0"),
    "ten megabytes": ({}, b'{"x": "' + b"x" * 10_000_000 + b'"}', 6, ""),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_told_its_code_and_what_to_do(served: Lab, what: str) -> None:
    """The code of the specification, a sentence that names the culprit, and no trace."""
    changed, stdin, code, words = BAD[what]
    node = served.nodes[0]
    with nothing_happens(served), pod(node) as good:
        env = {name: value for name, value in (good | changed).items() if value is not None}
        status, told = call(node, stdin, env)
    assert (status, told["code"]) == (1, code), told
    assert words in told["msg"] + told.get("details", "")
    assert told["cniVersion"]
    assert told["details"].endswith((".", "runs.")), "it says what to do"


def test_a_bad_deletion_ends_nobodys_lease(served: Lab) -> None:
    """Half of a pod's identity is not its identity."""
    node, kubelet = served.nodes[0], served.kubelets[0]
    web = kubelet.start("web")
    live.settle(node)
    with nothing_happens(served):
        for env in (
            {"CNI_CONTAINERID": web.container},
            {"CNI_IFNAME": "eth0"},
            {"CNI_CONTAINERID": web.container, "CNI_IFNAME": "e" * 16},
        ):
            status, told = call(node, CONFIG, {"CNI_COMMAND": "DEL", **env})
            assert (status, told["code"]) == (1, 4)
        other = {"CNI_CONTAINERID": web.container, "CNI_IFNAME": "eth1"}
        assert call(node, CONFIG, {"CNI_COMMAND": "DEL", **other}) == (0, {})
    kubelet.check(web)
    kubelet.stop(web)


def test_what_was_refused_has_its_row(served: Lab) -> None:
    """Invariant I4: every refusal has a code and a reason in the ledger."""
    node = served.nodes[0]
    with pod(node) as good:
        call(node, CONFIG[:20], good | {"CNI_CONTAINERID": "halfway"})
    asked = "SELECT command, code, reason FROM v_requests WHERE container_id = 'halfway'"
    assert live.rows(node, asked) == [{"command": "ADD", "code": 6, "reason": "bad_request"}]


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "GC", "STATUS"])
def test_with_the_daemon_away_it_is_to_be_tried_later(served: Lab, verb: str) -> None:
    """No socket, and a socket that nobody serves: the same sentence, nothing spooled."""
    node = served.nodes[1]
    path = node.run / "vpcledger.sock"
    aside = path.with_name("aside")
    config = CONFIG.replace(b'"1.0.0"', b'"1.1.0"')
    path.rename(aside)
    try:
        with pod(node) as good:
            told = [call(node, config, good | {"CNI_COMMAND": verb})]
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(path))
            told.append(call(node, config, good | {"CNI_COMMAND": verb}))
    finally:
        aside.rename(path)
    code = 50 if verb == "STATUS" else 11
    assert [(status, said["code"]) for status, said in told] == [(1, code)] * 2
    assert all(said["msg"] and said["details"] for _, said in told)
    assert list((node.state / "spool").glob("*.del")) == []
    served.kubelets[1].status()


def test_a_deletion_with_the_daemon_away_is_kept_and_called_done(served: Lab) -> None:
    """Success for the runtime; the daemon takes it in, as it does every minute and at a start."""
    node, kubelet = served.nodes[1], served.kubelets[1]
    web = kubelet.start("web")
    path = node.run / "vpcledger.sock"
    aside = path.with_name("aside")
    path.rename(aside)
    try:
        env = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": web.container, "CNI_IFNAME": "eth0"}
        assert call(node, CONFIG, env) == (0, {})
    finally:
        aside.rename(path)
    [spooled] = (node.state / "spool").glob("*.del")
    assert web.container in spooled.read_text()

    node.kill_daemon()
    node.start_daemon()

    asked = f"SELECT state, reason FROM v_leases WHERE container_id = '{web.container}'"
    assert live.rows(node, asked) == [{"state": "ended", "reason": "deleted_late"}]
    assert not any(web.address in line for line in live.picture(node))
    assert list((node.state / "spool").glob("*.del")) == []
    kubelet.remove(web)
