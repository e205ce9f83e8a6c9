"""The few kinds of column and constraint that every table is written with.

A column always has its comment: it becomes the documentation. What a table is for does not belong here.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import CheckConstraint, Column, Integer, Text, literal_column
from sqlalchemy import text as sql


def text(name: str, comment: str, *more: Any, null: bool = False, key: bool = False) -> Column[str]:
    """Text, present unless `null`."""
    return Column(name, Text, *more, nullable=null, primary_key=key, comment=comment)


def number(
    name: str, comment: str, *more: Any, null: bool = False, key: bool = False
) -> Column[int]:
    """A whole number, present unless `null`."""
    return Column(name, Integer, *more, nullable=null, primary_key=key, comment=comment)


def moment(name: str, comment: str, *, null: bool = False) -> Column[int]:
    """Milliseconds since the Unix epoch, UTC."""
    return Column(name, Integer, nullable=null, comment=comment)


def flag(name: str, comment: str, *, usual: str | None = None) -> Column[int]:
    """0 or 1 (the CHECK is in the column, so that no table forgets it); `usual` if it is not said."""
    yes_or_no = CheckConstraint(f"{name} IN (0, 1)", name=f"{name}_is_yes_or_no")
    return Column(
        name,
        Integer,
        yes_or_no,
        nullable=False,
        server_default=None if usual is None else sql(usual),
        comment=comment,
    )


def one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    """The column holds one of these words, which are the model's Literal."""
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=f"{column}_is_known")


def word(value: str) -> Any:
    """A constant written into a statement's text, where a partial index can see it."""
    if not value.replace("_", "").isalnum():
        raise ValueError(f"{value!r} is not one of the schema's words")
    return literal_column(f"'{value}'")
