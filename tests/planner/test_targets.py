"""What is missing and what is too much are upstream's sums, with cooling addresses not ready."""

from __future__ import annotations

import pytest

from reconciler import settings as knobs
from reconciler.planner import actions, stock, targets
from tests.planner.rows import START, UNKNOWN, addresses, desired, steps, verbs


@pytest.mark.parametrize(
    ("warm", "least", "held", "leased", "short", "over"),
    [
        (5, 0, 0, 0, 5, 0),
        (5, 0, 2, 0, 3, 0),
        (5, 0, 5, 0, 0, 0),
        (5, 0, 8, 0, 0, 3),
        (5, 0, 8, 3, 0, 0),
        (1, 1, 0, 0, 1, 0),
        (0, 4, 1, 1, 3, 0),
        (0, 4, 6, 1, 0, 2),
        (0, 4, 6, 6, 0, 0),
        (2, 10, 9, 0, 1, 0),
        (2, 10, 14, 1, 0, 4),
    ],
)
def test_missing_and_superfluous_addresses_follow_upstreams_sums(
    warm: int, least: int, held: int, leased: int, short: int, over: int
) -> None:
    """WARM_IP_TARGET and MINIMUM_IP_TARGET give upstream's numbers."""
    settings = knobs.Settings(warm_ip_target=warm, minimum_ip_target=least)
    counted = stock.count(desired(rows=addresses(0, held, leased)), UNKNOWN, START)
    found = (targets.short(counted, settings, 14), targets.over(counted, settings))
    assert (short, over) == found


@pytest.mark.parametrize(
    ("target", "held", "leased", "max_pods", "low"),
    [
        (1, 3, 1, None, True),
        (1, 3, 0, None, False),
        (0, 3, 1, None, False),
        (0, 3, 3, None, True),
        (0, 0, 0, None, True),
        (2, 6, 1, None, True),
        (1, 3, 3, 3, False),
        (1, 3, 3, 4, True),
    ],
)
def test_warm_eni_target_is_low_where_upstream_says_so(
    target: int, held: int, leased: int, max_pods: int | None, low: bool
) -> None:
    """With three slots an interface, these stocks are (not) too low for WARM_ENI_TARGET."""
    counted = stock.count(desired(rows=addresses(0, held, leased)), UNKNOWN, START)
    settings = knobs.Settings(warm_eni_target=target, max_pods=max_pods)
    assert low == (targets.short(counted, settings, 3) > 0)


def test_a_cooling_address_is_held_but_not_ready() -> None:
    """Upstream counts it as available and leaves pods without; here it makes the pool ask for one."""
    cooling = addresses(0, 1, cooling_until=START + 1)
    assert verbs(steps(desired(rows=cooling))) == [actions.AssignAddresses("eni-0", 1)]
    assert verbs(steps(desired(rows=cooling), now=START + 1)) == []
