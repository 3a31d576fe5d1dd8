"""Serve what is being received: each segment when it is verified, and not before.

A relay is a server that publishes the store of a fill: from its first lease on in the state
RECEIVING, after the fill as any other model. Clients are told of each segment, and of the end.
"""

import threading
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from netloader.config import Endpoint
from netloader.errors import NetloaderError
from netloader.fsm.identity import Identity
from netloader.fsm.messages import Offer
from netloader.fsm.reasons import Reason
from netloader.io.arguments import Weights
from netloader.io.failure import TransferError
from netloader.io.listener import ANYWHERE
from netloader.io.published import PublishedModel
from netloader.io.store.base import Store
from netloader.log import Logger, emit

QUIET_S = 20.0
"""How long clients may take to stop reading: an aborted transfer ends within a second, and a
connection lingers for one more."""


@runtime_checkable
class RelayHost(Protocol):
    """A server in which a fill publishes what it receives: `Server`, of whatever driver."""

    endpoint: Endpoint

    def receive(self, store: Store, identity: Identity, offer: Offer) -> PublishedModel:
        """Publish a store that segments of an offer are written to.

        Raises:
            LocalProtocolError: the server is closed, or a fence of the role is open.
            ValueError: no transport can send what is in this store, or only some of
                a server's models ask for a token.
        """

    def received(self, published: PublishedModel, weights: Weights, identity: Identity) -> None:
        """All is received: serve it as `publish` does, with the digests that are known."""


def dialled_at(endpoint: Endpoint) -> Endpoint | None:
    """Where other hosts connect to; None for a server on every address, which they do not know."""
    return None if endpoint.host in ANYWHERE else endpoint


class Relay:
    """One fill in one server; the audience of its ledger. Safe to use from any thread.

    What fails here is logged, and does not disturb the fill.
    """

    def __init__(
        self, host: RelayHost, weights: Weights, store: Store, identity: Identity, logger: Logger
    ) -> None:
        self._host = host
        self._weights = weights
        self._store = store
        self._identity = identity
        self._logger = logger
        self._published: PublishedModel | None = None
        self._lock = threading.Lock()
        """Held while something is published."""

    def begin(self, offer: Offer, available: frozenset[int]) -> None:
        """Publish, unless that was done for an earlier source with the same digests."""
        with self._lock:
            if self._published is None:
                self._guard(lambda: self._publish(offer, available))

    def _publish(self, offer: Offer, available: frozenset[int]) -> None:
        published = self._host.receive(self._store, self._identity, offer)
        published.have(available)
        self._published = published

    def have(self, segment: int) -> None:
        """Tell clients of a segment."""
        if self._published is not None:
            self._published.have(frozenset({segment}))

    def leave(self) -> None:
        """Have clients come again later: other weights will be received."""
        published = self._take()
        if published is not None:
            published.retire("other weights are being received", Reason.NOT_READY)
            if not published.quiet(QUIET_S):
                detail = "clients still read what was received before"
                raise TransferError(Reason.TRANSFER_FAILED, detail)

    def keep(self) -> None:
        """The fill is done: serve the model from now on as any other. May take long."""
        published = self._take()
        if published is not None:
            self._guard(lambda: self._host.received(published, self._weights, self._identity))

    def give_up(self) -> None:
        """The fill has ended without all: tell clients, and wait until none of them reads."""
        published = self._published
        self.abandon()
        if published is not None:
            published.quiet(QUIET_S)

    def abandon(self) -> None:
        """As `give_up`, without waiting; nothing after `keep`."""
        published = self._take()
        if published is not None:
            published.retire("the weights were not received")

    def _take(self) -> PublishedModel | None:
        with self._lock:
            published, self._published = self._published, None
            return published

    def _guard(self, act: Callable[[], None]) -> None:
        try:
            act()
        except (NetloaderError, ValueError) as error:
            fields = {"netloader.detail": str(error)}
            emit(self._logger, "netloader.relay.failed", fields)
