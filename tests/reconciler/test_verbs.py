"""ADD and DEL: what is wired, what is said, what is undone, and who wins when two want one thing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ledger import model, writes
from reconciler.planner import wiring
from tests.reconciler.door import NODE, Door

pytestmark = pytest.mark.netns


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    made = Door(tmp_path)
    yield made
    made.close()


def small(door: Door) -> None:
    """Make the node one that carries two interfaces with one pod's address each, and no more."""
    with door.ledger.write() as tx:
        writes.record_node(tx, replace(NODE, instance_type="t1.micro"), door.now)


def requests(door: Door) -> list[tuple[str, int, str]]:
    rows = door.rows("SELECT command, code, reason FROM v_requests ORDER BY id")
    return [(row["command"], row["code"], row["reason"]) for row in rows]


# ------------------------------------------------------------------------------- ADD


def test_add_wires_the_pod_and_says_so(door: Door) -> None:
    pod = door.added("web-1")

    lease = door.lease(pod)
    assert lease is not None
    assert (lease.state, lease.address) == ("active", pod.address)
    assert lease.host_ifname == "eni0761ccbeace"  # the known vector of default/web-1
    host, inside = pod.result["interfaces"]
    assert (host["name"], inside["name"]) == (lease.host_ifname, "eth0")
    assert inside["sandbox"] == pod.netns.path
    assert host["mac"] in door.node.command("ip", "link", "show", lease.host_ifname)
    assert inside["mac"] in pod.netns.command("ip", "link", "show", "eth0")
    assert pod.result["ips"] == [{"interface": 1, "address": f"{pod.address}/32"}]
    assert pod.pings("10.0.0.4")
    assert requests(door) == [("ADD", 0, "")]


def test_a_pod_has_what_the_data_plane_asks_inside(door: Door) -> None:
    pod = door.added()

    routes = pod.netns.command("ip", "route")
    assert "default via 169.254.1.1 dev eth0" in routes
    assert "169.254.1.1 dev eth0" in routes
    assert "PERMANENT" in pod.netns.command("ip", "neigh", "show", "169.254.1.1")
    assert f"{pod.address}/32" in pod.netns.command("ip", "address", "show", "eth0")


def test_pods_fill_one_interface_before_the_next(door: Door) -> None:
    """Two on the primary, then two on the second, whose packets leave by its own table."""
    pods = [door.added() for _ in range(4)]

    leases = [door.lease(pod) for pod in pods]
    assert [lease.eni_id for lease in leases if lease] == ["eni-0", "eni-0", "eni-1", "eni-1"]
    rules = door.node.command("ip", "rule")
    for pod in pods[2:]:
        assert f"from {pod.address} lookup 2" in rules
    for pod in pods[:2]:
        assert f"from {pod.address} lookup" not in rules


def test_pods_reach_each_other(door: Door) -> None:
    pods = [door.added() for _ in range(3)]
    assert all(a.pings(b.address) for a in pods for b in pods if a is not b)


def test_the_same_sandbox_asking_twice_has_one_address(door: Door) -> None:
    pod = door.added()
    before = door.picture()

    again = door.call("ADD", pod)

    assert again.said["ips"] == pod.result["ips"]
    assert door.picture() == before
    assert len(door.rows("SELECT id FROM v_leases")) == 1


def test_the_launcher_is_told_which_sysctls_to_write(door: Door) -> None:
    pod = door.pod()
    answer = door.call("ADD", pod)
    lease = door.lease(pod)
    assert lease is not None
    assert {(s.where, s.path, s.value) for s in answer.sysctls} == {
        ("host", f"ipv6/conf/{lease.host_ifname}/{name}", value)
        for name, value in (("accept_ra", "0"), ("accept_redirects", "0"), ("forwarding", "0"))
    }


def test_an_interface_that_is_not_wired_gets_no_pod(tmp_path: Path) -> None:
    """Its link is gone: its addresses are not given out (upstream's W4)."""
    door = Door(tmp_path, addresses=(0, 2))
    try:
        door.node.command("ip", "link", "del", "eth1")
        door.loop.tick()

        answer = door.call("ADD", door.pod())

        assert (answer.code, answer.reason) == (11, "growing")
        assert door.rows("SELECT state FROM v_enis WHERE eni_id = 'eni-1'") == [
            {"state": "attached"}
        ]
    finally:
        door.close()


# ------------------------------------------------------------------------------- ADD that fails


def test_a_taken_name_in_the_pod_leaves_nothing_behind(door: Door) -> None:
    pod = door.pod()
    pod.netns.command("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "x")
    before = door.picture()

    answer = door.call("ADD", pod)

    assert (answer.code, answer.reason) == (11, "ifname_taken")
    assert door.picture() == before
    assert door.lease(pod) is None
    assert door.rows("SELECT * FROM v_objects WHERE owner_kind = 'lease'") == []
    assert door.rows("SELECT reason FROM v_leases") == [{"reason": "setup_failed"}]


def test_a_foreign_link_of_the_pods_name_is_left_alone(door: Door) -> None:
    door.node.command("ip", "link", "add", "eni0761ccbeace", "type", "veth", "peer", "name", "x")
    before = door.picture()

    answer = door.call("ADD", door.pod("web-1"))

    assert (answer.code, answer.reason) == (11, "kernel_error")
    assert door.picture() == before
    assert door.rows("SELECT * FROM v_objects WHERE owner_kind = 'lease'") == []


def test_a_namespace_that_was_not_handed_over_allocates_nothing(door: Door) -> None:
    pod = door.pod()
    pod.netns.close()

    answer = door.call("ADD", pod, {"CNI_NETNS": "/run/netns/nowhere"})

    assert (answer.code, answer.reason) == (4, "netns_missing")
    assert "/run/netns/nowhere" in answer.said["msg"]
    assert door.rows("SELECT * FROM v_leases") == []
    assert requests(door) == [("ADD", 4, "netns_missing")]


def test_no_pod_is_put_into_the_nodes_own_namespace(door: Door) -> None:
    pod = door.pod()
    pod.netns.close()
    pod.netns = door.node

    answer = door.call("ADD", pod)

    door.pods.remove(pod)
    assert (answer.code, answer.reason) == (4, "netns_is_host")
    assert door.rows("SELECT * FROM v_leases") == []


@pytest.mark.parametrize(
    ("env", "code"),
    [
        ({"CNI_CONTAINERID": ""}, 4),
        ({"CNI_IFNAME": ""}, 4),
        ({"CNI_NETNS": ""}, 4),
        ({"CNI_PATH": ""}, 4),
        ({"CNI_COMMAND": "FLY"}, 4),
        ({"CNI_IFNAME": "a-name-too-long-for-a-link"}, 4),
        ({"CNI_CONTAINERID": "../../etc"}, 4),
        ({"CNI_ARGS": "K8S_POD_NAME"}, 4),
    ],
)
def test_a_broken_environment_is_refused_and_recorded(
    door: Door, env: dict[str, str], code: int
) -> None:
    before = door.picture()

    answer = door.call("ADD", door.pod(), env)

    assert answer.code == code
    assert answer.said["details"]
    assert [(r[1], r[2]) for r in requests(door)] == [(code, "bad_request")]
    assert door.rows("SELECT * FROM v_leases") == []
    assert door.picture() == before


@pytest.mark.parametrize(
    ("stdin", "code"),
    [
        (b"", 6),
        (b"{", 6),
        (b"[]", 6),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, 6),
        (b'{"cniVersion": "1.0.0", "name": "x", "cniVersion": "0.4.0"}', 6),
        (b'{"cniVersion": "9.9.9", "name": "x"}', 1),
        (b'{"name": "x"}', 1),
        (b'{"cniVersion": "1.0.0"}', 7),
        (b'{"cniVersion": "1.0.0", "name": "/etc/passwd"}', 7),
    ],
)
def test_a_broken_configuration_is_refused_and_recorded(
    door: Door, stdin: bytes, code: int
) -> None:
    pod = door.pod()

    door.raw(door.environment("ADD", pod), stdin, pod)

    assert [answer.code for answer in door.replies] == [code]
    assert [(r[1], r[2]) for r in requests(door)] == [(code, "bad_request")]
    assert door.rows("SELECT * FROM v_leases") == []


def test_an_error_of_our_own_refuses_one_call_and_serves_those_beside_it(door: Door) -> None:
    """A row gives the first pod's rule to another owner, which nothing of ours would write."""
    stolen = model.Rule(512, 254, dst="10.0.0.10/32", protocol=201)
    with door.ledger.write() as tx:
        writes.plan_installed(tx, "eni", "eni-0", [stolen], door.now)
        writes.mark_owner_installed(tx, "eni", "eni-0", door.now)
    first, second = door.pod(), door.pod()

    door.together("ADD", [first, first])
    door.together("DEL", [second])

    assert [answer.code for answer in door.replies] == [999, 999, 0]
    assert "10.0.0.10/32" in door.replies[0].said["msg"]
    assert [row[2] for row in requests(door)] == ["internal", "internal", "unknown_container"]
    assert door.rows("SELECT * FROM v_leases") == []


# ------------------------------------------------------------------------------- DEL


def test_delete_leaves_the_node_as_it_was(door: Door) -> None:
    before = door.picture()
    pods = [door.added() for _ in range(4)]

    for pod in pods:
        assert door.call("DEL", pod).status == 0

    assert door.picture() == before
    assert door.rows("SELECT reason FROM v_leases") == [{"reason": "deleted"}] * 4
    assert door.rows("SELECT * FROM v_objects WHERE owner_kind = 'lease'") == []


def test_a_released_address_cools_before_its_next_pod(tmp_path: Path) -> None:
    door = Door(tmp_path, addresses=(1, 1))
    try:
        small(door)
        first, _ = door.added(), door.added()
        door.call("DEL", first)

        refused = door.call("ADD", door.pod())
        door.now += door.settings.ip_cooldown_ms
        late = door.added()

        assert (refused.code, refused.reason) == (11, "cooling")
        assert "30 s" in refused.said["msg"]
        assert late.address == first.address
    finally:
        door.close()


def test_deleting_what_nobody_knows_is_success(door: Door) -> None:
    answer = door.call("DEL", door.pod())
    assert answer.status == 0
    assert requests(door) == [("DEL", 0, "unknown_container")]


def test_containerd_deletes_twice_the_second_time_without_a_namespace(door: Door) -> None:
    pod = door.added()
    door.call("DEL", pod)
    pod.netns.close()

    again = door.call("DEL", pod, {"CNI_NETNS": ""})

    assert again.status == 0
    assert len(door.rows("SELECT id FROM v_leases WHERE ended_at IS NOT NULL")) == 1


def test_a_sandbox_that_died_first_is_deleted_all_the_same(door: Door) -> None:
    before = door.picture()
    pod = door.added()
    pod.netns.close()

    assert door.call("DEL", pod).status == 0

    assert door.picture() == before


def test_a_pod_that_was_replaced_takes_the_links_name(door: Door) -> None:
    """A StatefulSet's pod: the new sandbox comes before the old one's DEL, which then harms nobody."""
    old = door.added("db-0")
    new = door.added("db-0")

    assert old.address != new.address
    assert new.pings("10.0.0.4")
    assert door.call("DEL", old).status == 0
    assert new.pings("10.0.0.4")
    assert door.call("CHECK", new, prevResult=new.result).status == 0
    assert door.call("DEL", new).status == 0
    assert not [rule for rule in door.picture()[2] if rule["priority"] in {512, 1536}]


def test_deletions_that_come_together_are_carried_out_together(door: Door) -> None:
    """Known, unknown, named twice and broken: each has its answer and its row, nothing is left."""
    before = door.picture()
    pods = [door.added() for _ in range(3)]
    stranger = door.pod()
    done = len(door.replies)

    door.together("DEL", [*pods, pods[0], stranger])

    assert [answer.status for answer in door.replies[done:]] == [0] * 5
    assert door.picture() == before
    deletions = [row[2] for row in requests(door) if row[0] == "DEL"]
    assert Counter(deletions) == {"deleted": 4, "unknown_container": 1}
    assert door.rows("SELECT reason FROM v_leases") == [{"reason": "deleted"}] * 3


def test_every_call_leaves_one_row(door: Door) -> None:
    pod = door.added()
    door.call("CHECK", pod, prevResult=pod.result)
    door.call("STATUS", cniVersion="1.1.0")
    door.call("DEL", pod)
    door.call("DEL", pod)

    assert [row[0] for row in requests(door)] == ["ADD", "CHECK", "STATUS", "DEL", "DEL"]


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_the_result_is_in_the_callers_version(door: Door, version: str) -> None:
    answer = door.call("ADD", door.pod(), cniVersion=version)

    assert answer.said["cniVersion"] == version
    assert ("version" in answer.said["ips"][0]) == (version < "1.0.0")


def test_additions_that_come_together_are_two_commits(door: Door) -> None:
    pods = [door.pod() for _ in range(4)]
    before = door.ledger.revision()

    door.together("ADD", pods)

    assert door.ledger.revision() == before + 2
    assert [answer.status for answer in door.replies] == [0] * 4
    assert len({answer.said["ips"][0]["address"] for answer in door.replies}) == 4
    for pod in pods:
        pod.netns.command("ping", "-c1", "-w5", "10.0.0.4")


def test_one_bad_addition_harms_none_that_came_with_it(door: Door) -> None:
    """One cannot be claimed: the schema refuses what another owner has."""
    pods = [door.pod() for _ in range(3)]
    name = wiring.host_ifname("eni", "default", pods[1].name)
    with door.ledger.write() as tx:
        writes.plan_installed(tx, "host", "", [model.Link(name)], door.now)

    door.together("ADD", pods)

    assert sorted(answer.status for answer in door.replies) == [0, 0, 1]
    assert door.lease(pods[1]) is None
    assert door.lease(pods[0])
    assert door.lease(pods[2])
