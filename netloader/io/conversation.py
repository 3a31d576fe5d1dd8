"""One session of a client, from connect to verdict. Law: when it returns, nothing of it runs."""

import contextlib
import secrets
import threading
from collections import deque
from collections.abc import Callable
from socket import socket

from netloader.config import Deadlines
from netloader.errors import UnsafeError
from netloader.fsm.client import ClientSession, Wish
from netloader.fsm.effects import Verdict
from netloader.fsm.events import ConnectFailed
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.io.clock import monotonic
from netloader.io.crew import Crew
from netloader.io.dialing import Dialer
from netloader.io.driver import Link, Loop
from netloader.io.forks import INHERITANCE
from netloader.io.observe import Observer
from netloader.io.reserve import EXHAUSTED
from netloader.io.stopping import Stop, StopWatch

STOP_S = 10.0
"""How long an aborted transfer may take to be gone beyond the stall deadline, which ends every
wait there is: sockets take milliseconds, but gloo is not always woken when its peer was killed."""


def converse(
    dialer: Dialer, wish: Wish, crew: Crew, observer: Observer, deadlines: Deadlines, stop: Stop
) -> ClientSession:
    """Run one session from connect to verdict on this thread.

    Raises:
        UnsafeError: the transfer was aborted and did not end.
    """
    session = ClientSession(wish, deadlines, secrets.token_hex(16), monotonic())
    try:
        loop = Loop()
    except OSError as error:  # out of file descriptors
        _cannot_connect(session, observer, f"this side: {error.strerror}; raise ulimit -n")
        return session
    link = Link(loop, session, crew, observer, None)
    loop.members.add(StopWatch(stop, link))
    made: deque[socket] = deque()
    """The connection, until the link has it; there is none any more when it comes too late."""

    def dial() -> None:
        try:
            sock = dialer.dial()
        except OSError as error:
            detail = error.strerror or type(error).__name__
            if error.errno in EXHAUSTED:
                detail = f"this side: {detail}; raise ulimit -n"
            loop.post(lambda: link.connect_failed(detail))
        else:
            made.append(sock)
            loop.post(lambda: link.connected(made.popleft()))
            if link.closed:  # too late: this loop has ended
                _close(made)

    # A name look-up has no time-out of its own, so dialling must not hold up the session's clock.
    try:
        _start_thread(dial, link)
        loop.run(lambda: link.closed)
    finally:
        link.close()
        dialer.stop()
        _close(made)
        stopped = crew.join(deadlines.stall_s + STOP_S)
        loop.close()
    if not stopped:
        raise UnsafeError("an aborted transfer is still running; the tensors must not be used")
    return session


def verdict_of(session: ClientSession) -> Verdict:
    """The session's verdict; one that ended without has hit a bug of ours, already logged."""
    if session.verdict is not None:
        return session.verdict
    return Verdict(State.FALLBACK, Reason.STOPPED, "internal error", session.touched)


def _close(made: deque[socket]) -> None:
    """Close what is there; two threads may do so at once."""
    with contextlib.suppress(IndexError):
        while True:
            INHERITANCE.close(made.popleft())


def _start_thread(dial: Callable[[], None], link: Link) -> None:
    try:
        threading.Thread(target=dial, name="netloader-dial", daemon=True).start()
    except RuntimeError as error:  # the process may have no more threads
        link.connect_failed(f"this side: {error}; raise pids.max")


def _cannot_connect(session: ClientSession, observer: Observer, detail: str) -> None:
    """End a session that has no loop to run in."""
    observer.saw(session, session.step(ConnectFailed(detail), monotonic()))
    observer.closed(session)
