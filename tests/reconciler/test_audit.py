"""The audit names each kind of contradiction, finds none on a clean node, and mends by two agreeing reports."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from reconciler import audit, errors
from reconciler.planner import wiring
from reconciler.planner.audit import Difference
from tests.lab import spaces
from tests.lab.whole import Lab
from tests.reconciler import live
from tests.reconciler.live import until

needs_lab = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))


@pytest.fixture(scope="module")
def town() -> Iterator[Lab]:
    """A node that looks seldom, so that what a test breaks stays broken until it is asked to look."""
    if not spaces.inside():
        pytest.skip(str(spaces.missing()))
    with Lab(nodes=1, attach_delay=0.1, throttle=None) as lab:
        lab.start(
            WARM_IP_TARGET="2",
            VPCLEDGER_SANDBOX_INTERVAL="3600",
            VPCLEDGER_KERNEL_INTERVAL="3600",
        )
        lab.kubelets[0].start_all(["web", "other"])
        live.settle(lab.nodes[0])
        yield lab


def report(lab: Lab) -> dict[str, Any]:
    """What `vpcledger audit --json` says; its exit code says whether that is clean."""
    done = lab.nodes[0].product("audit", "--json")
    said: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if said["clean"] else 1), done.stderr
    return said


def named(lab: Lab) -> set[tuple[str, str]]:
    return {(row["kind"], row["subject"]) for row in report(lab)["differences"]}


def clean(lab: Lab) -> None:
    until(lambda: report(lab)["clean"], "a clean report")


@contextmanager
def paused(lab: Lab) -> Iterator[None]:
    """The daemon mends nothing meanwhile."""
    lab.nodes[0].pause_daemon()
    try:
        yield
    finally:
        lab.nodes[0].resume_daemon()


def test_a_node_at_rest_is_clean(town: Lab) -> None:
    clean(town)
    assert town.nodes[0].product("audit").stdout == "ledger, kernel, EC2 and runtime agree\n"


def rule_missing(lab: Lab) -> tuple[str, str]:
    [web] = [box for box in lab.kubelets[0].sandboxes.values() if box.pod == "web"]
    lab.nodes[0].netns.command("ip", "rule", "del", "to", web.address)
    return "kernel_differs", f"rule 512 from all to {web.address}/32 lookup 254"


def table_missing(lab: Lab) -> tuple[str, str]:
    lab.nodes[0].netns.command("nft", "delete", "table", "ip", "vpcledger")
    return "kernel_differs", "table ip vpcledger"


def rule_left_over(lab: Lab) -> tuple[str, str]:
    words = ("from", "10.9.9.9", "lookup", "77", "pref", "1536", "protocol", str(wiring.PROTOCOL))
    lab.nodes[0].netns.command("ip", "rule", "add", *words)
    return "kernel_left_over", "rule 1536 from 10.9.9.9/32 lookup 77"


def link_left_over(lab: Lab) -> tuple[str, str]:
    lines = "link add stray type veth peer name peer\nlink set stray alias " + wiring.alias(4711)
    lab.nodes[0].netns.command("ip", "-batch", "-", stdin=lines)
    return "link_without_lease", "stray"


@needs_lab
@pytest.mark.parametrize("broken", [rule_missing, table_missing, rule_left_over, link_left_over])
def test_what_differs_in_the_kernel_is_named(
    town: Lab, broken: Callable[[Lab], tuple[str, str]]
) -> None:
    """And mended by the daemon, once it goes on."""
    clean(town)
    with paused(town):
        difference = broken(town)
        assert named(town) == {difference}
    clean(town)


def in_ec2_alone(lab: Lab) -> tuple[str, str]:
    [eni] = live.rows(lab.nodes[0], "SELECT eni_id FROM v_enis WHERE device = 0")
    made = lab.ec2.assign_private_ip_addresses(
        NetworkInterfaceId=eni["eni_id"], SecondaryPrivateIpAddressCount=1
    )
    [address] = made["AssignedPrivateIpAddresses"]
    return "address_not_in_ledger", address["PrivateIpAddress"]


def in_the_ledger_alone(lab: Lab) -> tuple[str, str]:
    free = "SELECT eni_id, address FROM v_addresses WHERE state = 'free' ORDER BY address LIMIT 1"
    [row] = live.rows(lab.nodes[0], free)
    lab.ec2.unassign_private_ip_addresses(
        NetworkInterfaceId=row["eni_id"], PrivateIpAddresses=[row["address"]]
    )
    return "address_not_in_ec2", row["address"]


@needs_lab
def test_what_ec2_has_and_the_ledger_has_not_is_named_and_mended_by_two_reports(
    town: Lab, tmp_path: Path
) -> None:
    """The daemon would have looked within the hour. One report alone fixes nothing, nor do two in a hurry."""
    clean(town)
    difference = in_ec2_alone(town)
    first, second = report(town), report(town)
    assert {(row["kind"], row["subject"]) for row in first["differences"]} == {difference}
    files = [tmp_path / "first", tmp_path / "second"]
    for file, said in zip(files, (first, second), strict=True):
        file.write_text(json.dumps(said))
    node = town.nodes[0]
    alone = node.product("audit", "--fix", str(files[0]))
    hurried = node.product("audit", "--fix", *map(str, files))
    assert (alone.returncode, hurried.returncode) == (1, 1)
    assert "takes two reports, not 1" in alone.stderr
    assert "take the second at least 30 s after" in hurried.stderr
    assert named(town) == {difference}

    files[0].write_text(json.dumps(first | {"at": first["at"] - audit.APART_MS}))
    fixed = node.product("audit", "--fix", *map(str, files))

    assert fixed.stdout == "1 of 1 differences are mended\n", fixed.stderr
    assert fixed.returncode == 0
    clean(town)


@needs_lab
def test_a_fix_without_a_daemon_says_that_its_start_is_the_fix(town: Lab, tmp_path: Path) -> None:
    node = town.nodes[0]
    node.stop_daemon()
    difference = in_the_ledger_alone(town)
    said = report(town)
    assert {(row["kind"], row["subject"]) for row in said["differences"]} == {difference}
    (tmp_path / "first").write_text(json.dumps(said | {"at": said["at"] - audit.APART_MS}))
    (tmp_path / "second").write_text(json.dumps(said))

    told = node.product("audit", "--fix", str(tmp_path / "first"), str(tmp_path / "second"))

    node.start_daemon()
    assert told.returncode == 1
    assert "it looks at everything at its start" in told.stderr


@needs_lab
def test_what_becomes_of_sandboxes_is_named(town: Lab) -> None:
    """One lost its link, one its name, one both; each as the sweeper would judge it, and none is ended."""
    node, kubelet = town.nodes[0], town.kubelets[0]
    linkless, nameless, gone = (kubelet.start(name) for name in ("linkless", "nameless", "gone"))
    with paused(town):
        linkless.execute("ip", "link", "del", "eth0")
        spaces.unbind(Path(nameless.netns.path))
        gone.netns.close()
        want = {
            ("lease_without_link", linkless.container),
            ("sandbox_doubtful", nameless.container),
            ("sandbox_gone", gone.container),
        }
        until(lambda: named(town) >= want, f"{want}")
    held = {row["container_id"] for row in live.rows(node, "SELECT container_id FROM v_pods")}
    assert held >= {linkless.container, nameless.container, gone.container}


# ── what two reports have to be ───────────────────────────────────────────────────────────────

NOW = 1_800_000_000_000
FOUND = Difference("kernel_differs", "rule 512", "is missing")
OTHER = Difference("sandbox_gone", "c1", "two witnesses agree")


def made(
    at: int, *found: Difference, node: str = "i-1", boot: str = "b", silent: str = ""
) -> audit.Report:
    return audit.Report(NOW + at, node, boot, (silent,) if silent else (), found)


FAR = -audit.APART_MS


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (made(FAR, FOUND), made(0, FOUND, OTHER), "such as sandbox_gone c1"),
        (made(FAR, FOUND), made(0), "such as kernel_differs rule 512"),
        (made(FAR + 1, FOUND), made(0, FOUND), "take the second at least 30 s after the first"),
        (made(-audit.FRESH_MS - 1, FOUND), made(0, FOUND), "the first is 900 s old"),
        (made(1, FOUND), made(1 - FAR, FOUND), "the first is -1 s old"),
        (made(FAR, FOUND), made(0, FOUND, node="i-2"), "two nodes"),
        (made(FAR, FOUND), made(0, FOUND, boot="c"), "two boots"),
        (made(FAR, FOUND), made(0, FOUND, silent="EC2: no reply"), "not complete (EC2: no reply)"),
    ],
    ids=["more", "less", "too close", "old", "of the future", "nodes", "boots", "silent"],
)
def test_two_reports_that_are_no_proof_are_refused(
    first: audit.Report, second: audit.Report, words: str
) -> None:
    for pair in ((first, second), (second, first)):
        with pytest.raises(errors.Refused) as told:
            audit.agreed(*pair, NOW)
        assert words in str(told.value)


def test_two_that_agree_are_one() -> None:
    assert audit.agreed(made(FAR, FOUND), made(0, FOUND), NOW) == (FOUND,)


def test_a_report_is_read_as_it_was_written() -> None:
    one = made(0, FOUND, OTHER, silent="EC2: no reply")
    assert audit.read(json.loads(json.dumps(audit.written(one)))) == one
    rubbish: tuple[object, ...] = (
        {},
        [],
        "x",
        {"at": 1, "node": "", "boot": "", "silent": [], "differences": [{}]},
    )
    for bad in rubbish:
        with pytest.raises(ValueError, match="no report"):
            audit.read(bad)
