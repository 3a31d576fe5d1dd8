"""Accepts the connections of a server's listening sockets. A client can affect its own link only.

A connection gets a session when its first frame shows that it is a control connection. A client
asks for a role, and gets the published model of that role that was in the catalog at that moment.

The session id lets a client attach data lanes. It is valid only while the session lives.
"""

import secrets
import selectors
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import assert_never

from netloader.config import Endpoint
from netloader.fsm.events import ConnectionLost, DeadlinePassed, StopRequested
from netloader.fsm.messages import Lane
from netloader.fsm.reasons import Reason
from netloader.fsm.server_session import ServerSession
from netloader.fsm.terms import CatalogEntry
from netloader.io.allowed import Allowed
from netloader.io.catalog import Catalog
from netloader.io.driver import Arrival, Link, Reactor
from netloader.io.forks import INHERITANCE
from netloader.io.host import unmapped
from netloader.io.metering import Meter
from netloader.io.observe import Observer
from netloader.io.pacing import UNPACED, Bandwidth
from netloader.io.published import PublishedModel
from netloader.io.publishing import ServerOptions
from netloader.io.reserve import EXHAUSTED, Reserve
from netloader.io.securing import Lingering, SecureArrival
from netloader.io.seldom import Seldom
from netloader.io.snapshot import SessionRecord
from netloader.io.standing import entries_as_of_now
from netloader.io.strangers import Strangers, is_failure
from netloader.io.transports.refusal import refuse
from netloader.io.worker import ServerWorker
from netloader.secure.tokens import TokenFile, current
from netloader.wire.acceptor import Control, Decision, Refusal
from netloader.wire.connection import Connection

MAX_LINKS = 256
"""Control connections at once. At the limit, the oldest one that has not sent its hello is closed,
so a flood of idle connections does not lock out a client that sends its hello promptly."""
CLOSE_S = 5.0
"""How long sessions may take to send their last message when the server closes."""
PAUSE_S = 1.0
"""How long accepting rests when it fails and no descriptor can be freed."""

NOTHING_YET = StopRequested(Reason.NOT_READY, "nothing is served here yet")


class Reception:
    """Accepts connections and has them served, in a loop that it does not own.

    Everything is called on the loop's thread. The sockets are closed by `stop`.

    Raises:
        OSError: the process is out of file descriptors.
    """

    def __init__(
        self, loop: Reactor, sock: socket.socket, catalog: Catalog, options: ServerOptions
    ) -> None:
        self._loop = loop
        self._socks: list[socket.socket] = []
        self._catalog = catalog
        self._deadlines = options.deadlines
        self._logger = options.logger
        self._siblings = options.siblings
        self._token, self._tls = options.token, options.tls
        self._insecure = Seldom(options.logger, "netloader.listener.insecure")
        self._lingering = Lingering(loop)
        self._allowed = Allowed(options.allow, options.logger)
        self._strangers = Strangers(options.logger)
        self._rails = options.rails
        self._bandwidth = Bandwidth(options.rates) if options.rates.limited else None
        self._meter = Meter(options.logger, "server")
        self._arrivals: dict[Arrival, Endpoint] = {}
        self._links: dict[Link, ServerWorker] = {}
        self._workers: dict[str, ServerWorker] = {}
        self._resume_at: float | None = None
        self._stopping = False
        self._reserve = Reserve(options.logger)
        self.add(sock)
        loop.members.add(self)

    def add(self, sock: socket.socket) -> None:
        """Accept at one more socket, until `remove` or `stop` closes it."""
        if self._stopping:
            INHERITANCE.close(sock)
            return
        sock.setblocking(False)
        self._socks.append(sock)
        self._watch(sock, selectors.EVENT_READ)

    def remove(self, sock: socket.socket) -> None:
        """Close a listening socket. Sessions that came by it go on."""
        if sock in self._socks:
            self._socks.remove(sock)
            self._watch(sock, 0)
            INHERITANCE.close(sock)

    def _watch(self, sock: socket.socket, mask: int) -> None:
        self._loop.watch(sock, mask, partial(self._accept, sock))

    @property
    def over(self) -> bool:
        """Whether `stop` was called and nothing is left to wait for."""
        return self._stopping and (not self._links or self._resume_at is None)

    def stop(self) -> None:
        """Accept no more, and end every session. When it is `over`, call `close`."""
        self._stopping = True
        self._catalog.retire("the server is closing")
        for sock in tuple(self._socks):
            self.remove(sock)
        self._resume_at = self._loop.now() + CLOSE_S
        closing = StopRequested(Reason.NOT_SERVING, "the server is closing")
        for arrival in tuple(self._arrivals):
            self._refuse(arrival, arrival.refuse(closing))
        for link in tuple(self._links):
            link.handle(closing)

    def close(self) -> None:
        """Free what is left."""
        for link in tuple(self._links):
            link.close()
        self._loop.members.discard(self)
        self._lingering.close()
        self._reserve.close()

    def next_timeout(self) -> float | None:
        """When to accept again, or to stop waiting for sessions to end."""
        return self._resume_at

    def handle_timeout(self, now: float) -> None:
        """Accept again."""
        del now
        self._resume_at = None
        for sock in self._socks:
            self._watch(sock, selectors.EVENT_READ)

    def _accept(self, listening: socket.socket, ready: int) -> None:
        del ready
        try:
            with INHERITANCE.atomic():
                sock, address = listening.accept()
                INHERITANCE.note(sock)
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            self._reserve.tell(error, self._connections)
            self._find_room(listening, error)
            return
        peer = Endpoint(unmapped(address[0]), address[1])
        now = self._loop.now()
        if not (self._allowed.permits(peer, now) and self._strangers.permits(peer, now)):
            INHERITANCE.close(sock)
            return
        if self._connections >= MAX_LINKS:
            self._make_room()
        self._arrivals[self._arrival(sock)] = peer

    def _arrival(self, sock: socket.socket) -> Arrival:
        patience_s = self._deadlines.handshake_s
        if self._tls is None:
            return Arrival(self._loop, sock, patience_s, self._decided)
        return SecureArrival(self._loop, sock, patience_s, self._decided, self._tls)

    @property
    def _connections(self) -> int:
        return len(self._arrivals) + len(self._links)

    def _decided(self, arrival: Arrival, decision: Decision) -> None:
        """Make a connection what its first frame asks for: a session, a lane or a refusal."""
        match decision:
            case Lane():
                del self._arrivals[arrival]
                self._route(decision, arrival.sock)
            case Control():
                if published_models := self._catalog.published_models:
                    self._admit(arrival, published_models, decision.data)
                else:
                    self._refuse(arrival, Refusal(b"", NOTHING_YET))
            case Refusal():
                self._refuse(arrival, decision)
            case _:
                assert_never(decision)

    def _refuse(self, arrival: Arrival, refusal: Refusal) -> Link | None:
        """End a connection that has no session yet, with one that offers nothing.

        None where nothing can be said to the peer, because there is no TLS with it yet.
        """
        if arrival.unheard:
            self._leave(arrival, refusal)
            return None
        link = self._admit(arrival, (), refusal.data)
        link.handle(refusal.event)
        return link

    def _leave(self, arrival: Arrival, refusal: Refusal) -> None:
        """Close a connection without a word; one whose handshake failed when the peer knows why."""
        peer, event = self._arrivals.pop(arrival), refusal.event
        failed = isinstance(event, ConnectionLost) and arrival.began
        if failed:
            self._lingering.add(arrival.sock)
        else:
            INHERITANCE.close(arrival.sock)
        if arrival.began:
            detail = "no TLS in time" if isinstance(event, DeadlinePassed) else event.detail
            remedy = "the log of the client has its side of it"
            self._strangers.failed(peer, self._loop.now())
            self._insecure.tell(peer, detail, remedy, self._loop.now())

    def _admit(
        self, arrival: Arrival, published_models: tuple[PublishedModel, ...], data: bytes
    ) -> Link:
        """Begin a session, as of when its connection was accepted."""
        peer = self._arrivals.pop(arrival)
        name, nonce = secrets.token_hex(16), secrets.token_hex(16)
        siblings = self._siblings()
        entries = tuple(map(self._with_tokens, entries_as_of_now(published_models, siblings)))
        given = (self._deadlines, name, nonce, arrival.since)
        session = ServerSession(entries, *given, siblings)
        pace = self._meter.paced(self._bandwidth.session() if self._bandwidth else UNPACED)
        worker = ServerWorker(published_models, name, self._deadlines, pace=pace, rails=self._rails)
        observer = Observer(self._logger, peer, {})
        link = Link(self._loop, Connection(session, observer.saw), worker, observer)
        self._links[link] = worker
        self._workers[name] = worker
        link.on_close = lambda: self._forget(link, name, observer, peer)
        link.connected(arrival.sock, arrival.since, data)
        return link

    def _with_tokens(self, entry: CatalogEntry) -> CatalogEntry:
        """What a new session knows of a model, with the tokens that hold now."""
        if not isinstance(self._token, TokenFile):
            return entry
        return replace(entry, tokens=current(self._token))

    def _forget(self, link: Link, name: str, observer: Observer, peer: Endpoint) -> None:
        worker = self._links.pop(link, None)
        self._workers.pop(name, None)
        published = worker.published if worker is not None else None
        session = link.connection.session
        if isinstance(session, ServerSession) and is_failure(session):
            self._strangers.failed(peer, self._loop.now())
        verdict = session.verdict
        if worker is None or published is None or verdict is None:
            return
        if verdict.reason is Reason.CONNECTION_LOST:
            published.referrals.forget(worker.serves_at)
        published.ended(
            SessionRecord(
                peer,
                published.entry.role,
                verdict.state,
                verdict.reason,
                verdict.detail,
                observer.moved_bytes,
                dict(observer.seconds),
            )
        )

    def _make_room(self) -> Callable[[], None] | None:
        """Refuse the connection that has been silent longest; None when there is none.

        What it returns frees the descriptor at once.
        """
        busy = StopRequested(Reason.BUSY, "too many connections that say nothing")
        for arrival in self._arrivals:
            link = self._refuse(arrival, arrival.refuse(busy))
            return partial(INHERITANCE.close, arrival.sock) if link is None else link.close
        for link in self._links:
            if link.connection.in_handshake:
                link.handle(busy)
                return link.close
        return None

    def _find_room(self, listening: socket.socket, error: OSError) -> None:
        """Nothing can be accepted: free a descriptor, else refuse a waiting client, else pause."""
        if error.errno in EXHAUSTED:
            free = self._make_room()
            if free is not None:
                free()  # at once: lingering would keep the descriptor
                return
            if self._reserve.turn_away(listening):
                return
        for sock in self._socks:
            self._watch(sock, 0)
        self._resume_at = self._loop.now() + PAUSE_S

    def _route(self, lane: Lane, sock: socket.socket) -> None:
        """Give a data lane to the session that it names; refuse it if there is none."""
        worker = self._workers.get(lane.session)
        if worker is None:
            refuse(sock)
        else:
            worker.attach(lane.index, sock, lane.transport)
