"""The long work of a client's session. It writes into the store until `end` has returned."""

import errno
from collections.abc import Callable
from socket import socket
from typing import Protocol

from netloader.errors import LocalProtocolError
from netloader.fsm.effects import ChooseSegments, JoinTransport, OpenTransport, StartTransfer
from netloader.fsm.events import (
    Ask,
    Event,
    Finish,
    Transferred,
    TransportJoined,
    TransportReady,
    TransportRefused,
)
from netloader.fsm.messages import Lane, Offer
from netloader.fsm.reasons import Reason
from netloader.fsm.terms import MAX_RENDEZVOUS_BYTES, is_rendezvous
from netloader.io.clock import monotonic
from netloader.io.settling import settle_when_whole
from netloader.io.store.ledger import Lease, Ledger
from netloader.io.transports import (
    TRANSPORTS,
    Attachments,
    Receiver,
    ReceiverSetup,
    Registry,
    TransferError,
)
from netloader.io.transports.session_ends import SessionEnds
from netloader.io.worker import SessionWorker
from netloader.wire.frames import encode
from netloader.wire.tasks import Order


def no_rail(to: str, source: str) -> socket:
    """Dial no other address: the default where a source has one."""
    raise OSError(errno.EADDRNOTAVAIL, f"no lane goes to {to!r} from {source!r}")


class Owner(Protocol):
    """Decides what a client asks its source for."""

    def offered(self, offer: Offer, *, repeatable: bool) -> None:
        """Take note of an offer, before its transport is opened. On the worker thread; may wait.

        `repeatable` says whether the transport carries more than one request in a session.

        Raises:
            TransferError: the owner needs nothing of this source, or it was aborted.
        """

    def choose(self, lease: Lease, order: ChooseSegments) -> Ask | Finish:
        """Say what to ask for next. On the worker thread; may wait.

        When nothing is missing any more, it has the store settled first.

        Raises:
            TransferError: the owner needs nothing more of it, or it was aborted, or the store
                cannot be settled.
        """

    def received(self, seconds: float) -> None:
        """All that was asked for is here, after so many seconds; on the worker thread."""

    def note(self, segments: frozenset[int]) -> None:
        """The source has these segments too. From any thread; must not block."""

    def abort(self) -> None:
        """Make `choose` raise within a second. From any thread, any number of times."""


class AskForAll:
    """The owner of a client with one source: all that is missing with one request, then the end."""

    def offered(self, offer: Offer, *, repeatable: bool) -> None:
        """Do nothing: one request is all there is."""

    def choose(self, lease: Lease, order: ChooseSegments) -> Ask | Finish:
        """Ask for everything at first."""
        if not order.available.issuperset(order.missing):
            raise TransferError(Reason.TRANSFER_FAILED, "the source has only some of the segments")
        if order.number == 1:
            return Ask(order.missing)
        settle_when_whole(lease, lambda: False)
        return Finish()

    def received(self, seconds: float) -> None:
        """Do nothing: there is no other source to compare with."""

    def note(self, segments: frozenset[int]) -> None:
        """Do nothing: a source that had not everything was refused."""

    def abort(self) -> None:
        """Do nothing: nothing waits."""


class ClientWorker(SessionWorker):
    """Opens transports and receives.

    `connect` makes one more connection to the server's port, and `rail(to, source)` one to another
    address of the server, from one of this host, such as those in `rails`. `attachments` are those
    of the ledger's weights, where they outlive the session. `owner` decides what the source is
    asked for.
    """

    def __init__(
        self,
        ledger: Ledger,
        lanes: int,
        connect: Callable[[], socket],
        stall_s: float,
        attachments: Attachments | None = None,
        transports: Registry = TRANSPORTS,
        owner: Owner | None = None,
        rail: Callable[[str, str], socket] = no_rail,
        rails: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self._owner = owner or AskForAll()
        self._ledger = ledger
        self._attachments = attachments or Attachments(ledger.store)
        self._lanes = lanes
        self._connect = connect
        self._stall_s = stall_s
        self._rail = rail
        self._rails = rails
        self._transports = transports
        self._lease: Lease | None = None
        self._receivers = SessionEnds[Receiver]()
        self._opened = ""
        """The candidate that was opened last."""

    def do(self, order: Order) -> Event:
        """Open or join a candidate, choose what to ask for, or receive what was asked for."""
        receiver = self._receivers.get(self._opened)
        match order:
            case OpenTransport():
                return self._open(order)
            case JoinTransport() if receiver is not None:
                return self._join(order.transport, receiver)
            case StartTransfer() if receiver is not None and self._lease is not None:
                segments = [self._lease.segments[i] for i in order.segments]
                begun = monotonic()
                received = Transferred(receiver.run(segments))
                self._owner.received(monotonic() - begun)
                return received
            case ChooseSegments() if self._lease is not None:
                return self._owner.choose(self._lease, order)
            case _:
                raise LocalProtocolError(f"a client cannot carry out {type(order).__name__} now")

    def end(self) -> None:
        """End the receiver: until then it may write into the model. Then others may."""
        self._receivers.keep()
        if self._lease is not None:
            self._ledger.release(self._lease)

    def _open(self, order: OpenTransport) -> Event:
        """Open a candidate, once nothing is left of an earlier one."""
        offer, name = order.offer, order.transport

        def named(lane: socket, index: int) -> socket:
            try:
                lane.sendall(encode(Lane(offer.session, index, name)))
            except OSError:
                lane.close()
                raise
            return lane

        self._receivers.keep()
        transport = self._transports.named(name)
        if self._lease is None:
            self._owner.offered(offer, repeatable=transport.capabilities.repeatable)
            self._lease = self._ledger.lease(offer)
        setup = ReceiverSetup(
            lease=self._lease,
            session=offer.session,
            stall_s=self._stall_s,
            dial=lambda index: named(self._connect(), index),
            lanes=self._lanes,
            dial_rail=lambda index, to, source: named(self._rail(to, source), index),
            rails=self._rails,
        )
        try:
            attachment = self._attachments.to(transport)
            receiver = attachment.receiver(setup)
        except TransferError as error:
            return TransportRefused(name, error.reason, error.detail)
        self._receivers.add(name, receiver)
        self._opened = name
        rendezvous = next(c.rendezvous for c in offer.candidates if c.transport == name)
        try:
            answer = receiver.open(rendezvous)
        except TransferError as error:
            return TransportRefused(name, error.reason, error.detail)
        if not is_rendezvous(answer):
            detail = f"its answer has more than {MAX_RENDEZVOUS_BYTES} bytes"
            return TransportRefused(name, Reason.TRANSFER_FAILED, detail)
        return TransportReady(name, answer)

    @staticmethod
    def _join(name: str, receiver: Receiver) -> Event:
        try:
            receiver.join()
        except TransferError as error:
            return TransportRefused(name, error.reason, error.detail)
        return TransportJoined(name)

    @property
    def verified_bytes(self) -> int:
        """What the source has brought."""
        return 0 if self._lease is None else self._lease.verified_bytes

    def arrived(self, segments: frozenset[int]) -> frozenset[int]:
        """Those of some segments that are verified against the digests of the source's offer."""
        return frozenset() if self._lease is None else self._ledger.arrived(segments)

    def note(self, segments: frozenset[int]) -> None:
        """Tell the owner that the source has more."""
        self._owner.note(segments)

    def abort(self) -> None:
        """Stop receiving, or choosing."""
        self._owner.abort()
        self._receivers.abort()
