"""docs/protocol/states.md: what the tables say, or the check fails."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from netloader.fsm import client, render, server
from netloader.fsm.reasons import Reason
from netloader.fsm.render import FILE, hand_written, main, page, to_markdown, to_mermaid
from netloader.fsm.states import State
from netloader.fsm.table import Table, absorb

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A folder with a fresh page."""
    assert main([str(tmp_path)]) == 0
    return tmp_path


def test_the_page_in_the_repository_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)

    assert main(["--check", "docs/protocol"]) == 0
    assert main(["--check"]) == 0, "docs/protocol is the default"


def test_a_page_just_written_is_fresh(docs: Path) -> None:
    assert (docs / FILE).read_text() == page()
    assert main([str(docs), "--check"]) == 0


def test_a_stale_page_is_reported_and_left_alone(docs: Path) -> None:
    (docs / FILE).write_text(page().replace("VALIDATE", "VALDIATE", 1))

    assert main(["--check", str(docs)]) == 1
    assert "VALDIATE" in (docs / FILE).read_text()
    assert main([str(docs)]) == 0
    assert main(["--check", str(docs)]) == 0


def test_a_missing_page_is_reported_and_not_made(tmp_path: Path) -> None:
    assert main(["--check", str(tmp_path)]) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_changed_row_makes_the_page_stale(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TABLE", client.TABLE[1:])

    assert main(["--check", str(docs)]) == 1


@pytest.mark.parametrize("table", [client.TABLE, server.TABLE], ids=["client", "server"])
def test_every_row_that_a_person_wrote_is_shown_once_in_its_order(
    table: Table[Any],
) -> None:
    shown = [line.split(" | ") for line in to_markdown(table).splitlines()[2:]]
    rows = hand_written(table)

    assert [(words[0].strip("| "), words[1]) for words in shown] == [
        (r.source.name, r.on.__name__) for r in rows
    ]
    assert all(r.do is not absorb for r in rows)
    assert 20 < len(rows) < len(table)


@pytest.mark.parametrize("table", [client.TABLE, server.TABLE], ids=["client", "server"])
def test_the_diagram_has_one_arrow_for_each_pair_of_states(
    table: Table[Any],
) -> None:
    lines = to_mermaid(table).splitlines()
    arrows = re.findall(r"^    (\w+) --> (\w+): (.+)$", "\n".join(lines), re.MULTILINE)

    assert lines[:2] == ["stateDiagram-v2", "    [*] --> LISTEN"]
    assert lines[-2:] == ["    DONE --> [*]", "    FALLBACK --> [*]"]
    pairs = {(r.source.name, r.dest.name) for r in hand_written(table)}
    assert sorted((source, dest) for source, dest, _ in arrows) == sorted(pairs)
    labels = {(source, dest): words.split(", ") for source, dest, words in arrows}
    for r in hand_written(table):
        assert labels[r.source.name, r.dest.name].count(r.on.__name__) == 1


def test_names_are_shown_as_words() -> None:
    assert "| HANDSHAKE | Challenge | wrong proof | refuse server | FALLBACK |" in page()
    assert "| HANDSHAKE | Offer |  | accept | VALIDATE |" in page()


def test_every_state_and_reason_is_on_the_page() -> None:
    text = page()

    assert all(state.name in text for state in State)
    assert all(f"| `{r.value}` | {r.sentence} |" in text for r in Reason)
    assert text.endswith("|\n")


def test_the_module_is_a_command(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, status in (([str(docs)], 0), (["--check", str(docs / "nowhere")], 1)):
        monkeypatch.setattr("sys.argv", ["render", *arguments])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(render.__file__), run_name="__main__")
        assert left.value.code == status
