"""`netloader pull`: weights of a server into a folder of safetensors files."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from rich.text import Text

from netloader.cli.answers import Answer
from netloader.cli.copying import LAYOUTS, Copy, Wanted, appearing
from netloader.cli.interrupts import interrupted
from netloader.cli.places import places_of
from netloader.cli.sources import ask_first
from netloader.fsm.identity import ROLE
from netloader.io.clock import monotonic
from netloader.io.options import ClientOptions
from netloader.io.outcome import Outcome
from netloader.units import counted, duration, rate, size


def run(sources: Sequence[str], out: Path, role: str | None, options: ClientOptions) -> Answer:
    """Fill a new folder from the first source that answers, or from the others if it fails.

    Raises:
        CommandError: nothing was written.
    """
    places = places_of(sources, options)
    told = ask_first(places, {} if role is None else {ROLE: role}, options)
    begun = monotonic()
    with interrupted() as cancel, appearing(out) as hidden:
        chosen = replace(options, layouts=LAYOUTS, cancel=cancel)
        with closing(Copy(Wanted(told, places, hidden))) as copy:
            outcome = copy.run(chosen, "", f"pulling {out.name}").outcome
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
    where = f"{counted(len(files), 'file')} in {out}"
    return Answer(data, (Text(f"{moved}, verified: {where}"),))
