"""Random values of EC2's shapes, drawn from botocore's model and not from the lab's own tables.

What is done with them does not belong here.
"""

from __future__ import annotations

import datetime as dt
import random
from typing import Any

from botocore.loaders import Loader
from botocore.model import ServiceModel, Shape

MODEL = ServiceModel(Loader().load_service_model("ec2", "service-2"))
TEXTS = (
    "",
    "eth0",
    " a b ",
    "<&>'\"]]>",
    "a\r\nb\tc",
    "x=1&y=2+%20",
    "ünï 漢字 \U0001f600",
    "1.2.3",
)


def draw(shape: Shape, rng: random.Random, depth: int = 0) -> Any:
    """Draw a value of `shape`; deeper values get smaller, so that recursive shapes end."""
    match shape.type_name:
        case "structure":
            required = set(shape.required_members)
            share = 0.5 if depth < 3 else 0.15
            return {
                name: draw(member, rng, depth + 1)
                for name, member in shape.members.items()
                if name in required or rng.random() < share
            }
        case "list":
            least = shape.metadata.get("min", 0)
            return [draw(shape.member, rng, depth + 1) for _ in range(rng.randint(least, 3))]
        case "string":
            least = shape.metadata.get("min", 0)
            return rng.choice(
                shape.enum or [text for text in TEXTS if len(text) >= least] or ["x" * least]
            )
        case "boolean":
            return rng.random() < 0.5
        case "integer" | "long":
            least, most = shape.metadata.get("min", -(2**31)), shape.metadata.get("max", 2**31 - 1)
            return rng.randint(least, max(most, least))
        case "float" | "double":
            least, most = shape.metadata.get("min", -1e300), shape.metadata.get("max", 1e300)
            return rng.choice(
                [x for x in (0.0, 1.5, -2.25, 1e-9, 0.1, 1e300) if least <= x <= most]
            )
        case "timestamp":
            moment = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
            return moment + dt.timedelta(milliseconds=rng.randrange(10**11))
        case "blob":
            return rng.randbytes(rng.randint(0, 9))
    raise AssertionError(f"EC2's model has a new kind of shape: {shape.type_name}")
