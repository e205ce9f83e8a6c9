"""Runtimes that die or forget: whose deletion still comes, whose never will, and who lives on all the same."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lab import spaces
from tests.reconciler import live
from tests.reconciler.live import until
from tests.runtime.cri import NOT_READY, CriError
from tests.runtime.scene import Scene

HANGS = """\
#!/bin/sh
[ "$CNI_COMMAND" != ADD ] || read -r _ <"$0.hold"
exit 0
"""


@contextlib.contextmanager
def hung(plugin: Path) -> Iterator[Callable[[], bool]]:
    """A chained plugin whose ADD does not end; yields whether there is such a call now."""
    stock, hold = plugin.readlink(), plugin.with_name(f"{plugin.name}.hold")
    os.mkfifo(hold)
    plugin.unlink()
    plugin.write_text(HANGS)
    plugin.chmod(0o755)
    ends: list[int] = []

    def hangs() -> bool:
        try:
            ends.append(os.open(hold, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as nobody:
            if nobody.errno != errno.ENXIO:  # fifo(7): no reader so far
                raise
        return bool(ends)

    try:
        yield hangs
    finally:
        for end in ends:
            os.close(end)
        plugin.unlink()
        plugin.symlink_to(stock)
        hold.unlink()


def test_a_runtime_killed_between_add_and_its_record_is_cleaned_up_after(scene: Scene) -> None:
    """Our part is done, the chain is not: the next containerd has the sandbox as one that failed."""
    runtime = scene.runtimes[0]
    node = runtime.node
    with hung(node.bin / "portmap") as hangs, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(runtime.run, "orphan")
        until(hangs, "the call of the plugin behind ours")
        runtime.kill()
        with pytest.raises(CriError):
            asked.result()
    wired = "SELECT container_id AS id FROM v_leases WHERE state = 'active'"
    [lease] = live.rows(node, wired)
    runtime.known.add(lease["id"])

    runtime.start()

    [left] = runtime.call("ListPodSandbox")["items"]
    assert (left["id"], left["state"]) == (lease["id"], NOT_READY)
    runtime.end_all()
    ended = f"SELECT state, reason FROM v_leases WHERE container_id = '{lease['id']}'"
    assert live.rows(node, ended) == [{"state": "ended", "reason": "deleted"}]


@pytest.mark.slow
def test_a_runtime_that_lost_its_disk_costs_no_living_pod_its_address(scene: Scene) -> None:
    """It lists neither of two pods. One is gone and is swept within a minute; the other goes on."""
    runtime, far = scene.runtimes
    node = runtime.node
    lives, dies, peer = runtime.run("lives"), runtime.run("dies"), far.run("peer")
    paused = json.loads(runtime.status(dies.id)["info"]["info"])["pid"]
    runtime.kill()
    runtime.life = 1
    runtime.start()
    assert runtime.call("ListPodSandbox")["items"] == []

    dies.let_go()
    os.kill(paused, signal.SIGKILL)
    spaces.unbind(Path(dies.path))

    lease = f"SELECT state, reason FROM v_leases WHERE container_id = '{dies.id}'"
    swept = [{"state": "ended", "reason": "swept"}]
    until(lambda: live.rows(node, lease) == swept, "the end of its lease")
    assert lives.ping(peer.address)
    kept = f"SELECT address FROM v_leases WHERE container_id = '{lives.id}' AND state <> 'ended'"
    assert live.rows(node, kept) == [{"address": lives.address}]

    runtime.kill()
    runtime.life = 0
    runtime.start()
    lives.let_go()
    runtime.end_all()
    far.end(peer)
