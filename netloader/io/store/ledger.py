"""Which segments are verified, and which source may write the others.

Several sources may send at once, and a dropped one may write until its receiver has ended. So the
place of a segment belongs to the first writer that begins to fill it, until that writer is done or
its lease is released. Whatever else arrives for the segment goes to scratch memory, and is copied
to the place when that is free. A segment counts when its digest matched and it is in its place.
"""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from netloader.errors import LocalProtocolError
from netloader.fsm.manifest import Extent, Progress, Segment, segments_of
from netloader.fsm.messages import Offer
from netloader.fsm.reasons import Reason
from netloader.io.device import CPU
from netloader.io.failure import TransferError
from netloader.io.memory import memory_of
from netloader.io.store.base import InHostMemory, Store
from netloader.io.store.copies import bring
from netloader.io.store.digests import ALGORITHMS, Hasher
from netloader.io.store.resuming import still_held

Report = Callable[[int, int], None]
"""Called with bytes verified so far and bytes in all, on the thread that moved them."""


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


class Audience(Protocol):
    """Those that read what is verified, while the rest arrives. Called without a lock."""

    def begin(self, offer: Offer, available: frozenset[int]) -> None:
        """A source brings segments of an offer from now on; `available` are verified already."""

    def have(self, segment: int) -> None:
        """One more segment is verified, and in its place."""

    def leave(self) -> None:
        """Read nothing any more: all begins anew. Returns when nothing is read.

        Raises:
            TransferError: something is read still.
        """


class NoAudience:
    """For a store that is read when it is whole."""

    def begin(self, offer: Offer, available: frozenset[int]) -> None:
        """Do nothing."""

    def have(self, segment: int) -> None:
        """Do nothing."""

    def leave(self) -> None:
        """Do nothing."""


class Ledger:
    """Which segments of a store are verified, against which digests. Safe for many threads."""

    def __init__(self, store: Store, report: Report, audience: Audience | None = None) -> None:
        self._audience = audience or NoAudience()
        self._leasing = threading.Lock()
        """Held from a look at the root until the lease is there."""
        self.store = store
        self.total = store.manifest.nbytes
        self._reporter = Reporter(report, self.total)
        self._against = Progress()
        self._segments: tuple[Segment, ...] = ()
        self._verified: set[int] = set()
        self.verified_bytes = 0
        """Bytes that are verified and in their place."""
        self._leases: set[Lease] = set()
        self._places: dict[int, SegmentWriter] = {}
        """The writer that may write to the place of a segment."""
        self._spares: dict[int, SegmentWriter] = {}
        """The writer with the verified segment in scratch memory while another has the place."""
        self._change = threading.Condition()
        self.settling = threading.Lock()
        """Held by the session that completes the store."""
        self.settled_for = ""
        """The manifest digest for which the store was completed. `settling` protects it."""

    @property
    def progress(self) -> Progress:
        """What is verified so far."""
        with self._change:
            return replace(self._against, verified=frozenset(self._verified))

    def resume(self, before: Progress, stopped: Callable[[], bool]) -> None:
        """Count what the store still holds of earlier progress: as `still_held`, of this store.

        Call it before the first lease; it hashes all that the progress calls verified.
        """
        held = still_held(self.store, before, stopped)
        if not held.verified:
            return
        segments = segments_of(self.store.manifest, held.segment_bytes)
        with self._change:
            if self._leases or self._verified:
                raise LocalProtocolError("earlier progress counts only before the first lease")
            self._against = replace(held, verified=frozenset())
            self._segments = segments
            self._verified = {*held.verified}
            self.verified_bytes = sum(segments[i].nbytes for i in held.verified)

    def lease(self, offer: Offer) -> "Lease":
        """Let one source bring segments, until `release`.

        What was verified against the same digests is kept. With other digests the fill starts over,
        which is only possible when every other lease is released: bytes of two checkpoints must not
        be mixed in one store.

        Raises:
            TransferError: another source still brings segments with other digests, or somebody
                still reads those that were verified.
        """
        offered = Progress(offer.digest_algorithm, offer.segment_bytes, offer.segment_digests)
        with self._leasing:
            if offered != self._against:
                self._start_over(offered)
            lease = Lease(self, offer, self._segments)
            with self._change:
                self._leases.add(lease)
                available = frozenset(self._verified)
            self._audience.begin(offer, available)
            return lease

    def _start_over(self, offered: Progress) -> None:
        if self._leases:
            detail = "the source offers other weights than those that are being received"
            raise TransferError(Reason.TRANSFER_FAILED, detail)
        self._audience.leave()
        with self._change:
            self.store.restart()
            self._against = offered
            self._segments = segments_of(self.store.manifest, offered.segment_bytes)
            self._verified.clear()
            self.verified_bytes = 0
            self.settled_for = ""

    def release(self, lease: "Lease") -> None:
        """End a lease, when its receiver has ended and writes no more. Idempotent.

        Segments of other sources that waited in scratch memory are copied to their places.
        """
        lease.revoke()
        with self._change:
            mine = [i for i, writer in self._places.items() if writer.lease is lease]
        for index in mine:
            self._free(index)
        with self._change:
            self._leases.discard(lease)
            self._change.notify_all()

    def begin(self, writer: "SegmentWriter") -> bool:
        """Whether a writer may write to the place of its segment; else to scratch memory."""
        index = writer.segment.index
        with self._change:
            if index in self._verified or index in self._places:
                return False
            self._places[index] = writer
            return True

    def commit(self, writer: "SegmentWriter") -> None:
        """Count a segment that matched its digest, once its bytes are in their place.

        Raises:
            TransferError: the source was dropped, or the store does not take the bytes.
        """
        index = writer.segment.index
        with self._change:
            writer.lease.check()
            if index in self._verified:
                return
            if self._places.setdefault(index, writer) is not writer:
                self._spares.setdefault(index, writer)
                return
        self._take(writer)

    def discard(self, writer: "SegmentWriter") -> None:
        """Free the place of a writer whose bytes do not match the digest."""
        index = writer.segment.index
        if self._places.get(index) is writer:
            self._free(index)

    def _free(self, index: int) -> None:
        """Free a place, and copy to it the segment that waits in scratch memory, if any."""
        with self._change:
            self._places.pop(index, None)
            spare = self._spares.pop(index, None)
            if spare is not None:
                self._places[index] = spare
        if spare is not None:
            with contextlib.suppress(TransferError):  # then it is missing, and is asked for again
                self._take(spare)

    def _take(self, writer: "SegmentWriter") -> None:
        segment = writer.segment
        try:
            writer.bring()
            self.store.arrived(segment)
        except BaseException:
            self._free(segment.index)
            raise
        with self._change:
            self._verified.add(segment.index)
            self._places.pop(segment.index, None)
            self._spares.pop(segment.index, None)
            self.verified_bytes += segment.nbytes
            writer.lease.verified_bytes += segment.nbytes
            self._reporter.note(self.verified_bytes)
            self._change.notify_all()
        self._audience.have(segment.index)
        self._reporter.call()

    def arrived(self, segments: frozenset[int]) -> frozenset[int]:
        """Those of some segments that are verified, against the digests of any lease there is."""
        with self._change:
            return segments & self._verified

    def available(self, root: Progress) -> frozenset[int]:
        """The segments that are verified against the digests of `root`: none after a new start."""
        with self._change:
            same = replace(root, verified=frozenset()) == self._against
            return frozenset(self._verified) if same else frozenset()


class Lease:
    """The right of one source to write. When its receiver has ended, call `Ledger.release`."""

    def __init__(self, ledger: Ledger, offer: Offer, segments: tuple[Segment, ...]) -> None:
        self.ledger = ledger
        self.offer = offer
        self.segments = segments
        self.verified_bytes = 0
        """Bytes of this source that were verified."""
        self._revoked = threading.Event()

    def expect(self, segment: Segment, hashing_threads: int = 1) -> "SegmentWriter":
        """Where the bytes of one segment go.

        Raises:
            TransferError: the source was dropped.
        """
        self.check()
        hasher = ALGORITHMS[self.offer.digest_algorithm](hashing_threads)
        return SegmentWriter(self, segment, hasher, self.offer.segment_digests[segment.index])

    def revoke(self) -> None:
        """Drop the source, from any thread: nothing it brings from now on counts.

        No place is handed out any more, but memory that was may still be written, until the
        receiver has ended.
        """
        self._revoked.set()

    def check(self) -> None:
        """Raise TransferError when the source was dropped."""
        if self._revoked.is_set():
            raise TransferError(Reason.TRANSFER_FAILED, "the source was dropped")


class SegmentWriter:
    """One segment that arrives, for one thread: fill its targets in order, `update` with them.

    With its last byte a segment is compared, and counts.
    """

    def __init__(self, lease: Lease, segment: Segment, hasher: Hasher, digest: str) -> None:
        self.lease = lease
        self.segment = segment
        self._ledger = lease.ledger
        self._hasher = hasher
        self._digest = digest
        self._left = segment.nbytes
        self._in_place = self._ledger.begin(self)
        self._apart: list[tuple[Extent, Tensor]] = []
        """Scratch memory for extents that this writer cannot write in place."""

    def target(self, extent: Extent, device: torch.device = CPU) -> Tensor:
        """Where a transport that writes on `device` puts an extent of it (uint8, 1-d).

        Raises:
            TransferError: the source was dropped.
        """
        if self._has_place():
            place = self._ledger.store.place(extent)
            if place.device == device:
                return place
        room = torch.empty(extent.length, dtype=torch.uint8, device=device)
        self._apart.append((extent, room))
        return room

    def views(self) -> list[memoryview]:
        """The targets, for a transport that writes to memory of the host.

        Raises:
            TransferError: the source was dropped.
        """
        store = self._ledger.store
        if not self._has_place() or not isinstance(store, InHostMemory):
            return [memory_of(self.target(extent)) for extent in self.segment.extents]
        shown = ((extent, store.host_view(extent)) for extent in self.segment.extents)
        return [memory_of(self.target(e)) if view is None else view for e, view in shown]

    def _has_place(self) -> bool:
        self.lease.check()
        return self._in_place

    def update(self, *views: memoryview) -> None:
        """Take the next bytes into the digest: one view, or several that follow one another.

        Raises:
            TransferError: DIGEST_MISMATCH, with the last bytes; the segment does not count. Or the
                source was dropped.
        """
        self.lease.check()
        for view in views:
            self._hasher.update(view)
        self._left -= sum(map(len, views))
        if not self._left:
            self._finish()

    def bring(self) -> None:
        """Copy what was received in scratch memory to its place."""
        for extent, room in self._apart:
            bring(self._ledger.store.place(extent), room)
        self._apart.clear()

    def _finish(self) -> None:
        if self._hasher.hexdigest() != self._digest:
            self._ledger.discard(self)
            detail = f"segment {self.segment.index} does not match its published digest"
            raise TransferError(Reason.DIGEST_MISMATCH, detail)
        self._ledger.commit(self)
