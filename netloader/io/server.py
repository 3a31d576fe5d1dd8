"""Serve a model's weights. Law: everything started here is gone after `close`."""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Protocol, Self

from torch import nn

from netloader.config import Deadlines, Endpoint, Secret, check_type, check_whole, texts
from netloader.errors import LocalProtocolError, WeightsError
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import MIN_SEGMENT_BYTES
from netloader.fsm.terms import CatalogEntry
from netloader.io.arguments import check_transports, identity_of, module_of, texts_by_name
from netloader.io.listener import Listener, bind
from netloader.io.published import Catalog, PublishedModel, Usage, withdraw_only
from netloader.io.store.digests import ALGORITHMS
from netloader.io.store.module import ModuleStore
from netloader.io.transports import suited
from netloader.io.watch import ModuleUsage
from netloader.log import Logger, emit, get_logger
from netloader.wire.frames import sendable

MIB = 1 << 20
MOST_SEGMENT_BYTES = 1 << 40
"""More than any device holds: a whole model in one segment."""
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "transports", texts("transports", self.transports))
        object.__setattr__(self, "layouts", texts("layouts", self.layouts))
        check_whole("segment_bytes", self.segment_bytes, MIN_SEGMENT_BYTES, MOST_SEGMENT_BYTES)
        check_whole("max_clients", self.max_clients, 1, MOST_CLIENTS)
        texts_by_name("facts", self.facts, "{'quantization': 'w8a8'}")
        check_type("token", self.token, Secret | None, "wrap the text: Secret(text)")
        check_type("deadlines", self.deadlines, Deadlines, "give a netloader.Deadlines")
        check_type("logger", self.logger, Logger, "give what netloader.log.get_logger returns")


def publish(
    weights: ModuleStore,
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
    return PublishedModel(weights, entry, options.max_clients, usage, on_change, options.logger)


class _Home:
    """Where a server publishes: a weak reference, as published models in the catalog hold it."""

    catalog: Callable[[], Catalog | None] = staticmethod(lambda: None)


@dataclass(frozen=True, slots=True)
class _Model:
    """A module in a catalog, published anew whenever it is found to be changed."""

    module: nn.Module
    identity: Identity
    options: ServerOptions
    home: "_Home"

    def publish(self) -> PublishedModel:
        """Publish what the module holds now."""
        weights = ModuleStore.of(self.module)
        usage = ModuleUsage(weights.state) if weights.state else None
        return publish(weights, self.identity, self.options, usage, self.renew)

    def renew(self, old: PublishedModel, why: str) -> bool:
        """Offer what the module holds now in the place of what it held."""
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

    def close(self) -> None:
        """End every session and free the port."""


class Server:
    """A running server; a context manager.

    `endpoint` is what the socket is bound to. With an empty host that is `::` or `0.0.0.0`, which
    other hosts cannot connect to: tell them a name or an address of this host, and the port.
    A child that is forked from this process has no part in the server, and `close` does nothing
    there.
    """

    def __init__(
        self, listener: Listening, catalog: Catalog, options: ServerOptions, home: _Home
    ) -> None:
        self._open: tuple[Listening, Catalog] | None = (listener, catalog)
        self._options = options
        self._home = home
        self.endpoint: Endpoint = listener.endpoint

    def put(
        self,
        model: nn.Module,
        identity: Mapping[str, str] | Identity,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        """Serve one more model, or another in the place of the one with the same `role`.

        `role` is a field of the identity; a client gets the model of its own. Clients of a model
        that is replaced are served to their end. `facts` is as in ServerOptions, of this model.

        Raises:
            LocalProtocolError: the server is closed.
            TypeError, ValueError, WeightsError: as `serve`.
        """
        if self._open is None:
            raise LocalProtocolError("a closed server serves nothing")
        _, catalog = self._open
        options = replace(self._options, facts=facts or {})
        published = _model(model, identity, options, self._home).publish()
        catalog.put(published)
        published.seal_quietly()

    def close(self) -> None:
        """Turn clients away and free the port, the threads and the model. Idempotent."""
        if self._open is not None:
            listener, _ = self._open
            self._open = None  # the catalog too: it holds the weights
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
    model: nn.Module,
    identity: Mapping[str, str] | Identity,
    host: str = "127.0.0.1",
    port: int = 0,
    options: ServerOptions | None = None,
) -> Server:
    """Serve all that a model is seen to hold; returns at once.

    Digests are computed in the background; clients that come earlier wait for them. The server
    keeps the model and looks at it before each offer and at the end of each transfer: when it was
    changed, it is published anew, and clients come again for what it holds then.

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
    _home: _Home

    def served(self, listener: Listening) -> Server:
        """Have digests computed, now that there may be clients."""
        self._published.seal_quietly()
        return Server(listener, self.catalog, self.options, self._home)


def prepare(
    model: nn.Module,
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
    published = _model(model, identity, options, home).publish()
    catalog = Catalog((published,))
    home.catalog = weakref.ref(catalog)
    return Prepared(options, catalog, published, home)


def _model(
    model: nn.Module,
    identity: Mapping[str, str] | Identity,
    options: ServerOptions,
    home: _Home,
) -> _Model:
    """What a caller wants to have served, checked."""
    module, known = module_of(model), identity_of(identity)
    check_transports(options.transports)
    return _Model(module, known, options, home)
