"""The kernel's networking, looked at and changed over rtnetlink: `observe`, `observe_pod`, `apply`, `watch`.

Needs CAP_NET_ADMIN to change anything and nothing to look. It never enters another namespace: a pod's
is reached through the netlink socket that the launcher opened in it. Every acknowledgement is read;
already there and already gone are success. Deciding what should be there does not belong here.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ledger import model
from reconciler.planner import actions
from reconciler.providers import batch, channel, rtnetlink, watch


@dataclass(frozen=True, slots=True)
class PodHandle:
    """What the launcher handed over: the pod's network namespace and a NETLINK_ROUTE socket opened in it.

    The descriptors stay the caller's, who closes them when the verb ends: they keep the namespace alive.
    """

    netns_fd: int
    netlink_fd: int


class Kernel:
    """The network namespace this process lives in.

    Looking, changing and removing links have a socket and a lock each, so threads may share one, and
    neither a long look nor the kernel's wait for a link that goes (20 ms) holds up a pod.
    """

    def __init__(self) -> None:
        """Open the sockets; OSError if the kernel has none to give."""
        self._looking, self._changing = threading.Lock(), threading.Lock()
        self._removing = threading.Lock()
        self._look, self._change = channel.Channel.here(), channel.Channel.here()
        self._remove = channel.Channel.here()

    def close(self) -> None:
        """Close the sockets; the object is of no use afterwards."""
        self._look.close()
        self._change.close()
        self._remove.close()

    def observe(self) -> model.ObservedKernel | model.Unknown:
        """Links, IPv4 addresses, routes and rules of the node's namespace; Unknown with the reason."""
        with self._looking:
            return _observe(self._look, "host")

    def observe_pod(self, pod: PodHandle) -> model.ObservedKernel | model.Unknown:
        """Links, IPv4 addresses, routes and permanent neighbours of a pod's namespace."""
        try:
            with channel.Channel.handed(pod.netlink_fd) as inside:
                return _observe(inside, "pod")
        except OSError as failed:
            return _unknown(failed)

    def apply(
        self, steps: Sequence[actions.KernelAction], pod: PodHandle | None = None
    ) -> list[actions.Outcome]:
        """Carry out the steps and say what became of each, in their order; no step stops another.

        A veth pair is made with its peer inside the pod, so that, and whatever is put in a pod, needs
        its handle. It is made whole or not at all; one of that name that has another alias and MAC is
        not ours to touch: EEXIST. A removal states exactly what it removes, a link by identity and not
        by name alone; what is inside a pod may be "removed" without handle together with its link. An
        error is an errno's name, its text the kernel's own words; `result` is {"where": "pod"} if an
        interface of the wanted name is in the pod already, {"there": True} if a retired link is still to
        be removed. OSError only for a handle that is none.
        """
        if all(isinstance(s, actions.Remove) and isinstance(s.thing, model.Link) for s in steps):
            with self._removing:
                return batch.Batch(self._remove, None, None).carry_out(steps)
        if pod is None:
            with self._changing:
                return batch.Batch(self._change, None, None).carry_out(steps)
        with channel.Channel.handed(pod.netlink_fd) as inside, self._changing:
            return batch.Batch(self._change, inside, pod.netns_fd).carry_out(steps)

    def watch(self) -> watch.Watch:
        """News of changes to links, IPv4 addresses, routes and rules of the node's namespace."""
        return watch.Watch(channel.route_socket(), rtnetlink.GROUPS)


def _observe(at: channel.Channel, where: model.Where) -> model.ObservedKernel | model.Unknown:
    try:
        found = rtnetlink.links(at.dump(rtnetlink.dump(rtnetlink.GETLINK)))
        names = {each.link.index: each.link.name for each in found}
        addresses = at.dump(rtnetlink.dump(rtnetlink.GETADDR))
        routes = at.dump(rtnetlink.dump(rtnetlink.GETROUTE))
        rules = at.dump(rtnetlink.dump(rtnetlink.GETRULE)) if where == "host" else []
        neighbours = at.dump(rtnetlink.dump(rtnetlink.GETNEIGH)) if where == "pod" else []
        if where == "host":
            rtnetlink.keep(len(found))
    except OSError as failed:
        return _unknown(failed)
    return model.ObservedKernel(
        _now(),
        tuple(each.link for each in found),
        tuple(rtnetlink.addresses(addresses, names, where)),
        tuple(rtnetlink.routes(routes, names, where)),
        tuple(rtnetlink.rules(rules)),
        tuple(rtnetlink.neighbours(neighbours, names)),
        {each.link.name: each.peer for each in found if each.peer is not None},
    )


def _unknown(failed: OSError) -> model.Unknown:
    return model.Unknown(f"netlink: {os.strerror(failed.errno or 0)}", _now())


def _now() -> int:
    return time.time_ns() // 1_000_000
