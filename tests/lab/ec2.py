"""`python -m tests.lab ec2`: EC2 and IMDS over HTTP on loopback, for anyone and without root.

Prints one line of JSON when it serves, and ends with exit code 0 on SIGTERM or SIGINT. Namespaces
and nodes do not belong here: `up` has them.
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
from collections.abc import Callable

from tests.lab import inproc, world
from tests.lab.clock import RealClock
from tests.lab.cloud import Cloud
from tests.lab.frontdoor import FrontDoor
from tests.lab.mounts import Loopback


def main(argv: list[str]) -> int:
    """Serve until told to end; return the exit code."""
    args = _parser().parse_args(argv)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    # Instances launched for the caller are there at once; those it launches take their time.
    cloud = Cloud(
        RealClock(),
        seed=args.seed,
        region=args.region,
        attach_delay=args.attach_delay,
        detach_delay=args.detach_delay,
        start_delay=0.0,
    )
    front = FrontDoor(cloud, throttle=None, seed=args.seed)
    built = world.build(inproc.client(front), instances=args.instances, instance_type=args.type)
    front.journal.clear()
    with cloud.lock:
        cloud.start_delay = args.start_delay
        cloud.api_lag, cloud.imds_lag = args.api_lag, args.imds_lag
        front.buckets.scale = None if args.no_throttle else args.throttle
    with Loopback.open(front, args.port) as mount:
        print(
            json.dumps(described(mount.endpoint, mount.imds, built, args.region, args.type)),
            flush=True,
        )
        ended.wait()
    return 0


def described(
    endpoint: str,
    imds: Callable[[str], str],
    built: world.World,
    region: str,
    instance_type: str,
) -> dict[str, object]:
    """Return what a client needs to know to use this lab."""
    return {
        "endpoint": endpoint,
        "region": region,
        "vpc": built.vpc,
        "subnets": built.subnets,
        "security_groups": built.security_groups,
        "instances": [
            {"id": instance, "type": instance_type, "imds": imds(instance)}
            for instance in built.instances
        ],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab ec2", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 lets the system pick (default)")
    parser.add_argument("--instances", type=int, default=2, metavar="N")
    parser.add_argument("--type", default="m5.large", help="instance type (default m5.large)")
    parser.add_argument("--region", default="eu-west-1")
    parser.add_argument("--seed", type=int, default=0, help="of ids, addresses and faults")
    for name, seconds, of in (
        ("start", 1.0, "an instance to be running"),
        ("attach", 1.5, "an interface to be attached"),
        ("detach", 1.5, "an interface to be detached"),
    ):
        parser.add_argument(
            f"--{name}-delay", type=float, default=seconds, metavar="S", help=f"seconds for {of}"
        )
    parser.add_argument("--api-lag", type=float, default=0.0, metavar="S")
    parser.add_argument("--imds-lag", type=float, default=0.0, metavar="S")
    parser.add_argument(
        "--throttle", type=float, default=1.0, metavar="X", help="times EC2's published buckets"
    )
    parser.add_argument("--no-throttle", action="store_true")
    return parser
