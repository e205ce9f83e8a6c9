"""The table and the sysctls through every way of going wrong: refused, tried again, told once."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ledger import model, reads
from reconciler import host_loop
from reconciler.planner import actions
from reconciler.providers import host as provider
from tests.reconciler.door import Door

pytestmark = pytest.mark.netns


class Host:
    """A door's node with its host's loop, which a test ticks."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.hands = host_loop.hands()
        door.node.run(self.hands.observe)  # the first use opens the socket, here
        self.loop = host_loop.HostLoop(door.ledger, self.hands, door.settings, lambda: door.now)

    def tick(self) -> list[str]:
        """One look at the node; the notes' codes."""
        observed = self.door.kernel.observe()
        assert isinstance(observed, model.ObservedKernel)
        with self.door.ledger.read() as tx:
            desired = reads.desired(tx, self.door.now)
        return [note.code for note in self.door.node.run(self.loop.tick, desired, observed)]

    def nft(self, *words: str, stdin: str = "") -> str:
        return self.door.node.command("nft", *words, stdin=stdin)

    @property
    def findings(self) -> list[str]:
        rows = self.door.rows("SELECT code FROM v_findings WHERE closed IS NULL ORDER BY code")
        return [str(row["code"]) for row in rows]

    def lines(self) -> int:
        return int(self.door.rows("SELECT count(*) AS n FROM v_journal")[0]["n"])


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    door = Door(tmp_path, addresses=(0, 4))
    made = Host(door)
    yield made
    made.hands.close()
    door.close()


def test_a_tick_makes_the_table_and_the_next_ones_write_nothing(host: Host) -> None:
    assert host.tick() == []
    assert "snat to 10.0.0.4 fully-random" in host.nft("list", "table", "ip", "vpcledger")
    assert host.door.node.sysctl("ipv4/conf/eth0/rp_filter") == "2"
    before, listed = host.lines(), host.nft("-a", "list", "ruleset")
    for _ in range(3):
        assert host.tick() == []
        host.loop.look()
    assert (host.lines(), host.nft("-a", "list", "ruleset")) == (before, listed)


def test_a_table_that_another_process_owns_is_a_finding_and_ours_once_it_lets_go(
    host: Host,
) -> None:
    """The kernel refuses to replace it. What was refused is not taken for done (upstream's W28 does)."""
    owner = host.door.node.run(
        subprocess.Popen, ["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdin is not None
    assert owner.stdout is not None
    owner.stdin.write("add table ip vpcledger { flags owner; }\nlist tables\n")
    owner.stdin.flush()
    while "table ip vpcledger" not in owner.stdout.readline():
        pass

    host.tick()
    assert host.findings == ["nat_failed"]
    told = host.door.rows("SELECT text FROM v_findings")[0]["text"]
    assert told.startswith("EPERM")
    host.tick()
    assert host.findings == ["nat_failed"]

    owner.stdin.close()
    owner.stdout.close()
    owner.wait()  # the kernel removes what the dead one owned
    host.tick()
    assert host.findings == []
    assert "snat to" in host.nft("list", "table", "ip", "vpcledger")


def test_news_of_others_changes_cost_no_look_at_the_ledger(host: Host) -> None:
    """And news of a change to ours have it mended without waiting for the kernel's next look."""
    host.tick()
    before = host.lines()
    host.nft("add", "table", "ip", "another")
    host.loop.look()
    assert host.lines() == before
    host.nft("flush", "chain", "ip", "vpcledger", "translate")
    host.loop.look()
    assert "snat to" in host.nft("list", "table", "ip", "vpcledger")


def test_what_a_tick_would_do_can_be_asked_and_is_not_done(host: Host) -> None:
    def outlook() -> tuple[list[actions.NatAction], list[str]]:
        observed = host.door.kernel.observe()
        assert isinstance(observed, model.ObservedKernel)
        with host.door.ledger.read() as tx:
            desired = reads.desired(tx, host.door.now)
        steps, notes = host.door.node.run(host_loop.outlook, desired, observed, host.door.settings)
        return list(steps), [note.code for note in notes]

    (step,), notes = outlook()
    assert isinstance(step, actions.ReplaceTable)
    assert not notes
    assert host.nft("list", "ruleset") == ""
    host.tick()
    assert outlook() == ([], [])


def test_a_primary_interface_that_is_renamed_is_followed(host: Host) -> None:
    host.tick()
    for words in ("link set eth0 down", "link set eth0 name ens5", "link set ens5 up"):
        host.door.node.command("ip", *words.split())
    host.door.node.sysctl("ipv4/conf/ens5/rp_filter", 1)
    host.tick()
    assert 'iifname "ens5" fib daddr' in host.nft("list", "table", "ip", "vpcledger")
    assert host.door.node.sysctl("ipv4/conf/ens5/rp_filter") == "2"


def test_without_the_primary_interfaces_link_nothing_is_made_or_taken_away(host: Host) -> None:
    """The node's MAC is on no link: said in a note, no table built on an empty name (W28 of the init)."""
    host.tick()
    listed = host.nft("-a", "list", "ruleset")
    host.door.node.command("ip", "link", "set", "eth0", "address", "02:aa:00:00:00:99")
    assert host.tick() == ["nat_waits"]
    assert host.nft("-a", "list", "ruleset") == listed


def test_early_demux_is_what_the_setting_says_both_ways(host: Host) -> None:
    """Off with DISABLE_TCP_EARLY_DEMUX, put right when somebody turns it on; without it on, actively."""
    name = "ipv4/tcp_early_demux"
    host.tick()
    assert host.door.node.sysctl(name) == "1"
    host.loop.settings = replace(host.door.settings, disable_tcp_early_demux=True)
    host.tick()
    assert host.door.node.sysctl(name) == "0"
    host.door.node.sysctl(name, 1)
    host.tick()
    assert host.door.node.sysctl(name) == "0"
    host.loop.settings = host.door.settings
    host.tick()
    assert host.door.node.sysctl(name) == "1"


@pytest.fixture
def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Sysctls where a container runtime mounts them read-only; the file is written behind its back."""
    real, shown = tmp_path / "real", tmp_path / "shown"
    (real / "ipv4/conf/eth0").mkdir(parents=True)
    shown.mkdir()
    file = real / "ipv4/conf/eth0/rp_filter"
    file.write_text("1\n")
    subprocess.run(["mount", "--bind", real, shown], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", shown], check=True)
    monkeypatch.setattr(provider, "SYSCTLS", shown)
    yield file
    subprocess.run(["umount", shown], check=True)


def test_a_sysctl_that_may_not_be_written_is_left_to_the_launcher(
    host: Host, read_only: Path
) -> None:
    """The next ADD's reply carries it, and once it is so it is over."""
    host.tick()
    assert host.findings == ["sysctl_unwritable"]
    assert host.loop.left_to_launcher == (model.Sysctl("ipv4/conf/eth0/rp_filter", "2"),)

    host.door.loop.left_to_launcher = lambda: host.loop.left_to_launcher
    host.door.added()
    told = [(each.where, each.path, each.value) for each in host.door.replies[-1].sysctls]
    assert ("host", "ipv4/conf/eth0/rp_filter", "2") in told

    read_only.write_text("2\n")
    host.tick()
    assert host.findings == []
    assert not host.loop.left_to_launcher
