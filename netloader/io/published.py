"""What one server publishes: weights, their digests, and places for clients.

Digests are computed once. An audit may compute them again later: when they differ, the weights
were changed under the server and the published model is withdrawn. Once withdrawn, nobody begins to
read the weights; `quiet` tells when the last one who did has ended.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

from netloader.errors import LocalProtocolError
from netloader.fsm.manifest import Segment, segments_of
from netloader.fsm.published_events import ModelState
from netloader.fsm.reasons import Reason
from netloader.fsm.terms import CatalogEntry
from netloader.io.background import BACKGROUND, in_background
from netloader.io.clock import monotonic
from netloader.io.cores import cores
from netloader.io.doubts import Doubts
from netloader.io.failure import TransferError
from netloader.io.referrals import Referrals
from netloader.io.snapshot import ModelSnapshot, OnSession, SessionRecord, Tally
from netloader.io.store.base import Store
from netloader.io.store.digests import digests_of
from netloader.io.transports import Attachments
from netloader.log import Logger

SHOWN_NAMES = 5
"""How many changed tensors a message names."""


class WithdrawnError(TransferError):
    """Nobody may read these weights any more."""

    def __init__(self, why: str) -> None:
        super().__init__(Reason.NOT_SERVING, why)


class Usage(Protocol):
    """Tells whether published tensors are still what their owner computes with.

    Called from worker threads. Each method answers '' or one sentence that names what changed.
    """

    def quick(self) -> str:
        """Compare identity, storage, geometry and version counters: a few µs for each tensor."""

    def thorough(self) -> str:
        """Compare also what no client checks; may take seconds."""


class AlwaysInUse:
    """The usage of weights that are not watched."""

    def quick(self) -> str:
        """Find nothing changed."""
        return ""

    def thorough(self) -> str:
        """Find nothing changed."""
        return ""


def withdraw_only(published: "PublishedModel", why: str) -> bool:
    """What follows a change when nobody prepares newer weights: nothing."""
    del published, why
    return False


class PublishedModel:
    """Weights on offer, shared by all sessions that want them.

    `usage` is asked before an offer and before the end of a transfer. When the weights are found to
    be others, the published model is withdrawn and `on_change(published, why)` is called, once, on
    the thread that found it and without a lock. It returns True when newer weights will be on offer
    soon.
    """

    def __init__(
        self,
        weights: Store,
        entry: CatalogEntry,
        max_clients: int,
        usage: Usage | None = None,
        on_change: Callable[["PublishedModel", str], bool] = withdraw_only,
        logger: Logger | None = None,
        on_session: OnSession | None = None,
    ) -> None:
        self._on_session = on_session
        self._logger = logger
        self.usage: Usage = usage or AlwaysInUse()
        self._on_change = on_change
        self._asked = False
        self._renewed = False
        self._answered = threading.Event()
        self.weights = weights
        self.attachments = Attachments(weights)
        self.entry = entry
        self.segments: tuple[Segment, ...] = segments_of(entry.manifest, entry.segment_bytes)
        self.max_clients = max_clients
        self.withdrawn = ""
        self._clients = 0
        self._readers = 0
        self._change = threading.Condition()
        self._digests: tuple[str, ...] = ()
        self._ready = threading.Event()
        self._doubts = Doubts()
        self.tally = Tally()
        """Shared with what is published in its place."""
        self.referrals = Referrals()

    def seal(self, known: tuple[str, ...] = ()) -> None:
        """Fix the digests: those `known` (just verified by a client), or computed on every core."""
        self._digests = known or self._compute(cores())
        self._ready.set()

    def seal_quietly(self) -> threading.Thread:
        """Compute the digests in the background, without slowing anybody."""

        def work() -> None:
            with self._still_wanted():
                self._digests = self._compute(1)
                self._ready.set()

        return in_background("netloader-seal", work, self.unproven, self._logger)

    def audit(self) -> None:
        """Hash again and compare with the sealed digests; withdraw if they differ."""
        if not self._digests:
            return
        now = self._digests
        with self._still_wanted():
            now = self._compute(1)
        changed = [i for i, digest in enumerate(now) if digest != self._digests[i]]
        names = {
            self.entry.manifest.tensors[extent.tensor].name: None
            for i in changed
            for extent in self.segments[i].extents
        }
        if changed:
            some = ", ".join(list(names)[:SHOWN_NAMES])
            self.changed(f"weights were changed after they were published, among: {some}")

    def changed(self, why: str) -> None:
        """The weights are not what was published: withdraw, and have newer ones prepared."""
        with self._change:
            if self._asked or self.withdrawn:
                return
            self._asked = True
            self.withdrawn = why
            self._change.notify_all()
        self._ready.set()
        try:
            self._renewed = self._on_change(self, why)
        finally:
            self._answered.set()

    def renewed(self, timeout_s: float) -> bool:
        """Whether it was withdrawn because newer weights will be on offer soon."""
        return self._asked and self._answered.wait(timeout_s) and self._renewed

    def still_used(self) -> bool:
        """Whether a quick look finds the weights to be what was published; if not, `changed`."""
        if why := self.usage.quick():
            self.changed(why)
        return not self._asked

    def check(self) -> None:
        """Compare all that its owner uses with what was published; if it differs, `changed`."""
        if why := self.usage.quick() or self.usage.thorough():
            self.changed(why)

    def examine(self, unasked: Sequence[Segment]) -> str:
        """What is found to be changed when all is compared but what a client compares itself.

        `unasked` are segments that the client has from another source: nobody reads them now.
        """
        try:
            with self.reading():
                if why := self.usage.thorough():
                    return why
                now = segment_digests(self.weights, unasked, self.entry.digest_algorithms[0], 1)
        except TransferError as error:
            return error.detail
        sealed = tuple(self._digests[segment.index] for segment in unasked)
        return "" if now == sealed else "weights were changed after they were published"

    def doubt(self) -> None:
        """Audit in the background because a client received other bytes; offers wait for it.

        A client may be wrong, or lie, so nothing happens while such an audit is under way, or soon
        after one (see `Doubts`).
        """

        def work() -> None:
            self.audit()
            self._doubts.end()

        if self._doubts.begin():
            in_background("netloader-audit", work, lambda _: self._doubts.end(), self._logger)

    def withdraw(self, why: str) -> None:
        """Offer nothing any more; clients are told `why`. Whoever reads already may go on."""
        with self._change:
            self.withdrawn = why
            self._change.notify_all()
        self._ready.set()

    def over(self, timeout_s: float) -> bool:
        """Wait until it is withdrawn; False when that takes longer."""
        with self._change:
            return self._change.wait_for(lambda: bool(self.withdrawn), timeout_s)

    def ended(self, record: SessionRecord) -> None:
        """Tell the owner of a session that is over, on a thread: its callback may take long."""
        if self._on_session is not None:
            told = partial(self._on_session, record)
            in_background("netloader-on-session", told, logger=self._logger)

    def snapshot(self) -> ModelSnapshot:
        """What it is in now, and what was done for its clients."""
        with self._change:
            withdrawn, clients = self.withdrawn, self._clients
        if withdrawn:
            state = ModelState.LOST
        elif not self._ready.is_set():
            state = ModelState.PREPARING
        else:
            state = ModelState.OFFERED if self._doubts.settled(0) else ModelState.AUDITING
        nbytes = self.entry.manifest.nbytes
        sessions, sent_bytes = self.tally.read()
        role = self.entry.role
        return ModelSnapshot(role, state, nbytes, clients, sessions, sent_bytes, withdrawn)

    def digests(self, timeout_s: float) -> tuple[str, ...] | None:
        """The digest of every segment, or None when they are not ready within `timeout_s`.

        They are not while weights are compared with them because a client was in doubt.
        """
        end = monotonic() + timeout_s
        known = self._ready.wait(timeout_s) and self._doubts.settled(max(0.0, end - monotonic()))
        return self._digests if known else None

    def admit(self) -> bool:
        """Take a place for one client, if there is one; give it back with `leave`."""
        with self._change:
            if self.withdrawn or self._clients == self.max_clients:
                return False
            self._clients += 1
        self.tally.add(sessions=1)
        return True

    def leave(self) -> None:
        """Give a place back."""
        with self._change:
            if not self._clients:
                raise LocalProtocolError("a place that nobody has was given back")
            self._clients -= 1
            self._change.notify_all()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Where the weights are read, and nowhere else.

        Raises:
            WithdrawnError: nobody may begin to any more.
        """
        with self._change:
            if self.withdrawn:
                raise WithdrawnError(self.withdrawn)
            self._readers += 1
        try:
            yield
        finally:
            with self._change:
                self._readers -= 1
                self._change.notify_all()

    def quiet(self, timeout_s: float) -> bool:
        """Wait until no client has a place and nobody reads; False when that takes longer."""
        with self._change:
            quiet = self._change.wait_for(lambda: not (self._clients or self._readers), timeout_s)
        if quiet and self.withdrawn:  # then no session begins any more
            self.attachments.detach()
        return quiet

    @contextlib.contextmanager
    def _still_wanted(self) -> Iterator[None]:
        try:
            yield
        except WithdrawnError:
            pass
        except TransferError as error:
            self.withdraw(error.detail)
        except Exception as error:
            self.unproven(error)
            raise

    def unproven(self, error: Exception) -> None:
        """Offer nothing whose digests cannot be computed; clients are told why."""
        if not self.withdrawn:
            self.withdraw(f"digests cannot be computed ({type(error).__name__}: {error})")

    def _compute(self, workers: int) -> tuple[str, ...]:
        with self.reading():
            readers = [partial(self._views, segment) for segment in self.segments]
            return digests_of(
                self.entry.digest_algorithms[0], readers, self.weights.readers(workers)
            )

    def _views(self, segment: Segment) -> Iterator[memoryview]:
        if self.withdrawn or BACKGROUND.ending.is_set():
            raise WithdrawnError(self.withdrawn or "the process ends")
        return self.weights.views(segment)


def segment_digests(
    weights: Store, segments: Sequence[Segment], algorithm: str, workers: int
) -> tuple[str, ...]:
    """The digest of every segment of some weights, hashing `workers` segments at a time."""
    readers = [partial(weights.views, segment) for segment in segments]
    return digests_of(algorithm, readers, weights.readers(workers))
