"""netloader's own driver in the simulated world. The only file of this room that loads torch."""

import socket

from netloader.config import Endpoint
from netloader.fsm.events import Event, StopRequested
from netloader.fsm.messages import Lane
from netloader.fsm.session import Session, Step
from netloader.io.driver import Arrival, Link, Reactor
from netloader.io.observe import Observer
from netloader.log import get_logger
from netloader.testing.fabric import Hands
from netloader.testing.sides import OTHER
from netloader.wire import Connection, Decision, Refusal


class Linked:
    """One side: a link of `netloader.io` with its log lines, and on a server its acceptor."""

    def __init__(self, loop: Reactor, connection: Connection, hands: Hands) -> None:
        self.troubles: list[Exception] = []
        self._loop = loop
        self._connection = connection
        self._hands = hands
        self._observer = _Observer(hands.side, self.troubles)
        self._check = connection.watch
        connection.watch = self._saw
        self._link = self._begin() if hands.side == "client" else None
        self._arrival: Arrival | None = None
        self._lane = False

    @property
    def closed(self) -> bool:
        """Whether it is over: it may have become a lane, too."""
        return self._lane or (self._link is not None and self._link.closed)

    def connected(self, sock: socket.socket) -> None:
        """Its connection is up."""
        if self._link is not None:
            self._link.connected(sock)
        else:
            patience_s = self._connection.session.deadlines.handshake_s
            self._arrival = Arrival(self._loop, sock, patience_s, self._decided)

    def handle(self, event: Event) -> None:
        """Take one event of its own side."""
        if self._lane:
            return
        if self._link is None and self._arrival is not None and isinstance(event, StopRequested):
            self._decided(self._arrival, self._arrival.refuse(event))
        else:
            (self._link or self._begin()).handle(event)

    def _begin(self) -> Link:
        self._link = Link(self._loop, self._connection, self._hands, self._observer)
        return self._link

    def _decided(self, arrival: Arrival, decision: Decision) -> None:
        """Begin the session of a server's connection. In this world no session has lanes."""
        if isinstance(decision, Lane):
            self._lane = True
            arrival.sock.close()
            return
        link = self._begin()
        link.connected(arrival.sock, arrival.since, decision.data)
        if isinstance(decision, Refusal):
            link.handle(decision.event)

    def _saw(self, session: Session, step: Step) -> None:
        self._observer.saw(session, step)
        self._check(session, step)


class _Observer(Observer):
    """Logs as usual, and keeps exceptions of netloader for the world to raise."""

    def __init__(self, side: str, troubles: list[Exception]) -> None:
        peer = Endpoint(OTHER["client" if side == "client" else "server"], 1)
        super().__init__(get_logger(side), peer, {})
        self._troubles = troubles

    def trouble(self, error: Exception) -> None:
        """Keep an exception: the world raises it."""
        self._troubles.append(error)
