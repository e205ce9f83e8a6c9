"""How many addresses are missing and how many are too many: upstream's targets as plain sums.

WARM_IP_TARGET and MINIMUM_IP_TARGET count addresses; while both are 0, WARM_ENI_TARGET counts whole
interfaces. Pods that wait come on top of either. By which calls the numbers are reached does not belong
here.
"""

from __future__ import annotations

from reconciler import settings as knobs
from reconciler.planner import limits, stock


def most_enis(settings: knobs.Settings, limit: limits.Limits) -> int:
    """The most interfaces on the default card: MAX_ENI within the type's limit."""
    return limit.enis if settings.max_eni is None else min(settings.max_eni, limit.enis)


def by_addresses(settings: knobs.Settings) -> bool:
    """True if addresses are the target, false if whole interfaces are (WARM_ENI_TARGET)."""
    return settings.warm_ip_target > 0 or settings.minimum_ip_target > 0


def short(
    held: stock.Stock, settings: knobs.Settings, slots: int, max_pods: int | None = None
) -> int:
    """How many addresses are missing, pods that wait included; 0 if none.

    `max_pods` is the most pods the node may run (None: not known): no more addresses than that.
    """
    owned = held.total + held.coming
    if by_addresses(settings):
        missing = max(
            settings.warm_ip_target - held.spare, settings.minimum_ip_target - owned, held.unserved
        )
    else:
        missing = warm_enis(settings, slots) - held.spare
    allowed = missing if max_pods is None else max_pods - owned
    return max(min(missing, allowed), 0)


def warm_enis(settings: knobs.Settings, slots: int) -> int:
    """WARM_ENI_TARGET in addresses; 0 still keeps one, as upstream grows when none is left."""
    return settings.warm_eni_target * slots or 1


def over(held: stock.Stock, settings: knobs.Settings) -> int:
    """How many addresses can be given back; whole interfaces are never thinned out (WARM_ENI_TARGET)."""
    if not by_addresses(settings):
        return 0
    warm, least = settings.warm_ip_target, settings.minimum_ip_target
    return max(min(held.rested - held.waiting - warm, held.total - least), 0)
