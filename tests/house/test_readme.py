"""The README's first screen shows the lab at work, in the lab's own words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.house import paste

README = (Path(__file__).parents[2] / "README.md").read_text()
DOCUMENT = "before\n<!-- lab: x -->\n```\nold\n```\n<!-- /lab -->\nafter\n"


def test_pasting_replaces_the_block_and_nothing_else() -> None:
    once = paste.paste(DOCUMENT, "new \\1 text\n")
    assert once == DOCUMENT.replace("old", "new \\1 text")
    assert paste.paste(once, "new \\1 text\n") == once


def test_pasting_leaves_out_colours_and_what_a_terminal_redraws() -> None:
    shown = "\x1b[32mok\x1b[0m\n10 pods\r40 pods  \n"
    assert "```\nok\n40 pods\n```" in paste.paste(DOCUMENT, shown)


def test_pasting_into_a_document_without_the_block_is_refused() -> None:
    with pytest.raises(ValueError, match="no block"):
        paste.paste("nothing here", "new")
