"""EC2's wire format, read from botocore's own service model: query requests in, XML replies out.

A reply can only carry what the schema has: anything else raises `SchemaError`, so every reply is
true to the schema by construction. A request is held to the same schema and refused in EC2's
words. Source of the format: the `ec2` protocol as botocore speaks it (its EC2Serializer and
EC2QueryParser); of the codes: "Error codes for the Amazon EC2 API", client errors.
What an operation means, and whether it is allowed, does not belong here.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from botocore.loaders import Loader
from botocore.model import OperationModel, ServiceModel, Shape

from tests.lab.errors import ApiError

# AWS adds instance types faster than botocore is released, and EC2 answers an unknown one
# differently in every operation; so the wire lets any name pass.
OPEN_ENUMS = frozenset({"InstanceType"})

XML = '<?xml version="1.0" encoding="UTF-8"?>\n'

# What XML 1.0 cannot carry, not even escaped (XML 1.0, production 2: Char).
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Tree = dict[str, Any]  # dotted parameter names as a tree: segment -> text or Tree


class SchemaError(Exception):
    """A result does not fit the schema of its operation: a bug in the lab, never an answer."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a structure: its Python name and its two names on the wire."""

    name: str
    query: str
    tag: str
    type: Type


@dataclass(slots=True)
class Type:
    """A shape, compiled for both directions. Structures and lists may be recursive."""

    name: str
    kind: str
    members: dict[str, Member] = field(default_factory=dict)
    by_query: dict[str, Member] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    item: Type | None = None
    item_tag: str = ""
    enum: frozenset[str] = frozenset()
    least: int | None = None
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A call as a boto3 caller would have written it."""

    action: str
    params: dict[str, Any]


class Wire:
    """EC2's operations as botocore describes them; shapes are compiled when first used.

    Compiling the same shape in two threads at once is harmless: both make the same value.
    """

    def __init__(self, model: ServiceModel) -> None:
        self._model = model
        self._types: dict[str, Type] = {}

    @functools.cached_property
    def actions(self) -> frozenset[str]:
        """The names of all operations in the model."""
        return frozenset(self._model.operation_names)

    @functools.cached_property
    def version(self) -> str:
        """The API version requests must name."""
        return str(self._model.api_version)

    @functools.cached_property
    def namespace(self) -> str:
        """The XML namespace of every reply."""
        return str(self._model.metadata["xmlNamespace"])

    def parse(self, form: str) -> Request:
        """Read a form-encoded EC2 query. Raises ApiError with EC2's code."""
        tree = _tree(parse_qsl(form, keep_blank_values=True))
        action, version = tree.pop("Action", None), tree.pop("Version", None)
        if not isinstance(action, str) or not action:
            raise ApiError("MissingAction", "The request must contain the parameter Action")
        if action not in self.actions:
            raise ApiError(
                "InvalidAction", f"The action {action} is not valid for this web service."
            )
        # Every client sends the model's version; EC2 keeps old ones alive, the lab has one.
        if version != self.version:
            raise ApiError(
                "NoSuchVersion",
                f"The requested version ({version or ''}) of service AmazonEC2 does not exist",
            )
        operation: OperationModel = self._model.operation_model(action)
        # Every EC2 operation has an input shape: it holds at least DryRun.
        return Request(action, _read_structure(self._type(operation.input_shape), tree, ""))

    def render(self, action: str, result: Mapping[str, Any], request_id: str) -> bytes:
        """Write the reply of `action`. Raises SchemaError for what the schema does not have."""
        shape = self._model.operation_model(action).output_shape
        out = [
            XML,
            f'<{action}Response xmlns="{self.namespace}"><requestId>{request_id}</requestId>',
        ]
        if shape is not None:
            _write_structure(out, self._type(shape), result, action)
        elif result:
            raise SchemaError(f"{action} has no result, yet members {sorted(result)} were given")
        else:
            out.append("<return>true</return>")
        out.append(f"</{action}Response>")
        return "".join(out).encode()

    def _type(self, shape: Shape) -> Type:
        known = self._types.get(shape.name)
        if known is not None:
            return known
        made = Type(shape.name, shape.type_name)
        building: list[tuple[Type, Shape]] = [(made, shape)]
        fresh: dict[str, Type] = {shape.name: made}

        def link(to: Shape) -> Type:
            seen = self._types.get(to.name) or fresh.get(to.name)
            if seen is None:
                seen = fresh[to.name] = Type(to.name, to.type_name)
                building.append((seen, to))
            return seen

        while building:
            _compile(*building.pop(), link)
        # Published only when complete, so that no other thread sees a half-made type.
        self._types.update(fresh)
        return made


@functools.cache
def ec2() -> Wire:
    """Return the wire of the installed botocore's EC2; made once, since the model is large."""
    return Wire(ServiceModel(Loader().load_service_model("ec2", "service-2")))


def error(code: str, message: str, request_id: str) -> bytes:
    """Write EC2's error document."""
    return (
        f"{XML}<Response><Errors><Error><Code>{_text(code)}</Code><Message>{_text(message)}"
        f"</Message></Error></Errors><RequestID>{request_id}</RequestID></Response>"
    ).encode()


def _compile(made: Type, shape: Shape, link: Callable[[Shape], Type]) -> None:
    if made.kind == "structure":
        for name, member in shape.members.items():
            traits = member.serialization
            tag = traits.get("name", name)
            query = traits.get("queryName", tag[0].upper() + tag[1:])
            made.members[name] = made.by_query[query] = Member(name, query, tag, link(member))
        made.required = tuple(shape.required_members)
    elif made.kind == "list":
        made.item = link(shape.member)
        made.item_tag = shape.member.serialization.get("name", "member")
    elif made.kind == "string" and shape.name not in OPEN_ENUMS:
        made.enum = frozenset(shape.enum)
    elif made.kind in ("integer", "long"):
        made.least, made.most = shape.metadata.get("min"), shape.metadata.get("max")


# ---- requests ----------------------------------------------------------------------------------


def _tree(pairs: Iterable[tuple[str, str]]) -> Tree:
    root: Tree = {}
    for key, text in pairs:
        *path, leaf = key.split(".")
        at = root
        for segment in path:
            at = at.setdefault(segment, {})
            if not isinstance(at, dict):
                raise _unknown(key)
        if isinstance(at.get(leaf), dict):
            raise _unknown(key)
        at[leaf] = text
    return root


def _unknown(path: str) -> ApiError:
    return ApiError("UnknownParameter", f"The parameter {path} is not recognized")


def _invalid(path: str, text: str, why: str) -> ApiError:
    # EC2 words this differently from one operation to the next; the opening is the common part.
    return ApiError(
        "InvalidParameterValue", f"Value ({text}) for parameter {path} is invalid. {why}"
    )


def _read(kind: Type, node: str | Tree, path: str) -> Any:
    if kind.kind == "structure":
        if isinstance(node, str):
            raise _unknown(path)
        return _read_structure(kind, node, path + ".")
    if kind.kind == "list":
        if isinstance(node, str):
            raise _unknown(path)
        return _read_list(kind, node, path)
    if not isinstance(node, str):
        raise _unknown(f"{path}.{next(iter(node))}")
    return _SCALARS[kind.kind](kind, node, path)


def _read_structure(kind: Type, node: Tree, prefix: str) -> dict[str, Any]:
    read = {}
    for query, below in node.items():
        member = kind.by_query.get(query)
        if member is None:
            raise _unknown(prefix + query)
        read[member.name] = _read(member.type, below, prefix + query)
    for name in kind.required:
        if name not in read:
            missing = prefix + kind.members[name].query
            raise ApiError("MissingParameter", f"The request must contain the parameter {missing}")
    return read


def _read_list(kind: Type, node: Tree, path: str) -> list[Any]:
    assert kind.item is not None
    for index in node:
        if not (index.isascii() and index.isdigit() and index[0] != "0"):
            raise _unknown(f"{path}.{index}")
    return [_read(kind.item, node[i], f"{path}.{i}") for i in sorted(node, key=int)]


def _read_string(kind: Type, text: str, path: str) -> str:
    if kind.enum and text not in kind.enum:
        allowed = ", ".join(sorted(kind.enum))
        raise _invalid(path, text, f"Expected one of: {allowed}.")
    if _NOT_XML.search(text):
        raise ApiError(
            "InvalidParameterValue", f"Value for parameter {path} has characters XML cannot carry."
        )
    return text


def _read_integer(kind: Type, text: str, path: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,19}", text):
        raise _invalid(path, text, "Expected an integer.")
    number = int(text)
    if kind.least is not None and number < kind.least:
        raise _invalid(path, text, f"Expecting a value greater than or equal to {kind.least}.")
    if kind.most is not None and number > kind.most:
        raise _invalid(path, text, f"Expecting a value less than or equal to {kind.most}.")
    return number


def _read_float(kind: Type, text: str, path: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _invalid(path, text, "Expected a number.") from None


def _read_boolean(kind: Type, text: str, path: str) -> bool:
    if text not in ("true", "false"):
        raise _invalid(path, text, "Expected true or false.")
    return text == "true"


def _read_timestamp(kind: Type, text: str, path: str) -> dt.datetime:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise _invalid(path, text, "Expected a date and time in ISO 8601 format.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def _read_blob(kind: Type, text: str, path: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise _invalid(path, text, "Expected base64.") from None


_SCALARS: dict[str, Callable[[Type, str, str], Any]] = {
    "string": _read_string,
    "integer": _read_integer,
    "long": _read_integer,
    "float": _read_float,
    "double": _read_float,
    "boolean": _read_boolean,
    "timestamp": _read_timestamp,
    "blob": _read_blob,
}


# ---- replies -----------------------------------------------------------------------------------


def _write(out: list[str], kind: Type, value: Any, path: str) -> None:
    if kind.kind == "structure":
        _write_structure(out, kind, value, path)
    elif kind.kind == "list":
        if not isinstance(value, list | tuple):
            raise _misfit(path, kind, value)
        assert kind.item is not None
        for i, item in enumerate(value):
            out.append(f"<{kind.item_tag}>")
            _write(out, kind.item, item, f"{path}[{i}]")
            out.append(f"</{kind.item_tag}>")
    else:
        out.append(_scalar(kind, value, path))


def _write_structure(out: list[str], kind: Type, value: Any, path: str) -> None:
    if not isinstance(value, Mapping):
        raise _misfit(path, kind, value)
    for name, below in value.items():
        member = kind.members.get(name)
        if member is None:
            raise SchemaError(f"{path} ({kind.name}) has no member {name!r} in EC2's schema")
        out.append(f"<{member.tag}>")
        _write(out, member.type, below, f"{path}.{name}")
        out.append(f"</{member.tag}>")


def _scalar(kind: Type, value: Any, path: str) -> str:
    match kind.kind, value:
        case "string", str() if not kind.enum or value in kind.enum:
            if not _NOT_XML.search(value):
                return _text(value)
        case "boolean", bool():
            return "true" if value else "false"
        case (("integer" | "long"), int()) if not isinstance(value, bool):
            return str(value)
        case (("float" | "double"), int() | float()) if not isinstance(value, bool):
            return repr(float(value))
        case "timestamp", dt.datetime() if value.tzinfo is not None:
            # EC2 writes milliseconds and Z; what is finer is cut off.
            moment = value.astimezone(dt.UTC).replace(tzinfo=None)
            return moment.isoformat(timespec="milliseconds") + "Z"
        case "blob", bytes():
            return base64.b64encode(value).decode()
    raise _misfit(path, kind, value)


def _text(text: str) -> str:
    # A bare carriage return would be read back as a line feed (XML 1.0, 2.11).
    return escape(text, {"\r": "&#13;"})


def _misfit(path: str, kind: Type, value: Any) -> SchemaError:
    return SchemaError(f"{path} must be {kind.kind} {kind.name} in EC2's schema, not {value!r}")
