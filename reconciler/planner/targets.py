"""How many addresses are missing and how many are too many: upstream's targets as plain sums.

WARM_IP_TARGET and MINIMUM_IP_TARGET count addresses; while both are 0, WARM_ENI_TARGET counts whole
interfaces, or WARM_PREFIX_TARGET whole prefixes. Pods that wait come on top of either. By which calls the
numbers are reached does not belong here.
"""

from __future__ import annotations

from reconciler import settings as knobs
from reconciler.planner import limits, stock


def most_enis(settings: knobs.Settings, limit: limits.Limits, card: int = 0) -> int:
    """The most interfaces on a network card: MAX_ENI, which holds for each, within the type's limit."""
    most = limit.on(card)
    return most if settings.max_eni is None else min(settings.max_eni, most)


def prefixed(settings: knobs.Settings, limit: limits.Limits) -> bool:
    """Do interfaces get prefixes? Xen types cannot have them (EC2 User Guide, "Prefix delegation")."""
    return settings.prefix_delegation and limit.hypervisor != "xen"


def by_addresses(settings: knobs.Settings) -> bool:
    """True if addresses are the target, false if whole interfaces are (WARM_ENI_TARGET)."""
    return settings.warm_ip_target > 0 or settings.minimum_ip_target > 0


def short(held: stock.Stock, settings: knobs.Settings, slots: int) -> int:
    """How many addresses are missing, pods that wait included; 0 if none.

    No more than the node may run pods; those that wait are served in any case.
    """
    owned = held.total + held.coming
    if by_addresses(settings):
        missing = max(
            settings.warm_ip_target - held.spare, settings.minimum_ip_target - owned, held.unserved
        )
    else:
        missing = warm_enis(settings, slots) - held.spare
    if settings.max_pods is not None:
        missing = min(missing, max(settings.max_pods - owned, held.unserved))
    return max(missing, 0)


def short_prefixes(held: stock.Stock, settings: knobs.Settings) -> int:
    """How many prefixes are missing, for pods that wait included; 0 if none.

    WARM_PREFIX_TARGET is missed when fewer addresses are free than it has, and then made up in whole free
    prefixes, as upstream does.
    """
    owned = held.total + held.coming
    if settings.max_pods is not None and owned >= settings.max_pods:
        return _blocks(held.unserved)
    if by_addresses(settings):
        return _blocks(short(held, settings, 0))
    free = settings.warm_prefix_target * stock.PREFIX_SIZE
    if held.spare >= max(free, 1):
        return 0
    return max(1, settings.warm_prefix_target - held.free_prefixes, _blocks(held.unserved))


def short_without_blocks(held: stock.Stock, settings: knobs.Settings) -> int:
    """How many single addresses are missing while the subnet has no /28: for whole prefixes, one."""
    full = settings.max_pods is not None and held.total + held.coming >= settings.max_pods
    if full or by_addresses(settings):
        return held.unserved if full else short(held, settings, 0)
    return max(held.unserved, 1 - held.spare, 0)


def _blocks(addresses: int) -> int:
    return -(-addresses // stock.PREFIX_SIZE)


def warm_enis(settings: knobs.Settings, slots: int) -> int:
    """WARM_ENI_TARGET in addresses; 0 still keeps one, as upstream grows when none is left."""
    return settings.warm_eni_target * slots or 1


def over(held: stock.Stock, settings: knobs.Settings) -> int:
    """How many addresses can be given back; whole interfaces are never thinned out (WARM_ENI_TARGET)."""
    if not by_addresses(settings):
        return 0
    warm, least = settings.warm_ip_target, settings.minimum_ip_target
    return max(min(held.rested - held.waiting - warm, held.total - least), 0)


def over_prefixes(held: stock.Stock, settings: knobs.Settings, rested: int) -> int:
    """How many of the `rested` free prefixes can be given back, so that nothing is missing after.

    Cooling addresses are not ready (upstream counts them, and gives back what it then lacks).
    """
    idle = held.ready - held.waiting
    if by_addresses(settings):
        spare = min(idle - settings.warm_ip_target, held.total - settings.minimum_ip_target)
        return max(min(rested, spare // stock.PREFIX_SIZE), 0)
    keep = settings.warm_prefix_target
    spare = (idle - max(keep * stock.PREFIX_SIZE, 1)) // stock.PREFIX_SIZE
    return max(min(rested, held.free_prefixes - keep, spare), 0)
