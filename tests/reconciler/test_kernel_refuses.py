"""When the kernel refuses, an address stays with who may still show it, and the next try sets it right."""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cni import wire
from ledger import writes
from reconciler import recovery
from tests.lab import spaces
from tests.reconciler.door import Door, Pod

pytestmark = pytest.mark.netns

CAP_NET_ADMIN = 12
_VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3 of linux/capability.h


@contextmanager
def powerless() -> Iterator[None]:
    """Within the block the kernel answers EPERM to whatever this thread wants changed in a network."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    before = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0, os.strerror(ctypes.get_errno())
    without = (ctypes.c_uint32 * 6)(*before)
    without[0] &= ~(1 << CAP_NET_ADMIN)
    assert libc.capset(header, without) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0, os.strerror(ctypes.get_errno())


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    """Addresses on the second interface alone, so that each pod has a rule of its own."""
    made = Door(tmp_path, addresses=(0, 3))
    yield made
    made.close()


def shown(pods: list[Pod]) -> list[str]:
    """Addresses that more than one namespace shows."""
    found = Counter(
        line.split()[3]
        for pod in pods
        for line in pod.netns.command("ip", "-o", "-4", "address").splitlines()
        if "eth0" in line
    )
    return [cidr for cidr, count in found.items() if count > 1]


def cooled(door: Door) -> None:
    door.now += door.settings.ip_cooldown_ms


def states(door: Door) -> list[tuple[str, str]]:
    rows = door.rows("SELECT state, reason FROM v_leases ORDER BY id")
    return [(row["state"], row["reason"]) for row in rows]


def test_an_addition_that_the_kernel_refuses_leaves_nothing(door: Door) -> None:
    before, pod = door.picture(), door.pod()

    with powerless():
        answer = door.call("ADD", pod)

    assert (answer.code, answer.reason) == (11, "kernel_error")
    assert "EPERM" in answer.said["msg"]
    door.loop.tick()
    assert door.picture() == before
    assert not [row for row in states(door) if row[0] == "active"]


def test_an_addition_that_was_refused_can_be_tried_again_and_deleted(door: Door) -> None:
    before, pod = door.picture(), door.pod()
    with powerless():
        door.call("ADD", pod)

    again = door.call("ADD", pod)

    assert again.status == 0, again.said
    assert door.call("CHECK", pod, prevResult=again.said).status == 0
    assert door.call("DEL", pod).status == 0
    assert door.picture() == before
    assert door.rows("SELECT * FROM v_objects WHERE owner_kind = 'lease'") == []


def test_a_deletion_that_the_kernel_refuses_keeps_the_lease_and_is_tried_again(door: Door) -> None:
    before = door.picture()
    pod = door.added()

    with powerless():
        refused = door.call("DEL", pod)

    assert (refused.code, refused.reason) == (11, "kernel_error")
    assert states(door) == [("active", "")]
    cooled(door)
    others = [door.call("ADD", door.pod()) for _ in range(3)]
    assert [answer.status for answer in others] == [0, 0, 1]
    assert shown(door.pods) == []
    assert door.call("DEL", pod).status == 0
    for other in door.pods[1:]:
        door.call("DEL", other)
    assert door.picture() == before


def test_of_deletions_that_come_together_only_the_refused_stay(door: Door) -> None:
    """A waiting pod has nothing in the kernel, so its deletion is done whatever the kernel says."""
    pods = [door.added() for _ in range(3)]
    waiting = door.pod()
    door.call("ADD", waiting)
    done = len(door.replies)

    with powerless():
        door.together("DEL", [pods[0], waiting])

    assert sorted(answer.status for answer in door.replies[done:]) == [0, 1]
    assert door.lease(pods[0]) is not None
    assert door.lease(waiting) is None


def test_a_repeated_addition_that_fails_does_not_free_the_address_of_a_pod_that_shows_it(
    door: Door,
) -> None:
    """The first call has wired the pod; whatever the second meets, nobody else may get its address."""
    pod = door.added()
    with powerless():
        refused = door.call("ADD", pod)
    assert (refused.code, refused.reason) == (11, "kernel_error")

    cooled(door)
    for _ in range(3):
        door.call("ADD", door.pod())

    assert shown(door.pods) == []


def test_a_repeated_addition_into_another_sandbox_leaves_no_address_in_two(door: Door) -> None:
    """A runtime that reuses an id while its old namespace lives breaks the specification, no more."""
    before = door.picture()
    pod = door.added()
    first = pod.netns
    pod.netns = spaces.Netns()
    try:
        answer = door.call("ADD", pod)
        cooled(door)
        others = [door.pod() for _ in range(3)]
        for other in others:
            door.call("ADD", other)

        seen = Counter(
            line.split()[3]
            for netns in (first, *(each.netns for each in door.pods))
            for line in netns.command("ip", "-o", "-4", "address").splitlines()
            if "eth0" in line
        )
        assert [cidr for cidr, count in seen.items() if count > 1] == []
        assert answer.status == 1
        for each in door.pods:
            door.call("DEL", each)
        assert door.picture() == before
    finally:
        first.close()


def test_a_pod_whose_namesake_cannot_be_unplugged_gets_its_link_at_the_next_try(door: Door) -> None:
    before = door.picture()
    old, new = door.added("db-0"), door.pod("db-0")
    with powerless():
        assert door.call("ADD", new).reason == "kernel_error"
    door.loop.tick()

    answer = door.call("ADD", new)

    assert answer.status == 0, answer.said
    new.result = answer.said
    assert new.pings("10.0.0.4")
    assert door.call("CHECK", new, prevResult=new.result).status == 0
    for pod in (old, new):
        assert door.call("DEL", pod).status == 0
    assert door.picture() == before


def test_a_gc_that_the_kernel_refuses_ends_nothing_and_the_next_one_all(door: Door) -> None:
    before = door.picture()
    pods = [door.added() for _ in range(2)]
    for pod in pods:
        pod.netns.close()
    # The links go with their namespaces at a time of the kernel's choosing; here and now instead.
    for lease in map(door.lease, pods):
        assert lease is not None
        door.node.command("sh", "-c", f"ip link del {lease.host_ifname} || :")
    config: dict[str, Any] = {"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}

    with powerless():
        refused = door.call("GC", **config)

    assert (refused.code, refused.reason) == (11, "kernel_error")
    assert [door.lease(pod) is not None for pod in pods] == [True, True]
    assert door.call("GC", **config).status == 0
    assert [door.lease(pod) for pod in pods] == [None, None]
    assert door.picture() == before
    rows = door.rows("SELECT code, reason FROM v_requests WHERE command = 'GC' ORDER BY id")
    assert [(row["code"], row["reason"]) for row in rows] == [(11, "kernel_error"), (0, "")]


def test_what_a_start_cannot_remove_it_keeps_and_removes_at_the_next(
    door: Door, tmp_path: Path
) -> None:
    before = door.picture()
    pod = door.added()
    spool = tmp_path / "spool"
    begun = door.lease(pod)
    assert begun is not None
    with door.ledger.write() as tx:  # a deletion that was cut short
        writes.mark_owner_removing(tx, "lease", str(begun.id), door.now)

    with powerless():
        recovery.first_minute(door.ledger, door.loop, begun.boot_id, [spool], door.clock)

    found = door.rows("SELECT code FROM v_findings WHERE closed IS NULL")
    assert {"code": "kernel_error"} in found
    assert door.lease(pod) is not None
    recovery.first_minute(door.ledger, door.loop, begun.boot_id, [spool], door.clock)
    assert door.lease(pod) is None
    assert door.picture() == before


def test_drift_that_cannot_be_mended_is_a_finding_until_it_can(door: Door) -> None:
    pod = door.added()
    door.node.command("ip", "rule", "del", "from", pod.address, "lookup", "2")

    with powerless():
        door.loop.tick()
    assert door.rows("SELECT code FROM v_findings WHERE closed IS NULL") == [
        {"code": "kernel_error"}
    ]
    said = "SELECT kind FROM v_objects WHERE error LIKE 'EPERM%'"
    assert door.rows(said) == [{"kind": "rule"}], "the object itself tells what the kernel said"

    door.loop.tick()
    assert door.rows("SELECT code FROM v_findings WHERE closed IS NULL") == []
    assert door.rows(said) == []
    assert pod.pings("10.0.0.4")


def test_what_is_half_deleted_is_not_added_again(door: Door, tmp_path: Path) -> None:
    """A deletion that was reported as done and cannot be carried out yet: an addition waits for it."""
    folder = tmp_path / "spool"
    folder.mkdir()
    door.verbs.drain = lambda: recovery.take_spools_in(door.ledger, door.loop, [folder], door.clock)
    pod = door.added()
    asked = wire.Request(door.environment("DEL", pod), b"{}")
    (folder / "1-1-1.del").write_bytes(wire.encode_request(asked))

    with powerless():
        refused = door.call("ADD", pod)
    assert (refused.code, refused.reason) == (11, "kernel_error")
    assert "not carried out yet" in refused.said["msg"]

    cooled(door)
    assert door.call("ADD", pod).code == 0
    assert states(door) == [("ended", "deleted_late"), ("active", "")]
    assert pod.pings("10.0.0.4")
