"""One session of a fetch: tells the fetch what happens, and the session what is wanted.

While a session runs, its worker thread reports and asks what is wanted next (`choose`); when it has
ended, the driver of the fetch goes on (`ended`).
"""

import threading

from netloader.fsm.effects import ChooseSegments, Verdict
from netloader.fsm.events import Ask, Finish
from netloader.fsm.fetch import Fetch
from netloader.fsm.fetch_events import (
    Available,
    Busy,
    CancelRequested,
    Completed,
    Conclude,
    FetchEffect,
    FetchEvent,
    Offered,
    Request,
    Root,
    SegmentVerified,
    SourceEnded,
    SourceFailed,
    SourcesFound,
)
from netloader.fsm.messages import Offer
from netloader.fsm.reasons import RETRYABLE, Reason
from netloader.fsm.source import Stage
from netloader.fsm.states import State
from netloader.io.clock import monotonic
from netloader.io.failure import TransferError
from netloader.io.store.ledger import Ledger


class Asking:
    """Asks one source for what a fetch wants of it. `key` is the number of the source there."""

    def __init__(self, fetch: Fetch, key: int, ledger: Ledger) -> None:
        self._fetch = fetch
        self._key = key
        self._ledger = ledger
        self._left: list[FetchEffect] = []
        """What the fetch wants beside this session."""
        self._noted: frozenset[int] = frozenset()
        """What the source has said since to have; the fetch has not heard of it."""
        self._aborted = False
        self._change = threading.Condition()

    def choose(self, offer: Offer, order: ChooseSegments) -> Ask | Finish:
        """Report what the source has offered or brought, and return what the fetch wants next.

        Waits while the source has nothing that is missing, as long as the fetch does.

        Raises:
            TransferError: the fetch wants nothing more of this source, or it was aborted.
        """
        if order.number == 1:
            segments = len(offer.segment_digests)
            root = Root(offer.digest_algorithm, offer.segment_bytes, offer.root, segments)
            self._tell(Offered(self._key, root, order.available))
            self._tell_noted()
        else:
            self._tell_noted()
            self._count()
            self._tell(Completed(self._key))
        while (wanted := self._wanted()) is None:
            self._wait()
        return wanted

    def note(self, segments: frozenset[int]) -> None:
        """Have the fetch told that the source has these segments too."""
        with self._change:
            self._noted |= segments
            self._change.notify_all()

    def abort(self) -> None:
        """Wait no longer."""
        with self._change:
            self._aborted = True
            self._change.notify_all()

    def _wait(self) -> None:
        """Until the source has more, or for as long as the fetch waits."""
        due = self._fetch.next_timeout()
        with self._change:
            timeout_s = None if due is None else max(due - monotonic(), 0.0)
            self._change.wait_for(lambda: self._noted or self._aborted, timeout_s)
        if self._aborted:
            raise TransferError(Reason.STOPPED, "aborted")
        self._tell_noted()
        self._left += self._fetch.handle_timeout(monotonic())

    def _tell_noted(self) -> None:
        with self._change:
            noted, self._noted = self._noted, frozenset()
        if noted:
            self._tell(Available(self._key, noted))

    def ended(
        self,
        verdict: Verdict,
        stopped: CancelRequested | None,
        *,
        another_transport: bool,
        found: tuple[int, ...] = (),
    ) -> list[FetchEffect]:
        """Report how the session ended, and return what the fetch wants now.

        `another_transport` says whether one is left to try. `stopped` is the end that the caller
        of the fetch wants. `found` are the numbers of sources that the session has named.
        """
        if found:
            self._tell(SourcesFound(found))
        if self._fetch.sources[self._key].state is Stage.RECEIVING:
            self._count()
        if stopped and verdict.state is State.FALLBACK:
            self._tell(stopped)
        elif verdict.reason in RETRYABLE:
            self._tell(Busy(self._key, verdict.retry_after_s))
        elif verdict.state is State.FALLBACK:
            self._tell(SourceFailed(self._key, verdict.reason, another_transport))
        self._tell(SourceEnded(self._key))
        return self._left

    def _wanted(self) -> Ask | Finish | None:
        """What the fetch wants of this source; None while there is nothing to be done."""
        match self._left:
            case []:
                return None
            case [Request(key, segments), *others] if key == self._key:
                self._left = others
                held = self._ledger.progress.verified.intersection(segments)
                self._count()
                return Ask(tuple(i for i in segments if i not in held))
            case [Conclude(key), *others] if key == self._key:
                self._left = others
                return Finish()
            case _:
                raise TransferError(Reason.STOPPED, "nothing more is wanted of this source")

    def _count(self) -> None:
        """Report the segments that came since the last report."""
        for segment in sorted(self._ledger.progress.verified - self._fetch.verified):
            self._tell(SegmentVerified(self._key, segment))

    def _tell(self, event: FetchEvent) -> None:
        self._left += self._fetch.step(event, monotonic())
