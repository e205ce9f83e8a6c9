"""Somebody who breaks things on a node at random, a few at a time, and plants things of his own.

Every act names what it does to what; acts of one volley never touch the same object. What becomes of it
does not belong here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.lab.node import Node

OURS = 201
"""The product's mark on routes and rules."""

TABLES = (2, 3)
CHAINS = ("inbound", "outbound", "off-vpc", "translate")


@dataclass(slots=True)
class Volley:
    """What is done at once: lines for `ip -batch` and for nft, and the same in words."""

    ip: list[str] = field(default_factory=list)
    nft: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)


class Vandal:
    """Knows what is there when it is made, and picks from it; the same seed does the same."""

    def __init__(self, node: Node, plants: Sequence[str], *, seed: int) -> None:
        """`plants` are things of his own, as what follows `add` and `delete` in a line of ip's."""
        self.node = node
        self.acts = 0
        self.planted: set[str] = set()
        self._plants = list(plants)
        self._random = random.Random(seed)
        self._rules = [_words(rule) for rule in _shown(node, "rule") if _is_ours(rule)]
        routes = _shown(node, "route", "show", "table", "all")
        self._routes = [_route(route) for route in routes if _is_ours(route)]
        links = [str(link["ifname"]) for link in _shown(node, "link")]
        self._veths = [name for name in links if name.startswith("eni")]
        self._enis = [name for name in links if name in {"eth1", "eth2"}]
        self._kinds: list[tuple[int, Callable[[Volley], str | None]]] = [
            (8, self._drop_rule),
            (6, self._drop_route),
            (4, self._stray_rule),
            (3, self._stray_route),
            (3, self._empty_chain),
            (2, self._foreign_verdict),
            (2, self._drop_table),
            (6, self._plant),
            (4, self._down),
            (3, self._rename),
            (3, self._mtu),
            (1, self._no_alias),
            (1, self._drop_address),
            (2, self._flush_rules),
            (2, self._flush_routes),
        ]

    def strike(self, most: int = 4) -> list[str]:
        """One volley of up to `most` acts; in words what was done."""
        volley = Volley()
        weights, kinds = zip(*self._kinds, strict=True)
        wanted = self._random.choices(kinds, weights, k=self._random.randint(1, most))
        if alone := {self._flush_rules, self._flush_routes} & set(wanted):
            wanted = [alone.pop()]  # nothing is left for another act of the same volley
        # Links last: with one that goes down routes go that another act might want to delete.
        for act in sorted(wanted, key=kinds.index):
            told = act(volley)
            if told:
                volley.told.append(told)
        if volley.nft:
            self.node.netns.command("nft", "-f", "-", stdin="\n".join(volley.nft))
        if volley.ip:
            self.node.netns.command("ip", "-batch", "-", stdin="\n".join(volley.ip))
        self.acts += len(volley.told)
        return volley.told

    def _pick(self, volley: Volley, things: list[str]) -> str | None:
        left = [thing for thing in things if thing not in volley.taken]
        if not left:
            return None
        chosen = self._random.choice(left)
        volley.taken.add(chosen)
        return chosen

    def _drop_rule(self, volley: Volley) -> str | None:
        rule = self._pick(volley, self._rules)
        if rule:
            volley.ip.append(f"rule delete {rule}")
        return rule and f"deleted rule {rule}"

    def _drop_route(self, volley: Volley) -> str | None:
        route = self._pick(volley, self._routes)
        if route:
            volley.ip.append(f"route delete {route}")
        return route and f"deleted route {route}"

    def _stray_rule(self, volley: Volley) -> str:
        rule = (
            f"from 10.0.0.{self._random.randint(1, 254)}/32 lookup {self._random.randint(40, 90)}"
        )
        priority = self._random.choice((512, 1024, 1536, 32765, 700))
        if rule in volley.taken:
            return ""
        volley.taken.add(rule)
        volley.ip.append(f"rule add {rule} priority {priority} protocol {OURS}")
        return f"added rule {rule} as if it were ours"

    def _stray_route(self, volley: Volley) -> str:
        route = f"10.0.200.{self._random.randint(1, 254)}/32 dev eth0 table {self._table()}"
        if route in volley.taken:
            return ""
        volley.taken.add(route)
        volley.ip.append(f"route add {route} protocol {OURS}")
        return f"added route {route} as if it were ours"

    def _table(self) -> int:
        return self._random.choice((*TABLES, 254))

    def _empty_chain(self, volley: Volley) -> str | None:
        if "table" in volley.taken:
            return None
        volley.taken.add("table")
        chain = self._random.choice(CHAINS)
        volley.nft.append(f"flush chain ip vpcledger {chain}")
        return f"emptied chain {chain}"

    def _foreign_verdict(self, volley: Volley) -> str | None:
        if "table" in volley.taken:
            return None
        volley.taken.add("table")
        chain = self._random.choice(CHAINS)
        volley.nft.append(f"insert rule ip vpcledger {chain} ip daddr 192.0.2.99 accept")
        return f"put a rule into chain {chain}"

    def _drop_table(self, volley: Volley) -> str | None:
        if "table" in volley.taken:
            return None
        volley.taken.add("table")
        volley.nft.append("delete table ip vpcledger")
        return "deleted the table"

    def _down(self, volley: Volley) -> str | None:
        link = self._pick(volley, [*self._veths, *self._enis])
        if link:
            volley.ip.append(f"link set {link} down")
        return link and f"took {link} down"

    def _rename(self, volley: Volley) -> str | None:
        link = self._pick(volley, self._veths)
        if link:
            volley.ip += [f"link set {link} down", f"link set {link} name x{link[1:]}"]
        return link and f"renamed {link} and left it down"

    def _mtu(self, volley: Volley) -> str | None:
        link = self._pick(volley, [*self._veths, *self._enis])
        if link:
            volley.ip.append(f"link set {link} mtu {self._random.randint(1280, 8999)}")
        return link and f"changed the MTU of {link}"

    def _no_alias(self, volley: Volley) -> str | None:
        link = self._pick(volley, self._veths)
        if link:
            volley.ip.append(f'link set {link} alias ""')
        return link and f"took the alias of {link}"

    def _drop_address(self, volley: Volley) -> str | None:
        link = self._pick(volley, self._enis)
        if link:
            volley.ip.append(f"address flush dev {link} scope global")
        return link and f"took the address of {link}"

    def _plant(self, volley: Volley) -> str | None:
        """Something new that is none of ours, or one of those away again."""
        plant = self._pick(volley, self._plants)
        if plant is None:
            return None
        what, _, words = plant.partition(" ")
        verb = "delete" if plant in self.planted else "add"
        self.planted ^= {plant}
        volley.ip.append(f"{what} {verb} {words}")
        return f"{verb} foreign {plant}"

    def _flush_rules(self, volley: Volley) -> str:
        volley.ip.append(f"rule flush protocol {OURS}")
        return "flushed all our rules"

    def _flush_routes(self, volley: Volley) -> str:
        table = self._table()
        volley.ip.append(f"route flush table {table} protocol {OURS}")
        return f"flushed our routes of table {table}"


def _shown(node: Node, *what: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(node.netns.command("ip", "-4", "-j", "-N", *what))
    return found


def _is_ours(shown: dict[str, Any]) -> bool:
    return str(shown.get("protocol")) == str(OURS)


def _words(rule: dict[str, Any]) -> str:
    """A rule so that `ip rule delete` takes this one and no other."""
    words = [f"priority {rule['priority']}"]
    if rule["src"] != "all":
        words.append(f"from {rule['src']}/{rule.get('srclen', 32)}")
    if "dst" in rule:
        words.append(f"to {rule['dst']}/{rule.get('dstlen', 32)}")
    if "fwmark" in rule:
        words.append(f"fwmark {rule['fwmark']}/{rule.get('fwmask', '0xffffffff')}")
    return " ".join([*words, f"lookup {rule['table']}", f"protocol {OURS}"])


def _route(route: dict[str, Any]) -> str:
    return f"{route['dst']} dev {route['dev']} table {route.get('table', 254)} protocol {OURS}"
