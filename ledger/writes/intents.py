"""What EC2 is asked for: planned before the call, sent with it, ended after it (decision 4).

Every one of these commits has to be durable: EC2 remembers what was asked also after a power cut.
What the call brought about does not belong here; see `cloud`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Literal

from sqlalchemy import Update, bindparam, insert, literal_column, update

from ledger import model, schema
from ledger.database import Statement, Write
from ledger.writes import journal

Lane = Literal["pod", "warm", "tidy"]

_intents = schema.intents
_OPEN_STATES = [schema.word(state) for state in ("planned", "sent", "unknown")]
_PLAN = Statement(
    insert(_intents),
    [column.name for column in _intents.c if column.name not in {"id", "sent_at", "ended_at"}],
)


def _becomes(state: str, **values: object) -> Statement:
    """An open intent moves to `state`; a column given as None is bound when it happens."""
    bound = {name: bindparam(name) if value is None else value for name, value in values.items()}
    changed: Update = (
        update(_intents)
        .where(_intents.c.id == bindparam("id"), _intents.c.state.in_(_OPEN_STATES))
        .values(state=schema.word(state), **bound)
    )
    return Statement(changed.returning(_intents.c.operation, _intents.c.subject))


_SENT = _becomes("sent", sent_at=None, attempts=_intents.c.attempts + literal_column("1"))
_DONE = _becomes(
    "done", ended_at=None, error_code=literal_column("''"), error_text=literal_column("''")
)
_FAILED = _becomes("failed", ended_at=None, error_code=None, error_text=None, retry_at=None)
_UNKNOWN = _becomes("unknown", error_code=None, error_text=None, retry_at=None)


def plan_intent(
    tx: Write,
    operation: str,
    subject: str,
    arguments: Mapping[str, object],
    lane: Lane,
    cause: str,
    now: int,
) -> model.Intent:
    """Write down a call about to be made, with the token EC2 knows it by (32 hex digits)."""
    tx.must_outlive_power()
    token = uuid.uuid4().hex
    made = tx.run(
        _PLAN,
        operation=operation,
        subject=subject,
        arguments=json.dumps(arguments),
        token=token,
        state="planned",
        cause=cause,
        lane=lane,
        created_at=now,
        retry_at=0,
        attempts=0,
        error_code="",
        error_text="",
    )
    number = made.lastrowid or 0
    journal.line(
        tx, now, "intent.planned", subject, f"{operation}: {cause}", intent_id=number,
        eni_id=_eni(subject),
    )  # fmt: skip
    return model.Intent(number, operation, subject, dict(arguments), "planned", token, cause, now)


def intent_sent(tx: Write, intent_id: int, now: int) -> None:
    """The call is about to leave: from this commit on it may have happened."""
    _move(tx, intent_id, now, "intent.sent", "", tx.one(_SENT, id=intent_id, sent_at=now))


def intent_done(tx: Write, intent_id: int, now: int) -> None:
    """EC2 has confirmed it, or an observation has shown its result."""
    _move(tx, intent_id, now, "intent.done", "", tx.one(_DONE, id=intent_id, ended_at=now))


def intent_failed(tx: Write, intent_id: int, code: str, text: str, retry_at: int, now: int) -> None:
    """EC2 has refused it. Another try is another intent, not before `retry_at`."""
    row = tx.one(
        _FAILED, id=intent_id, ended_at=now, error_code=code, error_text=text, retry_at=retry_at
    )
    _move(tx, intent_id, now, "intent.failed", f"{code}: {text}", row)


def intent_unknown(
    tx: Write, intent_id: int, code: str, text: str, retry_at: int, now: int
) -> None:
    """The reply was lost: it stays open until EC2 tells, who is not asked before `retry_at`."""
    row = tx.one(_UNKNOWN, id=intent_id, error_code=code, error_text=text, retry_at=retry_at)
    _move(tx, intent_id, now, "intent.unknown", f"{code}: {text}", row)


def _move(
    tx: Write, intent_id: int, now: int, kind: str, text: str, row: tuple[str, str] | None
) -> None:
    tx.must_outlive_power()
    if row is None:
        raise LookupError(f"intent {intent_id} is not open, so it cannot become {kind}")
    operation, subject = row
    journal.line(
        tx, now, kind, subject, f"{operation} {text}".rstrip(), intent_id=intent_id,
        eni_id=_eni(subject),
    )  # fmt: skip


def _eni(subject: str) -> str | None:
    return subject if subject.startswith("eni-") else None
