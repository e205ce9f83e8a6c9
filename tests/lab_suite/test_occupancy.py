"""Placement in a subnet, against a plain model that keeps a set."""

from __future__ import annotations

import ipaddress
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.occupancy import Occupancy, Reservation


def space(cidr: str) -> Occupancy:
    return Occupancy(ipaddress.ip_network(cidr))


@given(
    st.integers(min_value=22, max_value=28),
    st.lists(st.sampled_from(["address", "block", "release", "release block"]), max_size=80),
    st.integers(),
)
def test_nothing_is_ever_given_twice(length: int, steps: list[str], seed: int) -> None:
    """Whatever the order: addresses and blocks stay disjoint and the free count is exact."""
    subnet = space(f"10.0.0.0/{length}")
    rng = random.Random(seed)
    singles: set[int] = set()
    blocks: set[int] = set()
    for step in steps:
        if step == "address" and (picked := subnet.pick(rng)) is not None:
            assert picked not in singles
            subnet.take(picked, "eni")
            singles.add(picked)
        elif step == "block" and (picked := subnet.pick_block(rng)) is not None:
            assert picked not in blocks
            subnet.take_block(picked, "eni")
            blocks.add(picked)
        elif step == "release" and singles:
            subnet.release(singles.pop())
        elif step == "release block" and blocks:
            subnet.release_block(blocks.pop())
        covered = singles | {start + each for start in blocks for each in range(16)}
        assert len(covered) == len(singles) + 16 * len(blocks)
        assert not covered & subnet.kept
        assert subnet.free() == subnet.size - 5 - len(covered)


@pytest.mark.parametrize("length", [24, 26, 28])
def test_every_free_address_is_found_in_the_end(length: int) -> None:
    subnet = space(f"10.0.0.0/{length}")
    rng = random.Random(1)
    for _ in range(subnet.free()):
        picked = subnet.pick(rng)
        assert picked is not None
        subnet.take(picked, "eni")
    assert (subnet.free(), subnet.pick(rng)) == (0, None)


def test_scattered_addresses_leave_no_block() -> None:
    """Fragmentation arises by itself: most of a /24 is free and nothing of it is a whole /28."""
    subnet = space("10.0.0.0/24")
    rng = random.Random(7)
    count = 0
    while subnet.pick_block(rng) is not None:
        picked = subnet.pick(rng)
        assert picked is not None
        subnet.take(picked, "eni")
        count += 1
    assert subnet.free() > 128
    assert count < 120


def test_both_edges_of_a_subnet_hold_kept_addresses() -> None:
    """So of a /26's four blocks two can be given."""
    subnet = space("10.0.0.0/26")
    given_out = {
        start for start in range(subnet.first, subnet.last, 16) if subnet.block_is_free(start)
    }
    assert given_out == {subnet.first + 16, subnet.first + 32}


def test_ipv6_blocks_are_80s() -> None:
    subnet = space("2001:db8::/64")
    start = subnet.pick_block(random.Random(1))
    assert start is not None
    assert ipaddress.IPv6Network((start, 80)).subnet_of(ipaddress.IPv6Network("2001:db8::/64"))


def test_a_64_that_is_all_reserved_gives_nothing() -> None:
    """And says so soon, though nobody can count a /64."""
    subnet = space("2001:db8::/64")
    subnet.reservations["scr"] = Reservation(subnet.first, subnet.last, for_prefixes=False)
    assert subnet.pick(random.Random(1)) is None


def test_the_holder_of_an_address_is_found_through_its_block() -> None:
    subnet = space("10.0.0.0/24")
    subnet.take_block(subnet.first + 32, "one")
    subnet.take(subnet.first + 9, "other")
    holders = [subnet.holder(subnet.first + place) for place in (9, 10, 32, 47, 48)]
    assert holders == ["other", None, "one", "one", None]
