"""`vpcledger audit` on the command line: do ledger, kernel, EC2 and runtime agree, and the way to a fix.

What an audit is belongs to the module of that name.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledger import database
from reconciler import errors
from reconciler import settings as knobs

if TYPE_CHECKING:
    from reconciler import audit

Show = Callable[[Sequence[Mapping[str, Any]], bool], None]


def add_parser(commands: Any, show: Show) -> None:
    """Add the command; `show` prints rows as JSON or as a table."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "audit", help="do ledger, kernel, EC2 and runtime agree? (as root)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON: a report, as --fix takes it"
    )
    parser.add_argument(
        "--fix",
        nargs="*",
        type=Path,
        metavar="REPORT",
        help="have the daemon mend what two such reports agree on",
    )
    parser.add_argument(
        "--wait", type=int, default=60, metavar="S", help="how long --fix waits for the end of it"
    )
    parser.set_defaults(run=lambda arguments, settings, _: _run(arguments, settings, show))


def _run(arguments: argparse.Namespace, settings: knobs.Settings, show: Show) -> int:
    """Report, 0 if it is clean; or fix, 0 if nothing of it is left. Refused if there is nothing to go by."""
    from reconciler import audit, daemon

    with database.Ledger.open(Path(settings.ledger_path), read_only=True) as book:

        def look() -> audit.Report:
            return audit.report(book, settings, daemon.clock)

        if arguments.fix is None:
            made = look()
            _print(made, show, as_json=arguments.json)
            return 0 if made.clean else 1
        agreed = audit.agreed(*_two(arguments.fix), daemon.clock())
        if not agreed:
            print("both reports are clean: there is nothing to fix")
            return 0
        audit.tell_daemon(settings)
        left = audit.await_end(agreed, look, arguments.wait)
    print(f"{len(agreed) - len(left)} of {len(agreed)} differences are mended")
    if left:
        show([_row(each) for each in left], arguments.json)
    return 1 if left else 0


def _two(paths: Sequence[Path]) -> tuple[audit.Report, audit.Report]:
    from reconciler import audit

    if len(paths) != 2:
        raise errors.Refused(
            "bad_request",
            f"a fix takes two reports, not {len(paths)}: `vpcledger audit --json > first`, the same into"
            f" another file {audit.APART_MS // 1000} s later, then `vpcledger audit --fix first second`",
        )
    try:
        first, second = (audit.read(json.loads(path.read_text())) for path in paths)
    except (OSError, ValueError) as bad:
        raise errors.Refused("bad_request", f"a report cannot be read: {bad}") from None
    return first, second


def _print(made: audit.Report, show: Show, *, as_json: bool) -> None:
    from reconciler import audit

    if as_json:
        print(json.dumps(audit.written(made), indent=2))
        return
    for who in made.silent:
        print(f"no answer of {who}")
    if made.differences:
        show([_row(each) for each in made.differences], False)
    elif made.clean:
        print("ledger, kernel, EC2 and runtime agree")


def _row(difference: Any) -> dict[str, str]:
    return {
        "kind": difference.kind,
        "subject": difference.subject,
        "text": difference.text,
    }
