"""The schema as a page of the manual: every view and table with the comments they are written with.

What a table or view says about itself does not belong here.
"""

from __future__ import annotations

from ledger.schema import TRIGGERS, VIEWS, metadata

_VIEWS = """\
# The ledger's schema

The ledger is one SQLite file. Times are whole milliseconds since the Unix epoch, UTC, unless a column
says that it is text. [Questions in SQL](sql.md) shows them at work:

```sh
vpcledger sql "SELECT pod_namespace, pod_name, address FROM v_pods"
```

The first part is public: **the views keep their names and columns** from release to release, and new
columns come at the end. The tables in the second part may change with any release.
"""

_TABLES = """\
# Tables

Not public. Every table is STRICT, so that a text never stands where a number belongs.
"""

_RULES = """\
# Rules

What no writer can break, because the file itself refuses it: the indexes marked *unique* below, the
CHECKs of each table, and these rules between tables.

| rule | its refusal says |
|---|---|
"""


def render() -> str:
    """The page's text in Markdown."""
    parts = [_VIEWS]
    for view in VIEWS:
        rows = [(name, comment) for name, _, comment in view.columns]
        parts.append(_section(view.name, view.comment, rows))
    parts.append(_TABLES)
    for table in metadata.sorted_tables:
        columns = [(column.name, str(column.comment)) for column in table.columns]
        parts.append(_section(table.name, str(table.comment), columns))
    rules = [
        f"| `{rule.name}` | {rule.says.replace(chr(39) * 2, chr(39))} |\n" for rule in TRIGGERS
    ]
    parts.append(_RULES + "".join(rules))
    unique = sorted(
        f"| `{index.name}` | {table.name} ({', '.join(c.name for c in index.columns)})"
        f" where {index.dialect_options['sqlite']['where']} |\n"
        for table in metadata.tables.values()
        for index in table.indexes
        if index.unique and index.dialect_options["sqlite"]["where"] is not None
    )
    parts.append("| unique index | of |\n|---|---|\n" + "".join(unique))
    return "\n".join(parts)


def _section(name: str, comment: str, columns: list[tuple[str, str]]) -> str:
    rows = "".join(f"| `{column}` | {says} |\n" for column, says in columns)
    return f"## {name}\n\n{comment}\n\n| column | what it is |\n|---|---|\n{rows}"
