"""Serve a model's weights. Everything started here is gone after `close`."""

import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from netloader.config import Endpoint, check_type, check_whole
from netloader.errors import LocalProtocolError
from netloader.fsm.identity import Identity
from netloader.fsm.messages import Offer
from netloader.io.arguments import (
    Weights,
    check_reason,
    check_transports,
    identity_of,
    weights_of,
)
from netloader.io.catalog import Catalog
from netloader.io.clock import monotonic
from netloader.io.listener import ANYWHERE, Listener, bind, tell
from netloader.io.published import PublishedModel
from netloader.io.publishing import Home, ServerOptions, WatchedModel, publish_received
from netloader.io.snapshot import ServerSnapshot
from netloader.io.store.base import Store

FENCE_S = 60.0
"""How long a fence waits for sessions to stop reading, unless its caller says otherwise."""


class Listening(Protocol):
    """What accepts a server's clients."""

    @property
    def endpoint(self) -> Endpoint:
        """What its socket is bound to."""

    def add(self, sock: socket.socket) -> None:
        """Accept at one more socket; from any thread."""

    def remove(self, sock: socket.socket) -> None:
        """Close a socket that was added; from any thread."""

    def close(self) -> None:
        """End every session and free the port."""


class Server:
    """A running server; a context manager. Thread-safe.

    `endpoint` is what the socket is bound to. With an empty host that is `::` or `0.0.0.0`, which
    other hosts cannot connect to: tell them a name or an address of this host, and the port.
    A child that is forked from this process has no part in the server, and `close` does nothing
    there.
    """

    def __init__(
        self,
        listener: Listening,
        catalog: Catalog,
        options: ServerOptions,
        models: Iterable[WatchedModel] = (),
    ) -> None:
        self._open: tuple[Listening, Catalog] | None = (listener, catalog)
        self._options = options
        self._home = Home(catalog)
        self._models = {tuple(model.identity.kind.items()): model for model in models}
        self._lock = threading.Lock()
        """Held while a model is put into the catalog, or a fence begins or ends."""
        self.endpoint: Endpoint = listener.endpoint

    def publish(
        self,
        model: Weights,
        identity: Mapping[str, str] | Identity,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        """Serve one more model, or another in the place of the one of the same role and part.

        `role` is a field of the identity, and the part is the values of the fields of `PARTITION`.
        A client gets the model with its own role and part. Transfers of a model that is replaced
        go on to their end. `facts` is as in ServerOptions, of this model.

        Raises:
            LocalProtocolError: the server is closed, or a fence of the role is open.
            TypeError, ValueError, WeightsError: as `serve`.
        """
        _, catalog = self._opened()
        options = replace(self._options, facts=facts or {})
        described = _model(model, identity, options, self._home)
        published = described.publish()
        with self._lock:
            catalog.put(published)
            self._models[published.entry.kind] = described
        published.seal_quietly()

    def offer(self, published: PublishedModel) -> None:
        """Serve one more model, or another in the place of the one of the same role and part.

        As `publish`, for an owner that watches its weights itself: `published` comes from
        `netloader.io.publishing.publish`. The owner has its digests computed, and offers another
        one when the weights have changed; the server does neither, also after a `fence`.

        Raises:
            LocalProtocolError: the server is closed, or a fence of the role is open.
            ValueError: it asks for a token and the others do not, or the reverse.
        """
        _, catalog = self._opened()
        with self._lock:
            catalog.put(published)
            self._models.pop(published.entry.kind, None)

    def remove(self, published: PublishedModel) -> None:
        """Know nothing any more of a model that was given to `offer` and is retired.

        Raises:
            LocalProtocolError: the server is closed.
        """
        _, catalog = self._opened()
        catalog.remove(published)

    def receive(self, store: Store, identity: Identity, offer: Offer) -> PublishedModel:
        """Publish a store that is being filled, for a relay; see `RelayHost`."""
        published = publish_received(store, identity, offer, self._options)
        self.offer(published)
        return published

    def received(self, published: PublishedModel, weights: Weights, identity: Identity) -> None:
        """Serve what was received as any other model, for a relay; see `RelayHost`."""
        model = WatchedModel(weights, identity, self._options, self._home)
        model.watch(published)
        with self._lock:
            self._models[published.entry.kind] = model

    def listen_also(self, port: int) -> Callable[[], None]:
        """Accept clients at one more port of the same address.

        Returns:
            A function that closes that port; sessions that began there go on.

        Raises:
            LocalProtocolError, OSError: the server is closed, or the port is busy.
        """
        listener, _ = self._opened()
        host = self.endpoint.host
        sock = bind("" if host in ANYWHERE else host, port)
        listener.add(sock)
        tell(self._options.logger, "netloader.listener.started", Endpoint(host, port))
        return partial(listener.remove, sock)

    def withdraw(self, role: str | None, why: str) -> None:
        """Offer nothing in a role any more; clients are told `why`. Returns at once.

        Transfers that run already go on to their end, so use `evict` or `fence` before you change
        or free the weights. `publish`, or the end of a `fence`, offers weights in the role again.

        Raises:
            LocalProtocolError: the server is closed.
            TypeError: `role` or `why` is not a text.
            ValueError: the role is not served, or `why` is empty.
        """
        _, catalog = self._opened()
        check_reason(role, why)
        catalog.withdraw_role(role, why)

    def evict(self, role: str | None, why: str, timeout_s: float = FENCE_S) -> bool:
        """Offer nothing in a role any more, and end its sessions; clients are told `why`.

        As `withdraw`, but it waits until nothing reads the weights: also those of models that were
        replaced while sessions still read them.

        Returns:
            False when weights are still read after `timeout_s` seconds.

        Raises:
            LocalProtocolError, TypeError, ValueError: as `withdraw`.
        """
        _, catalog = self._opened()
        check_reason(role, why)
        end = monotonic() + timeout_s
        known = catalog.withdraw_role(role, why)
        return not [p for p in known if not p.evict(why, max(0.0, end - monotonic()))]

    @contextmanager
    def fence(self, role: str | None, why: str, timeout_s: float = FENCE_S) -> Iterator[None]:
        """A block in which the weights of a role may be written to, moved or freed.

        Before the block, sessions of this role end, with `why` as the reason that clients are told,
        and the fence waits until nothing reads the weights: also those of models that were replaced
        while sessions still read them. Clients that come during the block are refused with `why`.
        After it, the model is published anew, and every digest is computed from what it holds then.
        Fences of one role may be nested, or open in several threads; the last one to end publishes.

        When the block raises, the weights may be half changed: nothing is offered in the role until
        `publish` or another `fence`. Do not call it from a progress callback of this server.

        Raises:
            LocalProtocolError: the server is closed.
            TimeoutError: weights are still read after `timeout_s` seconds. The block does not run,
                and the weights are offered again.
            TypeError: `role` or `why` is not a text.
            ValueError: the role is not served, or `why` is empty.
            WeightsError: after the block, the model cannot be served any more.
        """
        _, catalog = self._opened()
        check_reason(role, why)
        with self._lock:
            known = catalog.fence(role, why)
        try:
            end = monotonic() + timeout_s
            left = [p for p in known if not p.quiet(max(0.0, end - monotonic()))]
            if not left:
                yield
        except BaseException:
            with self._lock:
                catalog.abandon(role)
            raise
        self._end_fence(catalog, role)
        if left:
            raise TimeoutError(f"clients still read role {role!r} {timeout_s:g} s after: {why}")

    def _end_fence(self, catalog: Catalog, role: str | None) -> None:
        with self._lock:
            if catalog.unfence(role):
                return
            models = [each for each in self._models.values() if each.identity.role == role]
            if not models:  # closed meanwhile, or what is served is its owner's to publish
                catalog.abandon(role)
                return
            try:
                newer = [model.publish() for model in models]
            except BaseException:
                catalog.abandon(role)
                raise
            catalog.renew(role, newer)
        for published in newer:
            published.seal_quietly()

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until no client would have to wait for digests; False when that takes longer.

        A model that is withdrawn or fenced is not waited for.

        Raises:
            LocalProtocolError: the server is closed.
        """
        _, catalog = self._opened()
        end = monotonic() + timeout_s
        while waiting := [
            p for p in catalog.published_models if not p.withdrawn and p.digests(0) is None
        ]:
            left = end - monotonic()
            if left <= 0:
                return False
            waiting[0].digests(left)
        return True

    def snapshot(self) -> ServerSnapshot:
        """What is served now, and what was done for clients so far.

        Raises:
            LocalProtocolError: the server is closed.
        """
        _, catalog = self._opened()
        return ServerSnapshot(self.endpoint, catalog.snapshots())

    def _opened(self) -> tuple[Listening, Catalog]:
        if (opened := self._open) is None:
            raise LocalProtocolError("a closed server serves nothing")
        return opened

    def close(self) -> None:
        """Turn clients away and free the port, the threads and the model. Idempotent."""
        if self._open is not None:
            listener, _ = self._open
            self._open = None  # the catalog too: it holds the weights
            self._models.clear()
            listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def serve(
    model: Weights,
    identity: Mapping[str, str] | Identity,
    host: str = "127.0.0.1",
    port: int = 0,
    options: ServerOptions | None = None,
) -> Server:
    """Serve a model; returns at once.

    `model` is a module, of which all is served that it is seen to hold; a state dict, or pairs of
    names and tensors, in their order; or a `Store`, such as `FileStore`, for a server without a
    model.

    Digests are computed in the background; clients that come earlier wait for them. The server
    keeps the model and looks at it before each offer and at the end of each transfer: when it was
    changed, it is published anew, and clients come again for what it holds then. A store is not
    looked at; when it is found to hold other bytes than its digests say, it is offered no more.

    Raises:
        TypeError: an argument is of a type that cannot be used; the message says what to give.
        ValueError: a port or a role is none, or no transport has a name in `options.transports`.
        OSError: the port is busy or the address is not this host's.
        WeightsError: the model has nothing to serve, or something that cannot travel.
    """
    prepared = prepare(model, identity, host, port, options)
    listener = Listener(bind(host, port), prepared.catalog, prepared.options)
    return prepared.served(listener)


def listen(host: str = "127.0.0.1", port: int = 0, options: ServerOptions | None = None) -> Server:
    """Open a server that has nothing to serve yet; clients are told to come again.

    `Server.publish` gives it a model, and `fill` with `ClientOptions.relay` what it receives.

    Raises:
        TypeError, ValueError, OSError: as `serve`.
    """
    chosen = check_listening(host, port, options)
    catalog = Catalog()
    listener = Listener(bind(host, port), catalog, chosen)
    return Server(listener, catalog, chosen)


def check_listening(host: str, port: int, options: ServerOptions | None) -> ServerOptions:
    """The options of a server that is to listen there.

    Raises:
        TypeError, ValueError: an argument cannot be used.
    """
    check_type("host", host, str, "give a host name or an address as a text; empty: all addresses")
    check_whole("port", port, 0, 65535)
    check_type("options", options, ServerOptions | None, "give a netloader.ServerOptions")
    options = options or ServerOptions()
    if options.rails and host not in ANYWHERE:
        raise ValueError(f"rails are given, but the host is {host!r}; give '' to listen at all")
    check_transports(options.transports)
    return options


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model in a catalog of its own, which has no listener yet."""

    options: ServerOptions
    catalog: Catalog
    _published: PublishedModel
    _model: WatchedModel

    def served(self, listener: Listening) -> Server:
        """Have digests computed, now that there may be clients."""
        self._published.seal_quietly()
        return Server(listener, self.catalog, self.options, (self._model,))


def prepare(
    model: Weights,
    identity: Mapping[str, str] | Identity,
    host: str,
    port: int,
    options: ServerOptions | None,
) -> Prepared:
    """Publish a model, for `serve` with whatever kind of listener. Arguments are those of `serve`.

    Raises:
        TypeError, ValueError, WeightsError: as `serve`.
    """
    options = check_listening(host, port, options)
    catalog = Catalog()
    described = _model(model, identity, options, Home(catalog))
    published = described.publish()
    catalog.put(published)
    return Prepared(options, catalog, published, described)


def _model(
    model: Weights,
    identity: Mapping[str, str] | Identity,
    options: ServerOptions,
    home: Home,
) -> WatchedModel:
    """What a caller wants to have served, checked."""
    return WatchedModel(weights_of(model), identity_of(identity), options, home)
