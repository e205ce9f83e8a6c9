"""`vpcledger shadow`, `handback` and `unchain` on the command line: from the VPC CNI to us and back.

What they do belongs to the modules of these names.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reconciler import errors
from reconciler import settings as knobs

if TYPE_CHECKING:
    from reconciler import shadow

Show = Callable[[Sequence[Mapping[str, Any]], bool], None]


def add_parsers(commands: Any, show: Show) -> None:
    """Add the commands; `show` prints rows as JSON or as a table."""
    shadow = commands.add_parser(
        "shadow", help="what a takeover of this node would do; does nothing"
    )
    shadow.add_argument(
        "--once", action="store_true", help="look once instead of until interrupted"
    )
    shadow.add_argument("--every", type=int, default=60, metavar="S", help="seconds between looks")
    shadow.add_argument("--json", action="store_true", help="print JSON, a line for each look")
    shadow.set_defaults(run=lambda arguments, settings, _: _shadow(arguments, settings, show))
    handback = commands.add_parser("handback", help="give this node back to the VPC CNI (as root)")
    handback.add_argument(
        "--finish", action="store_true", help="afterwards, with the VPC CNI running: clean up"
    )
    handback.set_defaults(run=_handback)
    unchain = commands.add_parser(
        "unchain", help="remove the VPC CNI's packet rules after a takeover (as root)"
    )
    unchain.add_argument("--look", action="store_true", help="only say what would be removed")
    unchain.set_defaults(run=_unchain)


def _shadow(arguments: argparse.Namespace, settings: knobs.Settings, show: Show) -> int:
    from reconciler import daemon, shadow

    eyes = shadow.Shadow(settings, daemon.clock)
    last = None
    try:
        while True:
            try:
                picture = eyes.look()
            except errors.TryLater as refused:
                if arguments.once:
                    raise
                print(f"vpcledger: {refused}", file=sys.stderr)
            else:
                if picture != last:
                    _print_shadow(picture, show, as_json=arguments.json)
                last = picture
            if arguments.once:
                return 1 if last is None else 0
            time.sleep(arguments.every)
    except KeyboardInterrupt:
        return 0
    finally:
        eyes.close()


def _print_shadow(picture: shadow.Picture, show: Show, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(picture)), flush=True)
        return
    marks = len(picture.steps) - len(picture.differences)
    print(f"{picture.leases} pods keep their addresses; {marks} objects would get our mark")
    for address in picture.unnamed:
        print(f"{address} is in use by a pod that no record names; it would be kept from others")
    for fault in picture.faults:
        print(f"unreadable: {fault}")
    if picture.differences:
        show([dataclasses.asdict(step) for step in picture.differences], False)
    else:
        print("nothing else would change")
    sys.stdout.flush()


def _unchain(arguments: argparse.Namespace, _: knobs.Settings, __: object) -> int:
    from reconciler import unchain

    for line in unchain.theirs(look=arguments.look):
        print(line)
    return 0


def _handback(arguments: argparse.Namespace, settings: knobs.Settings, _: object) -> int:
    from reconciler import daemon, handback

    done = handback.finish() if arguments.finish else handback.hand_back(settings, daemon.clock)
    for line in done:
        print(line, flush=True)
    return 0
