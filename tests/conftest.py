"""Every test session runs in namespaces of its own (see `tests.lab.spaces`), so no test meets the host.

The exception is a fidelity run against an endpoint elsewhere, which no namespace of ours can reach;
tests that need namespaces are then skipped. What does not belong here: fixtures of one room.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.lab import spaces

if TYPE_CHECKING:
    import pytest


def pytest_cmdline_main(config: pytest.Config) -> None:
    """Go inside, unless EC2 is outside."""
    elsewhere = os.environ.get("VPCLEDGER_FIDELITY_ENDPOINT")
    if not (config.getoption("--ec2-endpoint", None) or elsewhere):
        spaces.pytest_cmdline_main(config)
