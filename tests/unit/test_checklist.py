"""docs/checklist.md names tests that exist, and leaves no number out."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAST = 63
ROW = re.compile(r"\|\s*(\d+)\s*\|(.*)\|(.*)\|\s*")
TEST = re.compile(r"`(tests/[^`]*)`")


def rows() -> Iterator[tuple[int, str, str]]:
    """Number, what must hold, and what shows it, of each row."""
    for line in (ROOT / "docs" / "checklist.md").read_text().splitlines():
        if found := ROW.fullmatch(line):
            yield int(found[1]), found[2].strip(), found[3].strip()


@cache
def functions_in(file: Path) -> frozenset[str]:
    """The test functions of a file, and the methods of its test classes."""
    tree = ast.parse(file.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


def test_every_number_is_there_once_and_in_order() -> None:
    assert [number for number, _, _ in rows()] == list(range(1, LAST + 1))


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: str(row[0]))
def test_a_row_says_what_must_hold_and_names_tests_or_a_reason(row: tuple[int, str, str]) -> None:
    _, holds, shown = row
    assert holds
    reason = TEST.sub("", shown).strip(" ,.;")
    assert TEST.findall(shown) or len(reason.split()) > 5


@pytest.mark.parametrize("name", sorted({n for row in rows() for n in TEST.findall(row[2])}))
def test_a_test_that_is_named_exists(name: str) -> None:
    path, _, function = name.partition("::")
    file = ROOT / path
    assert file.is_file(), f"{path} is gone; name the test that took over in docs/checklist.md"
    if not function:  # all of the file
        return
    assert function in functions_in(file), f"{path} has no {function}; was it renamed?"
