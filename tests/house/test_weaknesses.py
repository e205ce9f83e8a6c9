"""The page of weaknesses keeps its word: every number has a line, every test it names is there and runs."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
PAGE = TREE / "deploy" / "docs" / "weaknesses.md"
NUMBERS = [*(f"W{n}" for n in range(1, 48)), *(f"D{n}" for n in range(1, 32))]
WORDS = ("absent", "partly: ", "not built: ")


@dataclass(frozen=True, slots=True)
class Line:
    there: str
    here: str
    tests: tuple[str, ...]


def lines() -> dict[str, Line]:
    """The table by number; a number may stand there once."""
    found: dict[str, Line] = {}
    for number, *cells in re.findall(
        r"^\| ([WD]\d+) \| (.*?) \| (.*?) \| (.*?) ?\|$", PAGE.read_text(), re.MULTILINE
    ):
        assert number not in found, f"{number} stands there twice"
        found[number] = Line(cells[0], cells[1], tuple(re.findall(r"`([^`]+)`", cells[2])))
    return found


def functions(file: Path) -> dict[str, ast.FunctionDef]:
    """Test functions at a file's top level, which is where ours are."""
    body = ast.parse(file.read_text()).body
    return {each.name: each for each in body if isinstance(each, ast.FunctionDef)}


def is_left_out(function: ast.FunctionDef) -> bool:
    """Is it skipped or expected to fail, always?"""
    marks = {ast.unparse(each).partition("(")[0] for each in function.decorator_list}
    return bool(marks & {"pytest.mark.skip", "pytest.mark.xfail"})


def test_every_number_has_its_line() -> None:
    assert [*lines()] == NUMBERS


@pytest.mark.parametrize("number", NUMBERS)
def test_a_line_says_whether_it_is_shown_and_by_what(number: str) -> None:
    line = lines()[number]
    assert line.there.endswith(".")
    assert line.here == "absent" or line.here.startswith(WORDS[1:]), line.here
    assert bool(line.tests) != line.here.startswith("not built"), "shown, and by no test"


@pytest.mark.parametrize("number", NUMBERS)
def test_every_test_a_line_names_is_there_and_is_run(number: str) -> None:
    for named in lines()[number].tests:
        file, _, name = named.partition("::")
        assert name.startswith("test_"), named
        assert (TREE / file).is_file(), f"{file} is not there"
        function = functions(TREE / file).get(name)
        assert function is not None, f"{file} has no {name}"
        assert not is_left_out(function), f"{named} is left out"
