"""Verifying while receiving. Law: a segment counts only after its digest matched.

The ledger outlives a source: what one source delivered and verified is not asked of the next,
unless the next offers other digests, because bytes of two checkpoints are never mixed.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from netloader.fsm.manifest import Extent, Progress, Segment, segments_of
from netloader.fsm.messages import Offer
from netloader.fsm.reasons import Reason
from netloader.io.device import CPU
from netloader.io.failure import TransferError
from netloader.io.memory import memory_of
from netloader.io.store.base import Store
from netloader.io.store.copies import bring
from netloader.io.store.digests import ALGORITHMS, Hasher

Report = Callable[[int, int], None]
"""Called with bytes verified so far and bytes in all, from whatever thread moved them."""


class Reporter:
    """Calls a progress callback: one call at a time, and no lock is held meanwhile.

    A thread that finds another one in a call does not wait for it. So counts are left out while a
    call is under way, but never the last one, and a slow callback costs its own thread alone.
    """

    def __init__(self, report: Report, total: int) -> None:
        self._report = report
        self._total = total
        self._newest: int | None = None
        self._calling = False
        self._lock = threading.Lock()

    def note(self, done: int) -> None:
        """Take the newest count; the order of these calls is that of the counts."""
        with self._lock:
            self._newest = done

    def call(self) -> None:
        """Report the newest count, unless another thread does so."""
        done = self._take(at_least=0)
        while done is not None:
            try:
                self._report(done, self._total)
            finally:
                self._calling = False
            done = self._take(at_least=self._total)

    def _take(self, at_least: int) -> int | None:
        """A count to report, which nothing else reports; this thread may then call."""
        with self._lock:
            done = self._newest
            if self._calling or done is None or done < at_least:
                return None
            self._newest, self._calling = None, True
            return done


class Ledger:
    """Which segments are verified, against which digests.

    `verified_bytes` are held now; `counted_bytes` were ever verified, also those given up since.
    """

    def __init__(self, store: Store, report: Report) -> None:
        self.store = store
        self.total = store.manifest.nbytes
        self.verified_bytes = 0
        self.counted_bytes = 0
        self._reporter = Reporter(report, self.total)
        self._against = Progress()
        self._verified: set[int] = set()
        self._lock = threading.Lock()

    @property
    def progress(self) -> Progress:
        """What is held so far."""
        with self._lock:
            return replace(self._against, verified=frozenset(self._verified))

    def follow(self, offer: Offer) -> "Intake":
        """Take an offer: keep what was verified against the same digests, else start over."""
        held = self.progress.continued(
            offer.digest_algorithm, offer.segment_bytes, offer.segment_digests
        )
        segments = segments_of(self.store.manifest, offer.segment_bytes)
        if not held.verified:
            self.store.restart()
        with self._lock:
            self._against, self._verified = held, set(held.verified)
            self.verified_bytes = sum(segments[i].nbytes for i in held.verified)
        return Intake(self, offer, segments)

    def record(self, segment: Segment) -> None:
        """Count a verified segment, then report it, holding no lock."""
        with self._lock:
            self._verified.add(segment.index)
            self.verified_bytes += segment.nbytes
            self.counted_bytes += segment.nbytes
            self._reporter.note(self.verified_bytes)
        self._reporter.call()


class Intake:
    """The receiving end of one source."""

    def __init__(self, ledger: Ledger, offer: Offer, segments: Sequence[Segment]) -> None:
        self.ledger = ledger
        self.offer = offer
        self.segments = segments

    def expect(self, segment: Segment, hashing_threads: int = 1) -> "SegmentWriter":
        """Where the bytes of one segment go."""
        hasher = ALGORITHMS[self.offer.digest_algorithm](hashing_threads)
        return SegmentWriter(
            self.ledger, segment, hasher, self.offer.segment_digests[segment.index]
        )


class SegmentWriter:
    """One segment on its way in, for one thread: fill its targets in order, `update` with them.

    With its last byte a segment is compared, and counts.
    """

    def __init__(self, ledger: Ledger, segment: Segment, hasher: Hasher, digest: str) -> None:
        self._ledger = ledger
        self._segment = segment
        self._hasher = hasher
        self._digest = digest
        self._left = segment.nbytes
        self._apart: list[tuple[Tensor, Tensor]] = []
        """Places that the transport cannot write to, and what it fills instead."""

    def target(self, extent: Extent, device: torch.device = CPU) -> Tensor:
        """Where a transport that writes on `device` puts an extent of it (uint8, 1-d)."""
        place = self._ledger.store.place(extent)
        if place.device == device:
            return place
        room = torch.empty(extent.length, dtype=torch.uint8, device=device)
        self._apart.append((place, room))
        return room

    def views(self) -> list[memoryview]:
        """The targets, for a transport that writes to memory of the host."""
        return [memory_of(self.target(extent)) for extent in self._segment.extents]

    def update(self, view: memoryview) -> None:
        """Take the next bytes into the digest.

        Raises:
            TransferError: DIGEST_MISMATCH, with the last bytes; the segment does not count.
        """
        self._hasher.update(view)
        self._left -= len(view)
        if not self._left:
            self._finish()

    def _finish(self) -> None:
        if self._hasher.hexdigest() != self._digest:
            detail = f"segment {self._segment.index} does not match its published digest"
            raise TransferError(Reason.DIGEST_MISMATCH, detail)
        for place, room in self._apart:
            bring(place, room)
        self._apart.clear()
        self._ledger.store.arrived(self._segment)
        self._ledger.record(self._segment)
