"""Cuts botocore's EC2 model down to the calls we make: `python -m reconciler.providers.prune [FOLDER]`.

The full model costs a process 22 MB and 90 ms. A build writes the small one from the installed, locked
botocore next to ec2.py, which prefers it; it is in no commit. Endpoints keep EC2 and STS, whose
AssumeRoleWithWebIdentity gives credentials to a pod with a role of its own. Using the model does not
belong here.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

OPERATIONS: Final = (
    "AssignIpv6Addresses",
    "AssignPrivateIpAddresses",
    "AttachNetworkInterface",
    "CreateNetworkInterface",
    "CreateTags",
    "DeleteNetworkInterface",
    "DescribeInstanceTypes",
    "DescribeInstances",
    "DescribeNetworkInterfaces",
    "DescribeSecurityGroups",
    "DescribeSubnets",
    "DescribeTags",
    "DescribeVpcs",
    "DetachNetworkInterface",
    "ModifyNetworkInterfaceAttribute",
    "UnassignIpv6Addresses",
    "UnassignPrivateIpAddresses",
)
"""Every EC2 action a node's IAM policy names; one that is not here cannot be called."""

SERVICES: Final = frozenset({"ec2", "sts"})
FOLDER: Final = Path(__file__).with_name("ec2_model")

Json = dict[str, Any]


def build(folder: Path = FOLDER) -> int:
    """Write the small model into `folder`, replacing what is there; returns its size in bytes."""
    from botocore.loaders import Loader

    loader = Loader()
    version = loader.determine_latest_version("ec2", "service-2")
    shutil.rmtree(folder, ignore_errors=True)
    files = {
        folder / "ec2" / version / "service-2.json": service(
            loader.load_service_model("ec2", "service-2", version)
        ),
        folder / "endpoints.json": endpoints(loader.load_data("endpoints")),
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, separators=(",", ":")))
    return sum(path.stat().st_size for path in files)


def service(full: Json) -> Json:
    """The service model with OPERATIONS and the shapes they reach, without documentation."""
    operations = {name: full["operations"][name] for name in OPERATIONS}
    shapes = {name: full["shapes"][name] for name in _reached(full["shapes"], operations.values())}
    small: Json = _undocumented(
        {"version": full["version"], "metadata": full["metadata"]}
        | {"operations": operations, "shapes": dict(sorted(shapes.items()))}
    )
    return small


def endpoints(full: Json) -> Json:
    """The endpoint table with the services we sign for."""
    partitions = [
        partition | {"services": {n: s for n, s in partition["services"].items() if n in SERVICES}}
        for partition in full["partitions"]
    ]
    return full | {"partitions": partitions}


def _reached(shapes: Json, operations: Iterable[Json]) -> set[str]:
    """Names of the shapes that the operations' inputs, outputs and errors are made of."""
    found: set[str] = set()
    left = [name for operation in operations for name in _references(operation)]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += _references(shapes[name])
    return found


def _references(node: Any) -> Iterator[str]:
    """Every value under a key `shape`, at any depth."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "shape" and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for each in node:
            yield from _references(each)


def _undocumented(node: Any, *, names: bool = False) -> Any:
    """The tree without documentation; below `members` and the like, keys are names and all stay."""
    if isinstance(node, dict):
        return {
            key: _undocumented(value, names=not names and key in _NAMED)
            for key, value in node.items()
            if names or key != "documentation"
        }
    if isinstance(node, list):
        return [_undocumented(each) for each in node]
    return node


_NAMED: Final = frozenset({"operations", "shapes", "members"})


def main(argv: list[str]) -> int:
    """Build into the folder named first in `argv`, else beside this file."""
    folder = Path(argv[0]) if argv else FOLDER
    sys.stdout.write(f"{folder}: {build(folder) // 1024} KB\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
