"""Moves bytes between sockets and connections. A link has one owner thread; others `post`.

One `Loop` runs any number of control connections on one thread; another event loop can carry links
by being a `Reactor`. A link moves bytes and has tasks carried out; `netloader.wire` and
`netloader.fsm` interpret the bytes.
"""

import contextlib
import queue
import selectors
import socket
from collections.abc import Callable, MutableSet
from functools import partial
from typing import Protocol

from netloader.fsm.events import Connected, ConnectFailed, Event, StopRequested
from netloader.fsm.session import Session
from netloader.io.clock import monotonic
from netloader.io.forks import INHERITANCE
from netloader.io.observe import Observer
from netloader.secure.sockets import SecureSocket, TlsError
from netloader.wire.acceptor import Acceptor, Decision, Refusal
from netloader.wire.connection import Connection
from netloader.wire.tasks import Worker, perform

READ_BYTES = 256 * 1024
"""Bytes per read: a manifest of ten thousand tensors takes a few."""


class Timed(Protocol):
    """A member of a loop that has deadlines."""

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`, in seconds of the loop's clock; None for never."""

    def handle_timeout(self, now: float) -> None:
        """Act on the deadlines that have passed."""


class Reactor(Protocol):
    """What a link needs of its loop."""

    members: MutableSet[Timed]
    """The members that have deadlines."""

    def now(self) -> float:
        """Seconds of a clock that only grows."""

    def post(self, call: Callable[[], None]) -> None:
        """Run `call` on the loop's thread soon; may be called from any thread."""

    def watch(self, sock: socket.socket, mask: int, call: Callable[[int], None]) -> None:
        """Call `call(ready_mask)` whenever a socket is ready; a mask of 0 stops it."""


class Loop:
    """One selector, one inbox, any number of links; runs on the thread that calls `run`.

    What a callback raises goes to `trouble`, if there is one, and the loop goes on.

    Raises:
        OSError: the process is out of file descriptors.
    """

    def __init__(self, trouble: Callable[[Exception], None] | None = None) -> None:
        self._trouble = trouble
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        with INHERITANCE.atomic():
            self._wake_read, self._wake_write = map(INHERITANCE.note, socket.socketpair())
            try:
                self._selector = INHERITANCE.note(selectors.DefaultSelector())
            except OSError:
                self._wake_read.close()
                self._wake_write.close()
                raise
        self._wake_write.setblocking(False)
        self._wake_read.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, lambda _: self._answer())
        self.members: MutableSet[Timed] = set()

    def now(self) -> float:
        """Seconds of the monotonic clock."""
        return monotonic()

    def post(self, call: Callable[[], None]) -> None:
        """Run `call` on the loop's thread soon; the only method for other threads."""
        self._inbox.put(call)
        # A full socket wakes the loop anyway, and a closed loop needs no call.
        with contextlib.suppress(OSError):
            self._wake_write.send(b"\0")

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
        """Run until `until()` is true."""
        while not until():
            self._turn()

    def _turn(self) -> None:
        # The peer's messages come before calls of this side: when the peer ends the session, the
        # transfer that fails here is a consequence, and the verdict should name the cause.
        posted = self._inbox.qsize()
        for key, ready in self._selector.select(0 if posted else self._pause()):
            self._guard(partial(key.data, ready))
        for _ in range(posted):  # calls posted since then wait until the sockets were read again
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
            self._wake_read.recv(4096)

    def close(self) -> None:
        """Free the selector and the pipe that wakes it."""
        for resource in (self._selector, self._wake_read, self._wake_write):
            INHERITANCE.close(resource)


class Link:
    """The socket, worker and observer of one connection."""

    def __init__(
        self, loop: Reactor, connection: Connection, worker: Worker, observer: Observer
    ) -> None:
        self.connection = connection
        self.closed = False
        self.on_close: Callable[[], None] = lambda: None
        self._loop = loop
        self._worker = worker
        self._observer = observer
        self._sock: socket.socket | None = None
        self._out = bytearray()
        """Bytes that the socket has not taken yet."""
        worker.post = lambda event: loop.post(lambda: self.handle(event))
        worker.trouble = observer.trouble
        loop.members.add(self)

    @property
    def session(self) -> Session:
        """The session of the connection."""
        return self.connection.session

    # -- input -----------------------------------------------------------------------------------

    def connected(self, sock: socket.socket, since: float | None = None, data: bytes = b"") -> None:
        """Take the connected socket. `since` is when it was accepted; `data` was read of it."""
        if self.closed:
            sock.close()
            return
        prepare(sock)
        self._sock = sock
        self._then(partial(self.connection.handle, Connected()), since)
        if data:
            self._heard(data)
        if isinstance(sock, SecureSocket) and sock.pending():  # which no selector sees
            self._loop.post(partial(self._ready, selectors.EVENT_READ))

    def connect_failed(self, detail: str) -> None:
        """The control connection could not be made."""
        if self._sock is None:
            self.handle(ConnectFailed(detail))

    def handle(self, event: Event) -> None:
        """Take one event, on the thread of the loop."""
        self._then(partial(self.connection.handle, event))

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`; None for never."""
        return self.connection.next_timeout()

    def handle_timeout(self, now: float) -> None:
        """Act on the deadlines that have passed."""
        self._then(self.connection.handle_timeout, now)

    def _ready(self, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._then(lambda _: None)
        if mask & selectors.EVENT_READ and self._sock is not None:
            self._read(self._sock)

    def _read(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            detail = what_broke(error)
            self._then(lambda now: self.connection.receive_eof(now, detail))
            return
        if data:
            self._heard(data)
        else:
            self._then(self.connection.receive_eof)

    def _heard(self, data: bytes) -> None:
        self._observer.heard()
        self._then(partial(self.connection.receive_data, data))

    # -- output ----------------------------------------------------------------------------------

    def _then(self, call: Callable[[float], None], now: float | None = None) -> None:
        """Make a call to the connection, then send its bytes and perform its tasks."""
        if self.closed:
            return
        try:
            call(self._loop.now() if now is None else now)
            self._flush()
            for task in self.connection.tasks():
                perform(task, self._worker)
        except Exception as error:  # noqa: BLE001 - a bug ends this session, never the loop
            self._observer.trouble(error)
            self.close()
        if self.connection.closed:
            self.close()
        self._watch()

    def _flush(self) -> None:
        self._out += self.connection.data_to_send()
        if self.connection.eof_received:
            self._out.clear()
        sock = self._sock
        if sock is None:
            return
        if self._out:
            try:
                del self._out[: sock.send(self._out)]
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                self._out.clear()
                self.connection.send_failed()
        if self.connection.eof_to_send and not self._out:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)

    def _watch(self) -> None:
        if self._sock is None:
            return
        reading = 0 if self.connection.eof_received else selectors.EVENT_READ
        writing = selectors.EVENT_WRITE if self._out else 0
        self._loop.watch(self._sock, reading | writing, self._ready)

    def close(self) -> None:
        """Free everything, sending nothing; a link closes itself when its session is over."""
        if self.closed:
            return
        self.closed = True
        self._loop.members.discard(self)
        self._worker.close()
        if self._sock is not None:
            self._loop.watch(self._sock, 0, self._ready)
            INHERITANCE.close(self._sock)
            self._sock = None
        self._observer.closed(self.session)
        self.on_close()


class Arrival:
    """An accepted socket until its first frame says what the connection is.

    `decided` is called on the loop's thread, once, with the arrival and the decision; the socket
    belongs to it from then on.
    """

    def __init__(
        self,
        loop: Reactor,
        sock: socket.socket,
        patience_s: float,
        decided: Callable[["Arrival", Decision], None],
    ) -> None:
        self.sock = sock
        self.unheard = self.began = False
        """Whether nothing can be said to the peer: TLS with it is not there yet; and `began`."""
        self.since = loop.now()
        self._acceptor = Acceptor(self.since + patience_s)
        self._loop = loop
        self._decided = decided
        prepare(sock)
        loop.members.add(self)
        loop.watch(sock, selectors.EVENT_READ, self._ready)

    def refuse(self, event: StopRequested) -> Refusal:
        """Decide now; `decided` is not called."""
        self._leave()
        return self._acceptor.refuse(event)

    def next_timeout(self) -> float:
        """The deadline of the first frame."""
        return self._acceptor.next_timeout()

    def handle_timeout(self, now: float) -> None:
        """Act on the deadlines that have passed."""
        self._decide(self._acceptor.handle_timeout(now))

    def _ready(self, mask: int) -> None:
        del mask
        self._take()

    def _take(self) -> bool:
        """Read what the acceptor wants; False when there is nothing to read now."""
        try:
            data = self.sock.recv(self._acceptor.wanted)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._decide(self._acceptor.receive_eof(what_broke(error)))
            return True
        self._decide(self._acceptor.receive_data(data) if data else self._acceptor.receive_eof())
        return True

    def _decide(self, decision: Decision | None) -> None:
        if decision is not None:
            self._leave()
            self._decided(self, decision)

    def _leave(self) -> None:
        self._loop.members.discard(self)
        self._loop.watch(self.sock, 0, self._ready)


def what_broke(error: OSError) -> str:
    """Why a connection cannot be read from: what TLS says of it, or the name of the error."""
    said = error.strerror if isinstance(error, TlsError) else None
    return said or type(error).__name__


def prepare(sock: socket.socket) -> None:
    """Make a connected socket non-blocking, and send small frames without delay."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
