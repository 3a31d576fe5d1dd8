"""The long work of one session, on a thread of its own: each order gives one event.

The thread starts with the first order and carries out all of them, one after the other. When the
session is over, it ends what they made: a transport's library may want to be left on the thread on
which it was entered.
"""

import contextlib
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from socket import socket
from typing import TypeAlias

from netloader.config import Deadlines
from netloader.errors import LocalProtocolError
from netloader.fsm.effects import JoinTransport, PrepareOffer, StartTransfer
from netloader.fsm.events import (
    Event,
    OfferReady,
    OfferRefused,
    TransferFailed,
    Transferred,
    TransportJoined,
    TransportRefused,
)
from netloader.fsm.messages import Candidate
from netloader.fsm.reasons import RETRYABLE, Reason
from netloader.fsm.terms import MAX_LANES
from netloader.io.pacing import UNPACED, Pace
from netloader.io.published import PublishedModel
from netloader.io.transports import (
    TRANSPORTS,
    BusyError,
    Registry,
    Sender,
    SenderSetup,
    TransferError,
)
from netloader.io.transports.session_ends import SessionEnds
from netloader.io.usage import AlwaysInUse
from netloader.wire import tasks

Order: TypeAlias = tasks.Order

THREAD_NAME = "netloader-worker"

RETRY_AFTER_S = 2.0
"""When a client that was turned away may come again: a few gigabytes from now."""


RENEWAL_S = 10.0
"""How long a session waits to hear whether newer weights will be offered."""
UNLIMITED = "the server limits what it sends (max_bandwidth), which this transport cannot"
"""Why a transport is left out."""
HASHED_PER_S = 4 << 30
"""Bytes of newer weights that are ready a second after, if a core is free."""


class SessionWorker(ABC):
    """Carries out one session's orders, one at a time, and posts what became of each.

    `begin` and `close` are called on the loop's thread, `begin` not after `close`.
    """

    def __init__(self) -> None:
        self.post: Callable[[Event], None] = lambda _: None
        self.trouble: Callable[[Exception], None] = lambda _: None
        self.ended: Callable[[], None] = lambda: None
        """What it calls, from any thread, when nothing of it runs any more. May be called twice."""
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        """None: the session is over."""
        self._thread: threading.Thread | None = None
        self._unsafe = False

    def begin(self, order: Order) -> None:
        """Start on an order; its event is posted when it is done or has failed."""
        if self._thread is None:
            thread = threading.Thread(target=self._work, name=THREAD_NAME, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the process may have no more threads
                why = f"no thread can be started ({error}); raise pids.max"
                self.post(self.refused(order, why))
                return
            self._thread = thread
        self._orders.put(order)

    def refused(self, order: Order, why: str) -> Event:
        """What the session hears of an order that cannot even be begun."""
        del order
        return TransferFailed(Reason.TRANSFER_FAILED, why)

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            self.post(self._carried_out(order))
            del order  # it may be an offer with a large manifest
        try:
            self.end()
        except Exception as error:  # noqa: BLE001 - whatever it is, something may still move
            self._unsafe = True
            self.trouble(error)
        self.ended()

    def _carried_out(self, order: Order) -> Event:
        try:
            return self.do(order)
        except TransferError as error:
            return TransferFailed(error.reason, error.detail)
        except Exception as error:  # noqa: BLE001 - whatever it is, the session must hear of it
            self.trouble(error)
            return TransferFailed(Reason.TRANSFER_FAILED, f"internal: {type(error).__name__}")

    @abstractmethod
    def do(self, order: Order) -> Event:
        """Carry out one order, on the worker thread."""

    @abstractmethod
    def end(self) -> None:
        """End what the orders made, on the worker thread, when the session is over."""

    @abstractmethod
    def abort(self) -> None:
        """Make the order at hand fail within a second (from any thread, any number of times)."""

    def note(self, segments: frozenset[int]) -> None:  # noqa: B027 - only a client has a source
        """The source has these segments too."""

    def audit(self) -> None:  # noqa: B027 - only a server has published anything
        """Have the published weights compared with their digests again, on another thread."""

    def close(self) -> None:
        """The session is over: abort, and have everything freed on the worker thread."""
        self.abort()
        self._orders.put(None)
        if self._thread is None:
            self.ended()

    def join(self, timeout_s: float) -> bool:
        """Wait for the worker to be gone, after `close`; False when it is not, or left something.

        Then memory of the session may still be read or written.
        """
        if self._thread is not None:
            self._thread.join(timeout_s)
        alive = self._thread is not None and self._thread.is_alive()
        return not alive and not self._unsafe


class IdleWorker(SessionWorker):
    """For sessions that never get as far as work: a client that only asks for a description."""

    def do(self, order: Order) -> Event:
        """Refuse: no order can come."""
        raise LocalProtocolError(f"this session carries out no {type(order).__name__}")

    def end(self) -> None:
        """Do nothing: nothing was done."""

    def abort(self) -> None:
        """Do nothing: nothing runs."""


class ServerWorker(SessionWorker):
    """Prepares offers and sends, of the published model that the client chose among some."""

    def __init__(
        self,
        published_models: tuple[PublishedModel, ...],
        session: str,
        deadlines: Deadlines,
        transports: Registry = TRANSPORTS,
        pace: Pace = UNPACED,
        rails: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.published: PublishedModel | None = None
        """The client's choice: known, to whoever gives the orders, from the first one on."""
        self.serves_at = ""
        """Where the client will serve, as it was noted; empty: nowhere."""
        self._published_models = published_models
        self._transports = transports
        self._setup = SenderSetup(session, deadlines.stall_s, pace, rails)
        # The client waits in its handshake, this side in VALIDATE: answer before either is over.
        self._patience_s = min(deadlines.handshake_s, deadlines.validate_s) / 2
        self._senders = SessionEnds[Sender]()
        self._candidates: tuple[str, ...] = ()
        self._joined = ""
        """The candidate that the client has opened, too."""
        self._leaving = contextlib.ExitStack()
        self._reading = contextlib.ExitStack()
        """Guards the memory from before there is a sender until it has ended."""
        self._closed = False
        self._runs = 0
        self._lock = threading.Lock()

    def begin(self, order: Order) -> None:
        """Start on an order, having noted which published it is about."""
        if isinstance(order, PrepareOffer):
            self.published = self._published_models[order.entry]
        super().begin(order)

    def refused(self, order: Order, why: str) -> Event:
        """A client that only asks for an offer may come again."""
        if isinstance(order, PrepareOffer):
            return OfferRefused(Reason.BUSY, why, RETRY_AFTER_S)
        return super().refused(order, why)

    def do(self, order: Order) -> Event:
        """Prepare an offer, or send what was asked for."""
        published, sending = self.published, self._senders.get(self._joined)
        if isinstance(order, PrepareOffer) and published is not None:
            ready = self._prepare(published, order)
            if isinstance(ready, OfferReady | OfferRefused):
                others = published.referrals.besides(order.serves_at)
                ready = replace(ready, other_sources=others)
            if isinstance(ready, OfferReady):
                self.serves_at = order.serves_at
                published.referrals.note(order.serves_at)
            return ready
        if isinstance(order, JoinTransport):
            return self._join(order)
        if isinstance(order, StartTransfer) and published is not None and sending is not None:
            return self._send(published, sending, order)
        raise LocalProtocolError(f"a server cannot carry out {type(order).__name__} now")

    def end(self) -> None:
        """End the senders: until then they, or the client, may read the weights.

        When that fails, they may be read for ever: so they stay guarded.
        """
        self._senders.keep()
        self._reading.close()

    def _prepare(self, published: PublishedModel, order: PrepareOffer) -> Event:
        entered = self._enter(published)
        how = (published, order.digest_algorithm, self._patience_s)
        digests = published.other_digests.of(*how) if entered else None
        if published.withdrawn or not published.still_used():
            failure = _withdrawn(published)
            later = _soon(published) if failure.reason in RETRYABLE else 0.0
            return OfferRefused(failure.reason, failure.detail, later)
        if not entered:
            detail = f"all {published.max_clients} places are taken"
            return OfferRefused(Reason.BUSY, detail, RETRY_AFTER_S)
        if digests is None:
            detail = "digests are being computed or checked"
            return OfferRefused(Reason.NOT_READY, detail, _soon(published))
        _ = published.entry.manifest.digest  # made once, and not on the loop's thread
        self._reading.enter_context(published.reading())
        return self._prepare_candidates(published, order.transports, digests)

    def _prepare_candidates(
        self, published: PublishedModel, transports: tuple[str, ...], digests: tuple[str, ...]
    ) -> Event:
        """Make a sender for each transport, which holds nothing that a process has only once."""
        candidates, left_out = list[Candidate](), list[TransportRefused]()
        for name in transports:
            try:
                sender = self._sender(published, name)
            except TransferError as error:
                if isinstance(error, BusyError) and not candidates:
                    return OfferRefused(error.reason, error.detail, RETRY_AFTER_S)
                left_out.append(TransportRefused(name, error.reason, error.detail))
                continue
            self._senders.add(name, sender)
            candidates.append(Candidate(name, sender.rendezvous()))
        if not candidates:
            raise TransferError(left_out[0].reason, left_out[0].detail)
        self._candidates = tuple(candidate.transport for candidate in candidates)
        return OfferReady(tuple(candidates), digests, published.available, left_out=tuple(left_out))

    def _sender(self, published: PublishedModel, name: str) -> Sender:
        transport = self._transports.named(name)
        if self._setup.pace.limited and not transport.capabilities.paced:
            raise TransferError(Reason.TRANSFER_FAILED, UNLIMITED)
        return published.attachments.to(transport).sender(self._setup)

    def _join(self, order: JoinTransport) -> Event:
        """Tell a sender what its peer answers; the candidates that the client has left may go."""
        sender = self._senders.get(order.transport)
        if sender is None:
            raise LocalProtocolError(f"there is no candidate {order.transport}")
        later = self._candidates[self._candidates.index(order.transport) + 1 :]
        self._senders.keep(order.transport, *later)
        try:
            sender.answered(order.answer)
        except BusyError as error:
            return OfferRefused(error.reason, error.detail, RETRY_AFTER_S)
        except TransferError as error:
            self._senders.keep(*later)  # the client need not wait for it
            return TransportRefused(order.transport, error.reason, error.detail)
        self._joined = order.transport
        return TransportJoined(order.transport)

    def _send(self, published: PublishedModel, sending: Sender, order: StartTransfer) -> Event:
        """Send segments; while they are under way, compare what the client cannot."""
        self._runs += 1
        self._senders.keep(self._joined)
        repeatable = self._transports.named(self._joined).capabilities.repeatable
        if self._runs > 1 and not repeatable:
            detail = "this transport carries one request in a session; ask in a new session"
            raise TransferError(Reason.TRANSFER_FAILED, detail)
        asked = set(order.segments)
        segments = [published.segments[i] for i in order.segments]
        unasked = [segment for segment in published.segments if segment.index not in asked]
        available = published.available
        if available is not None and not available.issuperset(asked):
            raise TransferError(Reason.NOT_AVAILABLE, "a segment is not verified yet")
        with published.reading():  # not when it was withdrawn since the offer
            # Nothing uses what a relay receives, or a folder: a client compares all of that itself.
            whole = self._runs == 1 and not isinstance(published.usage, AlwaysInUse)
            found = _beside(partial(published.examine, unasked)) if whole else lambda: ""
            sent = sending.run(segments, order.lanes)
        if why := found():
            published.changed(why)
        if why or not published.still_used():
            raise _withdrawn(published)
        published.tally.add(sent_bytes=sent)
        return Transferred(sent)

    def _enter(self, published: PublishedModel) -> bool:
        """Take a place, which `close` gives back, even one that came first."""
        with self._lock:
            if self._closed or not published.admit(self._tell):
                return False
            self._leaving.callback(published.leave, self._tell)
            return True

    def _tell(self, event: Event) -> None:
        """Let the session hear of what becomes of the published model."""
        self.post(event)

    def attach(self, index: int, lane: socket, transport: str = "") -> None:
        """Take a data lane of this session, for a candidate: the first, if none is named."""
        with self._lock:
            closed = self._closed
        first = next(iter(self._candidates), "")
        sending = None if closed else self._senders.get(transport or first)
        if sending is None or not 0 <= index < MAX_LANES:
            lane.close()
        else:
            sending.attach(index, lane)

    def abort(self) -> None:
        """Stop sending."""
        self._setup.pace.abort()
        self._senders.abort()

    def audit(self) -> None:
        """Have the published model that the client chose compared with its digests."""
        if self.published is not None:
            self.published.doubt()

    def close(self) -> None:
        """Stop, and give the place back."""
        with self._lock:
            self._closed = True
        super().close()
        self._leaving.close()


def _withdrawn(published: PublishedModel) -> TransferError:
    """Why nothing is served of a published model, and whether it is worth to ask again."""
    renewed = published.renewed(RENEWAL_S)
    return TransferError(
        Reason.NOT_READY if renewed else published.reason,
        published.withdrawn + ("; newer weights are being prepared" if renewed else ""),
    )


def _soon(published: PublishedModel) -> float:
    """Seconds after which the weights may be ready."""
    return min(RETRY_AFTER_S, published.entry.manifest.nbytes / HASHED_PER_S)


def _beside(work: Callable[[], str]) -> Callable[[], str]:
    """Start work on a thread, and return what waits for its answer."""
    answer: list[str] = []
    thread = threading.Thread(
        target=lambda: answer.append(work()), name="netloader-examine", daemon=True
    )
    try:
        thread.start()
    except RuntimeError:  # no thread is to be had
        return work

    def wait() -> str:
        thread.join()
        return answer[0] if answer else "the weights could not be compared"

    return wait
