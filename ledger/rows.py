"""From rows to nouns and back: which columns make a noun, in the order of its fields.

Which rows are wanted does not belong here.
"""

from __future__ import annotations

import json
from dataclasses import fields
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, literal_column

from ledger import model, schema
from ledger.database import Row

LEASE: tuple[ColumnElement[Any], ...] = tuple(
    schema.leases.c[field.name] for field in fields(model.Lease)
)
ENI: tuple[ColumnElement[Any], ...] = tuple(
    schema.enis.c["is_primary" if field.name == "primary" else field.name]
    for field in fields(model.Eni)
)
PREFIX: tuple[ColumnElement[Any], ...] = tuple(
    schema.prefixes.c[field.name] for field in fields(model.Prefix)
)
ADDRESS: tuple[ColumnElement[Any], ...] = tuple(
    schema.addresses.c[field.name] for field in fields(model.Address) if field.name != "leased"
)
# Code and text: the planner needs both, for a full subnet hides in InvalidParameterValue.
_ERROR: ColumnElement[Any] = literal_column(
    "CASE error_code WHEN '' THEN '' ELSE error_code || ': ' || error_text END"
)
INTENT: tuple[ColumnElement[Any], ...] = tuple(
    _ERROR if field.name == "error" else schema.intents.c[field.name]
    for field in fields(model.Intent)
)
INSTALLED: tuple[ColumnElement[Any], ...] = tuple(
    schema.installed.c[name] for name in ("id", "owner_kind", "owner", "state", "kind", "spec")
)
NODE: tuple[ColumnElement[Any], ...] = tuple(
    schema.node.c[field.name] for field in fields(model.Node)
)

_KINDS: dict[str, type[model.KernelObject]] = {
    "link": model.Link,
    "address": model.InterfaceAddress,
    "route": model.Route,
    "rule": model.Rule,
    "neighbour": model.Neighbour,
    "sysctl": model.Sysctl,
}
_FIELDS = {kind: tuple(field.name for field in fields(kind)) for kind in _KINDS.values()}
_encode = json.JSONEncoder(separators=(",", ":")).encode


def lease(row: Row) -> model.Lease:
    """Of a row of LEASE, whose last column is a flag."""
    values = (*row[:-1], bool(row[-1]))
    return model.Lease(*values)


@lru_cache(maxsize=64)
def eni(row: Row) -> model.Eni:
    """Of a row of ENI; kept, because each addition reads the same one."""
    values = dict(zip(_FIELDS_OF_ENI, row, strict=True))
    for name in ("primary", "managed", "delete_on_termination"):
        values[name] = bool(values[name])
    return model.Eni(**values)


def address(row: Row) -> model.Address:
    """Of a row of ADDRESS followed by whether an open lease holds it."""
    values = dict(zip(_FIELDS_OF_ADDRESS, row, strict=True))
    return model.Address(**values | {"leased": bool(values["leased"])})


def intent(row: Row) -> model.Intent:
    """Of a row of INTENT."""
    values = dict(zip(_FIELDS_OF_INTENT, row, strict=True))
    values["arguments"] = json.loads(values["arguments"])
    return model.Intent(**values)


def node(row: Row) -> model.Node:
    """Of a row of NODE."""
    values = dict(zip(_FIELDS_OF_NODE, row, strict=True))
    for name in ("vpc_cidrs", "security_groups"):
        values[name] = tuple(json.loads(values[name]))
    return model.Node(**values)


def installed(row: Row) -> model.Installed:
    """Of a row of INSTALLED."""
    number, owner_kind, owner, state, kind, spec = row
    return model.Installed(number, owner_kind, owner, thing(kind, spec), state)


@lru_cache(maxsize=8192)
def thing(kind: str, spec: str) -> model.KernelObject:
    """A kernel object from its row; kept, because a tick reads thousands that did not change."""
    return _KINDS[kind](**json.loads(spec))


def keep(there: int) -> None:
    """So many objects there are: what is kept beyond twice that many is of pods that have gone."""
    if thing.cache_info().currsize > 2 * there + _KEPT_AT_LEAST:
        thing.cache_clear()


def spec(thing: model.KernelObject) -> str:
    """The whole of a kernel object as JSON."""
    return _encode({name: getattr(thing, name) for name in _FIELDS[type(thing)]})


def place(thing: model.KernelObject, owner: str) -> str:
    """Where a kernel object is: equal keys in two pods are two objects."""
    return f"pod:{owner}" if getattr(thing, "where", "host") == "pod" else "host"


_KEPT_AT_LEAST = 256
_FIELDS_OF_ENI = tuple(field.name for field in fields(model.Eni))
_FIELDS_OF_INTENT = tuple(field.name for field in fields(model.Intent))
_FIELDS_OF_NODE = tuple(field.name for field in fields(model.Node))
_FIELDS_OF_ADDRESS = tuple(field.name for field in fields(model.Address))
