"""One engine for every Describe: Filters with wildcards, and pages with MaxResults and NextToken.

A filter's name is looked up in the operation's alias table, which gives the path of the member in
wire shape; lists on the way are searched through. Values are compared as EC2 prints them.
Does not belong here: which filters an operation knows.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tests.lab import errors

if TYPE_CHECKING:
    from tests.lab.cloud import Cloud
    from tests.lab.store import Item

Paths = Mapping[str, str]

MOST_VALUES = 200
"""Filter values one request may carry (EC2: FilterLimitExceeded)."""


def select(items: list[Item], filters: Sequence[Item] | None, paths: Paths) -> list[Item]:
    """The items that match every filter; any one of a filter's values is enough.

    `paths` maps a filter's name to a dotted path; "tag" names the member that holds the tags.
    """
    if sum(len(each.get("Values") or []) for each in filters or []) > MOST_VALUES:
        raise errors.ApiError(
            "FilterLimitExceeded",
            f"The maximum number of filter values specified on a single call is {MOST_VALUES}",
        )
    for each in filters or []:
        name = each.get("Name", "null")
        values_of = _reader(name, paths)
        # Not verified against AWS: a filter without values matches nothing here.
        matches = _matcher(tuple(each.get("Values") or ()))
        items = [item for item in items if any(matches(found) for found in values_of(item))]
    return items


def _reader(name: str, paths: Paths) -> Callable[[Item], Iterator[str]]:
    tags = paths.get("tag")
    if tags is not None and name.startswith("tag:"):
        key = name.removeprefix("tag:")
        return lambda item: (tag["Value"] for tag in item.get(tags, ()) if tag["Key"] == key)
    if tags is not None and name in ("tag-key", "tag-value"):
        member = "Key" if name == "tag-key" else "Value"
        return lambda item: (tag[member] for tag in item.get(tags, ()))
    if name not in paths or name == "tag":
        raise errors.value(f"The filter '{name}' is invalid")
    steps = tuple(paths[name].split("."))
    return lambda item: _walk(item, steps)


def _walk(value: Any, steps: tuple[str, ...]) -> Iterator[str]:
    if isinstance(value, list):
        for inner in value:
            yield from _walk(inner, steps)
    elif not steps:
        if value is not None:
            yield printed(value)
    elif isinstance(value, dict) and steps[0] in value:
        yield from _walk(value[steps[0]], steps[1:])


def printed(value: Any) -> str:
    """A value as EC2's XML shows it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime.datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return str(value)


@functools.lru_cache(maxsize=1024)
def _matcher(values: tuple[str, ...]) -> Callable[[str], bool]:
    exact = {value for value in values if not re.search(r"[*?\\]", value)}
    patterns = [_pattern(value) for value in values if value not in exact]
    if not patterns:
        return exact.__contains__
    return lambda found: found in exact or any(each.fullmatch(found) for each in patterns)


def _pattern(value: str) -> re.Pattern[str]:
    r"""`*` is any run of characters, `?` any one, `\*`, `\?` and `\\` are themselves."""
    parts = re.findall(r"\\.|\\$|[^\\]", value, re.DOTALL)
    wild = {"*": ".*", "?": "."}
    return re.compile("".join(wild.get(part) or re.escape(part[-1]) for part in parts), re.DOTALL)


def page(
    cloud: Cloud,
    items: list[Item],
    params: Item,
    key: str | None,
    *,
    ids: Any = None,
    most: int = 1000,
    unpaged: int | None = None,
) -> tuple[list[Item], str | None]:
    """One page of `items` (oldest first) and the token of the next, or None.

    `key` is the member that holds an item's id (None: the list itself never changes); `ids` what the caller asked for by id, which EC2
    does not combine with MaxResults; `most` the largest MaxResults; `unpaged` the size of a page
    when none is asked for (None: all). A token names where the last page ended, so things created
    or deleted between two pages neither repeat nor hide others.
    """
    size = params.get("MaxResults")
    if size is not None:
        if ids:
            raise errors.combination(
                "The parameter MaxResults cannot be used with a list of ids in the same request"
            )
        if size < 5:
            raise errors.bad_value(
                size, "maxResults", "Expecting a value greater than or equal to 5."
            )
        if size > most:  # Not verified against AWS: some actions may cut the number instead.
            raise errors.bad_value(
                size, "maxResults", f"Expecting a value less than or equal to {most}."
            )
    start = _position(params.get("NextToken"))
    if key is None:
        rest = items[start:]
    else:
        rest = [item for item in items if cloud.birth(item[key]) > start] if start else items
    size = size or unpaged
    if size is None or len(rest) <= size:
        return rest, None
    last = start + size if key is None else cloud.birth(rest[size - 1][key])
    return rest[:size], base64.urlsafe_b64encode(f"after {last}".encode()).decode()


def _position(token: str | None) -> int:
    if not token:
        return 0
    try:
        word, number = base64.b64decode(token, altchars=b"-_", validate=True).decode().split(" ")
        if word != "after":
            raise ValueError(word)
        return int(number)
    except (ValueError, binascii.Error):
        # The reference lists InvalidNextToken and InvalidPaginationToken; which action answers
        # which is not verified against AWS.
        raise errors.ApiError(
            "InvalidNextToken", f"The specified token '{token}' is not valid."
        ) from None


def paged(member: str, shown: list[Item], token: str | None) -> Item:
    """A Describe's result: the list, and NextToken only when there is more."""
    return {member: shown} if token is None else {member: shown, "NextToken": token}
