"""The pool asks for what is missing, pods first, and never twice."""

from __future__ import annotations

import dataclasses

import pytest

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import actions, pool
from tests.planner.rows import (
    BY_IP,
    CREATED,
    MINUTE,
    NODE,
    START,
    UNKNOWN,
    addresses,
    desired,
    eni,
    intent,
    notes,
    small,
    steps,
    verbs,
    waiting,
)


def test_growth_fills_the_fullest_usable_interface_by_one_call_then_makes_new_ones() -> None:
    """40 pods at once: whatever fits is asked for in one plan, pods' needs before the warm target's."""
    rows = desired(
        enis=[eni(0), eni(1)],
        rows=[*addresses(0, 3, 3), *addresses(1, 5, 5)],
        leases=waiting(14),
    )
    planned = steps(rows, limit=small(enis=4, slots=9))
    made = planned[2].action
    assert isinstance(made, actions.CreateEni)
    assert verbs(planned[:2]) == [
        actions.AssignAddresses("eni-1", 4),
        actions.AssignAddresses("eni-0", 6),
    ]
    assert made.secondaries == 5
    assert [step.lane for step in planned] == ["pod", "pod", "pod"]


def test_more_pods_than_the_type_carries_are_named_in_a_note() -> None:
    """What can be had is asked for; the rest is said."""
    rows = desired(rows=addresses(0, 3, 3), leases=waiting(40))
    planned = steps(rows)
    made = [step.action for step in planned if isinstance(step.action, actions.CreateEni)]
    assert [each.secondaries for each in made] == [3, 3]
    assert "node_full" in notes(rows)


def test_a_new_interface_carries_upstreams_description_tags_and_the_nodes_groups() -> None:
    """Security groups, subnet, description and tags of CreateNetworkInterface."""
    settings = knobs.Settings(
        warm_ip_target=1, cluster_name="blue", additional_eni_tags=(("team", "net"),)
    )
    rows = desired(rows=addresses(0, 3, 3))
    assert verbs(steps(rows, settings)) == [
        actions.CreateEni(
            "subnet-1",
            ("sg-1",),
            "aws-K8S-i-1",
            1,
            (
                ("cluster.k8s.amazonaws.com/name", "blue"),
                ("eks:eni:owner", "amazon-vpc-cni"),
                ("node.k8s.amazonaws.com/createdAt", str(START)),
                ("node.k8s.amazonaws.com/instance_id", "i-1"),
                ("team", "net"),
            ),
        )
    ]


def test_nothing_is_made_without_security_groups() -> None:
    """EC2 would silently take the VPC's default group."""
    node = dataclasses.replace(NODE, security_groups=())
    rows = desired(rows=addresses(0, 3, 3), node=node)
    assert steps(rows) == []
    assert "starting" in notes(rows)


@pytest.mark.parametrize("rows", [desired(node=None), desired(enis=[]), desired(enis=[eni(1)])])
def test_nothing_is_asked_before_the_primary_interface_is_known(rows: model.Desired) -> None:
    """The ledger does not guess what is attached."""
    assert steps(rows) == []
    assert "starting" in notes(rows)


def test_no_more_addresses_are_kept_warm_than_pods_may_run() -> None:
    """At max_pods addresses the pool is not low, but a pod that waits is served all the same."""
    capped = knobs.Settings(warm_ip_target=2, max_pods=3)
    assert verbs(steps(desired(rows=addresses(0, 2, 2)), capped)) == [
        actions.AssignAddresses("eni-0", 1)
    ]
    full = desired(rows=addresses(0, 3, 3))
    assert steps(full, capped) == []
    more = desired(rows=addresses(0, 3, 3), leases=waiting(1))
    assert verbs(steps(more, capped, small(3, 9))) == [actions.AssignAddresses("eni-0", 1)]


@pytest.mark.parametrize("state", ["planned", "sent", "unknown"])
def test_what_is_on_its_way_is_not_asked_for_twice(state: model.IntentState) -> None:
    """Open intents count as capacity, also when their reply was lost."""
    rows = desired(
        rows=addresses(0, 1, 1),
        leases=waiting(1),
        intents=[intent(actions.AssignAddresses("eni-0", 2), state)],
    )
    assert steps(rows) == []
    create = actions.CreateEni("subnet-1", ("sg-1",), "d", 2)
    rows = desired(rows=addresses(0, 3, 3), leases=waiting(1), intents=[intent(create, state)])
    assert steps(rows) == []


def test_a_lost_reply_bars_its_interface_and_only_that() -> None:
    """Nobody knows how full eni-0 is, so the pod's address comes from elsewhere."""
    lost = intent(actions.AssignAddresses("eni-0", 1), "unknown")
    rows = desired(enis=[eni(0), eni(1)], leases=waiting(3), intents=[lost])
    assert verbs(steps(rows, look=UNKNOWN)) == [actions.AssignAddresses("eni-1", 3)]


@pytest.mark.parametrize("doubt", [actions.CreateEni("subnet-1", ("sg-1",), "d", 1)])
def test_no_second_interface_while_the_first_is_in_doubt(doubt: actions.CreateEni) -> None:
    """A CreateNetworkInterface without reply may have filled the last place."""
    rows = desired(rows=addresses(0, 3, 3), leases=waiting(4), intents=[intent(doubt, "unknown")])
    assert steps(rows) == []
    assert "growing" in notes(rows)


ASSIGN = actions.AssignAddresses("eni-0", 4)
OTHER = actions.AssignAddresses("eni-1", 1)


@pytest.mark.parametrize(
    ("failed", "error", "expected"),
    [
        (ASSIGN, "InternalError: oops", [OTHER]),
        (ASSIGN, "PrivateIpAddressLimitExceeded: too many", [OTHER]),
        (ASSIGN, "RequestLimitExceeded: slow down", ["CreateEni"]),
        (ASSIGN, "UnauthorizedOperation: no", ["CreateEni"]),
        (OTHER, "InternalError: oops", [actions.AssignAddresses("eni-0", 1)]),
        (ASSIGN, "InsufficientFreeAddressesInSubnet: full", []),
        (
            ASSIGN,
            "InvalidParameterValue: There aren't sufficient free Ipv4 addresses or prefixes",
            [],
        ),
    ],
)
def test_a_failure_bars_no_more_than_its_reason_says(
    failed: actions.CloudAction, error: str, expected: list[object]
) -> None:
    """An interface, an action or a subnet, until retry_at; then all is as before."""
    rows = desired(enis=[eni(0), eni(1)], intents=[intent(failed, "failed", error)])
    found = ["CreateEni" if isinstance(a, actions.CreateEni) else a for a in verbs(steps(rows))]
    assert expected == found
    later = steps(rows, now=START + MINUTE)
    assert verbs(later) == [actions.AssignAddresses("eni-0", 1)]


def test_in_a_full_subnet_a_waiting_pod_still_tries_for_fewer() -> None:
    """EC2 refuses the whole number; half of it may be there. The warm target waits."""
    full = "InsufficientFreeAddressesInSubnet: full"
    asked = intent(actions.AssignAddresses("eni-0", 9), "failed", full)
    limit = small(slots=9)
    pods = desired(leases=waiting(6), intents=[asked])
    assert verbs(steps(pods, limit=limit)) == [actions.AssignAddresses("eni-0", 4)]
    again = intent(actions.AssignAddresses("eni-0", 1), "failed", full)
    assert steps(desired(leases=waiting(6), intents=[asked, again]), limit=limit) == []
    assert steps(desired(intents=[asked]), limit=limit) == []


@pytest.mark.parametrize("state", ["quarantine", "releasing"])
def test_slots_that_are_not_free_in_ec2_are_not_filled(state: model.AddressState) -> None:
    """An address in doubt or being released still takes its slot."""
    rows = desired(rows=[*addresses(0, 2, 2), *addresses(0, 3, state=state)[2:]])
    assert [type(a) for a in verbs(steps(rows))] == [actions.CreateEni]


def test_addresses_only_ec2_knows_take_room() -> None:
    """Three secondaries of somebody else's leave none of three slots; foreign interfaces take places."""
    rows = desired()
    stranger = eni(7, device=1, managed=False)
    look = model.ObservedCloud(
        START,
        "ec2",
        (
            model.ObservedEni(eni(0), ("10.9.0.1", "10.9.0.2", "10.9.0.3")),
            model.ObservedEni(stranger),
        ),
    )
    assert steps(rows, look=look, limit=small(enis=2)) == []
    assert [type(a) for a in verbs(steps(rows, look=look))] == [actions.CreateEni]


def test_an_address_that_ec2_does_not_show_serves_nobody_and_is_replaced() -> None:
    """It counts as held and not as ready: the waiting pod's address is asked for."""
    missed = [dataclasses.replace(each, absent_since=1) for each in addresses(0, 2)]
    rows = desired([eni(0)], missed, leases=waiting(1))

    first = verbs(steps(rows))[0]

    assert first == actions.AssignAddresses("eni-0", 1)


def test_foreign_interfaces_and_other_cards_are_never_touched() -> None:
    """Unmanaged ones, trunks and EFA-only ones take a place and get no call; another card's take none."""
    foreign = [
        eni(1, managed=False, delete_on_termination=False),
        eni(2, kind="trunk", delete_on_termination=False),
        eni(3, kind="efa-only", delete_on_termination=False),
        eni(4, card=1, device=1, delete_on_termination=False),
    ]
    rows = desired(enis=[eni(0), *foreign], rows=addresses(0, 3, 3))
    assert steps(rows, limit=small(enis=4)) == []
    assert [type(a) for a in verbs(steps(rows, limit=small(enis=5)))] == [actions.CreateEni]


def test_a_made_interface_is_attached_at_the_lowest_index_nobody_has() -> None:
    """The ledger's, EC2's and begun attachments count, and an index that turned out to be taken."""
    taken = "InvalidParameterValue: Instance 'i-1' already has an interface attached at device index '3'."
    other = dataclasses.replace(CREATED, eni_id="eni-6")
    rows = desired(
        enis=[eni(0), eni(1, managed=False), CREATED, other],
        rows=addresses(5, 1),
        intents=[
            intent(actions.AttachEni("eni-6", "i-1", 2), "sent"),
            intent(actions.AttachEni("eni-5", "i-1", 3), "failed", taken),
        ],
    )
    planned = steps(rows, limit=small(enis=8))
    assert planned[0].action == actions.AttachEni("eni-5", "i-1", 4)
    assert planned[0].lane == "warm"
    assert not [a for a in verbs(planned) if getattr(a, "eni_id", "") == "eni-6"]


def test_attaching_comes_first_when_a_pod_waits() -> None:
    """The addresses on the new interface are the pod's."""
    rows = desired(
        enis=[eni(0), CREATED], rows=[*addresses(0, 3, 3), *addresses(5, 2)], leases=waiting(1)
    )
    planned = steps(rows)
    assert (planned[0].action, planned[0].lane) == (actions.AttachEni("eni-5", "i-1", 1), "pod")


def test_an_interface_that_finds_no_place_is_deleted() -> None:
    """Somebody else took the last place between create and attach."""
    rows = desired(
        enis=[eni(0), eni(1, managed=False), CREATED], rows=[*addresses(0, 1), *addresses(5, 1)]
    )
    assert verbs(steps(rows, limit=small(enis=2))) == [actions.DeleteEni("eni-5")]
    assert verbs(steps(rows, limit=small(enis=3))) == [actions.AttachEni("eni-5", "i-1", 2)]


def test_an_attachment_that_would_outlive_the_instance_is_mended_until_it_is_seen() -> None:
    """DeleteOnTermination is EC2's false by default; a crash before it must not leave it so."""
    rows = desired(
        enis=[eni(0), eni(1, state="attaching", delete_on_termination=False)],
        rows=[*addresses(0, 1), *addresses(1, 1, 1)],
    )
    planned = steps(rows)
    assert verbs(planned) == [actions.SetDeleteOnTermination("eni-1", "attach-1")]
    assert [step.lane for step in planned] == ["tidy"]


@pytest.mark.parametrize(
    ("rows", "settings", "expected"),
    [
        (desired(), BY_IP, (9, 3, True)),
        (desired(rows=addresses(0, 3, 3)), knobs.Settings(max_eni=1), (3, 1, False)),
        (desired(enis=[eni(0), eni(1, managed=False)]), BY_IP, (6, 2, True)),
        (
            desired(
                enis=[eni(n) for n in range(3)],
                rows=[a for n in range(3) for a in addresses(n, 3, 3)],
            ),
            BY_IP,
            (9, 3, False),
        ),
        (
            desired(
                enis=[eni(0), eni(1, state="attaching")],
                rows=[*addresses(0, 3, 3), *addresses(1, 3)],
            ),
            knobs.Settings(max_eni=2),
            (6, 2, True),
        ),
    ],
)
def test_capacity_says_whether_waiting_makes_sense(
    rows: model.Desired, settings: knobs.Settings, expected: tuple[int, int, bool]
) -> None:
    """All slots of all interfaces pods may use; growing while one more address can come."""
    found = pool.capacity(rows, settings, small())
    assert expected == (found.max_addresses, found.enis, found.could_grow)
    assert found.reason == ("growing" if found.could_grow else "node_full")
