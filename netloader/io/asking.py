"""One session's part in a fetch: how its worker talks to the thread of the fetch.

The worker of the session reports what its source offers and brings, and waits for what the fetch
wants of it. The owner of the fetch takes the reports on its own thread and answers there.
"""

import threading
from collections.abc import Callable

from netloader.fsm.effects import ChooseSegments
from netloader.fsm.events import Ask, Finish
from netloader.fsm.fetch_events import Available, Completed, Offered, Reported, Root
from netloader.fsm.manifest import Progress
from netloader.fsm.messages import Offer
from netloader.fsm.ranges import segments_in
from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError
from netloader.io.settling import settle_when_whole
from netloader.io.store.ledger import Lease, Ledger


class Asking:
    """Asks one source for what a fetch wants of it. `key` is the number of the source there.

    `report` takes what happens to the owner of the fetch: in order, from any thread, and without
    waiting. That owner calls `take`, `answer`; a worker calls the methods of `client_worker.Owner`.
    No lock is held while `report` is called.
    """

    def __init__(self, key: int, ledger: Ledger, report: Callable[[Reported], None]) -> None:
        self._key = key
        self._ledger = ledger
        self._report = report
        self._offered = self._taken = self._aborted = False
        self._noted: frozenset[int] = frozenset()
        """What the source has said to have before its offer was reported."""
        self._answer: Ask | Finish | None = None
        self._moving_s: float | None = None
        """Of the last request; only the worker has to do with it."""
        self._change = threading.Condition()

    # -- for the worker --------------------------------------------------------------------------

    def offered(self, offer: Offer, *, repeatable: bool) -> None:
        """Report an offer, and wait until the fetch has taken it. Blocks.

        Raises:
            TransferError: the fetch does not want it, or the session was aborted.
        """
        segments = len(offer.segment_digests)
        manifest = offer.manifest or self._ledger.store.manifest
        where = (offer.digest_algorithm, offer.segment_bytes)
        root = Root(*where, offer.root, segments, manifest.digest)
        held = self._ledger.available(Progress(*where, offer.segment_digests))
        whole = ((0, segments),)
        has = segments_in(whole if offer.availability is None else offer.availability)
        self._report(Offered(self._key, root, has, held, repeatable))
        with self._change:
            self._offered, noted = True, self._noted
        if noted:
            self._report(Available(self._key, noted))
        self._wait_for(lambda: self._taken)

    def choose(self, lease: Lease, order: ChooseSegments) -> Ask | Finish:
        """Report that the last request is complete, and wait for what the fetch wants next.

        Raises:
            TransferError: the session was aborted, or the store cannot be settled.
        """
        if order.number > 1:
            self._complete(lease)
        while (wanted := self._next()) == Ask(()) and order.number > 1:
            self._complete(lease)  # others brought the rest; this source has said it is done
        return wanted

    def received(self, seconds: float) -> None:
        """Note how long the bytes of the last request took."""
        self._moving_s = seconds

    def note(self, segments: frozenset[int]) -> None:
        """Report that the source has these segments too, now or after its offer."""
        with self._change:
            offered = self._offered
            if not offered:
                self._noted |= segments
        if offered:
            self._report(Available(self._key, segments))

    def abort(self) -> None:
        """Wait no longer."""
        with self._change:
            self._aborted = True
            self._change.notify_all()

    def _complete(self, lease: Lease) -> None:
        settle_when_whole(lease, lambda: self._aborted)
        self._report(Completed(self._key, self._moving_s))

    def _next(self) -> Ask | Finish:
        self._wait_for(lambda: self._answer is not None)
        with self._change:
            wanted, self._answer = self._answer, None
        if wanted is None:
            raise AssertionError("only one thread takes answers")
        return wanted

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        with self._change:
            self._change.wait_for(lambda: condition() or self._aborted)
            if self._aborted:
                raise TransferError(Reason.STOPPED, "aborted")

    # -- for the owner of the fetch --------------------------------------------------------------

    def take(self) -> None:
        """The fetch has taken the offer."""
        with self._change:
            self._taken = True
            self._change.notify_all()

    def answer(self, wanted: Ask | Finish) -> None:
        """Say what the fetch wants next of the source."""
        with self._change:
            self._answer = wanted
            self._change.notify_all()
