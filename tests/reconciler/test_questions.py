"""CHECK, GC and STATUS: what is missing is named, two sources end a lease, one query says ready."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ledger import model, writes
from reconciler import questions
from tests.reconciler.door import NODE, Door, Pod

pytestmark = pytest.mark.netns


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    made = Door(tmp_path, addresses=(0, 3))
    yield made
    made.close()


def check(door: Door, pod: Pod) -> tuple[int, str]:
    answer = door.call("CHECK", pod, prevResult=pod.result)
    return answer.code, str(answer.said.get("msg", ""))


# ------------------------------------------------------------------------------- CHECK


def test_check_of_a_pod_in_order_is_silent(door: Door) -> None:
    pod = door.added()
    assert check(door, pod) == (0, "")


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("ip rule del from {ip} lookup 2", "rule 1536 from {ip}/32 lookup 2 is missing"),
        ("ip rule del to {ip} lookup main", "rule 512 from all to {ip}/32 lookup 254 is missing"),
        ("ip route del {ip}/32", "route {ip}/32 dev {link} in table 254 is missing"),
        ("ip link set {link} down", "link {link}: state is down, not up"),
        ("ip link set {link} mtu 1400", "link {link}: MTU is 1400, not 9001"),
        ("ip link del {link}", "link {link} is missing"),
    ],
)
def test_check_names_what_is_wrong_on_the_host(door: Door, command: str, named: str) -> None:
    pod = door.added()
    lease = door.lease(pod)
    assert lease is not None
    words = {"ip": pod.address, "link": lease.host_ifname}
    door.node.command(*command.format(**words).split())

    code, said = check(door, pod)

    assert code == 11
    assert named.format(**words) in said


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("ip address del {ip}/32 dev eth0", "address {ip}/32 on eth0 is missing"),
        ("ip route del default", "route 0.0.0.0/0 via 169.254.1.1 dev eth0 in the pod is missing"),
        ("ip link set eth0 mtu 1400", "link eth0: MTU is 1400, not 9001"),
        ("ip link set eth0 down", "link eth0: state is down, not up"),
        ("ip route del 169.254.1.1", "route 169.254.1.1/32 dev eth0 in the pod is missing"),
        ("ip link del eth0", "link eth0 is missing"),
        ("ip neigh del 169.254.1.1 dev eth0", "neighbour 169.254.1.1 on eth0 is missing"),
        (
            "ip neigh replace 169.254.1.1 dev eth0 lladdr 02:00:00:00:00:01 nud permanent",
            "neighbour 169.254.1.1 on eth0: MAC is 02:00:00:00:00:01",
        ),
    ],
)
def test_check_names_what_is_wrong_in_the_pod(door: Door, command: str, named: str) -> None:
    pod = door.added()
    pod.netns.command(*command.format(ip=pod.address).split())

    code, said = check(door, pod)

    assert code == 11
    assert named.format(ip=pod.address) in said


def test_check_of_an_address_that_is_not_the_pods_says_both(door: Door) -> None:
    pod = door.added()
    pod.result["ips"][0]["address"] = "10.0.0.99/32"

    code, said = check(door, pod)

    assert code == 11
    assert "10.0.0.99/32" in said


def test_check_of_an_unknown_sandbox_is_code_3(door: Door) -> None:
    pod = door.pod()
    pod.result = {"ips": []}
    assert check(door, pod)[0] == 3


@pytest.mark.parametrize(
    "previous",
    [{}, {"ips": None}, {"ips": 7}, {"ips": [None]}, {"ips": [[1]]}, {"ips": [{"address": {}}]}],
)
def test_check_of_a_result_that_is_none_is_refused_and_spoils_no_other_call(
    door: Door, previous: dict[str, Any]
) -> None:
    """Whatever stands there, this call has one row and one answer, and calls beside it are served."""
    pod = door.added()

    answer = door.call("CHECK", pod, prevResult=previous)

    assert answer.code == 11
    assert f"the ledger {pod.address}/32" in answer.said["msg"]
    rows = door.rows("SELECT code, reason FROM v_requests WHERE command = 'CHECK'")
    assert rows == [{"code": 11, "reason": "drift"}]


# ------------------------------------------------------------------------------- GC


def collect(door: Door, *named: Pod, network: str = "aws-cni") -> None:
    listed = [{"containerID": pod.container, "ifname": pod.ifname} for pod in named]
    door.raw(
        door.environment("GC", None),
        json.dumps(
            {"cniVersion": "1.1.0", "name": network, "cni.dev/valid-attachments": listed}
        ).encode(),
        None,
    )
    assert door.replies[-1].status == 0


def test_gc_keeps_what_it_names(door: Door) -> None:
    pods = [door.added(), door.added()]
    collect(door, *pods)
    assert all(door.lease(pod) for pod in pods)


def test_gc_ends_what_the_kernel_agrees_is_gone(door: Door) -> None:
    before = door.picture()
    kept, gone = door.added(), door.added()
    link = door.lease(gone)
    assert link is not None
    door.node.command("ip", "link", "del", link.host_ifname)

    collect(door, kept)

    assert door.lease(gone) is None
    assert door.lease(kept) is not None
    assert door.rows("SELECT reason FROM v_leases WHERE state = 'ended'") == [{"reason": "gc"}]
    door.call("DEL", kept)
    assert door.picture() == before


def test_gc_does_not_end_a_sandbox_whose_link_lives(door: Door) -> None:
    """Decision 2: one source is not enough; that they disagree is a finding."""
    pod = door.added()

    collect(door)

    assert door.lease(pod) is not None
    assert pod.pings("10.0.0.4")
    found = door.rows("SELECT code, subject FROM v_findings WHERE closed IS NULL")
    assert found == [{"code": "gc_disagrees", "subject": pod.container}]
    collect(door, pod)
    assert door.rows("SELECT 1 FROM v_findings WHERE closed IS NULL") == []


def test_a_link_whose_other_end_is_gone_speaks_for_no_sandbox(door: Door) -> None:
    """While the kernel takes a namespace down the host's end is there a while longer."""
    lease = door.lease(door.added())
    assert lease is not None
    seen = door.kernel.observe()
    assert isinstance(seen, model.ObservedKernel)
    assert questions._veth_lives(lease, seen)
    seen.peers[lease.host_ifname] = False
    assert not questions._veth_lives(lease, seen)


def test_gc_of_another_network_ends_nothing(door: Door) -> None:
    pod = door.added()
    link = door.lease(pod)
    assert link is not None
    door.node.command("ip", "link", "del", link.host_ifname)

    collect(door, network="another")

    assert door.lease(pod) is not None


# ------------------------------------------------------------------------------- STATUS


def status(door: Door) -> tuple[int, str]:
    answer = door.call("STATUS", cniVersion="1.1.0")
    return answer.code, answer.reason


def test_status_is_silent_while_an_address_is_free(door: Door) -> None:
    assert status(door) == (0, "")


def test_status_says_why_the_next_pod_would_wait(door: Door) -> None:
    for _ in range(3):
        door.added()
    assert status(door) == (50, "growing")


def test_status_of_a_full_node_says_so(tmp_path: Path) -> None:
    door = Door(tmp_path, addresses=(1, 1))
    try:
        with door.ledger.write() as tx:
            writes.record_node(tx, replace(NODE, instance_type="t1.micro"), door.now)
        door.added()
        assert status(door) == (0, "")
        door.added()

        refused = door.call("ADD", door.pod())

        assert status(door) == (50, "node_full")
        assert (refused.code, refused.reason) == (11, "node_full")
    finally:
        door.close()


@pytest.mark.parametrize(
    ("code", "text", "reason"),
    [
        ("UnauthorizedOperation", "You are not authorized", "ec2_denied"),
        ("RequestLimitExceeded", "Request limit exceeded.", "throttled"),
        ("InsufficientFreeAddressesInSubnet", "not enough free addresses", "subnet_full"),
        (
            "InvalidParameterValue",
            "There aren't sufficient free Ipv4 addresses or prefixes",
            "subnet_full",
        ),
        ("InternalError", "An internal error has occurred", "ec2_error"),
    ],
)
def test_a_refusal_of_ec2_is_told_with_its_own_reason(
    door: Door, code: str, text: str, reason: str
) -> None:
    for _ in range(3):
        door.added()
    with door.ledger.write(durable=True) as tx:
        intent = writes.plan_intent(
            tx, "AssignAddresses", "eni-0", {"eni_id": "eni-0", "count": 3}, "pod", "x", door.now
        )
        writes.intent_sent(tx, intent.id, door.now)
        writes.intent_failed(tx, intent.id, code, text, door.now + 7_000, door.now)

    answer = door.call("ADD", door.pod())

    assert (answer.code, answer.reason) == (11, reason)
    assert text in answer.said["msg"]
    assert "7 s" in answer.said["msg"]
    assert status(door) == (50, reason)
    row = door.rows(
        "SELECT reason, waits_for, eta_at FROM v_requests WHERE command = 'ADD' AND code"
    )
    assert row == [{"reason": reason, "waits_for": intent.id, "eta_at": door.now + 7_000}]
