"""Serve a model's weights. Law: everything started here is gone after `close`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from torch import nn

from netloader.config import Deadlines, Endpoint, Secret
from netloader.errors import LocalProtocolError
from netloader.fsm.identity import Identity
from netloader.fsm.server import Offering
from netloader.io.digests import ALGORITHMS
from netloader.io.listener import Listener, bind
from netloader.io.publication import IN_USE, OnChange, Publication, Shelf, Usage, no_successor
from netloader.io.transports import suited
from netloader.io.weights import Weights, WeightsError
from netloader.log import Logger, get_logger

MIB = 1 << 20


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


def publish(
    weights: Weights,
    identity: Identity,
    options: ServerOptions,
    usage: Usage = IN_USE,
    on_change: OnChange = no_successor,
) -> Publication:
    """Describe weights for clients; digests are not sealed yet.

    Raises:
        WeightsError: there are no bytes to serve.
    """
    if not weights.manifest.nbytes:
        raise WeightsError("the model has no bytes to serve")
    offering = Offering(
        identity=identity,
        manifest=weights.manifest,
        segment_bytes=options.segment_bytes,
        layouts=options.layouts,
        transports=options.transports or suited(weights.device.type, options.logger),
        digests=tuple(ALGORITHMS)[:1],
        facts=options.facts,
        token=options.token,
    )
    return Publication(weights, offering, options.max_clients, usage, on_change)


class Server:
    """A running server; a context manager."""

    def __init__(self, listener: Listener, shelf: Shelf, options: ServerOptions) -> None:
        self._open: tuple[Listener, Shelf] | None = (listener, shelf)
        self._options = options
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
            WeightsError: as `serve`.
        """
        if self._open is None:
            raise LocalProtocolError("a closed server serves nothing")
        _, shelf = self._open
        options = replace(self._options, facts=facts or {})
        publication = publish(Weights.of(model), _known(identity), options)
        shelf.put(publication)
        publication.seal_quietly()

    def close(self) -> None:
        """Turn clients away and free the port, the threads and the model. Idempotent."""
        if self._open is not None:
            listener, _ = self._open
            self._open = None  # the shelf too: it holds the weights
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
    """Serve the parameters and persistent buffers of a model; returns at once.

    Digests are computed in the background; clients that come earlier wait for them. Do not change
    the weights while they are served: clients would refuse them.

    Raises:
        OSError: the port is busy or the address is not this host's.
        WeightsError: the model has nothing to serve, or a tensor without memory.
    """
    options = options or ServerOptions()
    publication = publish(Weights.of(model), _known(identity), options)
    shelf = Shelf((publication,))
    listener = Listener(bind(host, port), shelf, options.deadlines, options.logger)
    publication.seal_quietly()
    return Server(listener, shelf, options)


def _known(identity: Mapping[str, str] | Identity) -> Identity:
    return identity if isinstance(identity, Identity) else Identity(identity)
