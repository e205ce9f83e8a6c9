"""`vpcledger whatif` on the command line: what is asked, and how the answer is printed.

What the answer is belongs to whatif.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ledger import database, reads
from reconciler import errors, parse
from reconciler import settings as knobs
from reconciler.planner import limits

MOST_PODS: Final = 2000
"""More than `whatif` is asked for: the type that carries most addresses has room for 1512 pods."""

if TYPE_CHECKING:
    from reconciler import ideal, whatif

Show = Callable[[Sequence[Mapping[str, Any]], bool], None]


def add_parser(commands: Any, show: Show) -> None:
    """Add the command; `show` prints rows as JSON or as a table."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "whatif", help="what a node would hold under other settings; asks nobody"
    )
    parser.add_argument("--instance-type", type=_type, metavar="TYPE")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--pods", type=_counts, metavar="N[,N...]", help="numbers of pods, as 0,5,9")
    asked.add_argument(
        "--recorded", action="store_true", help="the pods that a ledger remembers, when they came"
    )
    parser.add_argument("--hours", type=int, default=0, help="only those of the last hours")
    parser.add_argument("--ledger", type=Path, help="a ledger file (default: this node's)")
    parser.add_argument(
        "--set",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting that differs from this environment's; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=lambda arguments, settings, _: _whatif(arguments, settings, show))


def _type(name: str) -> limits.Limits:
    found = limits.lookup(name)
    if found is None:
        raise argparse.ArgumentTypeError(f"{name} is not in the table of instance types")
    return found


def _counts(text: str) -> list[int]:
    counts = [int(each) if each.isascii() and each.isdigit() else -1 for each in text.split(",")]
    if not all(0 <= count <= MOST_PODS for count in counts):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of whole numbers up to {MOST_PODS}, such as 0,5,9"
        )
    return counts


def _setting(text: str) -> tuple[str, str]:
    """NAME=VALUE of a knob that can take it; unlike the daemon's start, none is replaced silently."""
    name, _, value = text.partition("=")
    each = next((k for k in knobs.knobs() if k.metadata["env"] == name), None)
    if each is None:
        raise argparse.ArgumentTypeError(f"{name!r} is no setting; `show settings` lists them")
    try:
        each.metadata["parse"](value)
    except parse.Invalid as bad:
        raise argparse.ArgumentTypeError(f"{name}={value!r} is not {bad}") from None
    return name, value


def _whatif(arguments: argparse.Namespace, own: knobs.Settings, show: Show) -> int:
    from reconciler import whatif

    settings, _readings = knobs.load({**os.environ, **dict(arguments.set)})
    if arguments.recorded:
        return _whatif_recorded(arguments, settings, own, show)
    if arguments.instance_type is None:
        raise errors.Refused("bad_setting", "--pods needs --instance-type, such as m5.large")
    found = whatif.forecast(settings, arguments.instance_type, arguments.pods)
    if arguments.json:
        show([dataclasses.asdict(each) for each in found], True)
    else:
        show([_forecast_row(each) for each in found], False)
    return 0


def _whatif_recorded(
    arguments: argparse.Namespace, settings: knobs.Settings, own: knobs.Settings, show: Show
) -> int:
    from reconciler import daemon, whatif

    since = daemon.clock() - arguments.hours * 3_600_000 if arguments.hours else 0
    path = arguments.ledger or Path(own.ledger_path)
    with database.Ledger.open(path, read_only=True) as book, book.read() as tx:
        node, demand = reads.node(tx), reads.demand(tx, since)
    limit = arguments.instance_type or (limits.lookup(node.instance_type) if node else None)
    if limit is None:
        raise errors.Refused("bad_setting", "the ledger does not know its type: --instance-type")
    found = whatif.replay(settings, limit, [whatif.Demand(*each) for each in demand])
    row = dataclasses.asdict(found)
    if not arguments.json:
        row["ec2_calls"] = sum(found.ec2_calls.values())
    show([row], arguments.json)
    return 0


def _forecast_row(each: whatif.Forecast) -> dict[str, Any]:
    held = [eni.addresses for eni in each.enis]
    return {
        "pods": each.pods,
        "interfaces": len(held),
        "addresses": sum(held),
        "on each": " ".join(map(_held, each.enis)),
        "free": sum(held) - each.pods + each.waiting,
        "waiting": each.waiting,
        "EC2 calls": sum(each.ec2_calls.values()),
    }


def _held(eni: ideal.Held) -> str:
    """Such as 9, 2x16 or 3+2x16: single addresses and prefixes."""
    parts = [str(eni.ips)] if eni.ips or not eni.prefixes else []
    return "+".join([*parts, *([f"{eni.prefixes}x16"] if eni.prefixes else [])])
