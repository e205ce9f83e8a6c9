"""When somebody who gave no answer is asked again: after a pause that doubles until there is one.

What is asked, and what no answer means meanwhile, do not belong here.
"""

from __future__ import annotations

from dataclasses import dataclass

from ledger import model


@dataclass(slots=True)
class Pause:
    """`first` and `longest` in ms; `until` (ms since the epoch) is 0 while there were answers."""

    first: int
    longest: int
    until: int = 0
    _next: int = 0

    def heard(self, answer: object, now: int) -> None:
        """Keep in step with an answer, or with an Unknown in its place."""
        if isinstance(answer, model.Unknown):
            pause = self._next or self.first
            self.until, self._next = now + pause, min(pause * 2, self.longest)
        else:
            self.until = self._next = 0
