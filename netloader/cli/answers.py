"""What a command says at its end: one answer, for people or as one JSON object.

Text of a peer or a file is shown by `plain`, which no terminal takes for a command.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TextIO, TypeAlias

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from netloader.cli.codes import Code

MOST_LINE: Final = 1000
"""Columns of a line that goes to no terminal."""
MOST_CHARS: Final = 200
"""Of one value on a terminal; JSON has it whole."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a command: `data` for programs, `shown` for people."""

    data: Mapping[str, object]
    shown: tuple[RenderableType, ...]
    code: Code = Code.OK


class CommandError(Exception):
    """A command cannot give its answer. The text says why, and what would help."""

    def __init__(self, code: Code, problem: str) -> None:
        super().__init__(problem)
        self.code = code


Run: TypeAlias = Callable[[], Answer]


class Form(Protocol):
    """How answers and progress are written."""

    def tell(self, answer: Answer) -> None:
        """Write an answer, or a part of one, now."""

    def refuse(self, error: CommandError) -> None:
        """Write why there is no answer."""


class People:
    """Text for people: answers on standard output, problems on standard error."""

    def tell(self, answer: Answer) -> None:
        """Write what is to be shown."""
        for part in answer.shown:
            _print(_console(sys.stdout), part)

    def refuse(self, error: CommandError) -> None:
        """Write the problem as one paragraph."""
        problem = Text.assemble(("netloader: ", "bold red"), plain(str(error), MOST_LINE))
        _print(_console(sys.stderr), problem)


class Programs:
    """One JSON object a line, all on standard output."""

    def tell(self, answer: Answer) -> None:
        """Write the data."""
        self._write({**answer.data, "code": answer.code.name.lower()})

    def refuse(self, error: CommandError) -> None:
        """Write the problem as an object too, so that a program need not read standard error."""
        self._write({"error": str(error), "code": error.code.name.lower()})

    def _write(self, data: Mapping[str, object]) -> None:
        sys.stdout.write(json.dumps(data) + "\n")
        sys.stdout.flush()


def carry_out(run: Run, form: Form) -> Code:
    """Run a command and write its answer; the status to exit with."""
    try:
        answer = run()
    except CommandError as error:
        form.refuse(error)
        return error.code
    except KeyboardInterrupt:
        form.refuse(CommandError(Code.INTERRUPTED, "interrupted"))
        return Code.INTERRUPTED
    form.tell(answer)
    return answer.code


def _console(file: TextIO) -> Console:
    """A terminal; or a file or pipe, whose lines are as long as they are."""
    return Console(file=file, highlight=False, width=None if file.isatty() else MOST_LINE)


def _print(console: Console, part: RenderableType) -> None:
    console.print(part, soft_wrap=isinstance(part, Text))


def plain(value: object, most: int = MOST_CHARS) -> Text:
    """A value as text without control characters, cut when it is long."""
    head = str(value)[: most + 1]
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in head)
    return Text(line if len(line) <= most else line[: most - 1] + "…")


def grid(rows: Mapping[str, object], style: str = "bold") -> Table:
    """Names and values, one pair a line."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style=style, no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(plain(name), value if isinstance(value, Text | Table) else plain(value))
    return table
