"""`vpcledger check-pod`: the host's side of one pod, checked on this machine; the ledger says what to expect.

Everything can be said on the command line instead, so it judges pods of other CNIs too. Which checks there
are is host_checks', what the daemon does about drift is not here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ledger import database, model, reads
from reconciler import errors
from reconciler import settings as knobs
from reconciler.planner import host_checks

Print = Callable[[Sequence[dict[str, Any]], bool], None]


def add_parser(commands: Any, show: Print) -> None:
    """Add the command; `show` prints rows as JSON or as a table."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "check-pod", help="is a pod wired on this host as tools expect?"
    )
    parser.add_argument("pod", type=_pod, metavar="NAMESPACE/NAME")
    parser.add_argument("--gone", action="store_true", help="the pod was deleted: nothing is left")
    parser.add_argument("--ip", help="its address (default: what the ledger says)")
    parser.add_argument("--mtu", type=int, default=0, help="the MTU its link must have")
    parser.add_argument("--prefix", help="how its link's name begins (default: as configured)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--primary", action="store_const", const=False, dest="secondary", help="on the primary ENI"
    )
    where.add_argument(
        "--secondary", action="store_const", const=True, dest="secondary", help="on another ENI"
    )
    parser.add_argument("--ledger", type=Path, help="a ledger file (default: this node's)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=lambda arguments, settings, _: _run(arguments, settings, show))


def _pod(text: str) -> tuple[str, str]:
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise argparse.ArgumentTypeError(f"{text!r} is no namespace/name, such as default/web-1")
    return namespace, name


def _run(arguments: argparse.Namespace, settings: knobs.Settings, show: Print) -> int:
    """Check and print; 0 if all hold, else 1. Refused if nobody says what to look for."""
    from reconciler.providers import kernel

    pod = _expected(arguments, settings)
    seen = kernel.Kernel().observe()
    if isinstance(seen, model.Unknown):
        raise errors.TryLater("kernel_unreadable", seen.why)
    if arguments.gone:
        checks = host_checks.gone(pod, seen)
    else:
        checks = host_checks.standing(pod, seen) + host_checks.refutable(pod, seen)
    rows = [{"check": c.id, "ok": c.ok, "seen": c.text} for c in checks]
    if arguments.json:
        show(rows, True)
    else:
        show([row | {"ok": "yes" if row["ok"] else "NO"} for row in rows], False)
    return 0 if all(check.ok for check in checks) else 1


def _expected(arguments: argparse.Namespace, settings: knobs.Settings) -> host_checks.Pod:
    namespace, name = arguments.pod
    lease, eni = None, None
    path = arguments.ledger or Path(settings.ledger_path)
    if arguments.ip is None or arguments.ledger:
        with database.Ledger.open(path, read_only=True) as book, book.read() as tx:
            lease = reads.last_lease_of(tx, namespace, name)
            eni = reads.eni(tx, lease.eni_id) if lease is not None and lease.eni_id else None
    address = arguments.ip or (lease.address if lease is not None else None)
    if address is None:
        raise errors.Refused(
            "bad_request",
            f"the ledger knows no address of {namespace}/{name}: say --ip, or look for its name",
        )
    secondary = arguments.secondary
    if secondary is None and eni is not None and address == (lease.address if lease else None):
        secondary = not eni.primary
    prefix = arguments.prefix
    if prefix is None:
        named = lease.host_ifname[:-11] if lease is not None else ""
        prefix = named or settings.veth_prefix
    return host_checks.Pod(namespace, name, address, prefix, arguments.mtu, secondary)
