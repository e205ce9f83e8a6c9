"""A node with its daemon on the lab: fresh for each test, or one for all tests of a file.

What a test does with it does not belong here.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import spaces
from tests.lab.whole import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    """One instance, booted, its daemon not yet started."""
    with Lab(nodes=1, attach_delay=0.2, throttle=None) as whole:
        yield whole


@pytest.fixture(scope="module")
def served() -> Iterator[Lab]:
    """Two instances with running daemons, for tests that leave them as they were."""
    if not spaces.inside():
        pytest.skip(str(spaces.missing()))
    with Lab(nodes=2, attach_delay=0.1, throttle=None) as whole:
        whole.start()
        yield whole
