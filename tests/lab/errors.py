"""EC2's refusals: one exception, and one constructor for each family of texts.

Codes and texts are those of the EC2 API reference ("Error codes for the Amazon EC2 API") or of
public bug reports; where neither names one, the place that raises it says so.
Does not belong here: deciding when to refuse.
"""

from __future__ import annotations


class ApiError(Exception):
    """What EC2 answers instead of a result: a code, a sentence, an HTTP status."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status
