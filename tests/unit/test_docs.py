"""The docs say what the code says: generated parts are current, examples run, links resolve."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from netloader.fsm.reasons import Reason
from netloader.log_text import ADVICE

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LOOSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES = [
    *LOOSE,
    *sorted(DOCS.rglob("*.md")),
    *sorted((ROOT / "tests").rglob("README.md")),
]
LINK = re.compile(r"(?<!`)\]\(([^)\s]+)\)")


def run(code: str) -> str:
    """What a program prints that must end well, with every warning an error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def examples(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def test_generated_parts_are_fresh() -> None:
    script = DOCS / "generate.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_embedding_examples_run() -> None:
    blocks = examples(DOCS / "embed" / "guide.md")
    lines = [
        line
        for line in blocks[0].splitlines()
        if line.strip() and not line.startswith(("import", "from"))
    ]
    assert len(lines) <= 30
    said = run("\n".join(blocks))  # in the order of the page: later ones use earlier names
    assert "True verified" in said
    assert "unreachable" in said


def test_the_example_of_a_transport_is_used() -> None:
    """It is checked in tests/conformance."""
    source, _, use = examples(DOCS / "embed" / "transport.md")
    run(source + use)


def test_the_example_of_the_simulated_world_runs() -> None:
    run(examples(DOCS / "contribute" / "testing.md")[0])


@cache
def anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives the headings of a page."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.*?) *$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    """The relative links of a page that lead to no file, or to no heading of one."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found = []
    for link in LINK.findall(prose):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, fragment = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (fragment and fragment not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert not broken(page)


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# Two words, and `code`\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md) [b](there.md#two-words-and-code) [c](https://example.org/x.md)\n"
        "[d](gone.md) [e](there.md#gone) [f](#nowhere)\n```\n[g](in_code.md)\n```\n"
    )
    assert broken(page) == ["gone.md", "there.md#gone", "#nowhere"]


def test_files_that_name_a_page_name_one_that_exists() -> None:
    """Also in comments and docstrings, which are no links."""
    sources = [path for room in ("netloader", "tests") for path in (ROOT / room).rglob("*.py")]
    named = [
        (str(source.relative_to(ROOT)), page)
        for source in [*sources, ROOT / "Makefile", *PAGES]
        if source.name != "CHANGELOG.md"
        for page in re.findall(r"(?<![\w/])docs/[\w/-]+\.md", source.read_text())
    ]
    assert len(named) > 20
    assert [entry for entry in named if not (ROOT / entry[1]).exists()] == []


REPLACED = (
    *("errand", "wish", "shelf", "crew", "berth", "nursery", "siege", "survey"),
    *("goods", "shop", "vigil", "witness", "parcel", "outlet", "inlet", "intake"),
)
"""Words that the glossary has replaced."""


def defined() -> set[str]:
    """The names of every class and function of netloader."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    trees = [ast.parse(path.read_text()) for path in (ROOT / "netloader").rglob("*.py")]
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)}


def test_the_glossary_names_what_there_is() -> None:
    page = (DOCS / "glossary.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \|([^|]*)\|$", page, re.MULTILINE)
    named = {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}
    assert len(named) > 40
    assert named - defined() == set()


def spelled(word: str) -> dict[str, int]:
    """How often a word stands in the code, alone or in a name such as `_goods` or `WishList`."""
    pattern = re.compile(
        rf"(?<![a-z]){word}s?(?![a-z])|{word.capitalize()}s?(?![a-z])|{word.upper()}"
    )
    found = {}
    for path in (ROOT / "netloader").rglob("*.py"):
        if count := len(pattern.findall(path.read_text())):
            found[str(path.relative_to(ROOT))] = count
    return found


@pytest.mark.parametrize("word", REPLACED)
def test_a_word_that_was_replaced_is_gone(word: str) -> None:
    assert spelled(word) == {}


@pytest.mark.parametrize("reason", [reason.value for reason in Reason])
def test_every_reason_has_an_entry_of_the_runbook(reason: str) -> None:
    page = (DOCS / "operate" / "runbook.md").read_text()
    _, found, rest = page.partition(f"\n### {reason}\n")
    assert found
    entry = " ".join(re.split(r"\n##", rest)[0].split())

    assert [entry.count(f"* **{part}:** ") for part in ("See", "Means", "Do")] == [1, 1, 1]
    assert ADVICE.get(reason, "") in entry, "the line that the log shows"


def test_the_site_has_every_page_once() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    named = re.findall(r"([\w/-]+\.md)", nav)

    assert sorted(named) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
