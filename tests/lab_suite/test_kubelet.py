"""The stand-in kubelet calls plugins as libcni and containerd do.

The plugins here are scripts that write down how they were called.
"""

from __future__ import annotations

import itertools
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import kubelet, spaces
from tests.lab.node import Node
from tests.lab_suite.small_vpc import opened

pytestmark = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))
_names = (f"kubelet-{n}" for n in itertools.count())

PLUGIN = """\
#!{python} -IS
# Writes a line per call; refuses with what <type>.refuse holds for the command, each entry once.
import fcntl, json, os, sys
from pathlib import Path
here = Path(__file__)
config = json.load(sys.stdin)
call = {{"type": here.name, "config": config, "netns": os.readlink("/proc/self/ns/net")}}
call |= {{key: value for key, value in os.environ.items() if key.startswith("CNI_")}}
command = call["CNI_COMMAND"]
with open(here.with_name("calls"), "a+") as log:
    fcntl.flock(log, fcntl.LOCK_EX)
    log.write(json.dumps(call) + "\\n")
    log.flush()
    refusals = here.with_name(here.name + ".refuse")
    waiting = json.loads(refusals.read_text()) if refusals.exists() else {{}}
    if waiting.get(command):
        error = waiting[command].pop(0)
        refusals.write_text(json.dumps(waiting))
        print(json.dumps(error) if isinstance(error, dict) else error)
        sys.exit(1)
if command == "ADD":
    result = config.get("prevResult") or {{"cniVersion": config["cniVersion"], "ips": []}}
    result["ips"].append({{"address": f"192.0.2.{{len(result['ips']) + 1}}/32"}})
    print(json.dumps(result))
elif command == "VERSION":
    print(json.dumps({{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.1.0"]}}))
"""


class Rig:
    """A kubelet on a node whose conflist chains two recording plugins, `first` and `second`."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.kubelet = kubelet.Kubelet(node)
        for name in ("first", "second"):
            plugin = node.bin / name
            plugin.write_text(textwrap.dedent(PLUGIN).format(python=sys.executable))
            plugin.chmod(0o755)
        plugins = [
            {"type": "first", "colour": "red"},
            {"type": "second", "capabilities": {"portMappings": True, "bandwidth": False}},
        ]
        conflist = {"cniVersion": "1.0.0", "name": "net", "plugins": plugins}
        (node.conf / "10-net.conflist").write_text(json.dumps(conflist))
        (node.conf / "20-later.conflist").write_text("{}")

    def calls(self, command: str | None = None) -> list[dict[str, Any]]:
        lines = (self.node.bin / "calls").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        return [call for call in found if command in (None, call["CNI_COMMAND"])]

    def refuse(self, plugin: str, command: str, *answers: dict[str, Any] | str) -> None:
        (self.node.bin / f"{plugin}.refuse").write_text(json.dumps({command: list(answers)}))


@pytest.fixture
def rig() -> Iterator[Rig]:
    with opened(next(_names)) as vpc:
        yield Rig(vpc.one)


def test_add_hands_each_plugin_the_result_before_it(rig: Rig) -> None:
    """Name and version are filled in, prevResult is chained, the last result is the pod's."""
    sandbox = rig.kubelet.sandbox("web-1")
    result = rig.kubelet.add(sandbox)
    first, second = rig.calls()
    assert first["config"] == {
        "type": "first",
        "colour": "red",
        "name": "net",
        "cniVersion": "1.0.0",
    }
    assert second["config"]["prevResult"]["ips"] == [{"address": "192.0.2.1/32"}]
    assert [item["address"] for item in result["ips"]] == ["192.0.2.1/32", "192.0.2.2/32"]
    assert sandbox.address == "192.0.2.1"


def test_plugins_run_on_the_node_and_are_told_the_pods_namespace(rig: Rig) -> None:
    """The process is in the node's network namespace; CNI_NETNS is a path that opens the pod's."""
    sandbox = rig.kubelet.sandbox("web-1")
    rig.kubelet.add(sandbox)
    link = Path("/proc/thread-self/ns/net")
    for call in rig.calls():
        assert call["netns"] == str(rig.node.netns.run(link.readlink))
        assert Path(call["CNI_NETNS"]).stat().st_ino == sandbox.netns.run(link.stat).st_ino
        assert (call["CNI_IFNAME"], call["CNI_CONTAINERID"]) == ("eth0", sandbox.container)
        assert call["CNI_PATH"] == str(rig.node.bin)


def test_only_granted_capabilities_become_runtime_config(rig: Rig) -> None:
    """A plugin gets what it declares as true and the runtime has; never the declaration itself."""
    sandbox = rig.kubelet.sandbox("web-1")
    sandbox.runtime = {"portMappings": [{"hostPort": 80}], "bandwidth": {"ingressRate": 1}}
    rig.kubelet.add(sandbox)
    first, second = (call["config"] for call in rig.calls())
    assert "runtimeConfig" not in first
    assert second["runtimeConfig"] == {"portMappings": [{"hostPort": 80}]}
    assert "capabilities" not in second


def test_stopping_a_pod_calls_del_backwards_and_twice(rig: Rig) -> None:
    """First with the namespace and the cached result, then with neither."""
    sandbox = rig.kubelet.start("web-1")
    path = sandbox.netns.path
    assert len(list(rig.node.cache.iterdir())) == 1
    rig.kubelet.stop(sandbox)
    deletes = rig.calls("DEL")
    assert [call["type"] for call in deletes] == ["second", "first", "second", "first"]
    assert [call["CNI_NETNS"] for call in deletes] == [path, path, "", ""]
    given = [call["config"].get("prevResult") for call in deletes]
    assert given == [sandbox.result, sandbox.result, None, None]
    assert list(rig.node.cache.iterdir()) == list(rig.node.pods.iterdir()) == []
    assert rig.kubelet.sandboxes == {}


def test_cni_args_name_the_pod_in_random_order(rig: Rig) -> None:
    """The same five pairs each time, not always in the same order."""
    for n in range(6):
        rig.kubelet.start(f"web-{n}", "shop")
    texts = [call["CNI_ARGS"] for call in rig.calls("ADD")]
    for text, call in zip(texts, rig.calls("ADD"), strict=True):
        pairs = dict(pair.split("=") for pair in text.split(";"))
        assert pairs["IgnoreUnknown"] == "1"
        assert pairs["K8S_POD_NAMESPACE"] == "shop"
        assert pairs["K8S_POD_NAME"].startswith("web-")
        assert pairs["K8S_POD_INFRA_CONTAINER_ID"] == call["CNI_CONTAINERID"]
        assert len(pairs) == 5
    assert len({tuple(pair.split("=")[0] for pair in text.split(";")) for text in texts}) > 1


def test_try_again_later_is_tried_again_with_a_new_sandbox(rig: Rig) -> None:
    """Code 11 twice, then success: three sandboxes, the failed ones deleted at once."""
    rig.refuse("second", "ADD", *2 * [{"code": 11, "msg": "no address yet", "details": "ETA 2 s"}])
    sandbox = rig.kubelet.start("web-1")
    adds = [call for call in rig.calls("ADD") if call["type"] == "first"]
    assert len({call["CNI_CONTAINERID"] for call in adds}) == 3
    failed = {call["CNI_CONTAINERID"] for call in adds} - {sandbox.container}
    deleted = [call for call in rig.calls("DEL") if call["type"] == "first"]
    assert {call["CNI_CONTAINERID"] for call in deleted} == failed
    assert [("prevResult" in call["config"]) for call in deleted] == [False, False]
    assert list(rig.kubelet.sandboxes) == [sandbox.container]


def test_any_other_refusal_is_the_callers(rig: Rig) -> None:
    """Code, message and details come through; the sandbox is gone."""
    rig.refuse("first", "ADD", {"code": 7, "msg": "bad config", "details": "say what"})
    with pytest.raises(kubelet.CniError, match=r"first: 7: bad config \(say what\)") as refused:
        rig.kubelet.start("web-1")
    assert (refused.value.code, refused.value.plugin) == (7, "first")
    assert rig.kubelet.sandboxes == {}


def test_an_answer_that_is_not_json_is_reported_as_such(rig: Rig) -> None:
    """A traceback on standard output does not pass for a result."""
    rig.refuse("first", "ADD", "Traceback (most recent call last):")
    with pytest.raises(kubelet.CniError, match="ADD: not JSON: 'Traceback"):
        rig.kubelet.add(rig.kubelet.sandbox("web-1"))


def test_check_hands_over_the_cached_result(rig: Rig) -> None:
    """Every plugin of the chain in order, each with the final result; a refusal is raised."""
    sandbox = rig.kubelet.start("web-1")
    rig.kubelet.check(sandbox)
    checks = rig.calls("CHECK")
    assert [call["type"] for call in checks] == ["first", "second"]
    assert [call["config"]["prevResult"] for call in checks] == [sandbox.result, sandbox.result]
    rig.refuse("second", "CHECK", {"code": 100, "msg": "rule is missing"})
    with pytest.raises(kubelet.CniError, match="second: 100: rule is missing"):
        rig.kubelet.check(sandbox)


def test_status_and_gc_speak_version_1_1(rig: Rig) -> None:
    """GC names the attachments that are valid and forgets the cached results of the others."""
    kept, stale = rig.kubelet.start_all(["kept", "stale"])
    rig.kubelet.status()
    rig.kubelet.collect_garbage([kept])
    for call in (*rig.calls("STATUS"), *rig.calls("GC")):
        assert call["config"]["cniVersion"] == "1.1.0"
        assert "CNI_CONTAINERID" not in call
    attachments = [call["config"]["cni.dev/valid-attachments"] for call in rig.calls("GC")]
    assert attachments == 2 * [[{"containerID": kept.container, "ifname": "eth0"}]]
    [cached] = rig.node.cache.iterdir()
    assert kept.container in cached.name
    assert stale.container not in cached.name


def test_a_plugin_of_an_older_version_gets_no_status_and_no_gc(rig: Rig) -> None:
    """As Debian's portmap, which would answer that a container's id is missing."""
    old = rig.node.bin / "second"
    old.write_text(old.read_text().replace('"1.1.0"', '"1.0.0"'))
    rig.kubelet.status()
    rig.kubelet.collect_garbage([])
    assert [call["type"] for call in (*rig.calls("STATUS"), *rig.calls("GC"))] == ["first"] * 2


def test_version_asks_one_plugin(rig: Rig) -> None:
    """VERSION needs no network."""
    assert rig.kubelet.version("first") == ["0.4.0", "1.1.0"]


def test_pods_start_in_parallel_each_with_a_namespace_of_its_own(rig: Rig) -> None:
    """Twenty pods, ten at a time, all different."""
    pods = rig.kubelet.start_all(f"web-{n}" for n in range(20))
    assert [pod.pod for pod in pods] == [f"web-{n}" for n in range(20)]
    assert len({pod.netns.run(Path("/proc/thread-self/ns/net").readlink) for pod in pods}) == 20
    assert all(pod.ping("127.0.0.1") for pod in pods[:2])
    rig.kubelet.stop_all(pods)
    assert rig.kubelet.sandboxes == {}


def test_without_a_conflist_nothing_starts(rig: Rig) -> None:
    """The runtime's own words, before any plugin is called."""
    for path in rig.node.conf.iterdir():
        path.unlink()
    with pytest.raises(kubelet.CniError, match="cni plugin not initialized"):
        rig.kubelet.add(rig.kubelet.sandbox("web-1"))


def test_a_plugin_that_is_not_there_is_named(rig: Rig) -> None:
    """As libcni says it."""
    (rig.node.bin / "second").unlink()
    with pytest.raises(kubelet.CniError, match="failed to find plugin 'second' in path"):
        rig.kubelet.add(rig.kubelet.sandbox("web-1"))
