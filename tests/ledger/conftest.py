"""A new ledger for each test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger import database, migrate


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a ledger at head that nobody has open."""
    file = tmp_path / "ledger.db"
    assert migrate.bring_to_head(file) == "created"
    return file


@pytest.fixture
def ledger(path: Path) -> Iterator[database.Ledger]:
    """An empty ledger, open for writing."""
    with database.Ledger.open(path) as opened:
        yield opened
