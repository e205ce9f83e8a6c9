"""Which of a node's iptables rules are the VPC CNI's, and how all of them go in one step.

What is read and written is the text of iptables-save and iptables-restore, in either backend. A rule is
the VPC CNI's by its comment and its target together, whatever prefix, mark or address it was made with,
and so what earlier settings left is found as well. Anybody else's line is never named. Nothing goes
unless the caller says that the node was adopted. Running iptables does not belong here.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

CHAINS = ("AWS-SNAT-CHAIN-", "AWS-CONNMARK-CHAIN-")
"""What the names of the VPC CNI's own chains begin with."""

TABLE = "aws-cni"
"""Its nftables table of the family ip, where it keeps a part of the marks on nft hosts."""

_OF = {  # table, chain and comment -> the targets that such a rule of the VPC CNI has
    ("nat", "POSTROUTING", "AWS SNAT CHAIN"): CHAINS[:1],
    ("nat", "PREROUTING", "AWS, outbound connections"): CHAINS[1:],
    ("nat", "PREROUTING", "AWS, CONNMARK"): ("CONNMARK",),
    ("mangle", "PREROUTING", "AWS, primary ENI"): ("CONNMARK",),
}


@dataclass(frozen=True, slots=True)
class Removal:
    """What is the VPC CNI's: rules in others' chains, as iptables-save has them, and chains of its own.

    `translates` says whether its chain for source translation is in use.
    """

    rules: tuple[tuple[str, str], ...]
    chains: tuple[tuple[str, str], ...]
    translates: bool

    @property
    def script(self) -> str:
        """The text for `iptables-restore --noflush` that removes exactly that; empty if there is nothing."""
        tables = dict.fromkeys(table for table, _ in (*self.rules, *self.chains))
        return "".join(f"*{table}\n{''.join(self._lines(table))}COMMIT\n" for table in tables)

    def _lines(self, of: str) -> Iterator[str]:
        yield from (f"-D {rule[3:]}\n" for table, rule in self.rules if table == of)
        chains = [chain for table, chain in self.chains if table == of]
        yield from (
            f"-F {chain}\n" for chain in chains
        )  # all empty first: they may jump to each other
        yield from (f"-X {chain}\n" for chain in chains)


def removal(saved: str, *, adopted: bool) -> Removal:
    """What of an iptables-save text is to go; nothing at all unless the node was `adopted`."""
    rules: list[tuple[str, str]] = []
    chains: list[tuple[str, str]] = []
    table = ""
    for line in saved.splitlines() if adopted else ():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":"):
            chain = line[1:].split()[0]
            if chain.startswith(CHAINS):
                chains.append((table, chain))
        elif line.startswith("-A ") and _is_theirs(table, line):
            rules.append((table, line))
    translates = any(f"-j {CHAINS[0]}" in rule for _, rule in rules)
    return Removal(tuple(rules), tuple(chains), translates)


def _is_theirs(table: str, line: str) -> bool:
    words = shlex.split(line)
    said = dict(itertools.pairwise(words))
    target = said.get("-j", "")
    known = _OF.get((table, said["-A"], said.get("--comment", "")), ())
    return any(target == each or (each in CHAINS and target.startswith(each)) for each in known)
