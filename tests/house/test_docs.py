"""The documents say what the code does: every public name is in them, every command in them exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ledger import database, migrate, reads
from tests.house import pages

TREE = Path(__file__).parents[2]
DOCS = TREE / "deploy" / "docs"
ROOT_DOCUMENTS = ("README.md", "ARCHITECTURE.md", "DECISIONS.md", "CONTRIBUTING.md", "CHANGELOG.md")
EVERY_DOCUMENT = [*(TREE / name for name in ROOT_DOCUMENTS), *sorted(DOCS.glob("*.md"))]


def text_of_docs() -> str:
    return "\n".join(path.read_text() for path in sorted(DOCS.glob("*.md")))


def makefile_targets() -> set[str]:
    text = (TREE / "Makefile").read_text()
    return set(re.findall(r"^([a-z]+):.*  ## ", text, re.MULTILINE))


def help_of(*command: str) -> str:
    """What `vpcledger [command] --help` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "reconciler.cli", *command, "--help"],
        cwd=TREE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands() -> list[str]:
    """The subcommands as `vpcledger --help` lists them."""
    listed = re.findall(r"^    ([a-z-]+)(?: +|\n +)[a-z]", help_of(), re.MULTILINE)
    assert listed, help_of()
    return listed


@pytest.mark.parametrize("name", sorted(pages.pages()))
def test_a_rendered_page_is_what_the_code_says(name: str) -> None:
    """Settings and reason codes change together with their pages: `make docs` renders them."""
    assert (DOCS / name).read_text() == pages.pages()[name]


def test_every_public_view_is_documented_with_every_column(tmp_path: Path) -> None:
    """A view is public API, so each has a heading of its own and each column a mention below it."""
    file = tmp_path / "ledger.db"
    migrate.bring_to_head(file)
    columns = (
        "SELECT v.name AS view, c.name AS name FROM sqlite_schema v, pragma_table_info(v.name) c"
        " WHERE v.type = 'view' AND v.name LIKE 'v~_%' ESCAPE '~'"
    )
    with database.Ledger.open(file, read_only=True) as ledger, ledger.read() as tx:
        found = reads.query(tx, columns, limit=1000)
    assert found
    text = text_of_docs()
    for row in found:
        section = re.search(
            rf"^#+ `?{row['view']}`?\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL
        )
        assert section, f"{row['view']} has no section in deploy/docs"
        assert f"`{row['name']}`" in section[1], f"{row['view']}.{row['name']} is not documented"


def test_every_command_is_documented() -> None:
    page = (DOCS / "commands.md").read_text()
    for command in commands():
        assert f"## vpcledger {command}" in page


def test_every_option_of_every_command_is_documented() -> None:
    page = (DOCS / "commands.md").read_text()
    for command in commands():
        section = page.split(f"## vpcledger {command}\n")[1].split("\n## ")[0]
        for option in set(re.findall(r"--[a-z][a-z-]+", help_of(command))) - {"--help"}:
            assert f"`{option}" in section, f"{command} {option} is not documented"


@pytest.mark.parametrize("path", EVERY_DOCUMENT, ids=lambda path: path.name)
def test_every_make_target_a_document_names_exists(path: Path) -> None:
    named = set(re.findall(r"(?:`|^ *)make ([a-z]+)", path.read_text(), re.MULTILINE))
    assert named <= makefile_targets()


@pytest.mark.parametrize("path", EVERY_DOCUMENT, ids=lambda path: path.name)
def test_every_vpcledger_command_a_document_names_exists(path: Path) -> None:
    named = set(re.findall(r"(?:`|^ *)vpcledger ([a-z-]+)", path.read_text(), re.MULTILINE))
    assert named <= set(commands())


@pytest.mark.parametrize("path", EVERY_DOCUMENT, ids=lambda path: path.name)
def test_every_link_within_the_repository_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", EVERY_DOCUMENT, ids=lambda path: path.name)
def test_no_document_names_a_path_of_somebodys_machine(path: Path) -> None:
    assert re.findall(r"(?<![\w.])/(?:home|root|work|Users|tmp)/\S*", path.read_text()) == []


def test_the_index_leads_to_every_page() -> None:
    index = (DOCS / "index.md").read_text()
    for page in DOCS.glob("*.md"):
        assert page.name == "index.md" or f"]({page.name})" in index, page.name


def test_the_two_commands_of_the_readme_are_the_ones_ci_runs() -> None:
    readme, ci = (TREE / "README.md").read_text(), (TREE / ".ci" / "run").read_text()
    for command in ("make lab", "make test", "make check"):
        assert command in readme
        assert command in ci
