"""Structured logs: one JSON object a line, to a file that rotates, stdout or stderr.

Where upstream's agent logs, so does this one. What is worth a line is each module's own business; what
must be remembered goes to the ledger, not here.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import sys
from datetime import UTC, datetime
from pathlib import Path

ROTATE_BYTES, ROTATE_FILES = 100 * 1024 * 1024, 5


class JsonLines(logging.Formatter):
    """level, ts (ISO 8601, UTC), thread, caller, msg, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line for one record."""
        line = {
            "level": record.levelname.lower(),
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "lane": record.threadName,
            "caller": f"{record.name}:{record.lineno}",
            "msg": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def start(level: str, target: str) -> None:
    """Send all logging to `target`; if that file cannot be written, to stderr with a line that says so."""
    trouble = ""
    handler: logging.Handler
    try:
        handler = _handler(target)
    except OSError as error:
        handler, trouble = logging.StreamHandler(sys.stderr), str(error)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel({"fatal": "CRITICAL", "warn": "WARNING"}.get(level, level.upper()))
    for noisy in ("apscheduler", "botocore", "urllib3", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if trouble:
        root.warning("logging to stderr: %s could not be opened: %s", target, trouble)


def _handler(target: str) -> logging.Handler:
    if target in {"stdout", "stderr"}:
        return logging.StreamHandler(getattr(sys, target))
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    return logging.handlers.RotatingFileHandler(
        target, maxBytes=ROTATE_BYTES, backupCount=ROTATE_FILES - 1
    )
