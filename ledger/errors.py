"""What can be wrong with a ledger's file, named so that a caller can tell them apart.

Each carries a sentence that says what to do. sqlite3.Error, for a full or failing disk, is not wrapped.
What went wrong with EC2 or a request does not belong here.
"""

from __future__ import annotations

import errno
import sqlite3

_DISK_SAYS = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
)
_SYSTEM_SAYS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


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


def is_of_the_disk(error: BaseException | None) -> bool:
    """Is it, at bottom, a disk that takes no writes (full, failing, read-only), and not what was to be written?"""
    while error is not None:
        if isinstance(error, sqlite3.Error):
            # The low byte is the primary code (SQLite, "Result and Error Codes").
            return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DISK_SAYS
        if isinstance(error, OSError) and error.errno in _SYSTEM_SAYS:
            return True
        error = error.__cause__
    return False
