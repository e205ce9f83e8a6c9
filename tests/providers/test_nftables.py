"""Our nftables table in real namespaces: nft reads and writes the same, edits are seen, others' stay."""

from __future__ import annotations

import dataclasses
import os
import select
from collections.abc import Iterator

import pytest

from ledger import model
from reconciler import privileges
from reconciler import settings as knobs
from reconciler.planner import actions, nat, ruleset
from reconciler.providers import nftables
from tests.lab import spaces
from tests.planner import rows

pytestmark = pytest.mark.netns

NODE = dataclasses.replace(
    rows.NODE, vpc_cidrs=("10.0.0.0/16", "100.64.0.0/10", "172.20.7.128/25", "192.0.2.7/32")
)
SETTINGS = {
    "plain": knobs.Settings(),
    "external": knobs.Settings(external_snat=True),
    "hashrandom": knobs.Settings(random_snat="hashrandom", node_port_support=False),
    "none": knobs.Settings(random_snat="none", exclude_snat_cidrs=("0.0.0.0/0",), connmark=0x7),
}


def table(name: str = "plain") -> ruleset.Table:
    return nat.table(NODE, "eth0", SETTINGS[name], prefixes=["veth"], earlier_marks=[0x100])


class Place:
    """A namespace, our hands in it, and nft."""

    def __init__(self) -> None:
        self.netns = spaces.Netns()
        self.hands = nftables.Nftables(nat.TABLE, nat.CHAINS)
        self.netns.run(self.hands.observe)  # the first use opens the socket, here

    def nft(self, *words: str, stdin: str = "") -> str:
        return self.netns.command("nft", *words, stdin=stdin)

    def put(self, wanted: ruleset.Table) -> None:
        (outcome,) = self.hands.apply([actions.ReplaceTable(wanted)])
        assert (outcome.error, outcome.text) == ("", "")

    def seen(self) -> ruleset.Table | None:
        seen = self.hands.observe()
        assert isinstance(seen, ruleset.Observed)
        return seen.table

    def close(self) -> None:
        self.hands.close()
        self.netns.close()


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    made.close()


@pytest.mark.parametrize("name", SETTINGS)
def test_nft_makes_of_our_text_what_we_make_of_the_nouns(place: Place, name: str) -> None:
    """Both ways: what nft made reads as the wanted table, and nft lists ours and its own alike."""
    wanted = table(name)
    place.nft("-f", "-", stdin=wanted.text)
    assert place.seen() == wanted
    listed = place.nft("list", "ruleset")
    place.nft("flush", "ruleset")
    assert place.seen() is None

    place.put(wanted)

    assert place.seen() == wanted
    assert place.nft("list", "ruleset") == listed


def test_a_replacement_leaves_one_table_and_nothing_of_the_last(place: Place) -> None:
    for name in SETTINGS:
        place.put(table(name))
        assert place.seen() == table(name)
    assert place.nft("list", "tables").split() == ["table", "ip", "vpcledger"]


EDITS = {
    "a rule deleted": "flush chain ip vpcledger translate",
    "a rule added": "insert rule ip vpcledger outbound accept",
    "another's phrase": "add rule ip vpcledger outbound limit rate 1/second accept",
    "a rule for another link": 'insert rule ip vpcledger inbound iifname "eth1" return',
    "a negated match": 'add rule ip vpcledger inbound iifname != "eth0" counter',
    "other translation": "add rule ip vpcledger translate snat to 10.0.0.10 persistent",
    "a network that is not ours": "insert rule ip vpcledger off-vpc ip daddr 10.3.0.0/20 return",
    "a source": "insert rule ip vpcledger off-vpc ip saddr 10.0.0.0/16 return",
    "an assigned mark": "insert rule ip vpcledger off-vpc ct mark set 0x80",
    "a chain more": "add chain ip vpcledger other",
    "a base chain more": "add chain ip vpcledger o { type filter hook input priority 0; }",
    "a set more": "add set ip vpcledger s { type ipv4_addr; }",
    "a policy": "add chain ip vpcledger inbound { policy drop; }",
    "asleep": "add table ip vpcledger { flags dormant; }",
    "gone": "delete table ip vpcledger",
}


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_by_others_is_seen_and_undone(place: Place, edit: str) -> None:
    place.put(table())
    assert place.seen() == table()
    listed = place.nft("-s", "list", "ruleset")

    place.nft(EDITS[edit])

    assert place.seen() != table()
    place.put(table())
    assert place.seen() == table()
    assert place.nft("-s", "list", "ruleset") == listed


def test_a_rule_moved_is_seen(place: Place) -> None:
    place.put(table())
    swapped = table().text.replace("oifname", "X", 1)
    lines = swapped.splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if "X" in line)
    lines[at], lines[at + 1] = lines[at + 1], lines[at].replace("X", "oifname")
    place.nft("-f", "-", stdin="delete table ip vpcledger\n" + "".join(lines))
    assert place.seen() != table()


def test_counters_are_no_difference(place: Place) -> None:
    """Packets are counted; the table is what it was, also for one who never saw it before."""
    place.put(dataclasses.replace(table(), chains=_everything_counted()))
    place.netns.command("ping", "-c1", "-W1", "127.0.0.1")
    place.nft("add", "table", "ip", "another")  # a new generation, so the table is read again
    assert "packets 0 " not in place.nft("list", "table", "ip", "vpcledger")
    assert place.seen() == dataclasses.replace(table(), chains=_everything_counted())


def _everything_counted() -> tuple[ruleset.Chain, ...]:
    counting = ruleset.Chain(
        "outbound",
        (ruleset.Rule((ruleset.Count(),)),),
        ruleset.Hook("filter", "prerouting", nat.CHOSEN),
    )
    return (counting,)


def test_others_tables_are_not_read_and_not_touched(place: Place) -> None:
    foreign = "table ip {0} {{\n chain outbound {{ counter; accept; }}\n}}\n"
    place.nft("-f", "-", stdin=foreign.format("nat") + foreign.format("vpcledger2"))
    place.nft("add", "table", "inet", "vpcledger")
    before = place.nft("-a", "list", "ruleset")
    assert place.seen() is None
    place.put(table())
    place.put(table("external"))
    place.hands.apply([actions.RemoveTable(nat.TABLE)])
    assert place.nft("-a", "list", "ruleset") == before


def test_removing_what_is_not_there_is_success(place: Place) -> None:
    assert place.hands.apply([actions.RemoveTable("nobody")])[0].error == ""


def test_a_refused_table_leaves_the_old_one_and_says_why(place: Place) -> None:
    """The kernel's transaction is whole: a jump to a chain that is not there takes nothing away."""
    place.put(table())
    broken = ruleset.Table(
        nat.TABLE, (ruleset.Chain("off-vpc", (ruleset.Rule((ruleset.Jump("nowhere"),)),)),)
    )
    (outcome,) = place.hands.apply([actions.ReplaceTable(broken)])
    assert outcome.error == "ENOENT"
    assert outcome.text
    assert place.seen() == table()
    place.put(table("external"))
    assert place.seen() == table("external")


def test_a_look_asks_for_nothing_while_nothing_changed(place: Place) -> None:
    """Two hundred rules of others are not read; the cached look is the same value."""
    place.put(table())
    first = place.seen()
    assert place.seen() is first
    place.nft("add", "table", "ip", "another")
    assert place.seen() is not first
    assert place.seen() == first


def test_news_are_one_for_each_transaction_and_none_for_its_rules(place: Place) -> None:
    watch = place.netns.run(place.hands.watch)
    try:
        assert not watch.drain()
        rules = "".join(f"add rule ip many c ip daddr 10.0.0.{n} accept\n" for n in range(250))
        place.nft("-f", "-", stdin=f"add table ip many\nadd chain ip many c\n{rules}")
        assert select.select([watch], [], [], 5)[0]
        assert len(os.read(watch.fileno(), 1 << 16)) < 200
        assert not watch.drain()
        place.put(table())
        assert watch.drain()
    finally:
        watch.close()


def test_an_ordinary_user_needs_one_capability(place: Place) -> None:
    """CAP_NET_ADMIN alone replaces the table; without it the look is Unknown and says why."""

    def as_ordinary(keep: bool) -> bool:
        pid = os.fork()
        if pid == 0:
            good = False
            try:
                if keep:
                    privileges.become(65532 if spaces.tier() != "single" else 0)
                else:
                    privileges.drop_all()
                hands = nftables.Nftables(nat.TABLE, nat.CHAINS)
                seen = hands.observe()
                if keep:
                    (done,) = hands.apply([actions.ReplaceTable(table())])
                    seen = hands.observe()
                    good = not done.error and seen.table == table()  # type: ignore[union-attr]  # Unknown has no table: the child then ends badly
                else:
                    good = isinstance(seen, model.Unknown) and "permitted" in seen.why
            finally:
                os._exit(0 if good else 1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    assert place.netns.run(as_ordinary, True)
    assert place.seen() == table()
    assert place.netns.run(as_ordinary, False)
