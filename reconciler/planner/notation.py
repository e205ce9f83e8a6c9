"""Nouns and verbs written down as JSON and read back: for an intent's row and for the cloud's pipe.

A dataclass becomes an object that carries its name under `is`, a tuple a list; reading turns every
list into a tuple, because none of our values holds a list. An intent keeps the verb's name as its operation and the
verb's fields as its arguments. Where the text is kept or sent does not belong here.
"""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any, Final, get_args

from ledger import model
from reconciler.planner import actions

_NAME: Final = "is"


def _dataclasses_of(module: ModuleType) -> dict[str, type[Any]]:
    return {
        name: thing
        for name, thing in vars(module).items()
        if isinstance(thing, type) and dataclasses.is_dataclass(thing)
    }


_WRITTEN: Final = _dataclasses_of(model) | _dataclasses_of(actions)
_CLOUD_VERBS: Final = {verb.__name__: verb for verb in get_args(actions.CloudAction)}


def written(value: object) -> Any:
    """The value in JSON's types: dict, list, str, int, float, bool, None. TypeError for others."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: written(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {_NAME: type(value).__name__} | fields
    if isinstance(value, tuple | list):
        return [written(each) for each in value]
    if isinstance(value, dict):
        return {key: written(each) for key, each in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{type(value).__name__} is not a noun, a verb or plain data")


def read(value: Any) -> Any:
    """What `written` was given, with tuples for lists. KeyError for a name that is no noun or verb."""
    if isinstance(value, list):
        return tuple(read(each) for each in value)
    if isinstance(value, dict):
        fields = {key: read(each) for key, each in value.items() if key != _NAME}
        return _WRITTEN[value[_NAME]](**fields) if _NAME in value else fields
    return value


def action(intent: model.Intent) -> actions.CloudAction:
    """The verb that the intent's row was written from. KeyError for an operation that is no verb."""
    fields = {name: read(value) for name, value in intent.arguments.items()}
    made: actions.CloudAction = _CLOUD_VERBS[intent.operation](**fields)
    return made
