"""A list of puts and removals carried out over rtnetlink in few sends, each with its outcome.

Links come first in what they need: an index is looked up once, or known because the pair is made here.
Already there and already gone are success; a link is told by its alias or MAC, never by name alone.
What a message looks like is rtnetlink's, which steps there are the planner's.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from ledger import model
from reconciler.planner import actions
from reconciler.providers import channel, rtnetlink
from reconciler.providers.netlink import Message, Refusal

_THERE = frozenset({"EEXIST"})
_GONE = frozenset({"ENOENT", "ESRCH", "ENODEV", "EADDRNOTAVAIL", "ENXIO"})
_TAKEN = frozenset({"EEXIST", "EBUSY"})  # a name or an index, at this end or at the other
_OTHER_INDEXES = range(3_000_000, 4_000_000, 2)  # drawn from when the wanted one is taken
_QUESTIONS = 16  # asked at once: an answer takes up to 4 KiB of the receive buffer's 200
_NO_POD = Refusal("EBADF", "the pod's namespace was not handed over")
_NOT_HERE = Refusal("EOPNOTSUPP", "sysctls are written by the launcher")


class Batch:
    """One carrying out: `host` is the node's channel, `pod` the one inside the pod's namespace."""

    def __init__(
        self, host: channel.Channel, pod: channel.Channel | None, netns_fd: int | None
    ) -> None:
        self._host, self._pod, self._netns_fd = host, pod, netns_fd
        self._indexes: dict[tuple[model.Where, str], int] = {}

    def carry_out(self, steps: Sequence[actions.KernelAction]) -> list[actions.Outcome]:
        """What became of each step, in order; no step stops another."""
        if self._pod is not None and _is_one_pod(steps):
            return self._wire(steps)
        outcomes: list[actions.Outcome] = []
        for (what, verb), run in itertools.groupby(steps, key=_kind):
            if what != "link":
                outcomes += self._change(list(run))
            elif verb == "put":
                outcomes += map(self._put_link, run)
            elif verb == "retire":
                outcomes += self._retire(list(run))
            elif verb == "rename":
                outcomes += map(self._rename, run)
            else:
                outcomes += self._remove_links(list(run))
        return outcomes

    # ------------------------------------------------------------------ a pod

    def _wire(self, steps: Sequence[actions.KernelAction]) -> list[actions.Outcome]:
        """A pod's link and all that depends on it, in three sends.

        The pair is made with the host's end up, and the pod's end is raised right after: while one end
        is up alone, the kernel's work queue waits a grace period for it with the lock that we need next.
        Nothing else is in the first send, for what follows a refusal would hit another's link.
        """
        assert self._pod is not None
        first, rest = steps[0], steps[1:]
        link = first.thing
        assert isinstance(link, model.Link)
        refused = self._create(link, link.index)
        if refused is not None:
            outcome = self._put_link(first)
            if outcome.error:
                return [outcome, *(_outcome(step, _no_link(link.name)) for step in rest)]
            return [outcome, *self.carry_out(rest)]
        index = self._indexes["host", link.name] = link.index
        self._indexes["pod", link.peer] = index + 1
        inside = [step for step in rest if _where(step.thing) == "pod"]
        outside = [step for step in rest if _where(step.thing) == "host"]
        done, (raised,) = self._send(self._pod, inside, [rtnetlink.set_link(index + 1, up=True)])
        done_outside, (marked, read) = self._send(
            self._host,
            outside,
            [rtnetlink.set_link(index, up=True, alias=link.alias), rtnetlink.find_link(link.name)],
        )
        refused = raised.refusal or marked.refusal or self._overrule(link, index, read)
        if refused is not None:
            self._one(self._host, rtnetlink.remove_link(index))
        outcomes = {id(each.action): each for each in (*done, *done_outside)}
        return [_outcome(first, refused), *(outcomes[id(step)] for step in rest)]

    # ------------------------------------------------------------------ links

    def _put_link(self, step: actions.KernelAction) -> actions.Outcome:
        assert isinstance(step.thing, model.Link)
        link = step.thing
        if link.kind == "veth" and link.peer and self._pod is not None:
            return self._put_veth(step, link)
        return _outcome(step, self._set_link(link))

    def _put_veth(self, step: actions.KernelAction, link: model.Link) -> actions.Outcome:
        """Make the pair whole: both ends up, marked; one that is ours already is set right."""
        assert self._pod is not None
        made, mac = self._make(link), ""
        if isinstance(made, int):
            index = made
        else:
            found = self._find(self._host, link.name)
            if found is None or not _same(link, found):
                return self._not_made(step, link, made, found)
            index, mac = found.index, _unlike(link, found)
        refused = self._raise_and_read(link, index, mac) or self._one(
            self._pod, rtnetlink.set_link(index + 1, up=True, mtu=link.mtu)
        )
        if refused is not None:
            if isinstance(made, int):
                self._one(self._host, rtnetlink.remove_link(index))
            return _outcome(step, refused)
        self._indexes["host", link.name] = index
        self._indexes["pod", link.peer] = index + 1
        return _outcome(step, None)

    def _raise_and_read(self, link: model.Link, index: int, mac: str) -> Refusal | None:
        """Raise the host's end and read its MAC back, for the pod's neighbour entry names it.

        Given at creation, it is no random one that udev's MACAddressPolicy=persistent would replace;
        who replaces it all the same is overruled, here and by every later look.
        """
        raised, read = self._host.ask(
            [
                rtnetlink.set_link(index, up=True, mtu=link.mtu, mac=mac, alias=link.alias),
                rtnetlink.find_link(link.name),
            ]
        )
        return raised.refusal or self._overrule(link, index, read)

    def _overrule(self, link: model.Link, index: int, read: channel.Answer) -> Refusal | None:
        if read.refusal is not None:
            return read.refusal
        if rtnetlink.shows_mac(read.data, link.mac):
            return None
        given = _unlike(link, rtnetlink.link(read.data).link)
        if not given:
            return None
        return self._one(self._host, rtnetlink.set_link(index, up=True, mac=given))

    def _make(self, link: model.Link) -> int | Refusal:
        """The new pair's index: the wanted one, or another if that alone is taken."""
        assert self._pod is not None
        index = link.index
        refused = self._create(link, index)
        if refused is not None and refused.code in _TAKEN:
            if self._find(self._host, link.name) or self._find(self._pod, link.peer):
                return refused
            index = random.choice(_OTHER_INDEXES)  # noqa: S311 - no secret
            refused = self._create(link, index)
        return refused or index

    def _not_made(
        self, step: actions.KernelAction, link: model.Link, why: Refusal, found: model.Link | None
    ) -> actions.Outcome:
        """Whether a name is in the way, and at which end."""
        assert self._pod is not None
        if found is not None:
            return _outcome(step, _anothers(why.code, found))
        if self._find(self._pod, link.peer) is not None:
            taken = Refusal(why.code, f"the pod has an interface {link.peer} already")
            return _outcome(step, taken, {"where": "pod"})
        return _outcome(step, why)

    def _create(self, link: model.Link, index: int) -> Refusal | None:
        assert self._netns_fd is not None
        return self._one(self._host, rtnetlink.create_veth(link, index, self._netns_fd))

    def _set_link(self, link: model.Link) -> Refusal | None:
        """MTU, state and mark of a link that is there: an interface's, or a pod's seen from the host."""
        found = self._find(self._host, link.name)
        if found is None or not _same(link, found):
            if link.peer:
                return _NO_POD
            return _anothers("ENODEV", found) if found else _no_link(link.name)
        self._indexes["host", link.name] = found.index
        mac = _unlike(link, found)
        return self._one(
            self._host,
            rtnetlink.set_link(found.index, up=link.up, mtu=link.mtu, mac=mac, alias=link.alias),
        )

    def _retire(self, steps: list[actions.KernelAction]) -> list[actions.Outcome]:
        """Some at a time, for the answers to a question are long and must all find room in the socket."""
        outcomes: list[actions.Outcome] = []
        for at in range(0, len(steps), _QUESTIONS):
            outcomes += self._retire_some(steps[at : at + _QUESTIONS])
        return outcomes

    def _retire_some(self, steps: list[actions.KernelAction]) -> list[actions.Outcome]:
        """Down before the new name: kernels before 6.2 rename no link that is up.

        The group is the one to be removed. The pod's end is left alone: without the host's it reaches
        nobody, and the pair is removed in a moment anyway.
        """
        looked = self._host.ask([rtnetlink.find_link(_link_of(step).name) for step in steps])
        ours: dict[int, int] = {}
        outcomes: dict[int, actions.Outcome] = {}
        for nth, (step, answer) in enumerate(zip(steps, looked, strict=True)):
            found = rtnetlink.link(answer.data).link if answer.refusal is None else None
            if found is None or not _same(_link_of(step), found):
                outcomes[nth] = self._retired_before(step)
            elif found.kind != "veth":
                no = Refusal("EPERM", f"{found.name} is not ours to remove")
                outcomes[nth] = _outcome(step, no)
            else:
                ours[nth] = found.index
        messages: list[Message] = []
        for nth, index in ours.items():
            messages += rtnetlink.retire_link(index, _retiring(steps[nth]).name)
        told = self._host.ask(messages)
        for nth, down, renamed in zip(ours, told[::2], told[1::2], strict=True):
            refused = down.refusal or renamed.refusal
            gone = refused is not None and refused.code in _GONE
            there: dict[str, object] = {} if refused else {"there": True}
            outcomes[nth] = _outcome(steps[nth], None if gone else refused, there)
        return [outcomes[nth] for nth in range(len(steps))]

    def _retired_before(self, step: actions.KernelAction) -> actions.Outcome:
        """Renamed already, perhaps, and then we were killed."""
        found = self._find(self._host, _retiring(step).name)
        known = found is not None and _same(_link_of(step), found)
        return _outcome(step, None, {"there": True} if known else {})

    def _rename(self, step: actions.KernelAction) -> actions.Outcome:
        """As it is, if the kernel lets us: with a link that goes down its routes would go."""
        assert isinstance(step, actions.Rename)
        link = step.thing
        found = self._find(self._host, step.name)
        if found is None or (found.alias, found.mac) != (link.alias, link.mac):
            return _outcome(step, _no_link(step.name))
        rename = rtnetlink.rename_link(found.index, link.name)
        refused = self._one(self._host, rename)
        if refused is not None and refused.code == "EBUSY":
            self._one(self._host, rtnetlink.set_link(found.index, up=False))
            refused = self._one(self._host, rename)
        return _outcome(step, refused)

    def _remove_links(self, steps: list[actions.KernelAction]) -> list[actions.Outcome]:
        """Put those that are there into one group and remove the group: one grace period for all."""
        indexes: dict[int, int] = {}
        refusals: dict[int, Refusal | None] = {}
        for nth, step in enumerate(steps):
            assert isinstance(step.thing, model.Link)
            if step.thing.kind != "veth":
                refusals[nth] = Refusal("EPERM", f"{step.thing.name} is not ours to remove")
                continue
            found = self._find(self._host, step.thing.name)
            if found is not None and _same(step.thing, found):
                indexes[nth] = found.index
        if len(indexes) <= 1:
            for nth, index in indexes.items():
                refusals[nth] = self._one(self._host, rtnetlink.remove_link(index))
        else:
            refusals |= self._remove_group(indexes)
        return [
            _outcome(step, None if (no := refusals.get(nth)) and no.code in _GONE else no)
            for nth, step in enumerate(steps)
        ]

    def _remove_group(self, indexes: dict[int, int]) -> dict[int, Refusal | None]:
        moved = self._host.ask([rtnetlink.regroup_link(index) for index in indexes.values()])
        refusals = {nth: answer.refusal for nth, answer in zip(indexes, moved, strict=True)}
        refused = self._one(self._host, rtnetlink.remove_group())
        if refused is not None and refused.code not in _GONE:
            refusals = {nth: no or refused for nth, no in refusals.items()}
        return refusals

    # ------------------------------------------------------------------ everything else

    def _change(self, steps: list[actions.KernelAction]) -> list[actions.Outcome]:
        """Objects of one namespace in one send."""
        where = _where(steps[0].thing)
        at = self._host if where == "host" else self._pod
        if at is None:  # what is inside a pod goes with its link
            put = isinstance(steps[0], actions.Put)
            return [_outcome(step, _NO_POD if put else None) for step in steps]
        return self._send(at, steps, [])[0]

    def _send(
        self, at: channel.Channel, steps: Sequence[actions.KernelAction], first: list[Message]
    ) -> tuple[list[actions.Outcome], list[channel.Answer]]:
        """Steps of one kind in one send, behind these messages; the answers to those come second."""
        made = [self._message(step.thing, put=isinstance(step, actions.Put)) for step in steps]
        messages = [*first, *(each for each in made if isinstance(each, Message))]
        answers = at.ask(messages) if messages else []
        told = iter(answers[len(first) :])
        outcomes = []
        for step, message in zip(steps, made, strict=True):
            refused = next(told).refusal if isinstance(message, Message) else message
            if refused is not None:
                harmless = _THERE if isinstance(step, actions.Put) else _GONE
                refused = None if refused.code in harmless else refused
            outcomes.append(_outcome(step, refused))
        return outcomes, answers[: len(first)]

    def _message(self, thing: model.KernelObject, *, put: bool) -> Message | Refusal:
        if isinstance(thing, model.Rule):
            return rtnetlink.rule(thing, put=put)
        if isinstance(thing, model.Sysctl | model.Link):
            return _NOT_HERE
        index = self._index(_where(thing), thing.link)
        if index is None:
            return _no_link(thing.link)
        match thing:
            case model.InterfaceAddress():
                return rtnetlink.address(thing, index, put=put)
            case model.Route():
                return rtnetlink.route(thing, index, put=put)
            case model.Neighbour():
                return rtnetlink.neighbour(thing, index, put=put)

    def _index(self, where: model.Where, name: str) -> int | None:
        known = self._indexes.get((where, name))
        at = self._host if where == "host" else self._pod
        if known is None and at is not None:
            found = self._find(at, name)
            if found is not None:
                known = self._indexes[where, name] = found.index
        return known

    def _find(self, at: channel.Channel, name: str) -> model.Link | None:
        """The link of that name, or None. Any other refusal is an answer too: it is not to be had."""
        (answer,) = at.ask([rtnetlink.find_link(name)])
        return rtnetlink.link(answer.data).link if answer.refusal is None else None

    @staticmethod
    def _one(at: channel.Channel, message: Message) -> Refusal | None:
        (answer,) = at.ask([message])
        return answer.refusal


def _kind(step: actions.KernelAction) -> tuple[str, str]:
    """Steps of one kind in a row are carried out together."""
    verb = type(step).__name__.lower()
    return ("link" if isinstance(step.thing, model.Link) else _where(step.thing), verb)


def _is_one_pod(steps: Sequence[actions.KernelAction]) -> bool:
    """A veth pair to be made, and after it only what depends on it."""
    if not (steps and all(isinstance(step, actions.Put) for step in steps)):
        return False
    link = steps[0].thing
    return (
        isinstance(link, model.Link)
        and link.kind == "veth"
        and bool(link.peer)
        and not any(isinstance(step.thing, model.Link) for step in steps[1:])
    )


def _where(thing: model.KernelObject) -> model.Where:
    where: model.Where = getattr(thing, "where", "host")
    return where


def _link_of(step: actions.KernelAction) -> model.Link:
    assert isinstance(step.thing, model.Link)
    return step.thing


def _retiring(step: actions.KernelAction) -> actions.Retire:
    assert isinstance(step, actions.Retire)
    return step


def _same(wanted: model.Link, found: model.Link) -> bool:
    """One link, not just one name: its alias (our lease) or its MAC tells."""
    return bool(
        (wanted.alias and wanted.alias == found.alias) or (wanted.mac and wanted.mac == found.mac)
    )


def _unlike(wanted: model.Link, found: model.Link) -> str:
    """The MAC to set, if it is not the wanted one; setting the same again would be news to everybody."""
    return wanted.mac if wanted.mac != found.mac else ""


def _no_link(name: str) -> Refusal:
    return Refusal("ENODEV", f"there is no link {name}")


def _anothers(code: str, found: model.Link) -> Refusal:
    mark = f"alias {found.alias}" if found.alias else "no alias"
    return Refusal(code, f"{found.name} is another link, with MAC {found.mac} and {mark}")


def _outcome(
    step: actions.KernelAction, refused: Refusal | None, result: dict[str, object] | None = None
) -> actions.Outcome:
    if refused is None:
        return actions.Outcome(step, result=result or {})
    return actions.Outcome(step, refused.code, refused.text, result=result or {})
