"""Every test session runs in namespaces of its own (see `tests.lab.spaces`), so no test meets the host.

What does not belong here: fixtures of one room; they stand in that room.
"""

from __future__ import annotations

from tests.lab.spaces import pytest_cmdline_main

__all__ = ["pytest_cmdline_main"]
