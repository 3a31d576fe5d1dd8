"""Connections to one source, which may have many addresses. One deadline for all of them.

RFC 8305 ("happy eyeballs"): the addresses of a name are tried in turn, IPv6 and IPv4 alternating,
the next one when the last has failed or has not answered for a quarter of a second; the first that
answers is taken and the others are closed. So an address that drops packets costs 0.25 s.
"""

import errno
import os
import selectors
import socket
import threading
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from typing import Any, Self, TypeAlias

from netloader.config import Endpoint
from netloader.io.clock import monotonic
from netloader.io.forks import INHERITANCE
from netloader.io.securing import Securing

NEXT_AFTER_S = 0.25
"""When the next address is tried beside one that does not answer (RFC 8305, section 5)."""
RAIL_S = 1.0
"""How long one more address of a host that was reached may take: other lanes wait meanwhile, and
there is the address that answered."""
LOOK_S = 0.05
"""How often an attempt looks whether it was stopped."""

Address: TypeAlias = tuple[int, Any]
"""Family, and what `connect` takes."""


class Dialer:
    """Connections to one source: all go to the address that answered the first one.

    A name may stand for several servers, and data connections belong to the server of the control
    connection.
    """

    def __init__(
        self, endpoint: Endpoint, timeout_s: float, securing: Securing | None = None
    ) -> None:
        self._endpoint = endpoint
        self._securing = securing
        self._timeout_s = timeout_s
        self._reached: Address | None = None
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Make every call of `dial`, now and later, fail at once (from any thread).

        A look-up of a name cannot be interrupted.
        """
        self._stopped.set()

    def dial(self) -> socket.socket:
        """One more connection, within the time-out that every call has anew.

        The look-up of a name is not part of that time, because nothing can limit it.

        Raises:
            OSError: no address answered; `strerror` says why, for each kind of failure. With TLS
                also where the source is not who it should be.
        """
        addresses = [self._reached] if self._reached else resolve(self._endpoint)
        sock = connect(addresses, self._timeout_s, self._stopped)
        self._reached = (sock.family, sock.getpeername())
        return self._secured(sock)

    def dial_rail(self, to: str, source: str) -> socket.socket:
        """A connection to the source's port at another address of its host, from one of this host.

        Both are literal addresses; empty: where `dial` goes, and whatever address the system takes.
        It waits for an answer for RAIL_S at most.

        Raises:
            OSError: there was none, or one of the addresses cannot be used.
        """
        reached = [self._reached] if self._reached else []
        addresses = resolve(Endpoint(to, self._endpoint.port)) if to else reached
        sock = connect(addresses, min(RAIL_S, self._timeout_s), self._stopped, source)
        sock.settimeout(self._timeout_s)
        return self._secured(sock)

    def _secured(self, sock: socket.socket) -> socket.socket:
        """A connection with TLS where that is wanted; the certificate names the source as dialled.

        Raises:
            OSError: as `Securing.secured`.
        """
        if self._securing is None:
            return sock
        return self._securing.secured(sock, self._endpoint, self._stopped)


def resolve(endpoint: Endpoint) -> list[Address]:
    """The addresses of a source, in the order in which to try them.

    Raises:
        OSError: the name is unknown.
    """
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # names that the codec refuses never get as far as a resolver
        raise OSError(errno.EINVAL, "not a host name") from error
    known = dict.fromkeys((int(family), address) for family, _, _, _, address in found)
    first = next(iter(known), (0, None))[0]
    preferred = [address for address in known if address[0] == first]
    others = [address for address in known if address[0] != first]
    return [a for a in chain.from_iterable(zip_longest(preferred, others)) if a is not None]


def connect(
    addresses: Sequence[Address],
    timeout_s: float,
    stopped: threading.Event | None = None,
    source: str = "",
) -> socket.socket:
    """A blocking connection to the first of some addresses that answers, from `source` if given.

    Raises:
        OSError: none did within `timeout_s` seconds (TimeoutError), all refused, or `stopped` was
            set (ECANCELED).
    """
    with _Race(addresses, timeout_s, stopped or threading.Event(), source) as race:
        sock = race.run()
    sock.settimeout(timeout_s)
    return sock


class _Race:
    """Attempts side by side on one thread."""

    def __init__(
        self,
        addresses: Sequence[Address],
        timeout_s: float,
        stopped: threading.Event,
        source: str,
    ) -> None:
        self._stopped = stopped
        self._source = source
        self._waiting: Iterator[Address] = iter(addresses)
        self._more = bool(addresses)
        self._step_s = min(NEXT_AFTER_S, timeout_s / (len(addresses) + 1))
        self._deadline = monotonic() + timeout_s
        self._errors: list[OSError] = []
        with INHERITANCE.atomic():
            self._selector = INHERITANCE.note(selectors.DefaultSelector())

    def run(self) -> socket.socket:
        """The first connection that is made."""
        while True:
            self._begin()
            next_at = min(self._deadline, monotonic() + self._step_s)
            while under_way := len(self._selector.get_map()):
                until = next_at if self._more else self._deadline
                ready = self._ready(until)
                for key, _ in ready:
                    if (won := self._ended(key.fileobj)) is not None:
                        return won
                if not ready or len(self._selector.get_map()) < under_way:
                    break
            if monotonic() >= self._deadline:
                raise TimeoutError(errno.ETIMEDOUT, self._why("no answer to connect"))
            if not self._more and not self._selector.get_map():
                raise self._failure()

    def _ready(self, until: float) -> list[tuple[selectors.SelectorKey, int]]:
        """The attempts that ended, at the latest at `until`; none when that has passed."""
        while not self._stopped.is_set():
            left = until - monotonic()
            ready = self._selector.select(max(0.0, min(left, LOOK_S)))
            if ready or left <= LOOK_S:
                return ready
        raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))

    def _begin(self) -> None:
        """Start the next attempt, if there is one."""
        family, address = next(self._waiting, (0, None))
        self._more = address is not None
        if address is None:
            return
        try:
            with INHERITANCE.atomic():
                sock = INHERITANCE.note(socket.socket(family, socket.SOCK_STREAM))
        except OSError as error:
            self._errors.append(error)
            return
        sock.setblocking(False)
        try:
            if self._source:
                sock.bind((self._source, 0))
            code = sock.connect_ex(address)
        except OSError as error:  # an address that is not this host's, or of the other family
            code = error.errno or errno.EADDRNOTAVAIL
        if code in (0, errno.EINPROGRESS, errno.EINTR):
            self._selector.register(sock, selectors.EVENT_WRITE)
        else:
            self._lost(sock, code)

    def _ended(self, sock: Any) -> socket.socket | None:
        """The result of an attempt: its connection, or None when it has failed."""
        self._selector.unregister(sock)
        if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._lost(sock, code)
            return None
        connection: socket.socket = sock
        return connection

    def _lost(self, sock: socket.socket, code: int) -> None:
        INHERITANCE.close(sock)
        self._errors.append(OSError(code, os.strerror(code)))

    def _failure(self) -> OSError:
        if not self._errors:
            return OSError(errno.EADDRNOTAVAIL, "the name has no address")
        return OSError(self._errors[0].errno, self._why())

    def _why(self, *also: str) -> str:
        """Each kind of failure, named once."""
        said = [error.strerror or type(error).__name__ for error in self._errors]
        return ", ".join(dict.fromkeys((*said, *also)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close every attempt that was not taken."""
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)
            if isinstance(key.fileobj, socket.socket):
                INHERITANCE.close(key.fileobj)
        INHERITANCE.close(self._selector)
