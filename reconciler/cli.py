"""The command line: the daemon, what is done to a node, and questions to a ledger, live or copied.

Questions open the file read-only and never disturb the daemon. Each has `--json`; a table otherwise.
What the answers mean is documented in deploy/docs; how they are found is the ledger's business.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ledger import database, integrity, migrate, model, reads
from reconciler import check_pod, cli_audit, cli_takeover, cli_whatif, errors
from reconciler import settings as knobs
from reconciler.planner import actions


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 1 if it could not be carried out, 2 for wrong usage."""
    arguments = _parser().parse_args(argv)
    try:
        settings, readings = knobs.load(os.environ)
        status: int = arguments.run(arguments, settings, readings)
    except (errors.VpcledgerError, database.LedgerError, migrate.MigrationError) as refused:
        print(f"vpcledger: {refused}", file=sys.stderr)
        return 1
    except database.Failure as failed:
        print(
            f"vpcledger: the ledger or its disk says: {failed}; see that there is room on the disk, then"
            " ask vpcledger integrity",
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as failed:
        print(
            f"vpcledger: {failed}; check the folder's permissions and the settings", file=sys.stderr
        )
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vpcledger", description="Pod addresses on AWS, remembered by a ledger."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    daemon = commands.add_parser("daemon", help="serve this node until SIGTERM")
    daemon.set_defaults(run=_daemon)
    install = commands.add_parser("install", help="put the launcher on the host (as root)")
    install.set_defaults(run=_install)

    show = _question(commands, "show", "print a table of the ledger", _show)
    show.add_argument("what", nargs="?", choices=tuple(reads.TABLES), default="leases")
    plan = _question(commands, "plan", "what the reconciler would do now; does nothing", _plan)
    plan.add_argument("--offline", action="store_true", help="do not look at this machine's kernel")
    explain = _question(commands, "explain", "all that is known of one thing", _explain)
    explain.add_argument("kind", choices=("pod", "ip", "eni"))
    explain.add_argument("name", help="namespace/name or container id; address; interface id")
    sql = _question(commands, "sql", "ask the ledger in SQL, read-only", _sql)
    sql.add_argument("statement", help="one SELECT; the public views start with v_")
    sql.add_argument("--limit", type=int, default=1000, help="most rows to print")
    sound = _question(commands, "integrity", "is the ledger's file sound", _integrity)
    sound.add_argument("--quick", action="store_true", help="pages only")
    backup = commands.add_parser(
        "backup", help="copy the ledger into one file, also while it is written"
    )
    backup.add_argument("to", type=Path, metavar="FILE", help="the copy; replaced when it is whole")
    backup.add_argument("--ledger", type=Path, help="a ledger file (default: this node's)")
    backup.set_defaults(run=_backup)
    downgrade = commands.add_parser(
        "downgrade", help="take the ledger down to an older program's schema; the daemon is stopped"
    )
    downgrade.add_argument("revision", help="that program's newest schema, as its refusal names it")
    downgrade.add_argument("--ledger", type=Path, help="a ledger file (default: this node's)")
    downgrade.set_defaults(run=_downgrade)
    check_pod.add_parser(commands, _print)
    cli_audit.add_parser(commands, _print)
    cli_whatif.add_parser(commands, _print)
    cli_takeover.add_parsers(commands, _print)
    return parser


def _question(commands: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text)
    parser.add_argument("--ledger", type=Path, help="a ledger file (default: this node's)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def _open(arguments: argparse.Namespace, settings: knobs.Settings) -> database.Ledger:
    path = arguments.ledger or Path(settings.ledger_path)
    return database.Ledger.open(path, read_only=True)


# --------------------------------------------------------------------------- commands


def _daemon(
    _: argparse.Namespace, settings: knobs.Settings, readings: Sequence[knobs.Reading]
) -> int:
    from reconciler import daemon

    return daemon.run(settings, readings)


def _install(_: argparse.Namespace, settings: knobs.Settings, __: object) -> int:
    from reconciler import install, process

    process.prepare_folders(settings)
    for line in install.launcher(settings):
        print(line)
    return 0


def _show(arguments: argparse.Namespace, settings: knobs.Settings, _: object) -> int:
    with _open(arguments, settings) as book, book.read() as tx:
        _print(reads.show(tx, arguments.what), arguments.json)
    return 0


def _sql(arguments: argparse.Namespace, settings: knobs.Settings, _: object) -> int:
    with _open(arguments, settings) as book, book.read() as tx:
        _print(reads.query(tx, arguments.statement, limit=arguments.limit), arguments.json)
    return 0


def _integrity(arguments: argparse.Namespace, settings: knobs.Settings, _: object) -> int:
    path = arguments.ledger or Path(settings.ledger_path)
    found = integrity.quick_check(path) if arguments.quick else integrity.check(path)
    sound = found == integrity.SOUND
    if arguments.json:
        print(json.dumps({"sound": sound, "text": found}, indent=2))
    else:
        print(found)
    return 0 if sound else 1


def _backup(arguments: argparse.Namespace, settings: knobs.Settings, _: object) -> int:
    source = (arguments.ledger or Path(settings.ledger_path)).resolve()
    to = arguments.to.resolve()
    if to in {source.with_name(source.name + suffix) for suffix in integrity.FAMILY}:
        raise errors.Refused(
            "bad_setting", f"{arguments.to} is the ledger itself; name another file"
        )
    with database.Ledger.open(source, read_only=True) as book:
        book.backup(to)
    return 0


def _downgrade(arguments: argparse.Namespace, settings: knobs.Settings, _: object) -> int:
    path = arguments.ledger or Path(settings.ledger_path)
    copy = migrate.take_down(path, arguments.revision)
    print(
        f"{path} has schema {arguments.revision} now; a copy made before is {copy}"
        if copy
        else f"{path} has schema {arguments.revision} already"
    )
    return 0


def _explain(arguments: argparse.Namespace, settings: knobs.Settings, _: object) -> int:
    ask = {"pod": reads.explain_pod, "ip": reads.explain_address, "eni": reads.explain_eni}
    with _open(arguments, settings) as book, book.read() as tx:
        found = ask[arguments.kind](tx, arguments.name)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        for title, rows in found.items():
            if not rows:
                continue
            print(f"{title}:")
            _print(rows if isinstance(rows, list) else [rows], as_json=False)
    return 0 if any(found.values()) else 1


def _plan(arguments: argparse.Namespace, settings: knobs.Settings, _: object) -> int:
    from reconciler import daemon, host_loop
    from reconciler.planner import plan as planner

    now = daemon.clock()
    with _open(arguments, settings) as book, book.read() as tx:
        desired = reads.desired(tx, now)
    observed = model.Observed(
        cloud=model.Unknown("EC2 is asked by the daemon only", now),
        kernel=_look(desired, now, offline=arguments.offline),
    )
    plan = planner.plan(desired, observed, settings, now)
    tables: tuple[actions.NatAction, ...] = ()
    notes = plan.notes
    if not isinstance(observed.kernel, model.Unknown):
        tables, more = host_loop.outlook(desired, observed.kernel, settings)
        notes += more
    rows = [_action(action) | {"why": ""} for action in (*plan.kernel, *tables)]
    rows += [_action(step.action) | {"why": f"{step.lane}: {step.cause}"} for step in plan.cloud]
    if arguments.json:
        said = [dataclasses.asdict(note) for note in notes]
        print(json.dumps({"actions": rows, "notes": said}, indent=2))
        return 0
    _print(rows, as_json=False)
    for note in notes:
        print(f"note {note.code}: {note.text}")
    return 0


def _look(
    desired: model.Desired, now: int, *, offline: bool
) -> model.ObservedKernel | model.Unknown:
    """This machine's kernel, if this is the ledger's machine (its primary MAC is here)."""
    if offline:
        return model.Unknown("not asked (--offline)", now)
    from reconciler.providers import kernel

    observed = kernel.Kernel().observe()
    if isinstance(observed, model.Unknown) or desired.node is None:
        return observed
    if all(link.mac != desired.node.primary_mac for link in observed.links):
        return model.Unknown("this is not the ledger's node: no link has its primary MAC", now)
    return observed


def _action(action: object) -> dict[str, Any]:
    assert dataclasses.is_dataclass(action)
    if isinstance(action, actions.ReplaceTable):
        lines = action.table.text.splitlines()
        return {"action": "ReplaceTable", "arguments": {"text": lines}}
    thing = getattr(action, "thing", None)
    told = dataclasses.asdict(action if thing is None else thing)  # type: ignore[type-overload,arg-type,call-overload,unused-ignore] # a dataclass instance, not a class
    kind = "" if thing is None else f" {type(thing).__name__}"
    return {"action": type(action).__name__ + kind, "arguments": told}


# --------------------------------------------------------------------------- printing


def _print(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Rows as JSON, or as a table whose columns are as wide as their widest cell."""
    if as_json:
        print(json.dumps([dict(row) for row in rows], indent=2))
        return
    if not rows:
        print("(no rows)")
        return
    columns = list(rows[0])
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in (columns, *cells):
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


if __name__ == "__main__":
    sys.exit(main())
