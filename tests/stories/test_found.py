"""What a story found, each told again as short as it can be; the seed it came from is in the docstring."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from ledger import model, writes
from reconciler import settings as knobs
from tests.stories import neighbours, scene


@contextlib.contextmanager
def told(**more: Any) -> Iterator[scene.Scene]:
    """A node whose daemon has started and come to rest."""
    with scene.folder() as folder:
        made = scene.Scene(1, folder, **more)
        with made.opened():
            made.settle()
            yield made


def test_an_interface_may_take_the_device_index_of_one_that_is_gone() -> None:
    """Seed 14: its link has the same name, and the ledger still vouched for the old one's objects.

    The kernel's lane failed at every tick from then on, and the new interface never served a pod.
    """
    few = knobs.Settings(warm_ip_target=1)
    with told(instance_type="t3.small", settings=few) as node:
        for _ in range(2):
            node.runtime.want(5)
            node.settle()
            node.runtime.drop(5)
            node.settle()
        assert node.calls("DeleteNetworkInterface"), "nothing was given back, so nothing is shown"
        node.runtime.want(5)
        node.settle()


def test_the_time_for_asking_a_dead_ec2_again_does_not_stand_still() -> None:
    """Seed 2: nobody asked when it came, so the lane ticked without end; now that is what it is for."""
    with told(settings=knobs.Settings(warm_ip_target=1)) as node:
        node.runtime.want(5)
        node.settle()
        node.runtime.drop(5)
        node.lossy = 1.0
        node.pass_(61)  # too many by now, so EC2 is looked at, in vain
        node.runtime.want(5)  # and now they are wanted again
        node.pass_(300)
        node.lossy = 0.0
        node.settle()


def test_an_address_given_back_with_a_lost_reply_is_not_believed_to_be_ours_still() -> None:
    """Seed 269: EC2's picture was older than the call, so it was given to the next pod, which stayed dark."""
    few = knobs.Settings(warm_ip_target=1, ip_cooldown_ms=0)
    with told(instance_type="t3.small", settings=few) as node:
        node.runtime.want(3)
        node.settle()
        node.runtime.drop(3)
        node.ec2.faults.add(op="UnassignPrivateIpAddresses", drop=True, times=1)
        while not node.calls("UnassignPrivateIpAddresses"):
            node.pass_(1)
        node.cloud.api_lag = 60
        node.pass_(10)
        node.runtime.want(5)
        for _ in range(12):
            node.pass_(30)
            node.check()
        node.cloud.api_lag = 0
        node.settle()


def test_addresses_that_show_late_are_adopted_in_the_end() -> None:
    """Seed 14: given with a reply nobody read, and not yet in the picture that was to settle it."""
    with told(settings=knobs.Settings(warm_ip_target=1)) as node:
        node.cloud.api_lag = 60
        node.ec2.faults.add(op="AssignPrivateIpAddresses", drop=True, times=1)
        node.runtime.want(3)
        node.pass_(120)
        node.cloud.api_lag = 0
        node.settle()


def test_a_clock_that_is_set_back_holds_up_no_pod() -> None:
    """Seeds 10, 18 and 20: cooldowns, pauses and buckets ended an hour later than they were meant to."""
    rested = knobs.Settings(warm_ip_target=1, max_eni=1)
    with told(instance_type="t3.small", settings=rested) as node:
        node.runtime.want(3)
        node.settle()
        node.ec2.faults.add(op="*", error="InternalError", times=6)
        node.runtime.drop(3)
        node.pass_(20)
        node.time.skew_ms -= 3_600_000
        node.runtime.want(3)
        node.pass_(40)
        node.runtime.reconcile()
        assert [box and box.state for box in node.runtime.wanted.values()] == ["up"] * 3
        node.settle()


def test_a_refused_sandbox_that_is_never_deleted_keeps_room_for_nobody() -> None:
    """The runtime forgets the DEL; its lease waited, and was counted as a pod, until the next restart."""
    small = knobs.Settings(warm_ip_target=1, max_eni=1, add_wait_ms=0)
    with told(instance_type="t3.small", settings=small) as node:
        node.runtime.forgetful = 1.0
        node.runtime.want(5)
        node.pass_(60)
        waiting = "SELECT count(*) AS n FROM v_leases WHERE state = 'waiting'"
        assert node.machine.rows(waiting) == [{"n": 4}]
        node.pass_(700)
        assert node.machine.rows(waiting) == [{"n": 0}]
        reasons = node.machine.rows("SELECT DISTINCT reason FROM v_leases WHERE state = 'ended'")
        assert reasons == [{"reason": "gave_up_waiting"}]
        node.runtime.forgetful = 0.0
        node.settle()


def test_an_address_that_a_picture_misses_under_a_pod_is_looked_for_again_soon() -> None:
    """Seed 2276: it stayed doubtful, and its interface could not go, until the look of the next hour.

    EC2's picture is older than it ever should be, so an address that a pod has for minutes is not in it yet.
    """
    with told(instance_type="t3.nano", settings=knobs.Settings(warm_eni_target=0)) as node:
        node.runtime.want(2)
        node.pass_(20)
        node.cloud.api_lag = 600
        node.pass_(320)
        node.kill()
        node.start()
        node.pass_(5)
        missed = "SELECT address FROM addresses WHERE absent_since IS NOT NULL"
        assert node.machine.rows(missed), "nothing was missed, so nothing is shown"
        node.cloud.api_lag = 0
        node.settle()


def test_a_clock_that_is_set_forward_makes_no_old_picture_new() -> None:
    """Seeds 3007 and 3503: what was given back a minute ago seemed long gone, and EC2's old picture was believed.

    While the daemon runs, while it is away, and across a reboot.
    """
    few = knobs.Settings(warm_ip_target=1, ip_cooldown_ms=0, max_eni=1)
    for how in ("runs", "away", "reboot"):
        with told(instance_type="t3.medium", settings=few) as node:
            node.runtime.want(4)
            node.settle()
            node.runtime.drop(4)
            while not node.calls("UnassignPrivateIpAddresses"):
                node.pass_(1)
            node.cloud.api_lag, looks = 300, len(node.calls("DescribeNetworkInterfaces"))
            if how == "away":
                node.kill()
            node.time.skew_ms += 3_600_000
            if how == "reboot":
                node.machine.reboot()
                node.notice_death()
                node.runtime.machine_rebooted()
            node.start()
            node.runtime.want(5)
            for _ in range(12):
                node.pass_(20)
                node.check()
            assert len(node.calls("DescribeNetworkInterfaces")) > looks, "no old picture was seen"
            node.cloud.api_lag = 0
            node.settle()


def test_an_interface_that_somebody_takes_away_takes_no_place_any_more() -> None:
    """Seed 51: another controller's, detached and deleted, was counted for ever, and a pod had no interface."""
    with told(instance_type="t3.nano", settings=knobs.Settings(warm_eni_target=0)) as node:
        node.rng.seed(1)
        said = node.neighbours.attach()
        assert node.neighbours.strangers, said
        node.kill()
        node.start()
        node.pass_(20)
        assert len(node.machine.desired().enis) == 2
        node.neighbours.detach()
        node.pass_(20)
        node.pass_(3600 + 400)
        assert len(node.machine.desired().enis) == 1
        node.runtime.want(2)
        node.settle()
        assert node.calls("CreateNetworkInterface")


def test_pods_on_an_interface_that_is_marked_no_manage_keep_their_way_out() -> None:
    """Seeds 67, 73 and 88: its table went, and what its pods sent left by another interface, to be dropped.

    It goes once the last of them is gone.
    """
    with told(instance_type="t3.nano", settings=knobs.Settings(warm_eni_target=0)) as node:
        node.runtime.want(2)
        node.settle()
        second = next(eni for eni in node.machine.desired().enis if not eni.primary)
        assert "marks" in node.neighbours.mark()
        node.kill()
        node.start()
        node.pass_(60)
        assert not next(e for e in node.machine.desired().enis if not e.primary).managed
        node.settle()  # which follows a pod's packets
        node.runtime.drop(2)
        node.pass_(60)
        seen = node.machine.kernel.observe()
        assert isinstance(seen, model.ObservedKernel)
        assert not [rule for rule in seen.rules if rule.src == f"{second.primary_ip}/32"]


def test_an_api_server_that_was_down_is_asked_until_it_answers() -> None:
    """Seeds 10023 and 10151: nothing hung on its answer any more, so the finding stayed for good."""
    asks = knobs.Settings(warm_ip_target=1, node_name=neighbours.NODE_NAME, kubernetes_host="api")
    with told(settings=asks) as node:
        node.neighbours.api.down = True
        node.pass_(130)
        node.runtime.want(2)
        node.pass_(5)
        down = "SELECT code FROM v_findings WHERE closed IS NULL"
        assert node.machine.rows(down) == [{"code": "api_server_down"}]
        node.neighbours.api.down = False
        node.settle()
        node.neighbours.api.down = True
        node.pass_(130)
        node.runtime.want(2)
        node.pass_(5)
        assert node.machine.rows(down) == [{"code": "api_server_down"}]
        node.kill()
        node.machine.settings = knobs.Settings(warm_ip_target=1)
        node.start()
        node.settle()


def test_an_interface_made_with_the_groups_of_before_gets_those_of_now() -> None:
    """Seed 20091: made after they had changed and before the node heard of it; nobody looked for an hour."""
    with told(instance_type="t3.nano", settings=knobs.Settings(warm_eni_target=0)) as node:
        node.pass_(700)  # so that no call of ours makes EC2 be looked at again
        node.cloud.imds_lag = 120
        while same_groups(node):
            node.neighbours.regroup()
        node.runtime.want(2)
        node.pass_(60)
        assert node.calls("CreateNetworkInterface")
        node.cloud.imds_lag = 0
        node.settle()


def same_groups(node: scene.Scene) -> bool:
    """Has the primary interface the groups that the ledger has?"""
    primary = node.neighbours.of_the_instance()[0]
    known = node.machine.desired().node
    assert known is not None
    return {group["GroupId"] for group in primary["Groups"]} == set(known.security_groups)


def test_a_late_answer_takes_no_address_out_of_a_prefix_that_came_since() -> None:
    """Seed 10881: given back singly with a lost reply, and delegated within a /28 to another interface.

    The repeated call's answer ended its row, so the prefix had fifteen addresses, and could never go again.
    """
    blocks = knobs.Settings(prefix_delegation=True, warm_prefix_target=1, ip_cooldown_ms=0)
    with told(instance_type="t3.small", settings=blocks) as node:
        held = node.machine.desired()
        [block] = [prefix.cidr for prefix in held.prefixes]
        address = next(a.address for a in held.addresses if a.prefix == block)
        with node.machine.ledger.write(durable=True) as tx:
            writes.given_back(tx, "eni-of-before", 1, addresses=[address])
            writes.given_back(tx, held.enis[0].eni_id, 1, addresses=[address])
            writes.given_back(tx, "eni-of-before", 1, cidrs=[block])
        assert len(node.machine.desired().addresses) == 16
        node.settle()


def test_an_interface_on_the_link_of_one_that_is_on_its_way_out_stops_no_start() -> None:
    """Seed 60011: its objects were still the other's in the ledger, and the daemon could not start."""
    with told(instance_type="t3.nano", settings=knobs.Settings(warm_eni_target=0)) as node:
        node.runtime.want(2)
        node.settle()
        desired = node.machine.desired()
        old = next(eni for eni in desired.enis if not eni.primary)
        node.machine.kernel.unplug(old.mac)
        other = dataclasses.replace(old, eni_id="eni-0other", mac="02:00:00:00:00:99")
        with node.machine.ledger.write(durable=True) as tx:
            writes.eni_created(tx, dataclasses.replace(other, state="attached"), (), 1)
        node.machine.kernel.plug(other.device, other.mac)
        node.machine.loop.tick()
        there = {eni.eni_id: eni.state for eni in node.machine.desired().enis}
        assert there["eni-0other"] == "usable"
