"""What our interfaces should be like in EC2: their tags, their security groups, that they die with the instance.

Asked for until EC2 shows it. Only interfaces that are ours; how many there should be does not belong here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import actions, stock, tags


def upkeep(
    held: stock.Stock,
    desired: model.Desired,
    last: model.ObservedCloud | None,
    settings: knobs.Settings,
) -> Iterator[actions.CloudStep]:
    """`last` is EC2's last picture, however old, with what was changed since; None before the first."""
    yield from _survive_no_instance(held)
    if last is None or last.source != "ec2" or desired.node is None:
        return
    ours = {eni.eni_id: eni for eni in desired.enis if eni.managed}
    for each in last.enis:
        eni = ours.get(each.eni.eni_id)
        if eni is None or eni.kind == "trunk" or eni.state not in stock.SERVING:
            continue
        if eni.card != held.card:
            continue
        yield from _tags(held, desired.node, each, settings)
        if not eni.primary:  # its groups are where the others' come from
            yield from _groups(held, desired.node, each)


def labels(node: model.Node, settings: knobs.Settings) -> dict[str, str]:
    """The tags of every interface of ours, with upstream's keys."""
    wanted = {tags.INSTANCE: node.instance_id}
    if settings.cluster_name:
        wanted |= {tags.CLUSTER: settings.cluster_name, tags.OWNER: "amazon-vpc-cni"}
    return wanted | dict(settings.additional_eni_tags)


def _tags(
    held: stock.Stock, node: model.Node, each: model.ObservedEni, settings: knobs.Settings
) -> Iterator[actions.CloudStep]:
    wanted = labels(node, settings)
    missing = tuple(sorted((k, v) for k, v in wanted.items() if each.tags.get(k) != v))
    if missing and held.may("TagEni", each.eni.eni_id):
        names = ", ".join(key for key, _ in missing)
        yield actions.CloudStep(
            actions.TagEni(each.eni.eni_id, missing), "tidy", f"EC2 does not show {names}"
        )


def _groups(
    held: stock.Stock, node: model.Node, each: model.ObservedEni
) -> Iterator[actions.CloudStep]:
    wanted = node.security_groups
    differ = bool(wanted) and set(wanted) != set(each.security_groups)
    if differ and held.may("SetSecurityGroups", each.eni.eni_id):
        action = actions.SetSecurityGroups(each.eni.eni_id, wanted)
        yield actions.CloudStep(action, "tidy", "the node's security groups are others")


def _survive_no_instance(held: stock.Stock) -> Iterator[actions.CloudStep]:
    """Attachments of ours that would outlive the instance: EC2's default, repaired until it is seen."""
    for each in held.holdings:
        eni = each.eni
        if eni.primary or eni.delete_on_termination or eni.attachment_id is None:
            continue
        if eni.state == "created" or held.touches(eni.eni_id):
            continue
        if held.may("SetDeleteOnTermination", eni.eni_id):
            action = actions.SetDeleteOnTermination(eni.eni_id, eni.attachment_id)
            yield actions.CloudStep(action, "tidy", "it would outlive the instance")


def shown(last: model.ObservedCloud, action: actions.CloudAction) -> model.ObservedCloud:
    """The picture with what this call, which EC2 has confirmed, changed since it was taken."""

    def changed(each: model.ObservedEni) -> model.ObservedEni:
        match action:
            case actions.SetSecurityGroups(eni_id, groups) if each.eni.eni_id == eni_id:
                return replace(each, security_groups=groups)
            case actions.TagEni(eni_id, pairs) if each.eni.eni_id == eni_id:
                return replace(each, tags=each.tags | dict(pairs))
        return each

    return replace(last, enis=tuple(map(changed, last.enis)))
