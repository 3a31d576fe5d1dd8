"""Render the transition tables as Mermaid diagrams and Markdown tables.

`python -m netloader.fsm.render FOLDER` writes states.md into a folder, docs/protocol by default.
With `--check` it writes nothing, and exits with status 1 when the file differs from the tables.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from netloader.fsm import client, published, server, source
from netloader.fsm.reasons import Reason
from netloader.fsm.session import violation
from netloader.fsm.table import SESSIONS, Alphabet, Row, Table, absorb

FILE = "states.md"
TOTAL = """Any peer event that a table does not name in a living state is a violation: the session
ends in FALLBACK with reason `protocol_violation`. DONE and FALLBACK absorb everything."""
FETCH = """A fetch has one of these machines for each source. `Chosen`, `Assigned`, `Dismissed`,
`Recalled` and `Due` are what the fetch decides; the other events are what its driver reports."""

LIFE = """Events that change nothing are left out, and the arrows of events that stay in a state.
`Quiet` comes with the event after which no session has a place and nothing reads the weights."""


def hand_written(table: Table[Any]) -> list[Row[Any]]:
    """The rows written in the tables: without absorbing ones and added violations."""
    return [r for r in table if r.do is not absorb and not (r.do is violation and r.when is None)]


def to_mermaid(table: Table[Any], of: Alphabet = SESSIONS) -> str:
    """A Mermaid state diagram; one arrow per pair of states, labelled with its events."""
    arrows: dict[tuple[str, str], dict[str, None]] = {}
    for r in hand_written(table):
        arrows.setdefault((r.source.name, r.dest.name), {})[r.on.__name__] = None
    lines = ["stateDiagram-v2", f"    [*] --> {of.initial.name}"]
    lines += [
        f"    {source} --> {dest}: {', '.join(events)}" for (source, dest), events in arrows.items()
    ]
    lines += [f"    {state.name} --> [*]" for state in of.ends]
    return "\n".join(lines)


def to_markdown(table: Table[Any]) -> str:
    """The rows as a Markdown table, in the order in which they are tried."""
    lines = ["| in | on | when | do | to |", "| --- | --- | --- | --- | --- |"]
    for r in hand_written(table):
        cells = (r.source.name, r.on.__name__, _words(r.guard), _words(r.action), r.dest.name)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _words(name: str) -> str:
    return name.replace("_", " ")


def page() -> str:
    """The whole of docs/protocol/states.md."""
    parts = [
        "# States",
        "Generated from the tables by `make docs`; do not edit.",
        TOTAL,
    ]
    for title, table in (("Client", client.TABLE), ("Server", server.TABLE)):
        parts += [f"## {title}", f"```mermaid\n{to_mermaid(table)}\n```", to_markdown(table)]
    parts += [
        "## One source of a fetch",
        FETCH,
        f"```mermaid\n{to_mermaid(source.TABLE, source.SOURCES)}\n```",
        to_markdown(source.TABLE),
        *_published(),
        "## Reasons",
        _reasons(),
    ]
    return "\n\n".join(parts) + "\n"


def life() -> Table[Any]:
    """The rows of a published model that change something."""
    return tuple(r for r in published.TABLE if r.action != "nothing")


def moves(table: Table[Any]) -> Table[Any]:
    """The rows that lead to another state."""
    return tuple(r for r in table if r.dest is not r.source)


def _published() -> list[str]:
    table = life()
    diagram = to_mermaid(moves(table), published.ALPHABET)
    return ["## Published model", LIFE, f"```mermaid\n{diagram}\n```", to_markdown(table)]


def _reasons() -> str:
    lines = ["| reason | meaning |", "| --- | --- |"]
    return "\n".join(lines + [f"| `{r.value}` | {r.sentence} |" for r in Reason])


def main(arguments: Iterable[str]) -> int:
    """Write the page into a folder, or compare it with what is there."""
    words = list(arguments)
    folders = [word for word in words if not word.startswith("-")]
    target = Path(folders[0] if folders else "docs/protocol") / FILE
    if "--check" in words:
        fresh = target.exists() and target.read_text() == page()
        return 0 if fresh else 1
    target.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
