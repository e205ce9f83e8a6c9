"""The first minute: what the last run left half done, which boot this is, deletions that waited."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cni import wire
from ledger import writes
from reconciler import recovery
from tests.reconciler.door import Door, Pod

pytestmark = pytest.mark.netns


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    made = Door(tmp_path, addresses=(0, 4))
    with made.ledger.write(durable=True) as tx:
        writes.record_boot(tx, "boot-1", made.now)
    yield made
    made.close()


def restart(door: Door, spool: Path, boot: str = "boot-1") -> None:
    recovery.first_minute(door.ledger, door.loop, boot, [spool], door.clock)


def reasons(door: Door) -> list[str]:
    rows = door.rows("SELECT reason FROM v_leases WHERE state = 'ended' ORDER BY id")
    return [row["reason"] for row in rows]


def spooled(door: Door, pod: Pod, spool: Path, at: int) -> None:
    """What the launcher writes while nobody is home; `at` in ms."""
    spool.mkdir(exist_ok=True)
    env = door.environment("DEL", pod)
    conf = b'{"cniVersion": "1.0.0", "name": "aws-cni"}'
    body = wire.encode_request(wire.Request(env, conf))
    (spool / f"{at * 1_000_000}-1-{pod.container[10:]}.del").write_bytes(body)


def test_a_restart_in_the_same_boot_keeps_what_lives(door: Door, tmp_path: Path) -> None:
    pod = door.added()
    before = door.picture()

    restart(door, tmp_path / "spool")

    assert door.picture() == before
    assert door.lease(pod) is not None
    assert pod.pings("10.0.0.4")


def test_an_addition_that_was_never_answered_is_undone(door: Door, tmp_path: Path) -> None:
    """The daemon died between the claim's commit and the answer."""
    before = door.picture()
    pod = door.added()
    lease = door.lease(pod)
    assert lease is not None
    with door.ledger.write() as tx:
        tx.dicts(f"UPDATE leases SET state = 'reserved' WHERE id = {lease.id}", {})

    restart(door, tmp_path / "spool")

    assert reasons(door) == ["setup_failed"]
    assert door.picture() == before


def test_a_deletion_that_began_is_finished(door: Door, tmp_path: Path) -> None:
    before = door.picture()
    pod = door.added()
    lease = door.lease(pod)
    assert lease is not None
    with door.ledger.write() as tx:
        writes.mark_owner_removing(tx, "lease", str(lease.id), door.now)

    restart(door, tmp_path / "spool")

    assert reasons(door) == ["deleted"]
    assert door.picture() == before


def test_nobody_waits_after_a_restart(tmp_path: Path) -> None:
    door = Door(tmp_path, addresses=(0, 0))
    try:
        door.call("ADD", door.pod())
        with door.ledger.write(durable=True) as tx:
            writes.record_boot(tx, "boot-1", door.now)
        restart(door, tmp_path / "spool")
        assert reasons(door) == ["gave_up_waiting"]
    finally:
        door.close()


def test_a_new_boot_ends_leases_and_keeps_addresses(door: Door, tmp_path: Path) -> None:
    """The kernel is empty, EC2 is not: the next pod is served without a call."""
    pod = door.added()
    lease = door.lease(pod)
    assert lease is not None
    door.node.command("ip", "link", "del", lease.host_ifname)
    door.node.command("ip", "rule", "flush")
    door.node.command("ip", "rule", "add", "lookup", "main", "pref", "32766")

    restart(door, tmp_path / "spool", boot="boot-2")
    door.verbs.boot_id = "boot-2"
    late = door.call("DEL", pod)
    fresh = door.added()

    assert reasons(door) == ["reboot"]
    assert late.status == 0
    assert fresh.pings("10.0.0.4")
    assert f"from {fresh.address} lookup 2" in door.node.command("ip", "rule")
    assert "from 10.0.0.5 lookup 2" in door.node.command("ip", "rule")


def test_spooled_deletions_are_carried_out_before_anything_else(door: Door, tmp_path: Path) -> None:
    before = door.picture()
    pods = [door.added() for _ in range(3)]
    for pod in pods:
        spooled(door, pod, tmp_path / "spool", door.now + 1)

    restart(door, tmp_path / "spool")

    assert reasons(door) == ["deleted_late"] * 3
    assert door.picture() == before
    assert not list((tmp_path / "spool").glob("*.del"))
    rows = door.rows("SELECT via, reason FROM v_requests WHERE command = 'DEL'")
    assert rows == [{"via": "spool", "reason": "deleted_late"}] * 3


def test_taking_the_spool_in_twice_changes_nothing(door: Door, tmp_path: Path) -> None:
    pod = door.added()
    spooled(door, pod, tmp_path / "spool", door.now + 1)
    restart(door, tmp_path / "spool")
    before = door.picture()
    spooled(door, pod, tmp_path / "spool", door.now + 1)

    restart(door, tmp_path / "spool")

    assert reasons(door) == ["deleted_late"]
    assert door.picture() == before


def drained(door: Door, spool: Path) -> None:
    """Have the door see to the spool before it serves an addition, as the daemon's does."""
    door.verbs.drain = lambda: recovery.take_spools_in(door.ledger, door.loop, [spool], door.clock)


@pytest.mark.parametrize("at", [-1_000, 0, 3_600_000], ids=["earlier", "now", "by a fast clock"])
def test_a_deletion_of_before_is_not_meant_for_the_lease(
    door: Door, tmp_path: Path, at: int
) -> None:
    """What was reported as deleted when the addition came is taken in before it, whatever its date."""
    drained(door, tmp_path / "spool")
    pod = door.pod()
    spooled(door, pod, tmp_path / "spool", door.now + at)
    pod.result = door.call("ADD", pod).said

    restart(door, tmp_path / "spool")

    assert reasons(door) == []
    assert pod.pings("10.0.0.4")
    assert not list((tmp_path / "spool").glob("*.del"))


def test_a_clock_that_is_set_back_makes_no_deletion_undone(door: Door, tmp_path: Path) -> None:
    """The pod came by a clock an hour fast, and was deleted by the right one while nobody was home."""
    before = door.picture()
    pod = door.added()
    door.now -= 3_600_000
    spooled(door, pod, tmp_path / "spool", door.now + 1_000)
    door.now += 2_000

    restart(door, tmp_path / "spool")

    assert reasons(door) == ["deleted_late"]
    assert door.picture() == before


def test_a_spool_that_cannot_be_tidied_stops_nothing(door: Door, tmp_path: Path) -> None:
    """A file stands where the unreadable belongs; the deletion behind it is carried out all the same."""
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "bad").touch()
    (spool / "1-1-1.del").write_bytes(b"rubbish")
    pod = door.added()
    spooled(door, pod, spool, door.now + 1)

    restart(door, spool)

    assert reasons(door) == ["deleted_late"]
    [found] = door.rows("SELECT code, subject, text FROM v_findings WHERE closed IS NULL")
    assert (found["code"], found["subject"]) == ("spool_unreadable", "1-1-1.del")
    assert "it stays in the spool" in found["text"]


def test_an_unreadable_deletion_is_set_aside_and_a_finding(door: Door, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "1-1-1.del").write_bytes(b"rubbish")

    restart(door, spool)

    found = door.rows("SELECT code, subject FROM v_findings WHERE closed IS NULL")
    assert found == [{"code": "spool_unreadable", "subject": "1-1-1.del"}]
    assert not list(spool.glob("*.del"))
    assert list((spool / "bad").iterdir())


def test_a_boot_id_that_changed_under_live_pods_ends_none(door: Door, tmp_path: Path) -> None:
    """The file was replaced, say: no machine that was rebooted has links of before."""
    pod = door.added()
    restart(door, tmp_path / "spool", boot="boot-2")
    assert reasons(door) == []
    assert pod.pings("10.0.0.4")
    door.call("CHECK", pod, prevResult=pod.result)


def test_pods_that_a_copy_put_back_has_forgotten_are_entered_again(tmp_path: Path) -> None:
    """Their links are not taken from them, nor their addresses given to others; even with equal lease ids."""
    (tmp_path / "now").mkdir()
    (tmp_path / "back").mkdir()
    now = Door(tmp_path / "now", addresses=(0, 4))
    early = now.added("early")
    gone = now.added("gone")
    with now.ledger.write(durable=True) as tx:
        writes.record_boot(tx, "boot-1", now.now)
    now.ledger.backup(tmp_path / "back" / "ledger.db")
    now.call("DEL", gone)
    now.now += 60_000
    late = [now.added(f"late-{n}") for n in range(2)]
    now.ledger.close()

    back = Door(tmp_path / "back", addresses=(0, 4), node=now.node)
    try:
        restart(back, tmp_path / "spool")

        held = back.rows("SELECT address, container_id FROM v_leases WHERE ended_at IS NULL")
        assert {row["address"] for row in held} >= {pod.address for pod in (early, *late)}
        assert all(pod.pings("10.0.0.4") for pod in (early, *late))
        assert back.call("CHECK", early, prevResult=early.result).status == 0
        fresh = back.call("ADD", back.pod("fresh"))
        assert fresh.code in {0, 11}
        if fresh.code == 0:
            address = fresh.said["ips"][0]["address"].partition("/")[0]
            assert address not in {pod.address for pod in (early, *late)}
        back.loop.tick()
        assert all(pod.pings("10.0.0.4") for pod in (early, *late))
        assert back.rows("SELECT 1 FROM v_findings WHERE closed IS NULL") == []
    finally:
        back.close()
        now.kernel.close()
        for pod in now.pods:
            pod.close()


def test_a_new_ledger_in_a_lost_ones_place_harms_no_pod(tmp_path: Path) -> None:
    """The file is gone, the pods live: nothing of theirs is removed, nor their addresses given out."""
    (tmp_path / "lost").mkdir()
    (tmp_path / "new").mkdir()
    lost = Door(tmp_path / "lost", addresses=(0, 2))
    pod = lost.added()
    lost.ledger.close()
    new = Door(tmp_path / "new", addresses=(0, 2), node=lost.node)
    try:
        new.loop.tick()

        answer = new.call("ADD", new.pod())

        assert (answer.code, answer.reason) == (11, "ledger_lost")
        assert pod.pings("10.0.0.4")
        found = new.rows("SELECT code FROM v_findings WHERE closed IS NULL")
        assert found == [{"code": "ledger_lost"}]
    finally:
        new.close()
        lost.kernel.close()
        pod.close()


def test_a_deletion_ends_the_nameless_lease_of_its_sandbox_and_of_no_namesake(door: Door) -> None:
    """The ledger was rebuilt without records. The namespace, or the kernel's silence, says whose the lease is."""
    pod = door.added("web-0")
    lease = door.lease(pod)
    assert lease is not None
    with door.ledger.write() as tx:
        made_up = f"unknown-{lease.host_ifname}"
        tx.dicts(f"UPDATE leases SET container_id = '{made_up}' WHERE id = {lease.id}", {})
    before = door.pod("web-0")  # a sandbox of the pod's that died earlier: another namespace

    door.call("DEL", before)
    door.call("DEL", before, {"CNI_NETNS": ""})
    assert reasons(door) == []
    assert pod.pings("10.0.0.4")

    door.call("DEL", pod)
    assert reasons(door) == ["deleted"]
    assert door.lease(pod) is None


def test_a_deletion_without_its_namespace_ends_a_nameless_lease_that_nothing_speaks_for(
    door: Door,
) -> None:
    pod = door.added("web-0")
    lease = door.lease(pod)
    assert lease is not None
    with door.ledger.write() as tx:
        made_up = f"unknown-{lease.host_ifname}"
        tx.dicts(f"UPDATE leases SET container_id = '{made_up}' WHERE id = {lease.id}", {})
    door.node.command("ip", "link", "del", lease.host_ifname)
    door.call("DEL", pod, {"CNI_NETNS": ""})
    assert reasons(door) == ["deleted"]
