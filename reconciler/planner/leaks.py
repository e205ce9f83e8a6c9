"""Interfaces that nodes of the cluster left behind: attached to nothing, old enough, and surely the cluster's.

A node cleans up its own; this is for those that can not any more. Looking for them does not belong here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import actions, tags

GRACE_MS: Final = 30 * 60_000
"""An interface younger than this may still be attached by whoever made it (upstream: five minutes)."""
DESCRIBED: Final = "aws-K8S-"
"""How upstream and we begin an interface's description."""


def wanted(settings: knobs.Settings) -> bool:
    """Is anything to be looked for? Without the cluster's name nobody can tell whose an interface is."""
    off = settings.no_leak_cleanup or settings.no_provisioning or settings.imds_only
    return bool(settings.cluster_name) and not off


def leaked(
    seen: model.ObservedCloud, node: model.Node, settings: knobs.Settings, now: int
) -> Iterator[actions.CloudStep]:
    """Delete what is the cluster's by its tags and description and older than GRACE_MS.

    Its age is what its tag says; one without, or with one that cannot be read, is given a tag and waits
    (upstream deletes the latter at once). This node's own are the pool's business.
    """
    if not wanted(settings):
        return
    for each in seen.enis:
        if not _is_the_clusters(each, node, settings):
            continue
        if each.created_at is None:
            action: actions.CloudAction = actions.TagEni(
                each.eni.eni_id, ((tags.CREATED, str(now)),)
            )
            yield actions.CloudStep(action, "tidy", "nothing tells how old it is")
        elif now - each.created_at >= GRACE_MS:
            cause = f"left behind by {each.tags[tags.INSTANCE]}"
            yield actions.CloudStep(actions.DeleteEni(each.eni.eni_id), "tidy", cause)


def _is_the_clusters(each: model.ObservedEni, node: model.Node, settings: knobs.Settings) -> bool:
    labels = each.tags
    return (
        each.eni.device < 0
        and each.eni.attachment_id is None
        and each.eni.kind == "interface"
        and labels.get(tags.INSTANCE, node.instance_id) != node.instance_id
        and labels.get(tags.CLUSTER) == settings.cluster_name
        and labels.get(tags.NO_MANAGE) != "true"
        and each.description.startswith(DESCRIBED)
    )
