"""What differs in the kernel is mended, what is foreign is left, and an old look harms no new pod."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger import model, reads
from reconciler.planner import plan as planner
from tests.reconciler.door import Door

pytestmark = pytest.mark.netns


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    made = Door(tmp_path, addresses=(0, 4))
    yield made
    made.close()


@pytest.mark.parametrize(
    "act",
    [
        "ip rule del from {ip} lookup 2",
        "ip rule del to {ip} lookup main",
        "ip route del {ip}/32",
        "ip link set {link} mtu 1400",
        "ip link set {link} down",
        "ip link set {link} name other0",
        "ip link set {link} address 0a:00:00:00:00:99",
        "ip rule del from 10.0.0.5 lookup 2",
        "ip route flush table 2",
        "ip address flush dev eth1",
        "ip link set eth1 down",
        "ip link set eth1 mtu 1500",
        "ip rule add from 10.0.0.77 lookup 2 pref 1536 protocol 201",
        "ip route add 10.0.0.78/32 dev eth1 proto 201",
        "ip rule del pref 1024",
        "ip rule flush",
        "ip rule add fwmark 0x40/0x40 lookup main pref 1024 protocol 201",
        "ip rule add to 10.7.0.0/16 lookup main pref 1535 protocol 201",
        "ip route append 10.0.0.0/24 dev eth1 proto kernel scope link",
    ],
)
def test_vandalism_is_mended_in_one_tick(door: Door, act: str) -> None:
    pod = door.added()
    lease = door.lease(pod)
    assert lease is not None
    before = door.picture()
    door.node.command(*act.format(ip=pod.address, link=lease.host_ifname).split())
    if act == "ip rule flush":  # the kernel's own are not ours to bring back
        door.node.command(
            "ip", "rule", "add", "pref", "32766", "lookup", "main", "protocol", "kernel"
        )
        door.node.command(
            "ip", "rule", "add", "pref", "32767", "lookup", "default", "protocol", "kernel"
        )

    door.loop.tick()

    assert sorted(map(str, door.picture()[2])) == sorted(map(str, before[2]))
    assert door.call("CHECK", pod, prevResult=pod.result).status == 0
    assert pod.pings("10.0.0.4")
    assert door.loop.tick() == ()
    mended = door.rows("SELECT count(*) AS n FROM v_journal WHERE kind = 'kernel.mended'")
    assert mended[0]["n"] >= 1


def test_a_pods_link_that_was_renamed_and_left_down_comes_back(door: Door) -> None:
    """It is known by alias and MAC, and is not taken for one that nobody needs."""
    pod = door.added()
    lease = door.lease(pod)
    assert lease is not None
    door.node.command("ip", "link", "set", str(lease.host_ifname), "down")
    door.node.command("ip", "link", "set", str(lease.host_ifname), "name", "other0")

    door.loop.tick()
    door.loop.tick()  # routes of a link that is down cannot be put before it is up

    assert pod.pings("10.0.0.4")
    assert door.call("CHECK", pod, prevResult=pod.result).status == 0
    assert door.loop.tick() == ()


def test_nothing_is_written_when_nothing_differs(door: Door) -> None:
    door.added()
    before = door.rows("SELECT max(id) AS last FROM v_journal")

    for _ in range(3):
        door.loop.tick()

    assert door.rows("SELECT max(id) AS last FROM v_journal") == before


def test_foreign_objects_stay_as_they_are(door: Door) -> None:
    lines = ["link add foreign type veth peer name other", "link set foreign up"]
    lines += [f"rule add from 10.9.0.{n} lookup {300 + n} pref {512 + n}" for n in range(20)]
    lines += [f"route add 10.8.{n}.0/24 dev foreign table {400 + n}" for n in range(20)]
    lines += ["rule add to 10.0.0.20 lookup main pref 512"]
    door.node.command("ip", "-batch", "-", stdin="\n".join(lines))
    before = door.picture()
    pod = door.added()
    door.node.command("ip", "rule", "del", "from", pod.address, "lookup", "2")
    door.loop.tick()

    door.call("DEL", pod)
    door.loop.tick()

    assert door.picture() == before


def test_an_old_look_does_not_take_away_what_a_new_pod_was_given(door: Door) -> None:
    """The look saw the address's last holder; its next holder came before the look was used."""
    pod = door.added()
    old_look = door.kernel.observe()
    assert isinstance(old_look, model.ObservedKernel)
    door.call("DEL", pod)
    door.now += door.settings.ip_cooldown_ms
    others = [door.added() for _ in range(4)]
    again = next(other for other in others if other.address == pod.address)

    with door.ledger.read() as tx:
        desired = reads.desired(tx, door.now)
    meant = planner.kernel(desired, old_look, door.settings).kernel
    assert meant
    door.loop._mend(old_look, frozenset(meant))

    assert again.pings("10.0.0.4")
    assert door.call("CHECK", again, prevResult=again.result).status == 0


def test_a_link_that_went_with_its_sandbox_is_not_made_again(door: Door) -> None:
    """Only the launcher's call can make a pod's link; its rules do not stay to mislead meanwhile."""
    pod = door.added()
    pod.netns.close()
    door.call("STATUS", cniVersion="1.1.0")

    door.loop.tick()

    assert door.lease(pod) is not None
    assert door.call("DEL", pod).status == 0
    assert not [rule for rule in door.picture()[2] if rule["priority"] in {512, 1536}]


def test_what_a_second_look_does_not_confirm_is_left_alone(door: Door) -> None:
    """A rule was gone for a moment: nobody holds up the door for it."""
    pod = door.added()
    door.node.command("ip", "rule", "del", "to", pod.address, "lookup", "main")
    mended: list[object] = []
    door.loop.engine = mended.append
    observe, looks = door.kernel.observe, itertools.count()

    def put_back_in_between() -> model.ObservedKernel | model.Unknown:
        if next(looks) == 1:
            door.node.command(
                *f"ip rule add to {pod.address} lookup main pref 512 protocol 201".split()
            )
        return observe()

    door.loop.kernel.observe = put_back_in_between  # type: ignore[method-assign]  # between two looks

    door.loop.tick()

    assert next(looks) == 2
    assert mended == []


def test_a_link_that_one_look_alone_misses_is_not_told_of(door: Door) -> None:
    """Its pod came while the kernel was looked at; one that is gone is missed by the next look as well."""
    lease = door.lease(door.added())
    assert lease is not None
    door.node.command("ip", "link", "del", lease.host_ifname)

    once, twice = ([note.code for note in door.loop.tick()] for _ in range(2))

    assert "pod_link_gone" not in once
    assert "pod_link_gone" in twice
