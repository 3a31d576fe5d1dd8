"""`netloader status`: what a server offers and does."""

import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict
from typing import Final

from rich.console import RenderableType
from rich.text import Text

from netloader.cli.answers import Answer, CommandError, grid, plain
from netloader.cli.codes import Code
from netloader.cli.places import places_of
from netloader.cli.sources import Told, ask_all, ask_beside, ranks_beside
from netloader.fsm.identity import BESIDE
from netloader.io.options import ClientOptions
from netloader.units import size

SHOWN_FIELDS: Final = 12
"""Of an identity, on a terminal; vLLM's have more than a hundred."""
MOST_PAGE_BYTES: Final = 1 << 24
COLORS: Final[Mapping[str, str]] = {"offered": "green", "lost": "red", "retired": "red"}
SERIES: Final = re.compile(r"(?P<name>netloader_\w+)(?P<labels>\{.*\})? (?P<value>\S+)(?: \S+)?")


def run(where: str, options: ClientOptions) -> Answer:
    """Ask a server, or read a page of metrics.

    Raises:
        CommandError: there is no answer.
    """
    if where.startswith(("http://", "https://")):
        return _of_page(where, options.timeout_s or 10.0)
    told: list[Told] = []
    shown: list[RenderableType] = []
    silent: list[CommandError] = []
    places = [*places_of([where], options)]
    for place in places:  # which grows: a rank names the others of its instance
        try:
            models = ask_all(place, options)
            models += ask_beside(models[0], options)
        except CommandError as error:
            silent.append(error)
            shown += [plain(error), Text()]
        else:
            places += ranks_beside(models[0], places)
            told += models
            shown += [part for model in models for part in (_shown(model), Text())]
    if not told:
        raise silent[0]
    data = {"source": where, "models": [data_of(model) for model in told]}
    return Answer({**data, "problems": [*map(str, silent)]}, tuple(shown[:-1]))


def data_of(told: Told) -> dict[str, object]:
    """One model for programs."""
    return {
        "server": str(told.source),
        "role": told.role,
        **asdict(told.status),
        "tensors": len(told.manifest.tensors),
        "manifest": told.manifest.digest,
        "identity": {**told.identity.hard, **told.identity.soft},
        "facts": sorted(told.facts),
    }


def _shown(told: Told) -> RenderableType:
    status = told.status
    whose = f", role {told.name}" if told.name else ""
    state = Text.assemble((status.state, COLORS.get(status.state, "yellow")))
    if status.withdrawn:
        state.append_text(plain(f": {status.withdrawn}"))
    parts = f"{status.segments} segments of {size(status.segment_bytes)}"
    here = "" if status.available == status.segments else f", {status.available} of them here"
    identity = {**told.identity.hard, **told.identity.soft}
    first = dict(list(identity.items())[:SHOWN_FIELDS])
    more = len(identity) - len(first)
    rows: dict[str, object] = {
        "source": f"{told.source}{whose}",
        "state": state,
        **_contents(told, f"{parts}{here}"),
        "clients": f"{status.clients} of {status.max_clients} places",
        "so far": f"{status.sessions} sessions, {size(status.sent_bytes)} sent",
        "root": f"{status.digest_algorithm} {status.root}" if status.root else "not known yet",
        "ways": f"{', '.join(status.transports)}; layouts {', '.join(status.layouts)}",
        "identity": grid(first, style="dim"),
    }
    if more > 0:
        rows[""] = f"and {more} more fields; --json has all"
    return grid(rows)


def _contents(told: Told, parts: str) -> dict[str, object]:
    """How much there is, of weights or of the files beside them."""
    what, unit = (told.role, "files") if told.role in BESIDE else ("weights", "tensors")
    return {what: f"{size(told.status.nbytes)} in {len(told.manifest.tensors)} {unit}, {parts}"}


def _of_page(url: str, timeout_s: float) -> Answer:
    values = page(url, timeout_s)
    if not values:
        raise CommandError(Code.REFUSED, f"{url} has no series of netloader")
    nonzero = {name: f"{value:g}" for name, value in values.items() if value}
    return Answer({"source": url, "series": values}, (grid(nonzero, style="dim"),))


def page(url: str, timeout_s: float) -> dict[str, float]:
    """The series of netloader on a page in the text format of Prometheus, with their labels.

    Raises:
        CommandError: the page cannot be read.
    """
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:  # noqa: S310 - http only
            text = answer.read(MOST_PAGE_BYTES).decode(errors="replace")
    except (OSError, ValueError) as error:
        code = Code.REFUSED if isinstance(error, urllib.error.HTTPError) else Code.UNREACHABLE
        why = getattr(error, "reason", None) or error  # of a URLError: the error below it
        why = getattr(why, "strerror", None) or why
        raise CommandError(code, f"{url} cannot be read: {why}") from error
    found: dict[str, float] = {}
    for line in text.splitlines():
        if matched := SERIES.fullmatch(line):
            name = f"{matched['name']}{matched['labels'] or ''}"
            found[name] = float(matched["value"])
    return {
        name: value for name, value in found.items() if not name.split("{")[0].endswith("_created")
    }
