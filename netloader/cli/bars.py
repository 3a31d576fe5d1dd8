"""Bars for long work, on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column

TITLE, BAR = 24, 16
"""Columns of a title and of a bar: numbers of any size then fit beside them into 80."""


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error with rate and time left; none where that is no terminal.

    Yields what to call with the bytes that are done and those in all, from any thread.
    """
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}", table_column=Column(max_width=TITLE, no_wrap=True)),
        BarColumn(BAR),
        DownloadColumn(table_column=Column(no_wrap=True)),
        TransferSpeedColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        console=console,
        disable=not console.is_terminal,
    )
    with progress:
        task = progress.add_task(title, total=None, markup=False)
        yield lambda done, total: progress.update(task, completed=done, total=total)
