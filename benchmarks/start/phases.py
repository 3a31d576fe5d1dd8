"""The phases of a start, by what vLLM's processes log."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MARKS: Final = (
    ("imports, API server", "non-default args:"),
    ("inspection", "Resolved architecture:"),
    ("imports, engine core", "Initializing a V1 LLM engine"),
    ("imports, worker", "Starting to load model"),
    ("build", "Initializing model took"),
    ("weights", "Loading weights took"),
    ("weights", "[netloader.session.closed]"),
    ("post-processing", "KV cache layout"),
    ("compile", "Warming up done."),
    ("KV cache, warm-up", "init engine (profile"),
)
"""Phases in their order, and what is logged at the end of each."""
OPTIONAL: Final = ("weights", "compile")
"""Phases that not every start has. A mark of a phase after the next other one does not count yet:
netloader takes more over a session than weights."""
API: Final = "API"
TOKEN: Final = "first token"
NAMES: Final = (*dict.fromkeys(name for name, _ in MARKS), API, TOKEN)


class Phases:
    """When the phases of one start ended, as far as its log goes.

    `began` is when its process was started, of the monotonic clock.
    """

    def __init__(self, log: Path, began: float) -> None:
        self._log = log
        self._began = began
        self._text = ""
        self._read = 0
        self._at = 0
        self._left: tuple[tuple[str, str], ...] = MARKS
        self._ends: list[tuple[str, float]] = []

    def look(self) -> None:
        """Note the marks that are there by now."""
        with self._log.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        self._read += len(new)
        self._text += new.decode(errors="replace")
        while (found := self._next()) is not None:
            index, place = found
            name, mark = self._left[index]
            self._left = tuple(each for each in self._left[index + 1 :] if each[0] != name)
            self._at = place + len(mark)
            self.end(name)

    def end(self, name: str) -> None:
        """A phase ends now."""
        self._ends.append((name, time.monotonic() - self._began))

    def seconds(self) -> dict[str, float]:
        """How long each took, in order."""
        return dict(self._spent())

    def _next(self) -> tuple[int, int] | None:
        """The first mark that has come and is due: its index, and its place in the log."""
        due = next((i for i, (name, _) in enumerate(self._left) if name not in OPTIONAL), -1)
        marks = enumerate(mark for _, mark in self._left[: due + 1])
        places = [(self._text.find(mark, self._at), index) for index, mark in marks]
        found = min((each for each in places if each[0] >= 0), default=None)
        return None if found is None else (found[1], found[0])

    def _spent(self) -> Iterator[tuple[str, float]]:
        before = 0.0
        for name, moment in self._ends:
            yield name, moment - before
            before = moment
