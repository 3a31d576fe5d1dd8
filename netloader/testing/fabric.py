"""The simulated transport between two ends. As in a collective, neither can end it alone.

A segment's contents are a token, its digest is SHA-256 of the token. When one side aborts, the
other side is not told: its order hangs until its own machine aborts it, as a collective does.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from netloader.errors import LocalProtocolError
from netloader.fsm.effects import (
    ChooseSegments,
    JoinTransport,
    OpenTransport,
    PrepareOffer,
    StartTransfer,
)
from netloader.fsm.events import (
    Ask,
    Event,
    Finish,
    OfferReady,
    TransferFailed,
    Transferred,
    TransportJoined,
    TransportReady,
)
from netloader.fsm.manifest import Progress, Segment, segments_of
from netloader.fsm.messages import Candidate, Offer
from netloader.fsm.reasons import Reason
from netloader.fsm.terms import CatalogEntry
from netloader.testing.sides import Side
from netloader.wire.tasks import Order

ALL_SEGMENTS = 1 << 30


class Holding:
    """The store of a client: contents by segment, and which of them are verified."""

    def __init__(self) -> None:
        self.progress = Progress()
        self.contents: dict[int, bytes] = {}

    def follow(self, offer: Offer) -> None:
        """Take an offer: keep what was verified against the same digests, else start over."""
        self.progress = self.progress.continued(
            offer.digest_algorithm, offer.segment_bytes, offer.segment_digests
        )

    def take(self, index: int, content: bytes) -> bool:
        """Store one segment; whether it matched its digest and counts."""
        self.contents[index] = content
        if digest(content) != self.progress.segment_digests[index]:
            return False
        verified = self.progress.verified | {index}
        self.progress = replace(self.progress, verified=verified)
        return True


def digest(content: bytes) -> str:
    """SHA-256, hex: what a simulated server publishes, whatever its algorithm is called."""
    return hashlib.sha256(content).hexdigest()


class Fabric:
    """The transport between the two sides: a collective, so neither ends alone."""

    def __init__(self, entry: CatalogEntry, contents: Sequence[bytes], holding: Holding) -> None:
        self.segments: tuple[Segment, ...] = segments_of(entry.manifest, entry.segment_bytes)
        self.contents = list(contents)
        self.published = tuple(map(digest, contents))
        self.holding = holding
        self.available: frozenset[int] | None = None
        """Segments that the server has when it makes its offer; None: all."""
        self.moving: set[Side] = set()
        self.portion = ALL_SEGMENTS
        """How many segments a client asks for at a time; 0: it needs nothing of this source."""
        self.sending: tuple[int, ...] = ()
        """The segments of the last request: the client is given these, whatever it expects."""
        self.sent = False

    def nbytes(self, segments: Iterable[int]) -> int:
        """Bytes in some segments."""
        return sum(self.segments[i].nbytes for i in segments)


def next_request(order: ChooseSegments, portion: int) -> Ask | Finish | None:
    """What a client asks for that needs at most so many segments at a time, and nothing for 0.

    None: it waits until the source has more.
    """
    wanted = tuple(i for i in order.missing if i in order.available)[:portion]
    if wanted or (portion and order.number == 1 and not order.missing):
        return Ask(wanted)
    return None if portion and order.missing else Finish()


class Hands:
    """Carries out the tasks of one side, when the test chooses it.

    A driver calls `begin`, `audit`, `abort` and `close`. It sets `post` to the function that takes
    the events of orders.
    """

    def __init__(self, side: Side, fabric: Fabric) -> None:
        self.post: Callable[[Event], None] = lambda _: None
        self.trouble: Callable[[Exception], None] = lambda _: None
        self.side: Side = side
        self.order: Order | None = None
        self.hangs = False
        self.fate: Event | None = None
        """The event that ends the current order, if it is to fail."""
        self.audits = 0
        """How often its machine asked for the weights to be compared again."""
        self._fabric = fabric
        self._left: deque[int] = deque()
        self._moved = 0

    @property
    def able(self) -> bool:
        """Whether the current order can go on now."""
        if self.order is None or self.hangs:
            return False
        if self.fate is not None or self.side == "server":
            return True
        if isinstance(self.order, ChooseSegments):
            return next_request(self.order, self._fabric.portion) is not None
        if not isinstance(self.order, StartTransfer):
            return True
        fed = self._fabric.sent or "server" in self._fabric.moving
        return fed and (not self._left or self._moved < len(self._fabric.sending))

    @property
    def preparing(self) -> bool:
        """Whether the current order is to make an offer."""
        return isinstance(self.order, PrepareOffer)

    def begin(self, order: Order) -> None:
        """Note the order."""
        self.order = order
        if isinstance(order, StartTransfer):
            self._left, self._moved = deque(order.segments), 0
            self._fabric.moving.add(self.side)
            if self.side == "server":
                self._fabric.sending, self._fabric.sent = order.segments, False

    def work(self) -> None:
        """Move one segment, or end the order and post its event."""
        order = self.order
        if order is None:
            raise LocalProtocolError("there is nothing to do")
        if self.fate is None and self.side == "client" and self._left:
            index, sent = self._left.popleft(), self._fabric.sending[self._moved]
            self._moved += 1
            if not self._fabric.holding.take(index, self._fabric.contents[sent]):
                self.fate = TransferFailed(Reason.DIGEST_MISMATCH, f"segment {index}")
            return
        event = self.fate or self.do(order)
        self.order = self.fate = None
        self._fabric.moving.discard(self.side)
        self.post(event)

    def do(self, order: Order) -> Event:
        """The event that ends an order that succeeds."""
        match order:
            case PrepareOffer():
                candidates = tuple(Candidate(name) for name in order.transports)
                return OfferReady(candidates, self._fabric.published, self._fabric.available)
            case OpenTransport():
                self._fabric.holding.follow(order.offer)
                return TransportReady(order.transport)
            case JoinTransport():
                return TransportJoined(order.transport)
            case ChooseSegments():
                return next_request(order, self._fabric.portion) or Finish()
            case StartTransfer():
                self._fabric.sent |= self.side == "server"
                return Transferred(self._fabric.nbytes(order.segments))

    def note(self, segments: frozenset[int]) -> None:
        """The source has more: an order to choose may go on."""
        if isinstance(self.order, ChooseSegments):
            self.order = replace(self.order, available=self.order.available | segments)

    def audit(self) -> None:
        """Count the request: a test decides whether the weights have changed."""
        self.audits += 1

    def abort(self) -> None:
        """Make the current order fail; that of the other side goes on."""
        if self.order is not None:
            self.hangs = False
            self.fate = TransferFailed(Reason.TRANSFER_FAILED, "aborted")
            self._fabric.moving.discard(self.side)

    def close(self) -> None:
        """The session is over."""
        self.abort()
