"""EC2 and instance metadata of the lab over HTTP, and the node they tell of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ledger import model
from reconciler.providers import imds
from tests.providers import ec2_lab
from tests.providers.ec2_lab import Ec2Lab


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ec2Lab]:
    ec2_lab.without_credentials(monkeypatch)
    with ec2_lab.opened() as opened:
        yield opened


@pytest.fixture
def node(lab: Ec2Lab) -> model.Node:
    seen = imds.Imds(lab.settings()).observe()
    assert not isinstance(seen, model.Unknown)
    return seen[0]
