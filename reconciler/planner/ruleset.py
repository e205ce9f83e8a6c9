"""The words of an nftables table: what a rule may say, and the text of it as nft(8) has it.

A rule is a tuple of phrases; each phrase is a frozen noun that the provider can write as the kernel's
expressions and read back, so a table in the kernel and one that is wanted compare as equal values. The
text is the same table in nft's own language: for people, for golden files, and for nft as a referee.
Which rules a node needs, and how a phrase travels, do not belong here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Randomness = Literal["prng", "hashrandom", "none"]
"""How source ports of translated connections are chosen (AWS_VPC_K8S_CNI_RANDOMIZESNAT)."""


@dataclass(frozen=True, slots=True)
class Arrives:
    """The packet came in by this link; a `*` at the end stands for any rest of the name."""

    link: str


@dataclass(frozen=True, slots=True)
class Leaves:
    """The packet goes out by this link; a `*` at the end stands for any rest of the name."""

    link: str


@dataclass(frozen=True, slots=True)
class Local:
    """The kernel's routing tables call that address one of this host's own.

    `daddr . iif` and `saddr . oif` ask for an address of that very link.
    """

    of: Literal["daddr", "daddr . iif", "saddr . oif"]


@dataclass(frozen=True, slots=True)
class Destination:
    """The packet's destination, as rewritten so far, lies in this IPv4 network."""

    cidr: str


@dataclass(frozen=True, slots=True)
class FirstPacket:
    """Nothing of this connection has left yet: conntrack has not confirmed it."""


@dataclass(frozen=True, slots=True)
class Marked:
    """The connection's mark has all of these bits."""

    bits: int


@dataclass(frozen=True, slots=True)
class MarkConnection:
    """Set these bits of the connection's mark and leave the others."""

    bits: int


@dataclass(frozen=True, slots=True)
class MarkPacket:
    """Set these bits of the packet's mark and leave the others."""

    bits: int


@dataclass(frozen=True, slots=True)
class Count:
    """Count packets and bytes; the numbers are no part of the rule's identity."""


@dataclass(frozen=True, slots=True)
class TranslateSource:
    """Give the connection this source address."""

    address: str
    randomness: Randomness


@dataclass(frozen=True, slots=True)
class Jump:
    """Go on in that chain and come back."""

    chain: str


@dataclass(frozen=True, slots=True)
class Return:
    """Go back to where the chain was called, or in a base chain accept."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """Something in the kernel that none of the other phrases says; nothing wanted ever equals it."""

    what: str


Phrase = (
    Arrives
    | Leaves
    | Local
    | Destination
    | FirstPacket
    | Marked
    | MarkConnection
    | MarkPacket
    | Count
    | TranslateSource
    | Jump
    | Return
    | Foreign
)


@dataclass(frozen=True, slots=True)
class Rule:
    """Phrases from left to right, and a comment for whoever lists the table."""

    phrases: tuple[Phrase, ...]
    comment: str = ""

    @property
    def text(self) -> str:
        """The rule as `nft list` would print it, numbers aside."""
        said = " ".join(map(phrase, self.phrases))
        return f'{said} comment "{self.comment}"' if self.comment else said


@dataclass(frozen=True, slots=True)
class Hook:
    """Where a base chain hangs; its policy is accept."""

    kind: Literal["filter", "nat"]
    point: str
    priority: int


@dataclass(frozen=True, slots=True)
class Chain:
    """Rules in order; without a hook only reached by a jump."""

    name: str
    rules: tuple[Rule, ...]
    hook: Hook | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the family ip. `strange` tells of what no table of ours has (sets, flags)."""

    name: str
    chains: tuple[Chain, ...]
    strange: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The table in nft's language, such that `nft -f` makes the same."""
        lines = [f"table ip {self.name} {{"]
        for chain in self.chains:
            lines.append(f"\tchain {chain.name} {{")
            if chain.hook is not None:
                hook = chain.hook
                lines.append(
                    f"\t\ttype {hook.kind} hook {hook.point} priority {hook.priority}; policy accept;"
                )
            lines += (f"\t\t{rule.text}" for rule in chain.rules)
            lines.append("\t}")
        return "\n".join([*lines, "}"]) + "\n"


@dataclass(frozen=True, slots=True)
class Observed:
    """What a look at the node's nftables showed at `at` (ms); `table` None means there is none."""

    at: int
    table: Table | None


def phrase(said: Phrase) -> str:  # noqa: C901, PLR0912 - one line for each word of a closed set
    """The phrase in nft's language."""
    match said:
        case Arrives(link):
            return f'iifname "{link}"'
        case Leaves(link):
            return f'oifname "{link}"'
        case Local(of):
            return f"fib {of} type local"
        case Destination(cidr):
            return f"ip daddr {cidr.removesuffix('/32')}"
        case FirstPacket():
            return "ct status ! confirmed"
        case Marked(bits):
            return f"ct mark & {bits:#010x} == {bits:#010x}"
        case MarkConnection(bits):
            return f"ct mark set ct mark | {bits:#010x}"
        case MarkPacket(bits):
            return f"meta mark set meta mark | {bits:#010x}"
        case Count():
            return "counter"
        case TranslateSource(address, randomness):
            flags = {"prng": " fully-random", "hashrandom": " random", "none": ""}[randomness]
            return f"snat to {address}{flags}"
        case Jump(chain):
            return f"jump {chain}"
        case Return():
            return "return"
        case Foreign(what):
            return f"[{what}]"
