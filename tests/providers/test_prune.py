"""The pruned EC2 model says the same as botocore's own, about less."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import Loader
from botocore.model import ServiceModel, Shape

from reconciler.providers import ec2, prune

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("prune") / "ec2_model"
    prune.build(made)
    return made


@pytest.fixture(scope="module")
def full() -> ServiceModel:
    return ServiceModel(Loader().load_service_model("ec2", "service-2"))


@pytest.fixture(scope="module")
def small(folder: Path) -> ServiceModel:
    return ServiceModel(
        Loader(extra_search_paths=[str(folder)]).load_service_model("ec2", "service-2")
    )


def described(shape: Shape | None, seen: tuple[str, ...] = ()) -> Any:
    """All that the serializer and the parser read of a shape, at any depth."""
    if shape is None:
        return None
    if shape.name in seen:
        return shape.name
    seen = (*seen, shape.name)
    facts: dict[str, Any] = {"name": shape.name, "type": shape.type_name}
    facts["serialization"], facts["metadata"] = dict(shape.serialization), dict(shape.metadata)
    if shape.type_name == "structure":
        facts["members"] = {k: described(v, seen) for k, v in shape.members.items()}
    elif shape.type_name == "list":
        facts["member"] = described(shape.member, seen)
    elif shape.type_name == "map":
        facts["pair"] = (described(shape.key, seen), described(shape.value, seen))
    return facts


@pytest.mark.parametrize("name", prune.OPERATIONS)
def test_an_operation_is_the_same_in_both_models(
    name: str, full: ServiceModel, small: ServiceModel
) -> None:
    """Input, output, HTTP binding and automatic tokens, down to the last member."""
    ours, theirs = small.operation_model(name), full.operation_model(name)
    for one, other in (
        (ours.input_shape, theirs.input_shape),
        (ours.output_shape, theirs.output_shape),
    ):
        assert described(one) == described(other)
    assert (dict(ours.http), ours.idempotent_members) == (
        dict(theirs.http),
        theirs.idempotent_members,
    )


def test_the_service_is_described_the_same(full: ServiceModel, small: ServiceModel) -> None:
    """Protocol, signature and API version; every operation kept and no other."""
    assert dict(full.metadata) == dict(small.metadata)
    assert sorted(prune.OPERATIONS) == sorted(small.operation_names)


def test_every_verb_is_among_the_operations() -> None:
    """A verb that was pruned away would fail on its first use."""
    assert set(ec2.ACTION.values()) <= set(prune.OPERATIONS)


def test_endpoints_are_those_of_botocore(folder: Path) -> None:
    """EC2 and STS in every partition, unchanged; the rest is dropped."""
    ours = json.loads((folder / "endpoints.json").read_text())
    theirs = Loader().load_data("endpoints")
    for one, other in zip(ours["partitions"], theirs["partitions"], strict=True):
        kept = {n: s for n, s in other["services"].items() if n in {"ec2", "sts"}}
        assert one == {**other, "services": kept}


def test_it_is_small_and_built_the_same_each_time(folder: Path, tmp_path: Path) -> None:
    """A tenth of the full model, byte for byte reproducible."""
    assert prune.build(tmp_path / "again") < 200_000
    for path in folder.rglob("*.json"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes()


WEIGH = """
import sys, pathlib
from ledger import model
from reconciler import settings
from reconciler.providers import ec2
ec2.MODEL = pathlib.Path(sys.argv[1])
node = model.Node("i-1", "m5.large", "eu-west-1", "a", "v", "s", "m", "p")
hands = ec2.Ec2(node, settings.Settings())
print(next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS")))
print(hands._client.meta.endpoint_url)
"""


def weighed(model_folder: Path) -> tuple[int, str, str]:
    """KB of a fresh process with a client on that model, its endpoint, and what it logged."""
    done = subprocess.run(
        [sys.executable, "-c", WEIGH, str(model_folder)],
        cwd=ROOT,
        env=os.environ | {"AWS_EC2_METADATA_DISABLED": "true"},
        capture_output=True,
        text=True,
        check=True,
    )
    size, url = done.stdout.split()
    return int(size), url, done.stderr


def test_the_pruned_model_saves_memory_and_the_full_one_is_the_fallback(
    folder: Path, tmp_path: Path
) -> None:
    """At least 15 MB less; without it the client works the same and the log says what to do."""
    pruned, url, said = weighed(folder)
    whole, full_url, warned = weighed(tmp_path / "absent")
    assert url == full_url == "https://ec2.eu-west-1.amazonaws.com"
    assert whole - pruned > 15_000, (whole, pruned)
    assert "no pruned EC2 model" in warned
    assert "no pruned EC2 model" not in said
