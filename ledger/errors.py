"""What can be wrong with a ledger's file, named so that a caller can tell them apart.

Each carries a sentence that says what to do. sqlite3.Error, for a full or failing disk, is not wrapped.
What went wrong with EC2 or a request does not belong here.
"""

from __future__ import annotations


class LedgerError(Exception):
    """The ledger cannot be used in this way; the sentence says why and what to do."""


class Locked(LedgerError):
    """Another process writes this ledger; the sentence names it."""


class NotALedger(LedgerError):
    """The file is missing, empty, damaged or something else."""


class WrongSchema(LedgerError):
    """The file's schema is not this program's."""


class NewerSchema(WrongSchema):
    """The file's schema is one this program has never heard of: it is left exactly as it is."""


class MigrationError(LedgerError):
    """A migration failed; the file is as it was, and a copy lies beside it."""
