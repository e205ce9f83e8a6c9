"""The VPC CNI's checkpoint and the runtime's cache, read and rendered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ledger import model
from reconciler.providers import upstream

ROW: dict[str, Any] = {
    "networkName": "aws-cni",
    "containerID": "box-1",
    "ifName": "eth0",
    "ipv4": "10.0.0.10",
    "allocationTimestamp": 1_700_000_000_123_456_789,
    "metadata": {"k8sPodNamespace": "default", "k8sPodName": "web"},
}
ONE = model.Allocation(
    "box-1", "eth0", "aws-cni", "10.0.0.10", "default", "web", allocated_at=1_700_000_000_123
)


def write(path: Path, *rows: dict[str, Any], version: str = upstream.VERSION) -> None:
    path.write_text(json.dumps({"version": version, "allocations": list(rows)}))


def cache(folder: Path, container: str, **more: Any) -> None:
    content = {
        "kind": "cniCacheV1",
        "containerId": container,
        "ifName": "eth0",
        "networkName": "aws-cni",
        "cniArgs": [["K8S_POD_NAME", "web"], ["K8S_POD_NAMESPACE", "default"]],
        "result": {
            "ips": [{"address": "10.0.0.10/32"}],
            "interfaces": [{"name": "eni1"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
        },
        **more,
    }
    (folder / f"aws-cni-{container}-eth0").write_text(json.dumps(content))


def observe(tmp_path: Path) -> model.Inheritance:
    return upstream.observe(str(tmp_path / "ipam.json"), str(tmp_path / "results"))


def test_no_file_is_nothing_and_no_fault(tmp_path: Path) -> None:
    assert observe(tmp_path) == model.Inheritance(str(tmp_path / "ipam.json"))


def test_every_network_cards_file_is_read(tmp_path: Path) -> None:
    write(tmp_path / "ipam.json", ROW)
    write(tmp_path / "ipam-nic-1.json", ROW | {"containerID": "box-2", "ipv4": "10.0.1.10"})
    found = observe(tmp_path)
    assert found.faults == ()
    assert [each.address for each in found.allocations] == ["10.0.0.10", "10.0.1.10"]
    assert found.allocations[0] == ONE


def test_the_cache_adds_what_the_checkpoint_leaves_out(tmp_path: Path) -> None:
    """Also for rows of the time when only the sandbox was written down."""
    (tmp_path / "results").mkdir()
    cache(tmp_path / "results", "box-1")
    cache(tmp_path / "results", "box-9", result={"ips": [{"address": "10.0.0.19/32"}]})
    write(
        tmp_path / "ipam.json",
        ROW | {"ifName": "unknown", "networkName": "_migrated-from-cri", "metadata": {}},
    )
    one, nine = sorted(observe(tmp_path).allocations, key=lambda a: a.container_id)
    assert (one.ifname, one.network, one.pod_name) == ("eth0", "aws-cni", "web")
    assert (one.netns, one.cached) == ("/run/netns/x", True)
    assert (nine.container_id, nine.address, nine.cached) == ("box-9", "10.0.0.19", True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "{",
        '{"version": "vpc-cni-ipam/2", "allocations": []}',
        '{"version": "vpc-cni-ipam/1", "allocations": [{"ipv4": "10.0.0.300"}]}',
        '{"version": "vpc-cni-ipam/1", "allocations": [17]}',
    ],
)
def test_a_file_that_cannot_be_read_leaves_a_sentence_with_its_name(
    tmp_path: Path, text: str
) -> None:
    """And the others are read all the same."""
    (tmp_path / "ipam.json").write_text(text)
    (tmp_path / "results").mkdir()
    cache(tmp_path / "results", "box-1")
    found = observe(tmp_path)
    assert len(found.faults) == 1
    assert str(tmp_path / "ipam.json") in found.faults[0]
    assert [each.container_id for each in found.allocations] == ["box-1"]


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    """A lease without an address, or of IPv6, has no row."""
    lease = model.Lease(
        1, "box-1", "eth0", "aws-cni", "/run/netns/x", "active", "10.0.0.10", "eni-1",
        pod_namespace="default", pod_name="web", created_at=1_700_000_000_123,
    )  # fmt: skip
    waiting = model.Lease(2, "box-2", "eth0", "aws-cni", "/n", "waiting")
    text = upstream.checkpoint([lease, waiting])
    (tmp_path / "ipam.json").write_text(text)
    assert observe(tmp_path).allocations == (ONE,)
    stamp = 1_700_000_000_123_000_000
    row = ROW | {"allocationTimestamp": stamp}
    row["metadata"] = ROW["metadata"] | {"interfacesCount": 1}
    assert json.loads(text) == {"version": "vpc-cni-ipam/1", "allocations": [row]}


def test_each_network_card_has_its_own_file_and_one_that_emptied_is_written_empty(
    tmp_path: Path,
) -> None:
    """The VPC CNI drops an allocation that is not in the file of its card."""
    first, second = tmp_path / "ipam.json", tmp_path / "ipam-nic-1.json"
    enis = [
        model.Eni(
            f"eni-{card}", f"0a:00:00:00:00:0{card}", "subnet-1", "10.0.0.0/24", "", card=card
        )
        for card in (0, 1)
    ]
    leases = [
        model.Lease(n, f"c{n}", "eth0", "aws-cni", "/ns", "active", f"10.0.{n}.7", f"eni-{n}")
        for n in (0, 1)
    ]
    for held in (leases, leases[:1]):
        for name, text in upstream.checkpoints(str(first), held, enis):
            Path(name).write_text(text)
        [one] = json.loads(first.read_text())["allocations"]
        assert one["ipv4"] == "10.0.0.7"
        two = json.loads(second.read_text())["allocations"]
        assert [each["ipv4"] for each in two] == [lease.address for lease in held[1:]]
        found = upstream.observe(str(first), str(tmp_path / "none"))
        assert len(found.allocations) == len(held)
    first.unlink()
    second.unlink()
    assert [name for name, _ in upstream.checkpoints(str(first), leases[:1], enis)] == [str(first)]
