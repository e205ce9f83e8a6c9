"""One town for all tests of this room, in the mode a test asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import spaces
from tests.paths.town import SETTINGS, Town


@pytest.fixture(scope="session")
def the_town() -> Iterator[Town]:
    if not spaces.inside():
        pytest.skip(str(spaces.missing()))
    with Town() as town:
        yield town


@pytest.fixture(scope="session")
def mode(request: pytest.FixtureRequest) -> str:
    """The name of a mode of source translation; tests are ordered by it, so daemons rarely restart."""
    return str(getattr(request, "param", "prng"))


@pytest.fixture
def town(the_town: Town, mode: str, request: pytest.FixtureRequest) -> Iterator[Town]:
    """The town in that mode. A test that has lost packets on purpose says so by `forget`.

    One that is marked with a path has walked it, hop by hop.
    """
    the_town.mode(mode)
    the_town.forget()
    walked = the_town.walked
    yield the_town
    the_town.nothing_lost()
    if request.node.get_closest_marker("path"):
        assert the_town.walked > walked, "nothing was held against what was seen"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one mode follow each other, whatever file they are in: a change restarts two daemons."""
    here = Path(__file__).parent
    ours = [item for item in items if item.path.parent == here]
    items[:] = [item for item in items if item.path.parent != here] + sorted(ours, key=_mode_of)


def _mode_of(item: pytest.Item) -> int:
    call = getattr(item, "callspec", None)  # a test without parameters has none
    asked = call.params.get("mode") if call else None
    return list(SETTINGS).index(asked) if asked in SETTINGS else -1
