"""One session of a client, from connect to verdict. It leaves no thread behind."""

import contextlib
import secrets
import socket
import threading
from collections import deque

from netloader.config import Deadlines
from netloader.errors import UnsafeError
from netloader.fsm.client_session import ClientSession
from netloader.fsm.effects import Verdict
from netloader.fsm.events import ConnectFailed
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.fsm.terms import FetchSpec
from netloader.io.clock import monotonic
from netloader.io.dialing import Dialer
from netloader.io.driver import Link, Loop, Reactor
from netloader.io.forks import INHERITANCE
from netloader.io.observe import Observer
from netloader.io.reserve import EXHAUSTED
from netloader.io.stopping import Stop, StopWatch
from netloader.io.worker import SessionWorker
from netloader.wire.connection import Connection

STOP_S = 10.0
"""How long an aborted transfer may take to end beyond the stall deadline, which ends every
wait there is: sockets take milliseconds, but gloo is not always woken when its peer was killed."""


class Conversation:
    """One session of a client, and all that it needs; not begun yet.

    A driver runs it, as `converse` does; afterwards `session.verdict` is set. `stop` ends it early.
    """

    def __init__(
        self,
        dialer: Dialer,
        spec: FetchSpec,
        worker: SessionWorker,
        observer: Observer,
        deadlines: Deadlines,
        stop: Stop,
    ) -> None:
        self.session = ClientSession(spec, deadlines, secrets.token_hex(16), monotonic())
        self.dialer = dialer
        self.worker = worker
        self.observer = observer
        self.stop = stop

    def begin(self, loop: Reactor) -> "Dialled":
        """Connect, in a loop that then carries the session."""
        link = Link(loop, Connection(self.session, self.observer.saw), self.worker, self.observer)
        loop.members.add(StopWatch(self.stop, link))
        return Dialled(self.dialer, loop, link)

    def join(self) -> None:
        """Wait until the session's work has ended, once its link is closed. Blocks.

        Raises:
            UnsafeError: the transfer was aborted and did not end.
        """
        if not self.worker.join(self.session.deadlines.stall_s + STOP_S):
            raise UnsafeError("an aborted transfer is still running; the tensors must not be used")


class Dialled:
    """A link whose connection is made on a thread.

    A name look-up has no time-out of its own, so it must not hold up the session's clock.
    """

    def __init__(self, dialer: Dialer, loop: Reactor, link: Link) -> None:
        self.link = link
        self._dialer = dialer
        self._loop = loop
        self._made = deque[socket.socket]()
        """The connection, until the link has it; there is none any more when it comes too late."""
        try:
            threading.Thread(target=self._dial, name="netloader-dial", daemon=True).start()
        except RuntimeError as error:  # the process may have no more threads
            link.connect_failed(f"this side: {error}; raise pids.max")

    def close(self) -> None:
        """Close the link, and the connection if it comes too late."""
        self.link.close()
        self._dialer.stop()
        self._close_made()

    def _dial(self) -> None:
        try:
            sock = self._dialer.dial()
        except OSError as error:
            detail = error.strerror or type(error).__name__
            if error.errno in EXHAUSTED:
                detail = f"this side: {detail}; raise ulimit -n"
            self._loop.post(lambda: self.link.connect_failed(detail))
        else:
            self._made.append(sock)
            self._loop.post(self._connected)
            if self.link.closed:  # too late: the loop may have ended
                self._close_made()

    def _connected(self) -> None:
        with contextlib.suppress(IndexError):
            self.link.connected(self._made.popleft())

    def _close_made(self) -> None:
        """Close what is there; two threads may do so at once."""
        with contextlib.suppress(IndexError):
            while True:
                INHERITANCE.close(self._made.popleft())


def converse(conversation: Conversation) -> None:
    """Run one session from connect to verdict on this thread.

    Raises:
        UnsafeError: the transfer was aborted and did not end.
    """
    try:
        loop = Loop()
    except OSError as error:  # out of file descriptors
        detail = f"this side: {error.strerror}; raise ulimit -n"
        _cannot_connect(conversation.session, conversation.observer, detail)
        return
    dialled = conversation.begin(loop)
    try:
        loop.run(lambda: dialled.link.closed)
    finally:
        dialled.close()
        try:
            conversation.join()
        finally:
            loop.close()


def verdict_of(session: ClientSession) -> Verdict:
    """The session's verdict. A session without one has hit a bug in netloader, already logged."""
    if session.verdict is not None:
        return session.verdict
    return Verdict(State.FALLBACK, Reason.STOPPED, "internal error", session.touched)


def _cannot_connect(session: ClientSession, observer: Observer, detail: str) -> None:
    """End a session that has no loop to run in."""
    observer.saw(session, session.step(ConnectFailed(detail), monotonic()))
    observer.closed(session)
