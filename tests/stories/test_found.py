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
