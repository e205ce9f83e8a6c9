"""The operator's side of the lab over HTTP: look at the state, turn dials, inject faults, count.

GET state · GET, POST, DELETE faults · GET, POST dials · GET, DELETE calls; JSON both ways. A
client of EC2 never needs any of it, and nothing EC2 has belongs here.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any
from urllib.parse import parse_qs

from tests.lab import accounting, faults
from tests.lab.frontdoor import FrontDoor
from tests.lab.reply import Reply, of_json

SECONDS = ("api_lag", "imds_lag", "attach_delay", "detach_delay", "start_delay", "stop_delay")


def answer(front: FrontDoor, method: str, path: str, query: str, body: bytes) -> Reply:
    """Answer one request; `path` is what follows /lab/. A bad one gets 400 and what is wrong."""
    asked = {name: values[-1] for name, values in parse_qs(query).items()}
    try:
        given = json.loads(body) if body else {}
        with front.cloud.lock:
            match method, path:
                case "GET", "state":
                    return of_json(state(front))
                case "GET", "dials":
                    return of_json(dials(front))
                case "POST", "dials":
                    return of_json(turn(front, given))
                case "GET", "faults":
                    return of_json(_faults(front))
                case "POST", "faults":
                    rules = given if isinstance(given, list) else [given]
                    front.faults.rules += [faults.read(rule) for rule in rules]
                    return of_json(_faults(front))
                case "DELETE", "faults":
                    front.faults.clear()
                    return of_json(_faults(front))
                case "GET", "calls":
                    return of_json(_calls(front, asked))
                case "DELETE", "calls":
                    front.journal.clear()
                    return of_json({})
    except (TypeError, ValueError) as error:
        return of_json({"error": str(error)}, 400)
    return of_json({"error": f"there is no {method} /lab/{path}"}, 404)


def dials(front: FrontDoor) -> dict[str, float | None]:
    """Return what can be turned: seconds of lag and delay, and the scale of the buckets."""
    seconds = {name: getattr(front.cloud, name) for name in SECONDS}
    return {**seconds, "throttle": front.buckets.scale}


def turn(front: FrontDoor, wanted: Any) -> dict[str, float | None]:
    """Turn dials; `throttle` is a scale, or null for off. Raises ValueError, turning none."""
    if not isinstance(wanted, dict):
        raise ValueError("dials are an object of names and numbers")
    for name, value in wanted.items():
        if name not in (*SECONDS, "throttle"):
            raise ValueError(f"there is no dial {name!r}; dials are {[*SECONDS, 'throttle']}")
        off = name == "throttle" and value is None
        if not off and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
            raise ValueError(f"dial {name} takes a number of 0 or more, not {value!r}")
    for name, value in wanted.items():
        if name == "throttle":
            front.buckets.scale = value
        else:
            setattr(front.cloud, name, float(value))
    return dials(front)


def state(front: FrontDoor) -> dict[str, Any]:
    """Return what is true now, whatever the lags: items in the shapes EC2 describes them in."""
    cloud = front.cloud
    cloud.run_due()
    return {
        "now": cloud.clock.now(),
        "region": cloud.region,
        "account": cloud.account,
        "dials": dials(front),
        "vpcs": cloud.scan("vpc"),
        "subnets": cloud.scan("subnet"),
        "security_groups": cloud.scan("group"),
        "instances": [cloud.instance(item["InstanceId"]) for item in cloud.scan("instance")],
        "network_interfaces": cloud.scan("interface"),
    }


def _faults(front: FrontDoor) -> list[dict[str, Any]]:
    return [dataclasses.asdict(rule) for rule in front.faults.rules]


def _calls(front: FrontDoor, asked: dict[str, str]) -> dict[str, Any]:
    rows = front.journal.rows(
        who=asked.get("who"), action=asked.get("action"), since=float(asked.get("since", 0))
    )
    return {"counts": accounting.counts(rows), "rows": [dataclasses.asdict(row) for row in rows]}
