"""Serve a model's weights. Law: everything started here is gone after `close`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from torch import nn

from netloader.config import Deadlines, Endpoint, Secret
from netloader.fsm.identity import Identity
from netloader.fsm.server import Offering
from netloader.io.digests import ALGORITHMS
from netloader.io.listener import Listener, bind
from netloader.io.publication import Publication
from netloader.io.weights import Weights, WeightsError
from netloader.log import Logger, get_logger

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How to serve. `transports` and `layouts` name what clients may choose from."""

    transports: tuple[str, ...] = ("tcp", "gloo")
    layouts: tuple[str, ...] = ("raw",)
    segment_bytes: int = 64 * MIB
    max_clients: int = 2
    facts: Mapping[str, str] = field(default_factory=dict)
    """What a client may ask before it builds its model."""
    token: Secret | None = None
    deadlines: Deadlines = field(default_factory=Deadlines)
    logger: Logger = field(default_factory=lambda: get_logger("server"))


def publish(weights: Weights, identity: Identity, options: ServerOptions) -> Publication:
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
        transports=options.transports,
        digests=tuple(ALGORITHMS)[:1],
        facts=options.facts,
        token=options.token,
    )
    return Publication(weights, offering, options.max_clients)


class Server:
    """A running server; a context manager."""

    def __init__(self, listener: Listener) -> None:
        self._listener: Listener | None = listener
        self.endpoint: Endpoint = listener.endpoint

    def close(self) -> None:
        """Turn clients away and free the port, the threads and the model. Idempotent."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

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
    known = identity if isinstance(identity, Identity) else Identity(identity)
    publication = publish(Weights.of(model), known, options)
    listener = Listener(bind(host, port), publication, options.deadlines, options.logger)
    publication.seal_quietly()
    return Server(listener)
