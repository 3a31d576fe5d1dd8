"""The TLS of new connections: a client's, made on its own thread, and those that a server accepts.

A server whose client fails to convince it waits up to LINGER_S seconds for the client to read why.
"""

import errno
import os
import select
import selectors
import socket
import ssl
import threading
from collections.abc import Callable
from typing import NamedTuple

from netloader.config import Endpoint
from netloader.fsm.events import ConnectionLost, StopRequested
from netloader.fsm.reasons import Reason
from netloader.io.clock import monotonic
from netloader.io.driver import Arrival, Reactor, prepare, what_broke
from netloader.io.forks import INHERITANCE
from netloader.secure.sockets import SecureSocket
from netloader.secure.tls import Tls
from netloader.wire.acceptor import Decision, Refusal
from netloader.wire.connection import LINGER_S
from netloader.wire.frames import TLS_HANDSHAKE

LOOK_S = 0.05
"""How often a handshake looks whether it was stopped."""
MOST_LINGERING = 64
"""Clients that are waited for at once; a flood of others is closed without."""


class Securing(NamedTuple):
    """How a client makes connections secure, and how many seconds each handshake may take."""

    tls: Tls
    timeout_s: float

    def secured(self, sock: socket.socket, at: Endpoint, stopped: threading.Event) -> socket.socket:
        """A connected socket with TLS, blocking; takes the socket also when it fails.

        Raises:
            OSError: the source is not who it should be, or says nothing in time, or `stopped` was
                set (ECANCELED). `strerror` says why.
        """
        timeout = sock.gettimeout()
        deadline = monotonic() + self.timeout_s
        try:
            secure = wrapped(sock, self.tls.client(), at.host.partition("%")[0])
        except OSError:
            INHERITANCE.close(sock)
            raise
        try:
            secure.settimeout(0.0)
            while awaited := secure.advance():
                _await(secure, awaited, deadline, stopped)
        except OSError:
            INHERITANCE.close(secure)
            raise
        secure.settimeout(timeout)
        return secure


def wrapped(sock: socket.socket, context: ssl.SSLContext, host: str | None = None) -> SecureSocket:
    """A connected socket with TLS, before the handshake; a server names no host.

    Raises:
        OSError: the connection broke, or no certificate can be for this host.
    """
    sock.getpeername()  # of a connection that broke, an SSLSocket would make something else
    try:
        with INHERITANCE.atomic():
            secure: SecureSocket = INHERITANCE.note(  # type: ignore[assignment]
                context.wrap_socket(
                    sock,
                    server_side=host is None,
                    server_hostname=host,
                    do_handshake_on_connect=False,
                )
            )
    except ValueError as error:
        raise OSError(errno.EINVAL, f"TLS: {host} cannot be a name in a certificate") from error
    return secure


def _await(sock: socket.socket, awaited: int, deadline: float, stopped: threading.Event) -> None:
    poll = select.poll()
    poll.register(sock.fileno(), awaited)
    while not poll.poll(LOOK_S * 1000):
        if stopped.is_set():
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        if monotonic() >= deadline:
            raise TimeoutError(errno.ETIMEDOUT, "TLS: no answer in the handshake")


TLS_ONLY = StopRequested(Reason.TLS_REQUIRED, "the server takes TLS connections only; set TLS_CA")


class SecureArrival(Arrival):
    """An accepted socket of a server with TLS, until the first frame in it is there.

    A peer that does not speak TLS is refused with a sentence in the clear, when its frame is there.
    The handshake has the same deadline as the first frame, and the loop never waits for it.
    """

    def __init__(
        self,
        loop: Reactor,
        sock: socket.socket,
        patience_s: float,
        decided: Callable[[Arrival, Decision], None],
        tls: Tls,
    ) -> None:
        super().__init__(loop, sock, patience_s, decided)
        self.unheard = True
        self._tls = tls
        self._secure: SecureSocket | None = None

    def _ready(self, mask: int) -> None:
        del mask
        try:
            established = not self.unheard or self._established()
        except BlockingIOError:
            return
        except OSError as error:
            self._decide(Refusal(b"", ConnectionLost(what_broke(error))))
            return
        # one record may have more than was read of it, and no selector sees that
        while established and self._take() and self in self._loop.members:
            pass

    def _established(self) -> bool:
        """Go on with the handshake; whether the first frame can be read."""
        if self._secure is None:
            first = self.sock.recv(1, socket.MSG_PEEK)
            if first != TLS_HANDSHAKE:  # the first frame, or the end of the stream
                self.unheard = not first
                return True
            self._loop.watch(self.sock, 0, self._ready)
            self.began = True
            self.sock = self._secure = wrapped(self.sock, self._tls.server())
            prepare(self.sock)
        awaited = self._secure.advance()
        writing = selectors.EVENT_WRITE if awaited == select.POLLOUT else selectors.EVENT_READ
        self._loop.watch(self.sock, writing, self._ready)
        self.unheard = bool(awaited)
        return not awaited

    def _decide(self, decision: Decision | None) -> None:
        plain = self._secure is None and not self.unheard
        refused = plain and decision is not None and not isinstance(decision, Refusal)
        super()._decide(Refusal(b"", TLS_ONLY) if refused else decision)


class Lingering:
    """Clients that were refused in the handshake, until they have read why. For one thread."""

    def __init__(self, loop: Reactor) -> None:
        self._loop = loop
        self._until: dict[socket.socket, float] = {}
        loop.members.add(self)

    def add(self, sock: socket.socket) -> None:
        """Send nothing more, and close the socket when its peer has done so, or soon."""
        if len(self._until) >= MOST_LINGERING:
            INHERITANCE.close(sock)
            return
        self._until[sock] = self._loop.now() + LINGER_S
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._end(sock)
            return
        self._loop.watch(sock, selectors.EVENT_READ, lambda _: self._drain(sock))

    def next_timeout(self) -> float | None:
        """When the first of them has had its time."""
        return min(self._until.values(), default=None)

    def handle_timeout(self, now: float) -> None:
        """Close those that have had their time."""
        for sock in [sock for sock, until in self._until.items() if until <= now]:
            self._end(sock)

    def close(self) -> None:
        """Close all of them."""
        for sock in tuple(self._until):
            self._end(sock)
        self._loop.members.discard(self)

    def _drain(self, sock: socket.socket) -> None:
        try:
            more = socket.socket.recv(sock, 4096)  # below TLS: it is thrown away
        except BlockingIOError:
            return
        except OSError:
            more = b""
        if not more:
            self._end(sock)

    def _end(self, sock: socket.socket) -> None:
        del self._until[sock]
        self._loop.watch(sock, 0, lambda _: None)
        INHERITANCE.close(sock)
