"""Models that are hard to copy, servers for the time of a test, peers that say what they like."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from netloader.config import Deadlines, Endpoint
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Manifest, root_digest, segments_of
from netloader.fsm.messages import (
    PROTOCOL_VERSION,
    Answer,
    Candidate,
    Hello,
    Offer,
    Opened,
    Purpose,
)
from netloader.io import ClientOptions, Server, ServerOptions
from netloader.io.arguments import Weights
from netloader.io.clock import monotonic
from netloader.io.store.digests import digest_of
from netloader.io.store.module import ModuleStore, named_tensors
from netloader.wire.frames import Decoder, Heard, Spoken, encode
from tests.unit.io.drivers import serve

KIB = 1 << 10
MIB = 1 << 20
SOON_S = 10.0
"""How long a test waits for what should take milliseconds: two shared cores may be busy."""
SEALED_S = 60.0
"""How long digests may take: the thread that computes them yields to all others."""
IDENTITY = {"model": "tiny", "dtype": "float32"}
ALGORITHM = ServerOptions().digest_algorithms[0]
"""What a server without a token publishes with."""
FAST = Deadlines(handshake_s=20, validate_s=20, stall_s=20, transfer_base_s=40, queue_s=0)
"""Long enough never to matter on a busy machine, except where a test replaces one of them."""


def asking(transport: str = "tcp", **options: Any) -> ClientOptions:
    """Client options with the deadlines of tests."""
    return ClientOptions(**{"transports": (transport,), "deadlines": FAST, **options})


@contextlib.contextmanager
def serving(
    model: Weights,
    identity: Mapping[str, str] | Identity = IDENTITY,
    host: str = "127.0.0.1",
    **options: Any,
) -> Iterator[Server]:
    """A server for a while, cut into small segments."""
    chosen = {"deadlines": FAST, "segment_bytes": 64 * KIB, **options}
    with serve(model, identity, host, options=ServerOptions(**chosen)) as server:
        yield server


def sealed(server: Server) -> Server:
    """A server whose digests are known: a client that comes earlier does not wait for long."""
    assert server.wait_ready(SEALED_S)
    return server


# -- models --------------------------------------------------------------------------------------


def module_of(**tensors: Tensor) -> nn.Module:
    """A module with these parameters, in this order."""
    module = nn.Module()
    for name, tensor in tensors.items():
        module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    return module


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random bytes of a dtype, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).to(dtype)
    count = int(torch.Size(shape).numel()) * dtype.itemsize
    plain = torch.randint(0, 256, (count,), generator=generator, dtype=torch.uint8)
    return plain.view(dtype).view(shape)


def zoo(seed: int) -> nn.Module:
    """Every kind of tensor that has been copied wrongly by somebody."""
    base, other = random(40, 50, seed=seed), random(40, 50, seed=seed + 1)
    embed = random(300, 100, seed=seed + 2)
    module = module_of(
        scalar=random(seed=seed + 3),
        empty=random(0, 8, seed=seed),
        transposed=random(30, 70, seed=seed + 4).t(),
        holes=random(90, 200, seed=seed + 5)[:, 10:150:3],
        row_first=base[3:9],
        base_after=base,
        base_first=other,
        column_after=other[:, :7],
        embed=embed,
        bf16=random(1000, seed=seed + 6, dtype=torch.bfloat16),
        flags=random(17, seed=seed + 7, dtype=torch.bool),
    )
    module.register_parameter("head", module.get_parameter("embed"))
    module.register_buffer("table", random(60, seed=seed + 8))
    module.register_buffer("passing", random(60, seed=seed + 9), persistent=False)
    return module


def bytes_of(tensor: Tensor) -> bytes:
    """The bytes of a tensor's elements in order."""
    # `contiguous` would keep the stride of a single element, and bytes want a stride of one.
    flat = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def contents(module: nn.Module) -> dict[str, bytes]:
    """What a module holds, by name."""
    return {name: bytes_of(tensor) for name, tensor in named_tensors(module)}


def places(module: nn.Module) -> dict[str, int]:
    """Where a module's tensors lie."""
    return {name: tensor.data_ptr() for name, tensor in named_tensors(module)}


# -- waiting -------------------------------------------------------------------------------------


def eventually(condition: Callable[[], object], timeout_s: float = SOON_S) -> bool:
    """Whether a condition becomes true in time."""
    end = monotonic() + timeout_s
    while not condition():
        if monotonic() > end:
            return False
        threading.Event().wait(0.005)
    return True


def our_threads() -> set[str]:
    """The names of netloader's own threads that are alive."""
    return {t.name for t in threading.enumerate() if t.name.startswith("netloader")}


# -- peers written by hand -----------------------------------------------------------------------


class Peer:
    """One end of a connection whose messages a test writes itself."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(SOON_S)
        self.sock = sock
        self._decoder = Decoder(64 * MIB)
        self._heard: list[Heard] = []

    @classmethod
    def call(cls, endpoint: Endpoint) -> Self:
        """Connect to a server."""
        return cls(socket.create_connection((endpoint.host, endpoint.port), timeout=SOON_S))

    def say(self, *messages: Spoken) -> None:
        """Send messages."""
        self.sock.sendall(b"".join(map(encode, messages)))

    def hear(self) -> Heard | None:
        """The next message; None when the other side closed or reset the connection."""
        while not self._heard:
            try:
                data = self.sock.recv(64 * KIB)
            except ConnectionError:
                return None
            if not data:
                return None
            self._heard += self._decoder.feed(data)
        return self._heard.pop(0)

    def offered(self, transport: str = "tcp") -> Offer:
        """Say hello as an honest client would and return the offer."""
        self.say(hello(transport))
        offer = self.hear()
        assert isinstance(offer, Offer), offer
        return offer

    def answered(self, transport: str = "tcp") -> None:
        """Answer an offer as if this end were open, and hear that the server's is."""
        self.say(Answer(transport))
        assert self.hear() == Opened(transport)

    def opens(self, offer: Offer) -> None:
        """Make an offer, and say that the transport which the client answers is open here too."""
        self.say(offer)
        answer = self.hear()
        assert isinstance(answer, Answer), answer
        self.say(Opened(answer.transport))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def hello(transport: str = "tcp", identity: Mapping[str, str] = IDENTITY) -> Hello:
    """What an honest client says first."""
    return Hello(
        versions=(PROTOCOL_VERSION,),
        purpose=Purpose.WEIGHTS,
        identity=Identity(identity),
        layouts=("raw",),
        transports=(transport,),
        digest_algorithms=ServerOptions().digest_algorithms,
    )


def offer_of(manifest: Manifest, digests: tuple[str, ...], segment_bytes: int) -> Offer:
    """An offer for a manifest, over tcp."""
    return Offer(
        session="s" * 32,
        identity=Identity(IDENTITY),
        layout="raw",
        candidates=(Candidate("tcp"),),
        digest_algorithm="blake3",
        manifest=manifest,
        segment_bytes=segment_bytes,
        segment_digests=digests,
        root=root_digest(digests),
    )


class Source:
    """What one server has: an offer, over tcp, and the bytes of each segment."""

    def __init__(self, module: nn.Module, segment_bytes: int) -> None:
        weights = ModuleStore.of(module)
        segments = segments_of(weights.manifest, segment_bytes)
        self.blocks = [b"".join(map(bytes, weights.views(segment))) for segment in segments]
        digests = tuple(digest_of("blake3", [memoryview(block)]) for block in self.blocks)
        self.offer = offer_of(weights.manifest, digests, segment_bytes)


@contextlib.contextmanager
def pretending(script: Callable[[Peer], object]) -> Iterator[Endpoint]:
    """A server that does with every connection what a script says, then closes it."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def handle(sock: socket.socket) -> None:
        with Peer(sock) as peer, contextlib.suppress(OSError):
            script(peer)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                thread = threading.Thread(target=handle, args=(listener.accept()[0],))
                thread.start()
                threads.append(thread)

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield Endpoint("127.0.0.1", listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in (accepting, *threads):
            thread.join(SOON_S)


def connected_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of one TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def closed_port() -> Endpoint:
    """An endpoint where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return Endpoint("127.0.0.1", listener.getsockname()[1])
