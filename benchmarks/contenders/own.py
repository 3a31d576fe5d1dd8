"""netloader itself: each transport with each digest algorithm that both ends can do."""

from collections.abc import Callable, Iterator
from typing import Final

from benchmarks.sender import HOST, Sender, Stage
from benchmarks.target import Target
from benchmarks.workload import IDENTITY
from netloader import ClientOptions, Endpoint, Server, ServerOptions, fill, serve
from netloader.io.store.digests import ALGORITHMS
from netloader.io.transports import TRANSPORTS

SEALED_S: Final = 120.0
NETWORK: Final = ("tcp", "gloo", "nixl", "mooncake")
ACCELERATORS: Final = ("hccl", "nccl")
ENGINES: Final = ("nixl", "mooncake")


def algorithms() -> tuple[str, ...]:
    """The digest algorithms that both ends can do here."""
    return tuple(ALGORITHMS)


def obstacle_of(transport: str) -> str:
    """Why a transport cannot be used here, or ''."""
    try:
        return TRANSPORTS.named(transport).obstacle()
    except ValueError as error:  # as it says itself
        return str(error)


def transports() -> tuple[str, ...]:
    """Those for host memory that this machine has."""
    names = (name for name in TRANSPORTS.known() if name not in ACCELERATORS)
    return tuple(name for name in names if not obstacle_of(name))


class Netloader:
    """One transport and one digest algorithm; timed from the call of `fill` to its return."""

    workloads: tuple[str, ...] = ("large", "small", "tiny")

    def __init__(self, transport: str, algorithm: str) -> None:
        self.name = f"netloader {transport}, {algorithm}"
        self.kind = "network" if transport in NETWORK else "same host"
        self.transport = transport
        self._algorithm = algorithm

    def obstacle(self) -> str:
        """Why it cannot take part, or ''."""
        return obstacle_of(self.transport)

    def prepare(self, sender: Sender, target: Target) -> Callable[[], object]:
        """The returned function fills a model: handshake, digests and goodbye included."""
        port = sender.do(offer, self._algorithm)
        model = target.model()
        options = ClientOptions(transports=(self.transport,), digest=self._algorithm)

        def receive() -> None:
            outcome = fill(model, [Endpoint(HOST, port)], IDENTITY, options)
            if not outcome.ok:
                raise RuntimeError(outcome.history())

        return receive


def offer(stage: Stage, algorithm: str) -> int:
    """The port of a server whose digests are ready."""
    return stage.once(("netloader", algorithm), lambda: _serve(stage, algorithm)).endpoint.port


def _serve(stage: Stage, algorithm: str) -> Server:
    options = ServerOptions(transports=transports(), max_clients=1, digest=algorithm)
    server = serve(stage.model, IDENTITY, HOST, options=options)
    if not server.wait_ready(SEALED_S):
        raise RuntimeError("the digests were not ready in time")
    return server


def all_own() -> Iterator[Netloader]:
    """Every transport for host memory; our own with every algorithm, engines with the fastest."""
    for transport in TRANSPORTS.known():
        if transport not in ACCELERATORS:
            for algorithm in algorithms()[-1:] if transport in ENGINES else algorithms():
                yield Netloader(transport, algorithm)
