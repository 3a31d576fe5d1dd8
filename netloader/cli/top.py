"""`netloader top`: many servers in one table, asked again and again."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from rich.live import Live
from rich.table import Table
from rich.text import Text

from netloader.cli.answers import Answer, CommandError, Form, Programs, plain
from netloader.cli.codes import Code
from netloader.cli.interrupts import interrupted
from netloader.cli.places import places_of
from netloader.cli.sources import Told, ask_all, ranks_beside
from netloader.cli.status import COLORS
from netloader.config import Endpoint
from netloader.io.clock import monotonic
from netloader.io.options import ClientOptions
from netloader.units import rate, size

AT_ONCE = 16
"""Servers that are asked at the same time."""
COLUMNS = ("server", "role", "state", "weights", "clients", "sessions", "sent", "rate")


@dataclass(frozen=True, slots=True)
class Line:
    """One model of one server, or why there is none."""

    source: Endpoint | str
    """A server; or what was written, where it cannot be looked up."""
    told: Told | None
    problem: str
    bytes_per_s: float = 0.0

    @property
    def data(self) -> dict[str, object]:
        """For programs."""
        found: dict[str, object] = {"source": str(self.source)}
        if self.told is None:
            return {**found, "error": self.problem}
        status = self.told.status
        return {
            **found,
            "role": self.told.role,
            "state": status.state,
            "nbytes": status.nbytes,
            "clients": status.clients,
            "max_clients": status.max_clients,
            "sessions": status.sessions,
            "sent_bytes": status.sent_bytes,
            "bytes_per_s": round(self.bytes_per_s),
        }


Show: TypeAlias = Callable[[Sequence[Line]], None]


class Watch:
    """Servers, and what they said before, for the rate between. One owner."""

    def __init__(self, sources: Sequence[str], options: ClientOptions) -> None:
        self._sources = sources
        self._options = options
        self._before: dict[tuple[Endpoint | str, str], tuple[float, int]] = {}

    def look(self) -> list[Line]:
        """Ask all of them, in the order given; look them up before.

        Raises:
            CommandError: a source cannot be used.
        """
        with ThreadPoolExecutor(AT_ONCE, "netloader-top") as pool:
            answers = [lines for text in self._sources for lines in self._of(text, pool)]
        return [self._timed(line) for lines in answers for line in lines]

    def _of(self, text: str, pool: ThreadPoolExecutor) -> list[list[Line]]:
        """The lines of one source; one line with the problem if it cannot be looked up now."""
        try:
            places = places_of([text], self._options)
        except CommandError as error:
            if error.code is Code.USAGE:
                raise
            return [[Line(text, None, str(error))]]
        lines = [*pool.map(self._ask, places)]
        known = [*places]
        for line in (line for of_one in tuple(lines) for line in of_one[:1]):
            known += ranks_beside(line.told, known) if line.told else ()
        return [*lines, *pool.map(self._ask, known[len(places) :])]

    def _ask(self, source: Endpoint) -> list[Line]:
        try:
            return [Line(source, told, "") for told in ask_all(source, self._options)]
        except CommandError as error:
            return [Line(source, None, str(error).removeprefix(f"{source}: "))]

    def _timed(self, line: Line) -> Line:
        if line.told is None:
            return line
        now, sent = monotonic(), line.told.status.sent_bytes
        key = (line.source, line.told.role)
        then, before = self._before.get(key, (now, sent))
        self._before[key] = now, sent
        passed = now - then
        speed = max(0, sent - before) / passed if passed > 0 else 0.0
        return Line(line.source, line.told, "", speed)


def run(watch: Watch, interval_s: float, times: int, form: Form) -> Answer:
    """Show all servers every `interval_s` seconds, `times` times; 0: until interrupted.

    Raises:
        CommandError: a source cannot be used.
    """
    lines: list[Line] = []
    looks = 0
    shown = as_data(form) if isinstance(form, Programs) else on_screen()
    with interrupted() as stop, shown as show:
        while not stop.is_set():
            lines = watch.look()
            show(lines)
            looks += 1
            if looks == times or stop.wait(interval_s):
                break
    answered = any(line.told is not None for line in lines)
    return Answer({"looks": looks}, (), Code.OK if answered else Code.UNREACHABLE)


@contextmanager
def on_screen() -> Iterator[Show]:
    """One table that changes in place."""
    with Live(auto_refresh=False) as live:
        yield lambda lines: live.update(table_of(lines), refresh=True)


@contextmanager
def as_data(form: Form) -> Iterator[Show]:
    """One answer each time."""
    yield lambda lines: form.tell(Answer({"servers": [line.data for line in lines]}, ()))


def table_of(lines: Sequence[Line]) -> Table:
    """One row for each model."""
    table = Table(*COLUMNS)
    for line in lines:
        source, told = plain(line.source), line.told
        if told is None:
            table.add_row(source, "", Text("no answer", style="red"), plain(line.problem))
            continue
        status = told.status
        table.add_row(
            source,
            plain(told.name),
            Text(status.state, style=COLORS.get(status.state, "yellow")),
            size(status.nbytes),
            f"{status.clients}/{status.max_clients}",
            str(status.sessions),
            size(status.sent_bytes),
            rate(line.bytes_per_s) if line.bytes_per_s else "-",
        )
    return table
