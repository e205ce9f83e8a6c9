"""DEL takes a pod's link out of service at once and has it removed later, together with others.

Between the answer and the removal anything may happen: the pod comes back in the same namespace, its
address gets a new holder, the daemon is killed.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ledger import writes
from reconciler import recovery
from tests.lab import spaces
from tests.reconciler.door import Door, Pod

pytestmark = pytest.mark.netns

REMOVING = "SELECT key, owner FROM v_objects WHERE state = 'removing'"


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    """A node with one address for pods, which nothing cools; retired links stay until a test says so."""
    made = Door(tmp_path, (1, 0), IP_COOLDOWN_PERIOD="0")
    made.loop.reap_soon = lambda: None
    yield made
    made.close()


def links(netns: spaces.Netns) -> dict[str, str]:
    """Operational words of the veths in a namespace, by name."""
    shown = json.loads(netns.command("ip", "-j", "link", "show", "type", "veth"))
    return {row["ifname"]: "UP" if "UP" in row["flags"] else "DOWN" for row in shown}


def test_a_deleted_pods_link_is_out_of_service_when_the_answer_is_given(door: Door) -> None:
    before = door.picture()
    pod = door.added()
    lease = door.lease(pod)
    assert lease is not None

    assert door.call("DEL", pod).status == 0

    assert links(door.node)["ended1"] == "DOWN"
    assert "NO-CARRIER" in pod.netns.command("ip", "link", "show", "eth0")
    assert lease.host_ifname not in links(door.node)
    assert pod.address not in door.node.command("ip", "rule")
    assert pod.address not in door.node.command("ip", "route", "show", "table", "all")
    assert door.rows(REMOVING) == [{"key": "host ended1", "owner": "1"}]

    assert door.loop.reap() == 1
    assert door.picture() == before
    assert door.rows(REMOVING) == []
    assert door.loop.reap() == 0


def test_the_same_pod_comes_back_at_once_in_the_same_namespace(door: Door) -> None:
    first = door.added("web-0")
    assert door.call("DEL", first).status == 0

    again = door.call("ADD", first)

    assert again.status == 0, again.said
    assert links(first.netns) == {"eth0": "UP"}
    assert door.loop.reap() == 0
    first.netns.command("ping", "-c1", "-w5", "10.0.0.4")


def test_it_comes_back_also_when_the_lane_was_quicker(door: Door) -> None:
    """The removal ends between the ADD that met the old pair and its own: that finds none any more."""
    pod = door.added("web-0")
    assert door.call("DEL", pod, env={"CNI_NETNS": ""}).status == 0
    reap = door.loop.reap

    def twice() -> int:
        assert reap() == 1
        return reap()

    door.loop.reap = twice  # type: ignore[method-assign]  # as the lane and then the door

    again = door.call("ADD", pod)

    assert again.status == 0, again.said
    assert links(pod.netns) == {"eth0": "UP"}


def test_an_address_and_its_new_holder_see_nothing_of_the_last_one(door: Door) -> None:
    last = door.added()
    assert door.call("DEL", last).status == 0

    new = door.added()

    assert new.address == last.address
    door.node.command("ping", "-c1", "-w5", new.address)
    with pytest.raises(RuntimeError):  # it believes to have the address, and reaches nobody with it
        last.netns.command("ping", "-c1", "-w1", "10.0.0.4")


def test_a_look_at_the_kernel_leaves_retired_links_to_whom_they_belong(door: Door) -> None:
    pod = door.added()
    door.call("DEL", pod)
    asked: list[bool] = []
    door.loop.reap_soon = lambda: asked.append(True)

    door.loop.tick()

    assert "ended1" in links(door.node)
    assert asked
    assert door.loop.reap() == 1
    assert "ended1" not in links(door.node)


def test_a_retired_link_that_the_ledger_forgot_is_removed_all_the_same(door: Door) -> None:
    pod = door.added()
    door.call("DEL", pod)
    with door.ledger.write() as tx:
        writes.forget_owner_installed(tx, "lease", "1", door.now)

    door.loop.tick()

    assert door.loop.reap() == 1
    assert "ended1" not in links(door.node)


def before_the_commit(door: Door) -> None:
    """Killed when the kernel has done it and the ledger does not know yet."""
    carry_out = door.loop.carry_out

    def die(*args: object) -> None:
        carry_out(*args)  # type: ignore[arg-type]  # whatever it takes
        os.kill(os.getpid(), signal.SIGKILL)

    door.loop.carry_out = die  # type: ignore[assignment,method-assign]  # it does not return


def after_the_commit(door: Door) -> None:
    """Killed when the lease has ended and the link is still there."""
    door.loop.reap_soon = lambda: os.kill(os.getpid(), signal.SIGKILL)


def test_pods_deleted_together_are_retired_together_and_each_for_itself(door: Door) -> None:
    """More than are asked about at once; one of them has lost its link, another's was renamed before."""
    door.adopt((1, 40))
    door.loop.tick()
    pods = [door.added() for _ in range(40)]
    before = [door.lease(pod) for pod in pods]
    assert all(before)
    lost, renamed = before[3], before[20]
    assert lost and renamed
    door.node.command("ip", "link", "del", lost.host_ifname)
    for words in (("down",), ("name", f"ended{renamed.id}")):
        door.node.command("ip", "link", "set", renamed.host_ifname, *words)

    door.together("DEL", pods)

    assert [answer.status for answer in door.replies[-40:]] == [0] * 40
    assert [door.lease(pod) for pod in pods] == [None] * 40
    named = {f"ended{lease.id}" for lease in before if lease and lease.id != lost.id}
    assert named <= set(links(door.node))
    assert "512:" not in door.node.command("ip", "rule")
    assert door.loop.reap() == 39
    assert door.rows(REMOVING) == []


@pytest.mark.parametrize("killed", [before_the_commit, after_the_commit])
def test_a_deletion_that_was_cut_short_is_finished_after_a_start(
    tmp_path: Path, killed: Callable[[Door], None]
) -> None:
    node, pod = Door._machine(), Pod()
    child = os.fork()
    if child == 0:
        door = Door(tmp_path, (1, 0), node)
        door.call("ADD", pod)
        killed(door)
        door.call("DEL", pod)
        os._exit(3)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert links(node)["ended1"] == "DOWN"

    door = Door(tmp_path, (1, 0), node)
    try:
        recovery.first_minute(door.ledger, door.loop, "boot-1", [tmp_path / "spool"], door.clock)
        assert "ended1" not in links(node)
        assert links(pod.netns) == {}
        assert door.rows(REMOVING) == []
        assert [row["reason"] for row in door.rows("SELECT reason FROM v_leases")] == ["deleted"]
    finally:
        door.close()
        pod.close()


def test_the_link_of_a_sandbox_whose_namesake_came_is_forgotten_when_it_is_removed(
    tmp_path: Path,
) -> None:
    door = Door(tmp_path, (3, 0))
    door.loop.reap_soon = lambda: None
    old = door.added("web-0")
    door.added("web-0")
    assert door.rows(REMOVING) == [{"key": "host ended1", "owner": "1"}]

    assert door.loop.reap() == 1

    assert "ended1" not in links(door.node)
    assert door.rows(REMOVING) == []
    assert door.lease(old) is not None
    door.close()
