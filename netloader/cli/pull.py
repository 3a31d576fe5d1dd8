"""`netloader pull`: weights of a server into a folder of safetensors files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.text import Text

from netloader.cli.answers import Answer, CommandError
from netloader.cli.bars import bar
from netloader.cli.codes import Code
from netloader.cli.folders import CARD, card_of
from netloader.cli.interrupts import interrupted
from netloader.cli.places import places_of
from netloader.cli.sources import ask_first, failure
from netloader.errors import WeightsError
from netloader.fsm.reasons import Reason
from netloader.io.client import fill
from netloader.io.clock import monotonic
from netloader.io.options import ClientOptions
from netloader.io.outcome import Outcome
from netloader.io.store.files import FileStore
from netloader.units import duration, rate, size

LAYOUTS = ("raw", "processed")


def run(sources: Sequence[str], out: Path, role: str | None, options: ClientOptions) -> Answer:
    """Fill a new folder from the first source that answers, or from the others if it fails.

    Raises:
        CommandError: nothing was written.
    """
    places = places_of(sources, options)
    told = ask_first(places, role, options)
    try:
        store = FileStore.create(out, told.manifest, beside={CARD: card_of(told)})
    except WeightsError as error:
        raise CommandError(Code.FAILED, str(error)) from error
    begun = monotonic()
    with interrupted() as cancel, bar(f"pulling {out.name}") as report:
        chosen = replace(options, layouts=LAYOUTS, report=report, cancel=cancel, timeout_s=None)
        try:
            outcome = fill(store, places, told.identity, chosen)
        finally:
            store.close()
    if not outcome.ok:
        raise _failed(outcome, out)
    return _done(outcome, out, monotonic() - begun)


def _done(outcome: Outcome, out: Path, seconds: float) -> Answer:
    files = sorted(path.name for path in out.glob("*.safetensors"))
    speed = outcome.nbytes / max(seconds, 1e-9)
    data = {
        "folder": str(out),
        "files": files,
        "source": str(outcome.source),
        "bytes": outcome.nbytes,
        "seconds": round(seconds, 3),
        "bytes_per_s": round(speed),
    }
    moved = f"{size(outcome.nbytes)} from {outcome.source} in {duration(seconds)} ({rate(speed)})"
    where = f"{len(files)} file{'s' * (len(files) != 1)} in {out}"
    return Answer(data, (Text(f"{moved}, verified: {where}"),))


def _failed(outcome: Outcome, out: Path) -> CommandError:
    nothing = f"{out} was not written"
    if outcome.reason is Reason.STOPPED:
        return CommandError(Code.INTERRUPTED, f"interrupted; {nothing}")
    if not outcome.attempts:
        return CommandError(Code.UNREACHABLE, f"no source could be asked; {nothing}")
    told = failure(outcome.attempts[-1])
    began = any(attempt.nbytes for attempt in outcome.attempts)
    return CommandError(Code.FAILED if began else told.code, f"{told}; {nothing}")
