"""What is said when something that must be true is not: which invariant, and what was seen.

Numbers are those of ARCHITECTURE.md; what has none there is named by a word. What is looked at does not
belong here.
"""

from __future__ import annotations


class Broken(AssertionError):
    """An invariant does not hold."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant


def check(invariant: str, holds: bool, what: str) -> None:
    """Raise Broken unless it holds."""
    if not holds:
        raise Broken(invariant, what)
