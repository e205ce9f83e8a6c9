"""The schema documents itself: no table, view or column without its comment; the page follows."""

from __future__ import annotations

import pytest

from ledger import database, schema


@pytest.mark.parametrize("table", schema.metadata.sorted_tables, ids=lambda table: table.name)
def test_every_table_and_column_says_what_it_is(table: object) -> None:
    assert getattr(table, "comment", "")
    silent = [column.name for column in table.columns if not column.comment]  # type: ignore[attr-defined]  # a Table
    assert silent == []


@pytest.mark.parametrize("view", schema.VIEWS, ids=lambda view: view.name)
def test_every_view_has_the_columns_it_documents(
    view: schema.views.View, ledger: database.Ledger
) -> None:
    """In that order, each with a comment; and it can be read."""
    with ledger.read() as tx:
        columns = tx.dicts(f"SELECT name FROM pragma_table_info('{view.name}')", {})
        assert tx.dicts(f"SELECT * FROM {view.name}", {}) == []
    assert [column["name"] for column in columns] == [name for name, _, _ in view.columns]
    assert all(comment.strip() for _, _, comment in view.columns)
    assert view.name.startswith("v_")
    assert view.comment


def test_every_table_is_strict_and_every_public_name_a_view(ledger: database.Ledger) -> None:
    """A name that begins with v_ is a promise, so nothing else has one."""
    with ledger.read() as tx:
        tables = tx.dicts("SELECT name, type, strict FROM pragma_table_list", {})
    ours = {t["name"] for t in tables if t["type"] == "table" and t["strict"]}
    assert ours == set(schema.metadata.tables)
    assert {t["name"] for t in tables if t["type"] == "view"} == {v.name for v in schema.VIEWS}
    assert not any(name.startswith("v_") for name in ours)
