"""`netloader diagram`: the state machines as they run, from their tables."""

from typing import Any

from rich.text import Text

from netloader.cli.answers import Answer
from netloader.cli.choices import Format, Machine
from netloader.fsm import client, published, render, server, source
from netloader.fsm.source import SOURCES
from netloader.fsm.table import SESSIONS, Alphabet, Table


def run(machine: Machine, form: Format) -> Answer:
    """Draw one machine."""
    tables: dict[Machine, tuple[Table[Any], Alphabet]] = {
        Machine.CLIENT: (client.TABLE, SESSIONS),
        Machine.SERVER: (server.TABLE, SESSIONS),
        Machine.SOURCE: (source.TABLE, SOURCES),
        Machine.MODEL: (render.life(), published.ALPHABET),
    }
    table, alphabet = tables[machine]
    if form is Format.TABLE:
        text = render.to_markdown(table)
    else:
        moves = render.moves(table) if machine is Machine.MODEL else table
        text = render.to_mermaid(moves, alphabet)
    data = {"machine": machine.value, "format": form.value, "text": text}
    return Answer(data, (Text(text, no_wrap=True, overflow="ignore"),))
