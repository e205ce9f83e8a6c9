"""Where ledger, kernel, EC2 and runtime contradict each other: `differences`, each with what it means.

What a plan would mend is one, and so is a sandbox that a witness misses: what the plan and the sweep say is
what counts here. A side that could not be asked contradicts nobody. Asking, and mending, do not belong here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import actions, drift, sweep, takeover, wiring
from reconciler.planner import plan as planner

KINDS: Final = {
    "sandbox_gone": "two witnesses say that a sandbox with an open lease is gone",
    "lease_without_link": "the pod's host link is gone, and no second witness says that the pod is",
    "sandbox_doubtful": "one witness other than the link says that a sandbox is gone",
    "link_without_lease": "a link bears our mark and belongs to no open lease",
    "kernel_differs": "what the ledger wants in the kernel is missing there, or different",
    "kernel_left_over": "a rule, a route or an address of ours is in the kernel, and the ledger wants none",
    "eni_not_in_ec2": "EC2 does not show an interface that the ledger has",
    "eni_not_in_ledger": "EC2 shows an interface of ours that the ledger does not have",
    "address_not_in_ec2": "EC2 does not show an address or a prefix where the ledger has it",
    "address_not_in_ledger": "EC2 shows an address or a prefix on an interface of ours, the ledger none",
}
"""Every kind of difference."""


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    """One contradiction: its kind, the thing it is about, and who says what."""

    kind: str
    subject: str
    text: str


def differences(
    desired: model.Desired,
    cloud: model.ObservedCloud | model.Unknown,
    seen: sweep.Witnesses,
    tables: Sequence[actions.NatAction],
    forgotten: Sequence[tuple[model.Link, str]],
    settings: knobs.Settings,
    now: int,
) -> tuple[Difference, ...]:
    """All of them, in order. `tables` is what is to be done to nftables, `forgotten` are links of pods
    whom the ledger never knew, each with its address.
    """
    return tuple(
        sorted(
            {
                *_sandboxes(desired, seen, now),
                *_kernel(desired, seen.kernel, forgotten, settings),
                *(
                    Difference("kernel_differs", _table(each), "is not as wanted")
                    for each in tables
                ),
                *_cloud(desired, cloud),
            }
        )
    )


def _sandboxes(desired: model.Desired, seen: sweep.Witnesses, now: int) -> Iterator[Difference]:
    """What the sweep would say if this pass were the second of two that agree."""
    long_ago = {lease.id: 0 for lease in desired.leases}
    judged = sweep.judge(desired.leases, seen, long_ago, takeover.NAMELESS, now)
    links: set[str] = set()
    if not isinstance(seen.kernel, model.Unknown):
        links = {link.name for link in seen.kernel.links}
    for lease, reason in judged.over:
        if reason == "swept":
            yield Difference(
                "sandbox_gone", lease.container_id, f"{_pod(lease)}: two witnesses agree"
            )
    for lease, text in judged.doubts:
        kind = "sandbox_doubtful" if lease.host_ifname in links else "lease_without_link"
        yield Difference(kind, lease.container_id, f"{_pod(lease)}: {text}")


def _kernel(
    desired: model.Desired,
    observed: model.ObservedKernel | model.Unknown,
    forgotten: Sequence[tuple[model.Link, str]],
    settings: knobs.Settings,
) -> Iterator[Difference]:
    if isinstance(observed, model.Unknown):
        return
    pods = {link.name for link, _ in forgotten}
    for link, address in forgotten:
        text = f"a pod the ledger never knew uses {address} by it"
        yield Difference("link_without_lease", link.name, text)
    for step in planner.kernel(desired, observed, settings).kernel:
        if not isinstance(step, actions.Put | actions.Remove | actions.Rename):
            continue
        thing = step.thing
        if isinstance(step, actions.Put):
            says = drift.compare((thing,), observed)
            yield Difference(
                "kernel_differs", drift.describe(thing), "; ".join(says) or "has no mark"
            )
        elif isinstance(step, actions.Rename):
            yield Difference("kernel_differs", drift.describe(thing), f"is called {step.name}")
        elif wiring.is_retired(thing) or getattr(thing, "link", getattr(thing, "name", "")) in pods:
            continue  # about to go in any case, or a forgotten pod's
        elif isinstance(thing, model.Link):
            text = f"{thing.alias or thing.mac} is no open lease's"
            yield Difference("link_without_lease", thing.name, text)
        else:
            yield Difference("kernel_left_over", drift.describe(thing), "the ledger wants none")


def _cloud(
    desired: model.Desired, seen: model.ObservedCloud | model.Unknown
) -> Iterator[Difference]:
    if isinstance(seen, model.Unknown):
        return
    rows = {eni.eni_id: eni for eni in desired.enis if eni.managed and eni.state in planner.WIRED}
    shown = {each.eni.eni_id: each for each in seen.enis}
    for eni_id in rows.keys() - shown.keys():
        yield Difference("eni_not_in_ec2", eni_id, f"{seen.source} does not show it")
    known = {eni.eni_id for eni in desired.enis}
    held = _held(desired)
    for eni_id, each in shown.items():
        if each.eni.managed and eni_id not in known:
            yield Difference("eni_not_in_ledger", eni_id, f"{seen.source} shows it")
        if eni_id not in rows:
            continue
        there, here = {*each.addresses, *each.prefixes}, held.get(eni_id, {})
        for name in here.keys() - there:
            text = f"the ledger has it on {eni_id} ({here[name]})"
            yield Difference("address_not_in_ec2", name, text)
        for name in there - here.keys():
            yield Difference("address_not_in_ledger", name, f"{seen.source} shows it on {eni_id}")


def _held(desired: model.Desired) -> dict[str, dict[str, str]]:
    """By interface: its single addresses and prefixes, each with its state."""
    held: dict[str, dict[str, str]] = {}
    for address in desired.addresses:
        if address.prefix is None:
            held.setdefault(address.eni_id, {})[address.address] = address.state
    for prefix in desired.prefixes:
        held.setdefault(prefix.eni_id, {})[prefix.cidr] = prefix.state
    return held


def _pod(lease: model.Lease) -> str:
    return f"{lease.pod_namespace}/{lease.pod_name} at {lease.address}"


def _table(action: actions.NatAction) -> str:
    return (
        f"table ip {action.table.name if isinstance(action, actions.ReplaceTable) else action.name}"
    )
