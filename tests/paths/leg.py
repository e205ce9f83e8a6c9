"""A conversation as one node must see it: which way out and back, under which addresses, with which marks.

What is right for which path and setting does not belong here (the tests say it).
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.lab.hops import Hop

MASQUERADE = 0x4000
"""What kube-proxy marks packets with, until it has taken care of them on their way out."""


@dataclass(frozen=True, slots=True)
class Leg:
    """One conversation through a node: it comes in by `into` and goes on by `out`, and back likewise.

    "" instead of a link is the node itself. `source` and `destination` are as the first packet arrives,
    `seen_source` and `seen_destination` as it leaves. `mark` is that of packets when they are routed on
    their way out, `answer_mark` on their way back; `kept`: the connection bears the bit, if it is known;
    `masqueraded`: kube-proxy has marked the first packet, the only one that its rules of nat see.
    """

    into: str
    out: str
    source: str
    destination: str
    seen_source: str = ""
    seen_destination: str = ""
    mark: int = 0
    answer_mark: int = 0
    kept: bool | None = False
    masqueraded: bool = False

    @property
    def way(self) -> tuple[str, str, str, str, str]:
        """The step of being routed on the way out."""
        return "routed", self.into, self.out, self.source, self.seen_destination or self.destination

    def steps(self, *, answered: bool = True) -> dict[tuple[str, str, str, str, str], int]:
        """(hook, in, out, source, destination) of every hop there must be -> the mark it must have."""
        frm, to = self.source, self.destination
        seen_frm, seen_to = self.seen_source or frm, self.seen_destination or to
        out, back = {}, {}
        if self.into:
            out["arrived", self.into, "", frm, to] = 0
            back["left", "", self.into, to, frm] = self.answer_mark
        if self.out:
            out["left", "", self.out, seen_frm, seen_to] = self.mark
            back["arrived", self.out, "", seen_to, seen_frm] = 0
        if self.into and self.out:
            out[self.way] = self.mark
            back["routed", self.out, self.into, seen_to, frm] = self.answer_mark
        return out | back if answered else out


def held(where: str, legs: list[Leg], hops: list[Hop], *, answered: bool) -> None:
    """Each hop is a step of a leg, each step of each leg is there, with its marks."""
    steps = {
        step: (leg, mark) for leg in legs for step, mark in leg.steps(answered=answered).items()
    }
    told = f"{where} saw:\n" + "\n".join(map(str, hops))
    found = set()
    own = {ends(hop) for hop in hops if hop.hook in {"sent", "delivered"}}
    local = any(not (leg.into and leg.out) for leg in legs)
    for hop in hops:
        # The daemon has conversations of its own meanwhile, with the metadata service for one.
        if hop.hook in {"sent", "delivered"} or (ends(hop) in own and not local):
            continue
        step = (
            hop.hook,
            "" if hop.hook == "left" else hop.into,
            hop.out,
            hop.source,
            hop.destination,
        )
        assert step in steps, f"{hop} is no step of {legs}; {told}"
        leg, mark = steps[step]
        if leg.masqueraded and step == leg.way and step not in found:
            mark |= MASQUERADE
        assert hop.mark == mark, f"{hop} should have mark {mark:#x}; {told}"
        if hop.hook != "arrived":
            assert leg.kept in {None, hop.kept}, f"{hop}: the connection's bit; {told}"
        found.add(step)
    missing = steps.keys() - found
    assert not missing, f"not seen: {missing}; {told}"


def ends(hop: Hop) -> frozenset[tuple[str, int]]:
    """The two ends of the conversation that the packet belongs to."""
    return frozenset({(hop.source, hop.sport), (hop.destination, hop.dport)})
