"""What a user of the VPC CNI would notice: the same numbers for the same settings, type by type.

`upstream` is its counters, its "too low" and its increase step done on paper, for pods that come one by one
and are packed (its own choice of an address is random). What happens when pods go does not belong here.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as some

from reconciler import settings as knobs
from reconciler import whatif
from reconciler.planner import limits

SIZE = 16
Held = dict[int, list[int]]


def upstream(settings: knobs.Settings, limit: limits.Limits, pods: int) -> int:
    """Single addresses, or prefixes, that the VPC CNI ends with on the default card."""
    prefixed = settings.prefix_delegation and limit.hypervisor != "xen"
    unit = SIZE if prefixed else 1
    most = min(limit.enis, settings.max_eni or limit.enis) * limit.slots
    warm, least = settings.warm_ip_target, settings.minimum_ip_target
    held = 0
    for assigned in range(pods + 1):
        while held < most:
            total = unit * held
            available = total - assigned  # below 0 a pod waits and comes again until it is served
            if total >= (settings.max_pods or most * SIZE + pods) and available >= 0:
                break
            if warm or least:
                want = -(-max(warm - available, least - total) // unit)
                if (
                    settings.max_pods is not None
                ):  # it may exceed maxPods by less than a call's worth
                    want = min(want, max(-(-(settings.max_pods - total) // unit), -available))
            elif prefixed:
                free = held - min(-(-assigned // SIZE), held)
                low = available < max(settings.warm_prefix_target * SIZE, 1)
                want = max(1, settings.warm_prefix_target - free) if low else 0
            else:
                low = available < max(settings.warm_eni_target * limit.slots, 1)
                want = limit.slots if low else 0
            if want <= 0:
                break
            held += min(want, limit.slots - held % limit.slots)  # one interface a step
    return held


def found(settings: knobs.Settings, limit: limits.Limits, pods: list[int]) -> Held:
    """Single addresses, or prefixes, on each interface, the fullest first."""
    told = whatif.forecast(settings, limit, pods)
    return {
        each.pods: sorted((eni.ips or eni.prefixes for eni in each.enis), reverse=True)
        for each in told
    }


def of(instance_type: str) -> limits.Limits:
    limit = limits.lookup(instance_type)
    assert limit is not None
    return limit


def on(**more: Any) -> knobs.Settings:
    return knobs.Settings(prefix_delegation=True, **{"warm_prefix_target": 0} | more)


TABLE: list[tuple[str, knobs.Settings, Held]] = [
    ("t3.small", knobs.Settings(warm_ip_target=1, minimum_ip_target=1), {0: [1], 5: [3, 3]}),
    ("t3.small", knobs.Settings(), {0: [3], 5: [3, 3, 3], 9: [3, 3, 3]}),
    ("t3.small", knobs.Settings(max_pods=6), {0: [3], 3: [3, 3], 6: [3, 3]}),
    ("t3.small", on(warm_prefix_target=1), {0: [1], 5: [2], 16: [2], 17: [3], 58: [3, 2]}),
    ("m5.large", knobs.Settings(), {0: [9], 1: [9, 9], 9: [9, 9], 10: [9, 9, 9], 27: [9, 9, 9]}),
    ("m5.large", knobs.Settings(warm_eni_target=2), {0: [9, 9], 1: [9, 9, 9]}),
    ("m5.large", knobs.Settings(warm_ip_target=5), {0: [5], 4: [9], 5: [9, 1], 22: [9, 9, 9]}),
    ("m5.large", knobs.Settings(minimum_ip_target=10), {0: [9, 1], 10: [9, 1], 11: [9, 2]}),
    (
        "m5.large",
        knobs.Settings(warm_ip_target=2, minimum_ip_target=10, max_eni=2),
        {8: [9, 1], 9: [9, 2], 17: [9, 9], 18: [9, 9]},
    ),
    ("m5.large", knobs.Settings(warm_ip_target=5, max_pods=20), {14: [9, 9, 1], 16: [9, 9, 2]}),
    ("m5.large", on(warm_prefix_target=1, max_pods=110), {96: [7], 97: [7], 110: [7]}),
    ("m5.large", on(warm_ip_target=5, minimum_ip_target=40), {0: [3], 43: [3], 44: [4]}),
    ("c5.4xlarge", on(warm_prefix_target=1, max_pods=234), {224: [15], 225: [15], 234: [15]}),
    ("m4.large", on(warm_ip_target=2), {0: [2], 9: [9, 2]}),  # Xen has no prefixes
]


@pytest.mark.parametrize(("instance_type", "settings", "expected"), TABLE)
def test_golden_table(instance_type: str, settings: knobs.Settings, expected: Held) -> None:
    limit = of(instance_type)
    assert found(settings, limit, list(expected)) == expected
    on_paper = {pods: upstream(settings, limit, pods) for pods in expected}
    assert {pods: sum(held) for pods, held in expected.items()} == on_paper


ANY = some.builds(
    knobs.Settings,
    prefix_delegation=some.booleans(),
    warm_eni_target=some.integers(0, 3),
    warm_prefix_target=some.integers(1, 3),
    warm_ip_target=some.integers(0, 20),
    minimum_ip_target=some.integers(0, 50),
    max_eni=some.none() | some.integers(1, 5),
    max_pods=some.none() | some.integers(1, 60),
)


@given(
    ANY, some.integers(1, 4), some.integers(1, 6), some.sampled_from(["nitro", "xen"]), some.data()
)
@effort(max_examples=200, deadline=None)
def test_any_settings_give_upstreams_number(
    settings: knobs.Settings, enis: int, slots: int, hypervisor: Any, data: some.DataObject
) -> None:
    """Within the pods that may run: who starts more than maxPods is served here, and not there."""
    limit = limits.Limits(enis, slots + 1, (enis,), hypervisor)
    pods = data.draw(some.integers(0, min(settings.max_pods or 60, 60)))
    [told] = whatif.forecast(settings, limit, [pods])
    total = sum(eni.ips + eni.prefixes for eni in told.enis)
    assert total == upstream(settings, limit, pods)
