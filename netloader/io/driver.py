"""The loop: input, step, perform, observe. Law: a link has one owner thread, others use `post`.

One `Loop` runs any number of control connections on one thread; another event loop can carry links
by being a `Reactor`. Everything a link does comes from its session's effects; if a line here asks
what the protocol means, it belongs in the table.
"""

import contextlib
import queue
import selectors
import socket
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeAlias, assert_never

from netloader.fsm.effects import (
    AbortTransfer,
    AuditWeights,
    Effect,
    OpenTransport,
    PrepareOffer,
    Send,
    Settle,
    StartTransfer,
)
from netloader.fsm.events import (
    Connected,
    ConnectFailed,
    ConnectionLost,
    DeadlinePassed,
    Event,
    Violated,
)
from netloader.fsm.messages import Lane
from netloader.fsm.session import Session
from netloader.fsm.states import State
from netloader.io.clock import monotonic
from netloader.io.crew import Crew
from netloader.io.forks import INHERITANCE
from netloader.io.observe import Observer
from netloader.wire.frames import Decoder, Heard, encode

READ_BYTES = 256 * 1024
"""One read: a manifest of ten thousand tensors in a handful."""
LINGER_S = 1.0
"""How long a settled link waits for the peer to take the last frame and hang up."""

Router: TypeAlias = Callable[[Lane, socket.socket], None]


class Timed(Protocol):
    """Something in a loop that wants to be called at a time."""

    def next_timeout(self) -> float | None:
        """When, in seconds of the loop's clock; None for never."""

    def handle_timeout(self, now: float) -> None:
        """It is that time."""


class Reactor(Protocol):
    """What a link needs of the loop it lives in."""

    members: set[Timed]
    """Whoever wants to be called at a time."""

    def now(self) -> float:
        """Seconds of a clock that only grows."""

    def post(self, call: Callable[[], None]) -> None:
        """Run `call` on the loop's thread soon; may be called from any thread."""

    def watch(self, sock: socket.socket, mask: int, call: Callable[[int], None]) -> None:
        """Call `call(ready_mask)` whenever a socket is ready; a mask of 0 stops it."""


class Loop:
    """One selector, one inbox, any number of links; runs on the thread that calls `run`.

    What a callback raises goes to `trouble`, if there is one, and the loop turns on.

    Raises:
        OSError: the process is out of file descriptors.
    """

    def __init__(self, trouble: Callable[[Exception], None] | None = None) -> None:
        self._trouble = trouble
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        with INHERITANCE.atomic():
            self._bell, self._hammer = map(INHERITANCE.note, socket.socketpair())
            try:
                self._selector = INHERITANCE.note(selectors.DefaultSelector())
            except OSError:
                self._bell.close()
                self._hammer.close()
                raise
        self._hammer.setblocking(False)
        self._bell.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ, lambda _: self._answer())
        self.members: set[Timed] = set()

    def now(self) -> float:
        """Seconds of the monotonic clock."""
        return monotonic()

    def post(self, call: Callable[[], None]) -> None:
        """Run `call` on the loop's thread soon; the only method for other threads."""
        self._inbox.put(call)
        with contextlib.suppress(OSError):  # a full bell rings anyway; a closed loop needs none
            self._hammer.send(b"\0")

    def watch(self, sock: socket.socket, mask: int, call: Callable[[int], None]) -> None:
        """Call `call(ready_mask)` whenever a socket is ready; a mask of 0 stops it."""
        known = sock.fileno() in self._selector.get_map()
        if not mask:
            if known:
                self._selector.unregister(sock)
        elif known:
            self._selector.modify(sock, mask, call)
        else:
            self._selector.register(sock, mask, call)

    def run(self, until: Callable[[], bool]) -> None:
        """Turn until `until()` is true."""
        while not until():
            self._turn()

    def _turn(self) -> None:
        # The peer's word comes before what this side found out: when the peer ends the session, a
        # transfer that fails here is only the echo, and the verdict should name the cause.
        posted = self._inbox.qsize()
        for key, ready in self._selector.select(0 if posted else self._pause()):
            self._guard(partial(key.data, ready))
        for _ in range(posted):  # what was posted since waits until the peer was heard again
            self._guard(self._inbox.get_nowait())
        now = self.now()
        for member in tuple(self.members):
            due = member.next_timeout()
            if due is not None and due <= now:
                self._guard(partial(member.handle_timeout, now))

    def _guard(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            if self._trouble is None:
                raise
            self._trouble(error)

    def _pause(self) -> float | None:
        times = [due for m in self.members if (due := m.next_timeout()) is not None]
        return max(0.0, min(times) - self.now()) if times else None

    def _answer(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(4096)

    def close(self) -> None:
        """Free the selector and the bell."""
        for resource in (self._selector, self._bell, self._hammer):
            INHERITANCE.close(resource)


class Link:
    """One session with its connection, crew and observer."""

    def __init__(
        self, loop: Reactor, session: Session, crew: Crew, observer: Observer, router: Router | None
    ) -> None:
        self.session = session
        self.closed = False
        self.on_close: Callable[[], None] = lambda: None
        self._loop = loop
        self._crew = crew
        self._observer = observer
        self._router = router
        self._decoder = Decoder(session.frame_limit)
        self._sock: socket.socket | None = None
        self._out = bytearray()
        self._deaf = False
        """Nothing more comes from the peer."""
        self._mute = False
        """Nothing more can be said to the peer; what it said may still be read."""
        self._linger_until: float | None = None
        crew.post = lambda event: loop.post(lambda: self.handle(event))
        crew.trouble = observer.trouble
        loop.members.add(self)

    @property
    def held_bytes(self) -> int:
        """Bytes of a frame that is not whole yet."""
        return self._decoder.buffered

    # -- input -----------------------------------------------------------------------------------

    def connected(self, sock: socket.socket) -> None:
        """The control connection is up."""
        if self.closed:
            sock.close()
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._watch()
        self.handle(Connected())

    def connect_failed(self, detail: str) -> None:
        """The control connection could not be made."""
        if not self.closed and self._sock is None:
            self.handle(ConnectFailed(detail))

    def handle(self, event: Event) -> None:
        """Take one event: step, observe, perform. Everything enters here."""
        if self.closed:
            return
        try:
            step = self.session.step(event, self._loop.now())
            self._decoder.limit = self.session.frame_limit
            self._observer.saw(self.session, step)
            for effect in step.effects:
                self._perform(effect)
        except Exception as error:  # noqa: BLE001 - our bug ends this session, never the loop
            self._observer.trouble(error)
            self.close()

    def next_timeout(self) -> float | None:
        """When this link wants to be called."""
        settled = self._linger_until is not None
        return self._linger_until if settled else self.session.next_timeout()

    def handle_timeout(self, now: float) -> None:
        """Tell the session that its time is up."""
        del now
        if self._linger_until is not None:
            self.close()
        else:
            self.handle(DeadlinePassed())

    def _ready(self, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._flush()
        if mask & selectors.EVENT_READ and self._sock is not None:
            self._read(self._sock)

    def _read(self, sock: socket.socket) -> None:
        heard_now = self._hear(sock)
        if heard_now == []:  # the head of a frame; nothing of our own comes between it and its body
            heard_now = self._hear(sock)
        for heard in heard_now or ():
            if isinstance(heard, Lane):
                self._hand_over(heard)
            else:
                self._router = None  # the first words decide what a connection is
                self.handle(heard)

    def _hear(self, sock: socket.socket) -> list[Heard] | None:
        """What one read completes; None when there was nothing to read."""
        try:
            data = sock.recv(min(self._decoder.wanted, READ_BYTES))
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            self._gone(type(error).__name__)
            return None
        if not data:
            self._gone("closed by the peer")
            return None
        self._observer.heard()
        return self._decoder.feed(data)

    def _gone(self, detail: str) -> None:
        if self._linger_until is not None:
            self.close()
            return
        self._deaf = self._mute = True
        self._watch()
        self.handle(ConnectionLost(detail))

    def _hand_over(self, lane: Lane) -> None:
        """A connection whose first words name a lane is no control connection: pass it on."""
        sock = self._sock
        if self._router is None or sock is None or self.session.state is not State.HANDSHAKE:
            self.handle(Violated("a lane where none belongs"))
            return
        self._loop.watch(sock, 0, self._ready)
        self._sock = None
        self.close()
        self._router(lane, sock)

    # -- output ----------------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        """Carry out one effect. Everything leaves here."""
        match effect:
            case Send():
                self._out += encode(effect.message)
                self._flush()
            case PrepareOffer() | OpenTransport() | StartTransfer():
                self._crew.begin(effect)
            case AuditWeights():
                self._crew.audit()
            case AbortTransfer():
                self._crew.abort()
            case Settle():
                self._linger_until = self._loop.now() + LINGER_S
                self._crew.close()
                self._flush()
            case _:
                assert_never(effect)

    def _flush(self) -> None:
        sock = self._sock
        if sock is None or self._mute:
            self._out.clear()
        elif self._out:
            try:
                del self._out[: sock.send(self._out)]
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                self._mute = True  # reading will tell why, as an event
                self._out.clear()
        if self._linger_until is not None and not self._out:
            self._hang_up()
        self._watch()

    def _hang_up(self) -> None:
        """Say goodbye and give the peer a moment to do the same: an RST would eat our words."""
        if self._sock is None or self._mute:
            self.close()
            return
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def _watch(self) -> None:
        if self._sock is None:
            return
        reading = 0 if self._deaf else selectors.EVENT_READ
        writing = selectors.EVENT_WRITE if self._out else 0
        self._loop.watch(self._sock, reading | writing, self._ready)

    def close(self) -> None:
        """Let go of everything, without a word; a link closes itself when its session is over."""
        if self.closed:
            return
        self.closed = True
        self._loop.members.discard(self)
        self._crew.close()
        if self._sock is not None:
            self._loop.watch(self._sock, 0, self._ready)
            INHERITANCE.close(self._sock)
            self._sock = None
        self._observer.closed(self.session)
        self.on_close()
