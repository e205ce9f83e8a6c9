"""How many EC2 calls a thousand pods cost that come and go within a shift, beside the VPC CNI's on paper.

The daemon's own ledger, planner, loops and providers on the stories' stage: EC2 by its wire format, a
kernel on paper, a clock that is turned by hand. Every call is counted, those that only look as well. What
the VPC CNI would do is `paper`'s.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator

from reconciler import settings as knobs
from reconciler.planner import limits
from tests.bench import paper
from tests.bench.figures import Bench, Figure
from tests.bench.stopwatch import BenchError
from tests.stories import scene

TYPE = "m5.xlarge"
"""4 interfaces of 14 addresses for pods."""
PODS, QUICK = 1_000, 100
SHIFT_S = 8 * 3600
SETTINGS = {
    "WARM_ENI_TARGET=1": knobs.Settings(),
    "WARM_IP_TARGET=2, MINIMUM_IP_TARGET=10": knobs.Settings(
        warm_ip_target=2, minimum_ip_target=10
    ),
    "prefixes, WARM_PREFIX_TARGET=1": knobs.Settings(prefix_delegation=True, warm_prefix_target=1),
}
Events = list[tuple[float, str, bool]]


def story(pods: int, seed: int = 7) -> Events:
    """(second, pod, does it come?) in order: more at first than later, alone or by Deployments, most of them short-lived."""
    rng = random.Random(seed)
    events: Events = []
    made, at = 0, 0.0
    while made < pods:
        at += rng.expovariate(
            pods / SHIFT_S / 2.3 * (1 + 0.8 * math.sin(2 * math.pi * at / SHIFT_S))
        )
        for _ in range(min(rng.choice((1, 1, 1, 1, 2, 4, 6)), pods - made)):
            mean = 1500 if rng.random() < 0.15 else 240
            events += [
                (at, f"p{made}", True),
                (at + rng.expovariate(1 / mean) + 5, f"p{made}", False),
            ]
            made += 1
    return sorted(events)


def ours(events: Events, settings: knobs.Settings) -> Counter[str]:
    """The daemon's calls, by action; BenchError if a pod was not served or something is left."""
    with scene.resting(0, instance_type=TYPE, settings=settings) as node:
        before = Counter(node.calls())
        began = node.cloud.clock.now()
        for at, pod, comes in events:
            while (left := began + at - node.cloud.clock.now()) > 0:
                node.pass_(min(left, paper.PERIOD_S) if _waits(node) else left)
                node.runtime.reconcile()
            if comes:
                node.runtime.wanted[pod] = None
                node.runtime.try_all()
            else:
                if pod not in node.runtime.wanted:
                    raise BenchError(f"{pod} is unknown to the runtime")
                node.runtime.leave(pod)
        found = Counter(node.calls()) - before
        node.settle()
        open_ = node.machine.rows("SELECT count(*) AS n FROM v_pods")[0]["n"]
        if open_ or node.runtime.wanted:
            raise BenchError(f"{open_} leases are left after the last pod went")
        served = node.machine.rows(
            "SELECT count(DISTINCT pod_name) AS n FROM v_leases WHERE address <> ''"
        )[0]["n"]
        if served < len(events) // 2:
            raise BenchError(f"{served} of {len(events) // 2} pods were served")
    return found


def _waits(node: scene.Scene) -> bool:
    return any(box is None or box.state != "up" for box in node.runtime.wanted.values())


def ec2_calls(bench: Bench) -> Iterator[Figure]:
    """Ours against the VPC CNI's, summed over three settings that are in use."""
    pods = PODS if bench.n >= 300 else QUICK
    events = story(pods)
    limit = limits.lookup(TYPE)
    assert limit is not None
    us, them, said = 0, 0, []
    for name, settings in SETTINGS.items():
        mine = ours(events, settings)
        others = paper.calls(events, settings, limit, seed=7)
        us, them = us + mine.total(), them + others.total()
        said.append(f"{name}: {mine.total()} against {others.total()}")
    yield Figure("ec2_calls_vs_upstream", us / them, 0, 0, pods, "calls; " + "; ".join(said))
