"""Progress of an earlier fill. What it calls verified is hashed again."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from netloader.fsm.manifest import Progress, Segment, segment_count, segments_of
from netloader.io.cores import cores
from netloader.io.failure import TransferError
from netloader.io.store.base import Store
from netloader.io.store.digests import ALGORITHMS, digests_of


def still_held(store: Store, before: Progress, stopped: Callable[[], bool]) -> Progress:
    """What of `before` the store still holds; it counts these segments as arrived.

    Reads every segment that `before` calls verified, on all cores. Segments that come after
    `stopped()` has become true are not read, and do not count.
    """
    claimed = _claimed(store, before)

    def views(segment: Segment) -> Iterable[memoryview]:
        return () if stopped() else store.views(segment)

    readers = [partial(views, segment) for segment in claimed]
    try:
        digests = digests_of(before.digest_algorithm, readers, store.readers(cores()))
        pairs = zip(claimed, digests, strict=True)
        kept = [s for s, digest in pairs if digest == before.segment_digests[s.index]]
        store.resume(kept)
    except TransferError:  # memory was freed, or does not take its bytes: ask for all of it
        store.restart()
        kept = []
    verified = frozenset(segment.index for segment in kept)
    return replace(before, verified=verified) if verified else Progress()


def _claimed(store: Store, before: Progress) -> list[Segment]:
    """The segments that the progress calls verified; none if it is of another manifest."""
    count = len(before.segment_digests)
    known = before.digest_algorithm in ALGORITHMS and before.segment_bytes > 0
    if not known or segment_count(store.manifest.nbytes, before.segment_bytes) != count:
        return []
    segments = segments_of(store.manifest, before.segment_bytes)
    return [segment for segment in segments if segment.index in before.verified]
