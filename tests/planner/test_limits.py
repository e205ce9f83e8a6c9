"""The table of instance types says what EC2 says."""

from __future__ import annotations

from reconciler.planner import limits
from tests.lab import types


def test_a_common_type_has_its_published_limits() -> None:
    """m5.large: 3 interfaces of 10 addresses, the first of each is no pod's."""
    found = limits.lookup("m5.large")
    assert found == limits.Limits(enis=3, ipv4_per_eni=10, cards=(3,), hypervisor="nitro")
    assert found is not None
    assert found.slots == 9


def test_an_unknown_type_is_unknown() -> None:
    """No guess; neither a made-up name nor the table's own remarks."""
    assert limits.lookup("z9.gigantic") is None
    assert limits.lookup("_columns") is None


def test_the_table_agrees_with_the_labs_for_every_type() -> None:
    """Two extracts of the same facts: what the planner counts on is what the lab enforces."""
    for name, kind in types.table().items():
        found = limits.lookup(name)
        assert found is not None, name
        facts = (found.ipv4_per_eni, found.cards, found.hypervisor, found.enis)
        assert facts == (kind.ipv4_per_eni, kind.cards, kind.hypervisor, kind.cards[0]), name
