"""What people see: the settings, weights arriving, why a source was refused, what took over."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from netloader.config import Endpoint, shown
from netloader.fsm.identity import Difference
from netloader.fsm.manifest import Progress
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.io.cores import default_lanes
from netloader.io.outcome import Outcome
from netloader.log import Logger, emit
from netloader.vllm_plugin.config.readers import Fallback
from netloader.vllm_plugin.config.settings import Settings

BAR_FORMAT = (
    "{desc}: {percentage:3.0f}% Completed | {n_fmt}/{total_fmt} "
    "[{elapsed}<{remaining}, {rate_fmt}]\n"
)
"""As vLLM's bars: one line an update, because workers' output is prefixed line by line."""

HEAD = ("field", "mine", "theirs", "what to do")


@contextmanager
def bar(total: int, shown: bool) -> Iterator[Callable[[int, int], None]]:  # noqa: FBT001 - tqdm's
    """A progress bar in vLLM's style; yields what to call with bytes verified and bytes in all."""
    progress = tqdm(
        total=total,
        desc="Receiver weights",
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=not shown,
        mininterval=0.5,
        bar_format=BAR_FORMAT,
    )
    with progress:
        yield lambda done, _: _advance(progress, done)


def _advance(progress: "tqdm[None]", done: int) -> None:
    """Set a bar to `done`; a source with other digests starts over, so it may go back."""
    progress.update(done - progress.n)


def tell_differences(outcome: Outcome, logger: Logger) -> None:
    """Log one line for each field in which a source differs from this rank."""
    for attempt in outcome.attempts:
        _tell("netloader.source.differs", attempt.source, attempt.differences, logger)


def tell_warnings(source: Endpoint, found: Iterable[Difference], logger: Logger) -> None:
    """Log one line for each setting that makes a source answer otherwise."""
    _tell("netloader.source.answers_differ", source, found, logger)


def _tell(event: str, source: Endpoint, found: Iterable[Difference], logger: Logger) -> None:
    for difference in found:
        fields = dict(zip(HEAD, _cells(difference), strict=True))
        named = {f"netloader.{name.replace(' ', '_')}": text for name, text in fields.items()}
        emit(logger, event, {"netloader.source": str(source), **named})


def table_of(outcome: Outcome) -> str:
    """The same as a table for an exception, after a line break; '' without differences."""
    rows = [_cells(difference) for a in outcome.attempts for difference in a.differences]
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (HEAD, *rows)
    )
    return "\n" + "\n".join(lines)


def _cells(difference: Difference) -> tuple[str, str, str, str]:
    """One row; what a peer says is shown as it is in every message: quoted, and cut."""
    mine, theirs = str(shown(difference.mine)), str(shown(difference.theirs))
    return str(shown(difference.field)), mine, theirs, difference.remedy


def tell_fallback(
    outcome: Outcome | None, fallback: Fallback | None, logger: Logger, unfound: str = ""
) -> None:
    """Log that no source filled this rank, why, and which loader takes over, if one may.

    `unfound` is why sources could not be looked up.
    """
    loader = {"netloader.fallback": _fallback(fallback)}
    if outcome is None and unfound:
        outcome = Outcome(State.FALLBACK, Reason.NO_SOURCE, (), 0, False, Progress())
    if outcome is None:
        emit(logger, "netloader.loader.ordinary", loader)
        return
    fields = {
        **loader,
        "netloader.reason": outcome.reason.value,
        "netloader.detail": "; ".join(filter(None, (outcome.history(), unfound))),
        "netloader.weights_dirty": outcome.weights_dirty,
    }
    if outcome.ok:
        fields["netloader.detail"] = "this rank was filled, another rank of the instance not"
    emit(logger, "netloader.fallback.engaged", fields)


def settings_shown(settings: Settings) -> dict[str, object]:
    """The settings as a log line shows them."""
    return {
        "netloader.sources": sum(map(len, settings.sources.values())),
        "netloader.transport": settings.transport,
        "netloader.lanes": settings.lanes or default_lanes(),
        "netloader.layout": settings.layout.value,
        "netloader.weight_cache": settings.weight_cache.value,
        "netloader.int8_cache": settings.int8_cache.value,
        "netloader.fallback": _fallback(settings.fallback),
        "netloader.parallel": settings.parallel,
        "netloader.relay": settings.relay,
        "netloader.max_clients": settings.max_clients,
        "netloader.asks_for_proof": settings.token is not None,
        "netloader.tls": settings.tls is not None,
    }


def _fallback(fallback: Fallback | None) -> str:
    return fallback.load_format if fallback else "never"
