"""`python -m tests.lab up`: a VPC with nodes and daemons that stays until SIGTERM, for other programs.

Its one line of JSON has what the outside needs: the EC2 endpoint on the host's loopback, and for each
node paths and pids as the outside knows them, and `enter`, the argv prefix that runs a program on it.
What happens in the VPC meanwhile does not belong here.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, NoReturn

from tests.lab import ec2, mounts, spaces
from tests.lab.node import Node, environment
from tests.lab.server import Server, loopback
from tests.lab.whole import Lab

_LISTENER = "VPCLEDGER_LAB_LISTENER"
_DIRECTORY = "VPCLEDGER_LAB_DIRECTORY"


def main(argv: list[str]) -> int:
    """Bring the lab up, say where, wait for SIGTERM or SIGINT; 0 after a clean end."""
    args = _parser().parse_args(argv)
    if not spaces.is_main():
        _go_inside(argv, args.port)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    listener = socket.socket(fileno=int(os.environ.pop(_LISTENER)))
    directory = Path(os.environ.pop(_DIRECTORY))
    with Lab(nodes=args.nodes, instance_type=args.type, seed=args.seed, directory=directory) as lab:
        outside = Server(listener, mounts.everything(lab.front, lab.imds))
        if not args.no_daemon:
            lab.start(**environment(os.environ))
        _say(described(lab, outside.url), as_json=args.json)
        ended.wait()
        outside.close()
    return 0


def _go_inside(argv: list[str], port: int) -> NoReturn:
    """Listen where the outside can reach us, then become a session; exits with 2 if that is barred.

    The lab's files lie where outside and inside see them under one name (SQLite follows no path
    through /proc/PID/root). A session of its own waits for ours to end, however it ends, and removes
    them: as root of the same users, for the daemons' files are not the caller's.
    """
    reason = spaces.forbidden()
    if reason:
        sys.stderr.write(f"{reason}\n")
        raise SystemExit(2)
    listener = loopback(port)
    directory = tempfile.mkdtemp(prefix="vpcledger-lab-")
    until_we_end, hold = os.pipe()
    undertaker = [sys.executable, "-m", "tests.lab.spaces", "--"]
    undertaker += ["sh", "-c", 'cat; rm -rf -- "$0"', directory]
    subprocess.Popen(
        undertaker, stdin=until_we_end, stdout=subprocess.DEVNULL, start_new_session=True
    )
    os.set_inheritable(hold, True)
    listener.set_inheritable(True)
    os.environ |= {_LISTENER: str(listener.fileno()), _DIRECTORY: directory}
    spaces.enter([sys.executable, "-m", "tests.lab", "up", *argv])


def described(lab: Lab, endpoint: str) -> dict[str, Any]:
    """What the JSON line says: all of `ec2`'s, and the nodes."""
    known = ec2.described(
        endpoint, lambda i: f"{endpoint}/imds/{i}/", lab.world, lab.cloud.region, lab.instance_type
    )
    return {**known, "nodes": [_node(node) for node in lab.nodes]}


def _node(node: Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "instance_id": node.instance,
        "netns": spaces.outer_path(node.netns.path),
        "ledger": str(node.ledger),
        "cni_bin_dir": str(node.bin),
        "cni_conf": str(node.conf / "10-aws.conflist"),
        "daemon_pid": spaces.outer_pid(node.daemon.pid) if node.daemon else None,
        "log": str(node.log),
        "enter": spaces.outer_enter(node.netns.path),
    }


def _say(what: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(what), flush=True)
        return
    print(f"EC2 at {what['endpoint']} (any credentials), region {what['region']}")
    for node in what["nodes"]:
        print(f"{node['name']}  {node['instance_id']}  daemon {node['daemon_pid']}")
        print(f"  ledger {node['ledger']}\n  enter  {' '.join(node['enter'])} bash")
    print("Ctrl-C ends it.", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab up", description=__doc__)
    parser.add_argument("--nodes", type=int, default=2, metavar="N")
    parser.add_argument("--type", default="m5.large", help="instance type (default m5.large)")
    parser.add_argument("--port", type=int, default=0, help="of EC2 on loopback; 0 picks one")
    parser.add_argument("--seed", type=int, default=0, help="of ids, addresses and faults")
    parser.add_argument("--no-daemon", action="store_true", help="nodes without the product")
    parser.add_argument("--json", action="store_true", help="say it as one line of JSON")
    return parser
