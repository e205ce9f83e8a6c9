"""What a plan must not do while Kubernetes puts no pods on the node (AWS_MANAGE_ENIS_NON_SCHEDULABLE).

As upstream: no address, prefix or interface is added and no interface detached; addresses and prefixes are
given back, and what was begun is finished. Without a fresh answer from Kubernetes a plan may add and must
not detach (decision 6). When Kubernetes is asked does not belong here.
"""

from __future__ import annotations

from typing import Final

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import actions

FRESH_MS: Final = 120_000
"""How old an answer may be and still decide, should there be no newer one."""
CORDONED: Final = "node_unschedulable"
UNKNOWN: Final = "api_server_down"

_ADDS: Final = (actions.CreateEni, actions.AssignAddresses, actions.AssignPrefixes)


def most_pods(desired: model.Desired) -> int | None:
    """How many pods fit on the node, by the last answer, however old; None if nobody ever said."""
    return None if desired.scheduling is None else desired.scheduling.max_pods


def cordoned(desired: model.Desired, settings: knobs.Settings, now: int) -> bool | model.Unknown:
    """Does the node get no pods, so that the warm pool rests?"""
    if settings.manage_unschedulable or not settings.in_cluster:
        return False
    said = desired.scheduling
    if said is None or not 0 <= now - said.at <= FRESH_MS:
        since = 0 if said is None else said.at
        return model.Unknown("whether Kubernetes puts pods on this node is not known", since)
    return not said.schedulable


def held_back(
    plan: actions.Plan, desired: model.Desired, settings: knobs.Settings, now: int
) -> actions.Plan:
    """The plan without what must wait until the node is schedulable, or known to be."""
    rests = cordoned(desired, settings, now)
    if isinstance(rests, model.Unknown):
        note = actions.Note(UNKNOWN, f"{rests.why}, so no interface is detached")
        return _without(plan, (actions.DetachEni,), note)
    if rests:
        text = "Kubernetes puts no pods on this node: nothing is added, no interface detached"
        return _without(plan, (*_ADDS, actions.DetachEni), actions.Note(CORDONED, text))
    return plan


def wants_an_answer(plan: actions.Plan) -> bool:
    """Would a fresh answer make a difference to this plan?"""
    steps = any(isinstance(step.action, (*_ADDS, actions.DetachEni)) for step in plan.cloud)
    return steps or any(note.code in {CORDONED, UNKNOWN} for note in plan.notes)


def _without(
    plan: actions.Plan, verbs: tuple[type[actions.CloudAction], ...], note: actions.Note
) -> actions.Plan:
    kept = tuple(step for step in plan.cloud if not isinstance(step.action, verbs))
    if len(kept) == len(plan.cloud):
        return plan
    return actions.Plan(plan.kernel, kept, (*plan.notes, note))
