"""The digests of published weights, computed and compared."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

from netloader.fsm import published_events as ev
from netloader.fsm.manifest import Manifest, Segment
from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError
from netloader.io.store.base import Store
from netloader.io.store.digests import digests_of

Work: TypeAlias = ev.ComputeDigests | ev.Audit
CHANGED = "weights were changed after they were published"
SHOWN_NAMES = 5
"""How many changed tensors a message names."""


class WithdrawnError(TransferError):
    """These weights were withdrawn, and must not be read."""

    def __init__(self, why: str) -> None:
        super().__init__(Reason.NOT_SERVING, why)


def segment_digests(
    weights: Store, segments: Sequence[Segment], algorithm: str, workers: int
) -> tuple[str, ...]:
    """The digest of every segment of some weights, hashing `workers` segments at a time."""
    return digests_while(lambda: None, weights, segments, algorithm, workers)


def digests_while(
    wanted: Callable[[], None],
    weights: Store,
    segments: Sequence[Segment],
    algorithm: str,
    workers: int,
) -> tuple[str, ...]:
    """As `segment_digests`, until `wanted`, which is called before each segment, raises."""

    def views(segment: Segment) -> Iterator[memoryview]:
        wanted()
        return weights.views(segment)

    readers = [partial(views, segment) for segment in segments]
    return digests_of(algorithm, readers, weights.readers(workers))


def carried_out(
    work: Work,
    weights: Store,
    segments: Sequence[Segment],
    algorithm: str,
    workers: int,
    wanted: Callable[[], None],
) -> ev.Event:
    """Compute or compare the digests of all weights, until `wanted` raises WithdrawnError."""
    try:
        now = digests_while(wanted, weights, segments, algorithm, workers)
    except WithdrawnError:
        return ev.WorkStopped()
    except TransferError as error:
        return ev.WorkFailed(error.detail)
    if isinstance(work, ev.ComputeDigests):
        return ev.DigestsReady(now)
    return ev.AuditEnded(difference(weights.manifest, segments, work.digests, now))


def unknown(error: Exception) -> str:
    """Why nothing is offered whose digests cannot be computed."""
    return f"digests cannot be computed ({type(error).__name__}: {error})"


def difference(
    manifest: Manifest, segments: Sequence[Segment], before: Sequence[str], now: Sequence[str]
) -> str:
    """One sentence that names tensors of the segments whose digests differ; empty without any."""
    names = {
        manifest.tensors[extent.tensor].name: None
        for segment in segments
        if before[segment.index] != now[segment.index]
        for extent in segment.extents
    }
    return f"{CHANGED}, among: {', '.join([*names][:SHOWN_NAMES])}" if names else ""
