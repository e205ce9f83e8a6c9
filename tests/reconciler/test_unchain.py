"""The last step of a takeover and of a hand-back, with real iptables in both backends."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from reconciler import errors, unchain
from reconciler.planner import actions, chains, nat, ruleset
from reconciler.providers import nftables
from tests.lab import spaces

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(not shutil.which("iptables-nft"), reason="no iptables on this machine"),
]

THEIRS = """\
*mangle
-A PREROUTING -i eth0 -m comment --comment "AWS, primary ENI" -m addrtype --dst-type LOCAL --limit-iface-in \
-j CONNMARK --set-xmark 0x80/0x80
-A PREROUTING -i eni+ -m comment --comment "AWS, primary ENI" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
COMMIT
*nat
:AWS-SNAT-CHAIN-0 - [0:0]
:AWS-CONNMARK-CHAIN-0 - [0:0]
-A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0
-A AWS-SNAT-CHAIN-0 -d 10.0.0.0/16 -m comment --comment "AWS SNAT CHAIN" -j RETURN
-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment "AWS, SNAT" -m addrtype ! --dst-type LOCAL \
-j SNAT --to-source 10.0.0.4 --random-fully
-A PREROUTING -i eni+ -m comment --comment "AWS, outbound connections" -j AWS-CONNMARK-CHAIN-0
-A PREROUTING -m comment --comment "AWS, CONNMARK" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
-A AWS-CONNMARK-CHAIN-0 -m comment --comment "AWS, CONNMARK" -j CONNMARK --set-xmark 0x80/0x80
COMMIT
"""
FOREIGN = """\
*mangle
-A PREROUTING -m comment --comment "somebody's" -j CONNMARK --set-xmark 0x80/0x80
COMMIT
*nat
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d 172.20.0.10/32 -p udp -j DNAT --to-destination 10.0.0.9:53
-A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j MASQUERADE
COMMIT
*filter
-A FORWARD -m comment --comment "Block Node Local Pod access via IPv4" -j REJECT
COMMIT
"""
OURS = ruleset.Table(nat.TABLE, (ruleset.Chain("inbound", ()),))


class Host:
    """A namespace with somebody's rules in both backends, ours or theirs to come."""

    def __init__(self) -> None:
        self.netns = spaces.Netns()
        for backend in ("legacy", "nft"):
            self.restore(backend, FOREIGN)

    def restore(self, backend: str, text: str) -> None:
        self.netns.command(f"iptables-{backend}-restore", "--noflush", stdin=text)

    def ours(self) -> None:
        hands = nftables.Nftables(nat.TABLE, nat.CHAINS)
        (outcome,) = self.netns.run(hands.apply, [actions.ReplaceTable(OURS)])
        assert outcome.error == ""
        hands.close()

    def theirs(self) -> None:
        for backend in ("legacy", "nft"):
            self.restore(backend, THEIRS)
        self.netns.command("nft", "add", "table", "ip", chains.TABLE)

    def picture(self) -> list[str]:
        """Both backends and all other tables, without dates and counters."""
        saved = [self.netns.command(f"iptables-{b}-save").splitlines() for b in ("legacy", "nft")]
        tables = self.netns.command("nft", "list", "tables").splitlines()
        return sorted(
            line.partition(" [")[0] for line in [*saved[0], *saved[1], *tables] if line[:1] != "#"
        )

    def end_takeover(self, *, look: bool = False) -> list[str]:
        return self.netns.run(lambda: list(unchain.theirs(look=look)))

    def end_handback(self) -> list[str]:
        return self.netns.run(lambda: list(unchain.ours()))

    def close(self) -> None:
        self.netns.close()


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


def test_theirs_go_from_both_backends_and_nobody_elses(host: Host) -> None:
    """Byte for byte as before they came; told first, done after, and again is nothing."""
    host.ours()
    before = host.picture()
    host.theirs()
    with_theirs = host.picture()
    told = host.end_takeover(look=True)
    assert host.picture() == with_theirs
    assert len(told) == 2 * (5 + 2) + 1

    assert host.end_takeover() == told

    assert host.picture() == before
    assert host.end_takeover() == []


def test_theirs_stay_until_ours_does_the_work(host: Host) -> None:
    host.theirs()
    before = host.picture()
    with pytest.raises(errors.Refused, match="start the daemon first"):
        host.end_takeover()
    assert host.picture() == before


def test_ours_stays_until_theirs_do_the_work(host: Host) -> None:
    before = host.picture()
    host.ours()
    with pytest.raises(errors.Refused, match="start its agent first"):
        host.end_handback()
    host.theirs()
    for _ in range(2):
        assert host.end_handback() == ["table ip vpcledger is gone"]
    host.ours()
    host.end_takeover()
    hands = nftables.Nftables(nat.TABLE, nat.CHAINS)
    host.netns.run(hands.apply, [actions.RemoveTable(nat.TABLE)])
    hands.close()
    assert host.picture() == before
