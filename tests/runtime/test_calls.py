"""Which verbs a real runtime calls, and how; and those it does not call, asked about its own pods.

Debian's containerd (1.6.20, libcni 1.1) calls ADD and DEL alone. CHECK, STATUS and GC are asked here with
what its libcni has cached.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.lab.kubelet import CniError, Kubelet
from tests.reconciler import live
from tests.runtime.containerd import RESULTS, Containerd, Pod
from tests.runtime.cri import CriError
from tests.runtime.scene import Scene

Json = dict[str, Any]


def asked_since(runtime: Containerd, last: int) -> list[Json]:
    """What the daemon was asked after its request number `last`, in order."""
    columns = "id, command, container_id, netns, pod_name, code, reason, via"
    return live.rows(
        runtime.node, f"SELECT {columns} FROM v_requests WHERE id > {last} ORDER BY id"
    )


def last_request(runtime: Containerd) -> int:
    [row] = live.rows(runtime.node, "SELECT coalesce(max(id), 0) AS id FROM v_requests")
    return int(row["id"])


def by_hand(runtime: Containerd, verb: str, pod: Pod, **more: Any) -> Json:
    """Ask our plugin about a pod with the configuration and the result that libcni cached for it."""
    [path] = RESULTS.glob(f"aws-cni-{pod.id}-*")
    cached = json.loads(path.read_text())
    conflist = json.loads(base64.b64decode(cached["config"]))
    config = {**conflist["plugins"][0], "name": conflist["name"], "cniVersion": "1.0.0", **more}
    environment = {
        "CNI_CONTAINERID": pod.id,
        "CNI_IFNAME": cached["ifName"],
        "CNI_NETNS": pod.path,
        "CNI_ARGS": ";".join("=".join(pair) for pair in cached["cniArgs"]),
    }
    return Kubelet(runtime.node).invoke(
        verb, "aws-cni", {**config, "prevResult": cached["result"]}, environment
    )


def test_a_sandboxs_life_is_one_add_and_two_dels(scene: Scene) -> None:
    """The second DEL comes with RemovePodSandbox, when the namespace is gone and nothing is cached."""
    runtime = scene.runtimes[0]
    last = last_request(runtime)

    pod = runtime.run("web")
    runtime.end(pod)

    calls = asked_since(runtime, last)
    assert [(each["command"], each["netns"], each["code"]) for each in calls] == [
        ("ADD", pod.path, 0),
        ("DEL", pod.path, 0),
        ("DEL", "", 0),
    ]
    assert {(each["container_id"], each["pod_name"]) for each in calls} == {(pod.id, "web")}


REFUSES_ADD = """\
#!/bin/sh
[ "$CNI_COMMAND" = ADD ] || exit 0
echo '{"cniVersion": "0.4.0", "code": 100, "msg": "out of order today"}'
exit 1
"""


def test_a_chain_that_fails_behind_us_is_undone_at_once(scene: Scene) -> None:
    """A later plugin refuses: the runtime sends DEL, our address goes back, the next pod is served."""
    runtime = scene.runtimes[1]
    last = last_request(runtime)
    tuning = runtime.node.bin / "tuning"
    stock = tuning.readlink()
    tuning.unlink()
    tuning.write_text(REFUSES_ADD)
    tuning.chmod(0o755)

    with pytest.raises(CriError, match="out of order today"):
        runtime.run("web")

    tuning.unlink()
    tuning.symlink_to(stock)
    first, *others = asked_since(runtime, last)
    assert (first["command"], first["code"]) == ("ADD", 0)
    assert {(each["command"], each["code"]) for each in others} == {("DEL", 0)}
    runtime.known.add(first["container_id"])
    runtime.end_all()
    runtime.end(runtime.run("web"))


def test_check_is_content_with_a_real_pod_and_names_what_it_lacks(scene: Scene) -> None:
    runtime = scene.runtimes[0]
    pod = runtime.run("web")

    assert by_hand(runtime, "CHECK", pod) == {}
    pod.netns.command("ip", "route", "del", "default")
    with pytest.raises(CniError, match="route"):
        by_hand(runtime, "CHECK", pod)

    runtime.end(pod)


def test_gc_ends_no_pod_that_lives(scene: Scene) -> None:
    """A runtime that forgot a pod is one source; its link is the other, and it is there."""
    runtime, peer = scene.runtimes
    kubelet = Kubelet(runtime.node)
    kept, forgotten, far = runtime.run("kept"), runtime.run("forgotten"), peer.run("far")

    by_hand_gc(kubelet, runtime, kept)

    open_leases = "SELECT container_id AS id FROM v_leases WHERE state = 'active'"
    assert {row["id"] for row in live.rows(runtime.node, open_leases)} == {kept.id, forgotten.id}
    assert "gc_disagrees" in live.findings(runtime.node)
    assert forgotten.ping(far.address)
    by_hand_gc(kubelet, runtime, kept, forgotten)
    kubelet.status()
    for each, pod in ((runtime, kept), (runtime, forgotten), (peer, far)):
        each.end(pod)


def by_hand_gc(kubelet: Kubelet, runtime: Containerd, *pods: Pod) -> None:
    """GC at CNI 1.1 that names these pods alone."""
    conflist = kubelet.conflist(at_least="1.1.0")
    plugin = conflist["plugins"][0]
    attachments = [{"containerID": pod.id, "ifname": "eth0"} for pod in pods]
    named = {"name": conflist["name"], "cniVersion": conflist["cniVersion"]}
    config = {**plugin, **named, "cni.dev/valid-attachments": attachments}
    del config["capabilities"]
    kubelet.invoke("GC", plugin["type"], config)
