"""A kernel on paper: what netlink would do to one node's links, addresses, routes and rules, in memory.

It stands in for `reconciler.providers.kernel.Kernel` where thousands of stories are told: a link's removal
alone costs the real one 20 ms. `test_paper` holds the two against each other. Refusals, order and identity
are those of netlink; packets do not belong here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ledger import model
from reconciler.planner import actions
from reconciler.providers import kernel

Thing = model.KernelObject


@dataclass(eq=False, slots=True)
class PodSpace:
    """One pod's network namespace. `alive` ends with the sandbox, and its links with it."""

    number: int
    alive: bool = True
    links: dict[str, model.Link] = field(default_factory=dict)
    things: dict[tuple[str, ...], Thing] = field(default_factory=dict)

    @property
    def shown(self) -> set[str]:
        """The addresses that answer in here."""
        return {
            thing.cidr.partition("/")[0]
            for thing in self.things.values()
            if isinstance(thing, model.InterfaceAddress)
        }


class Paper:
    """The node's namespace and its pods'. `step` is called before each change, and may raise."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self.clock = clock
        self.step: Callable[[], None] = lambda: None
        self.pods: dict[int, PodSpace] = {}
        self._numbers = itertools.count(100)
        self.boot()

    # ------------------------------------------------------------------ the machine

    def boot(self) -> None:
        """Power on: nothing is left of what was configured."""
        for pod in self.pods.values():
            pod.alive = False
        self.pods = {}
        self.links: dict[str, model.Link] = {}
        self.ends: dict[str, tuple[PodSpace, str]] = {}
        self.things: dict[tuple[str, ...], Thing] = {}

    def plug(self, device: int, mac: str, *, up: bool = False) -> None:
        """An interface appears, as EC2 attaches it."""
        name = f"eth{device}"
        self.links[name] = model.Link(name, kind="", mac=mac, mtu=9001, up=up)

    def unplug(self, mac: str) -> None:
        """An interface is gone, and what stood on it."""
        for name in [n for n, link in self.links.items() if link.mac == mac and not link.kind]:
            self._drop_link(name)

    def new_pod(self) -> PodSpace:
        """A sandbox's empty namespace."""
        number = next(self._numbers)
        self.pods[number] = PodSpace(number)
        return self.pods[number]

    def end_pod(self, pod: PodSpace) -> None:
        """The sandbox dies, and its namespace: both ends of its links go."""
        pod.alive = False
        self.pods.pop(pod.number, None)
        for name in [name for name, (end, _) in self.ends.items() if end is pod]:
            self._drop_link(name)
        pod.links.clear()
        pod.things.clear()

    # ------------------------------------------------------------------ the provider's three

    def observe(self) -> model.ObservedKernel | model.Unknown:
        """What netlink would list of the node's namespace."""
        return self._shown(self.links, self.things, dict.fromkeys(self.ends, True))

    def observe_pod(self, pod: kernel.PodHandle) -> model.ObservedKernel | model.Unknown:
        """What netlink would list of a pod's."""
        space = self.pods[pod.netlink_fd]
        return self._shown(space.links, space.things, {})

    def apply(
        self, steps: Sequence[actions.KernelAction], pod: kernel.PodHandle | None = None
    ) -> list[actions.Outcome]:
        """Carry the steps out one by one; no step stops another."""
        space = None if pod is None else self.pods[pod.netlink_fd]
        outcomes = []
        for step in steps:
            self.step()
            put = isinstance(step, actions.Put)
            if isinstance(step, actions.Retire):
                outcomes.append(self._retire(step))
            elif isinstance(step, actions.Rename):
                raise AssertionError(f"nobody renames links here: {step}")
            elif isinstance(step.thing, model.Link):
                outcomes.append(
                    self._put_link(step, step.thing, space) if put else self._remove_link(step)
                )
            else:
                outcomes.append(self._change(step, space, put=put))
        return outcomes

    def close(self) -> None:
        """Nothing is open."""

    def _shown(
        self,
        links: dict[str, model.Link],
        things: dict[tuple[str, ...], Thing],
        peers: dict[str, bool],
    ) -> model.ObservedKernel:
        every = things.values()
        return model.ObservedKernel(
            self.clock(),
            tuple(replace(link, peer="", peer_mac="") for link in links.values()),
            tuple(each for each in every if isinstance(each, model.InterfaceAddress)),
            tuple(each for each in every if isinstance(each, model.Route)),
            tuple(each for each in every if isinstance(each, model.Rule)),
            tuple(each for each in every if isinstance(each, model.Neighbour)),
            peers,
        )

    # ------------------------------------------------------------------ links

    def _put_link(
        self, step: actions.KernelAction, link: model.Link, pod: PodSpace | None
    ) -> actions.Outcome:
        found = self.links.get(link.name)
        same = found is not None and _same(link, found)
        if link.kind == "veth" and link.peer and pod is not None:
            if found is not None and not same:
                return actions.Outcome(step, "EEXIST", f"{link.name} is another link")
            if found is None and link.peer in pod.links:
                text = f"the pod has an interface {link.peer} already"
                return actions.Outcome(step, "EEXIST", text, result={"where": "pod"})
            pod.links[link.peer] = model.Link(link.peer, mac=link.peer_mac, mtu=link.mtu)
            self.ends[link.name] = (pod, link.peer)
        elif not same:
            code = "EBADF" if link.peer else "ENODEV"
            return actions.Outcome(step, code, f"there is no link {link.name}")
        self.links[link.name] = replace(link, kind=found.kind if found else link.kind)
        return actions.Outcome(step)

    def _remove_link(self, step: actions.KernelAction) -> actions.Outcome:
        link = step.thing
        assert isinstance(link, model.Link)
        if link.kind != "veth":
            return actions.Outcome(step, "EPERM", f"{link.name} is not ours to remove")
        found = self.links.get(link.name)
        if found is not None and _same(link, found):
            self._drop_link(link.name)
        return actions.Outcome(step)

    def _retire(self, step: actions.Retire) -> actions.Outcome:
        found = self.links.get(step.thing.name)
        if found is None or not _same(step.thing, found):
            there = step.name in self.links and _same(step.thing, self.links[step.name])
            return actions.Outcome(step, result={"there": True} if there else {})
        del self.links[found.name]
        _drop_of(self.things, found.name)
        self.links[step.name] = replace(found, name=step.name, up=False)
        if found.name in self.ends:
            self.ends[step.name] = self.ends.pop(found.name)
        return actions.Outcome(step, result={"there": True})

    def _drop_link(self, name: str) -> None:
        del self.links[name]
        _drop_of(self.things, name)
        if name in self.ends:
            pod, peer = self.ends.pop(name)
            pod.links.pop(peer, None)
            _drop_of(pod.things, peer)

    # ------------------------------------------------------------------ everything else

    def _change(
        self, step: actions.KernelAction, pod: PodSpace | None, *, put: bool
    ) -> actions.Outcome:
        thing = step.thing
        inside = getattr(thing, "where", "host") == "pod"
        if inside and pod is None:  # what is in a pod goes with its link
            return actions.Outcome(step, "EBADF", "no pod") if put else actions.Outcome(step)
        things = pod.things if inside and pod is not None else self.things
        links = pod.links if inside and pod is not None else self.links
        if not put:
            things.pop(_exactly(thing), None)
        elif isinstance(thing, model.Rule):
            things.setdefault(_exactly(thing), thing)
        elif isinstance(thing, model.Sysctl):
            return actions.Outcome(step, "EOPNOTSUPP", "sysctls are written by the launcher")
        elif getattr(thing, "link", "") not in links:
            return actions.Outcome(step, "ENODEV", "there is no such link")
        else:
            things[_exactly(thing)] = thing
        return actions.Outcome(step)


def _exactly(thing: Thing) -> tuple[str, ...]:
    return (*thing.key, str(getattr(thing, "protocol", "")))


def _same(wanted: model.Link, found: model.Link) -> bool:
    """One link, not just one name: its alias (our lease) or its MAC tells."""
    return bool(
        (wanted.alias and wanted.alias == found.alias) or (wanted.mac and wanted.mac == found.mac)
    )


def _drop_of(things: dict[tuple[str, ...], Thing], link: str) -> None:
    for key in [key for key, thing in things.items() if getattr(thing, "link", None) == link]:
        del things[key]
