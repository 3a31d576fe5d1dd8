"""One control connection, bytes in and bytes out: no socket, thread or clock.

A driver moves bytes between its socket and a `Connection`, and carries out the tasks that come out
of it. docs/embed/driver.md has a whole driver.
"""

from collections.abc import Callable
from typing import TypeAlias, assert_never

from netloader.fsm.effects import (
    AbortTransfer,
    AuditWeights,
    ChooseSegments,
    JoinTransport,
    NoteAvailable,
    OpenTransport,
    PrepareOffer,
    Send,
    Settle,
    StartTransfer,
)
from netloader.fsm.events import Connected, ConnectionLost, DeadlinePassed, Event, Violated
from netloader.fsm.messages import Lane
from netloader.fsm.session import Session, Step
from netloader.fsm.states import State
from netloader.wire.frames import Decoder, encode
from netloader.wire.tasks import Task

LINGER_S = 1.0
"""How long a settled connection waits for the peer to take the last frame and close its end."""

Watcher: TypeAlias = Callable[[Session, Step], None]


class Connection:
    """A session, and the bytes of its control connection.

    Not thread-safe: one thread calls it. `now` is seconds of any monotonic clock. After every call
    that takes `now`, a driver does the following before the next call:

    1. write `data_to_send()`; if `eof_to_send`, shut down its sending end after the last byte;
    2. carry out `tasks()`, in order, and give the events that come of them to `handle`;
    3. if `closed`, close the socket, else call `handle_timeout` when `next_timeout()` has come.

    `watch` is called with each step of the session right after it was taken. It must not call the
    connection.

    A call raises only for the driver's own mistakes (an event that cannot happen now). The session
    is then unusable: close the socket.
    """

    def __init__(self, session: Session, watch: Watcher = lambda session, step: None) -> None:  # noqa: ARG005
        self.session = session
        self.closed = False
        """The conversation is over, and nothing more is to be sent or received."""
        self.eof_received = False
        """The peer sends no more: stop reading."""
        self.watch = watch
        self._decoder = Decoder(session.frame_limit)
        self._out: list[bytes] = []
        self._tasks: list[Task] = []
        self._mute = True
        """Nothing can be sent: not yet, or not any more."""
        self._linger_until: float | None = None

    # -- input -----------------------------------------------------------------------------------

    def receive_data(self, data: bytes, now: float) -> None:
        """Take bytes from the peer, as many or few as there are. Never raises because of them."""
        self._decoder.receive(data)
        while (heard := self._decoder.next()) is not None:
            if isinstance(heard, Lane):
                heard = Violated("a lane where none belongs")
            self.handle(heard, now)

    def receive_eof(self, now: float, detail: str = "closed by the peer") -> None:
        """The peer sends no more, or the connection broke: `detail` says which."""
        self.eof_received = self._mute = True
        self._out.clear()
        if self.closing:
            self.closed = True
        else:
            self.handle(ConnectionLost(detail), now)

    def send_failed(self) -> None:
        """Nothing more can be written. What the peer sent may still be read, and will say why."""
        self._mute = True
        self._out.clear()
        self.closed |= self.closing

    def handle(self, event: Event, now: float) -> None:
        """Take one event, such as `Connected()`, or the result of a task."""
        if self.closed:
            return
        if isinstance(event, Connected):
            self._mute = False
        step = self.session.step(event, now)
        self.watch(self.session, step)
        for effect in step.effects:
            match effect:
                case Send():
                    self._out += [] if self._mute else [encode(effect.message)]
                case Settle():
                    self._tasks.append(effect)
                    self._settle(now)
                case (
                    PrepareOffer()
                    | OpenTransport()
                    | JoinTransport()
                    | ChooseSegments()
                    | NoteAvailable()
                    | StartTransfer()
                    | AuditWeights()
                    | AbortTransfer()
                ):
                    self._tasks.append(effect)
                case _:
                    assert_never(effect)
        self._decoder.limit = self.session.frame_limit

    def handle_timeout(self, now: float) -> None:
        """Act on the deadlines that have passed. Does nothing before `next_timeout()`."""
        due = self.next_timeout()
        if due is None or now < due:
            return
        if self.closing:
            self.closed = True
        else:
            self.handle(DeadlinePassed(), now)

    def _settle(self, now: float) -> None:
        self._linger_until = now + LINGER_S
        self._decoder.stop()
        self.closed |= self._mute

    # -- output ----------------------------------------------------------------------------------

    def data_to_send(self) -> bytes:
        """Bytes for the peer. They are returned once: keep those that cannot be written yet."""
        data, self._out = b"".join(self._out), []
        return data

    def tasks(self) -> tuple[Task, ...]:
        """The tasks for the driver, in order. Each is returned once."""
        tasks, self._tasks = tuple(self._tasks), []
        return tasks

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`; None for never."""
        if self.closed:
            return None
        return self._linger_until if self.closing else self.session.next_timeout()

    # -- what it is doing ------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        """The session is over; the peer is given LINGER_S seconds to read the last bytes.

        Do not close the socket before `closed`: closing it with unread bytes resets the connection,
        and a reset discards what the peer has not read. Until then, go on reading.
        """
        return self._linger_until is not None

    @property
    def eof_to_send(self) -> bool:
        """The last message is queued: half-close once `data_to_send()` is written. May repeat."""
        return self.closing and not self._mute and not self._out

    @property
    def in_handshake(self) -> bool:
        """The peer has not yet shown that it is a client that can be served, or its server."""
        return self.session.state is State.HANDSHAKE

    @property
    def held_bytes(self) -> int:
        """Bytes of an incomplete frame that are buffered."""
        return self._decoder.buffered
