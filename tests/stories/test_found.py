"""What a story found, each told again as short as it can be; the seed it came from is in the docstring."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from reconciler import settings as knobs
from tests.stories import scene


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
    """Seed 2276: the clock was set an hour ahead, so a young address seemed old enough to be missed.

    It stayed doubtful, and its interface could not be given back, until the look of the next hour.
    """
    with told(instance_type="t3.nano", settings=knobs.Settings(warm_eni_target=0)) as node:
        node.runtime.want(2)
        node.pass_(20)
        node.cloud.api_lag = 300
        node.time.skew_ms += 3_600_000
        node.kill()
        node.start()
        node.pass_(5)
        missed = "SELECT address FROM addresses WHERE absent_since IS NOT NULL"
        assert node.machine.rows(missed), "nothing was missed, so nothing is shown"
        node.cloud.api_lag = 0
        node.settle()
