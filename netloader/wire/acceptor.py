"""What a new connection to a server is. There is no session before its first frame.

A connection opens with one frame. A `Lane` makes it a data connection of some session, any other
message (or bytes that are none) a control connection. Only a control connection gets a session.
"""

from dataclasses import dataclass
from typing import TypeAlias

from netloader.fsm.events import ConnectionLost, DeadlinePassed, StopRequested
from netloader.fsm.messages import Lane
from netloader.fsm.session import FRAME_BEFORE_TRUST
from netloader.wire.frames import Decoder


@dataclass(frozen=True, slots=True)
class Control:
    """A control connection. `data` is what was read of it, for the `Connection` it now gets."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """A connection that is refused or lost before its first frame was there, and why.

    Give `data` and then `event` to a session without an entry: then the answer and the log lines
    are those of any session that ends in this way.
    """

    data: bytes
    event: ConnectionLost | DeadlinePassed | StopRequested


Decision: TypeAlias = Control | Lane | Refusal


class Acceptor:
    """Reads the first frame of an accepted connection, and decides what the connection is.

    Not thread-safe. `deadline` is when the frame must be there, in seconds of the clock of `now`.
    Every method that can decide returns the decision, or None while there is none; after one, the
    acceptor has done its work.
    """

    __slots__ = ("_data", "_deadline", "_decoder")

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._decoder = Decoder(FRAME_BEFORE_TRUST)
        self._data = bytearray()

    @property
    def wanted(self) -> int:
        """Read no more bytes than this: those after the first frame of a lane are weights."""
        return self._decoder.wanted

    def receive_data(self, data: bytes) -> Decision | None:
        """Take bytes from the peer. Never raises because of them."""
        self._data += data
        self._decoder.receive(data)
        first = self._decoder.next()
        if first is None or isinstance(first, Lane):
            return first
        return Control(bytes(self._data))

    def receive_eof(self, detail: str = "closed by the peer") -> Decision:
        """The peer sends no more, or the connection broke."""
        return Refusal(bytes(self._data), ConnectionLost(detail))

    def refuse(self, event: StopRequested) -> Refusal:
        """Refuse the connection: the server is closing, or needs its descriptor."""
        return Refusal(bytes(self._data), event)

    def next_timeout(self) -> float:
        """When to call `handle_timeout`."""
        return self._deadline

    def handle_timeout(self, now: float) -> Decision | None:
        """Act on the deadline if it has passed. Does nothing before `next_timeout()`."""
        return None if now < self._deadline else Refusal(bytes(self._data), DeadlinePassed())
