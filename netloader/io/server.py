"""Serve a model's weights. Everything started here is gone after `close`."""

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Protocol, Self

from netloader.config import Deadlines, Endpoint, Secret, check_type, check_whole, texts
from netloader.errors import LocalProtocolError, WeightsError
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import MIN_SEGMENT_BYTES
from netloader.fsm.terms import CatalogEntry
from netloader.io.arguments import (
    Weights,
    check_reason,
    check_transports,
    identity_of,
    texts_by_name,
    weights_of,
)
from netloader.io.catalog import Catalog
from netloader.io.clock import monotonic
from netloader.io.listener import Listener, bind
from netloader.io.published import PublishedModel, Usage, withdraw_only
from netloader.io.snapshot import OnSession, ServerSnapshot
from netloader.io.store.base import Store
from netloader.io.store.digests import ALGORITHMS
from netloader.io.transports import suited
from netloader.io.watch import watched
from netloader.log import Logger, emit, get_logger
from netloader.wire.frames import sendable

MIB = 1 << 20
MOST_SEGMENT_BYTES = 1 << 40
"""More than any device holds: a whole model in one segment."""
FENCE_S = 60.0
"""How long a fence waits for sessions to stop reading, unless its caller says otherwise."""
MOST_CLIENTS = (1 << 31) - 1
"""No limit in practice."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How to serve. `transports` and `layouts` name what clients may choose from."""

    transports: tuple[str, ...] = ()
    """None: all that move memory of the device where the weights are."""
    layouts: tuple[str, ...] = ("raw",)
    segment_bytes: int = 64 * MIB
    max_clients: int = 2
    facts: Mapping[str, str] = field(default_factory=dict)
    """What a client may ask before it builds its model."""
    token: Secret | None = None
    deadlines: Deadlines = field(default_factory=Deadlines)
    logger: Logger = field(default_factory=lambda: get_logger("server"))
    on_session: OnSession | None = None
    """Called with the record of each session that has chosen a model and is over, on a thread of
    its own and without a lock. What it raises is logged, and affects no session."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "transports", texts("transports", self.transports))
        object.__setattr__(self, "layouts", texts("layouts", self.layouts))
        check_whole("segment_bytes", self.segment_bytes, MIN_SEGMENT_BYTES, MOST_SEGMENT_BYTES)
        check_whole("max_clients", self.max_clients, 1, MOST_CLIENTS)
        texts_by_name("facts", self.facts, "{'quantization': 'w8a8'}")
        check_type("token", self.token, Secret | None, "wrap the text: Secret(text)")
        check_type("deadlines", self.deadlines, Deadlines, "give a netloader.Deadlines")
        remedy = "give a function of one record"
        check_type("on_session", self.on_session, Callable | None, remedy)
        check_type("logger", self.logger, Logger, "give what netloader.log.get_logger returns")


def publish(
    weights: Store,
    identity: Identity,
    options: ServerOptions,
    usage: Usage | None = None,
    on_change: Callable[[PublishedModel, str], bool] = withdraw_only,
) -> PublishedModel:
    """Describe weights for clients; digests are not sealed yet.

    `usage` and `on_change` are as in `PublishedModel`.

    Raises:
        WeightsError: there are no bytes to serve.
    """
    if not weights.manifest.nbytes:
        raise WeightsError("the model has no bytes to serve")
    entry = CatalogEntry(
        identity=sendable(identity),
        manifest=weights.manifest,
        segment_bytes=options.segment_bytes,
        layouts=options.layouts,
        transports=options.transports or suited(weights.device.type, options.logger),
        digest_algorithms=tuple(ALGORITHMS)[:1],
        facts=options.facts,
        token=options.token,
    )
    owner = (usage, on_change, options.logger, options.on_session)
    return PublishedModel(weights, entry, options.max_clients, *owner)


class _Home:
    """Where a server publishes: a weak reference, as published models in the catalog hold it."""

    catalog: Callable[[], Catalog | None] = staticmethod(lambda: None)


@dataclass(frozen=True, slots=True)
class _Model:
    """Weights in a catalog, published anew whenever they are found to be changed.

    A store is withdrawn then: its bytes are those of a file, or were verified.
    """

    weights: Weights
    identity: Identity
    options: ServerOptions
    home: "_Home"

    def publish(self) -> PublishedModel:
        """Publish what is there now."""
        store, usage = watched(self.weights)
        on_change = withdraw_only if usage is None else self.renew
        return publish(store, self.identity, self.options, usage, on_change)

    def renew(self, old: PublishedModel, why: str) -> bool:
        """Offer what is there now in the place of what was."""
        fields = {"netloader.role": old.entry.role, "netloader.detail": why}
        emit(self.options.logger, "netloader.server.withdrawn", fields)
        catalog = self.home.catalog()
        try:
            new = self.publish()
        except Exception as error:  # noqa: BLE001 - the module's own code runs here
            old.withdraw(f"{why}, and the model cannot be served any more: {error}")
            return False
        if catalog is None:
            return False
        if catalog.replace(old, new):
            new.seal_quietly()
        return True


class Listening(Protocol):
    """What accepts a server's clients."""

    @property
    def endpoint(self) -> Endpoint:
        """What its socket is bound to."""

    def evict(self, published: PublishedModel, why: str, timeout_s: float) -> bool:
        """Withdraw a published model and end its sessions; True when nothing reads it any more."""

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
        self, listener: Listening, catalog: Catalog, options: ServerOptions, model: _Model
    ) -> None:
        self._open: tuple[Listening, Catalog] | None = (listener, catalog)
        self._options = options
        self._home = model.home
        self._models = {model.identity.role: model}
        self._lock = threading.Lock()
        """Held while a model is put into the catalog, or a fence begins or ends."""
        self.endpoint: Endpoint = listener.endpoint

    def publish(
        self,
        model: Weights,
        identity: Mapping[str, str] | Identity,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        """Serve one more model, or another in the place of the one with the same `role`.

        `role` is a field of the identity; a client gets the model of its own. Clients of a model
        that is replaced are served to their end. `facts` is as in ServerOptions, of this model.

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
            self._models[described.identity.role] = described
        published.seal_quietly()

    def withdraw(self, role: str | None, why: str) -> None:
        """Offer nothing in a role any more; clients are told `why`. Returns at once.

        Transfers that run already go on to their end, so use `fence` before you change or free the
        weights. `publish`, or the end of a `fence` of the role, offers weights in it again.

        Raises:
            LocalProtocolError: the server is closed.
            TypeError: `role` or `why` is not a text.
            ValueError: the role is not served, or `why` is empty.
        """
        _, catalog = self._opened()
        check_reason(role, why)
        catalog.withdraw_role(role, why)

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
        listener, catalog = self._opened()
        check_reason(role, why)
        with self._lock:
            known = catalog.fence(role)
        try:
            end = monotonic() + timeout_s
            left = [p for p in known if not listener.evict(p, why, max(0.0, end - monotonic()))]
            if not left:
                yield
        except BaseException:
            with self._lock:
                catalog.unfence(role)
            raise
        self._end_fence(catalog, role)
        if left:
            raise TimeoutError(f"clients still read role {role!r} {timeout_s:g} s after: {why}")

    def _end_fence(self, catalog: Catalog, role: str | None) -> None:
        with self._lock:
            if not catalog.unfence(role):
                return
            model = self._models.get(role)
            if model is None:  # closed meanwhile
                return
            published = model.publish()
            catalog.put(published)
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
    chosen = prepared.options
    listener = Listener(bind(host, port), prepared.catalog, chosen.deadlines, chosen.logger)
    return prepared.served(listener)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model in a catalog of its own, which has no listener yet."""

    options: ServerOptions
    catalog: Catalog
    _published: PublishedModel
    _model: _Model

    def served(self, listener: Listening) -> Server:
        """Have digests computed, now that there may be clients."""
        self._published.seal_quietly()
        return Server(listener, self.catalog, self.options, self._model)


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
    check_type("host", host, str, "give a host name or an address as a text; empty: all addresses")
    check_whole("port", port, 0, 65535)
    check_type("options", options, ServerOptions | None, "give a netloader.ServerOptions")
    options = options or ServerOptions()
    home = _Home()
    described = _model(model, identity, options, home)
    published = described.publish()
    catalog = Catalog((published,))
    home.catalog = weakref.ref(catalog)
    return Prepared(options, catalog, published, described)


def _model(
    model: Weights,
    identity: Mapping[str, str] | Identity,
    options: ServerOptions,
    home: _Home,
) -> _Model:
    """What a caller wants to have served, checked."""
    weights, known = weights_of(model), identity_of(identity)
    check_transports(options.transports)
    return _Model(weights, known, options, home)
