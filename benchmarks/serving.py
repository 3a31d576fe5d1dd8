"""The serving process of the benchmarks: one that sends, in every way that is compared."""

import socket
import threading
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any, Final

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import PrefixStore, Store

from benchmarks.workload import GIB, IDENTITY, MIB, Llama, block, scramble, tensors_of
from netloader.fsm.identity import Identity
from netloader.io.catalog import Catalog
from netloader.io.listener import Listener, bind
from netloader.io.publishing import ServerOptions, publish
from netloader.io.store.module import ModuleStore

HOST: Final = "127.0.0.1"
TIMEOUT: Final = timedelta(seconds=60)
SEED: Final = 7
PLAIN_SEND: Final = MIB
"""Bytes per `sendall` of the fast plain socket. Measured in GiB/s: 1.5 for 256 KiB, 2.9 for 1 MiB,
2.4 for 4 MiB, 1.5 for everything at once (the kernel's buffers then fall out of the cache)."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the serving process listens: netloader, plain sockets, the store of bare gloo."""

    netloader: int
    whole: int
    stepped: int
    store: int


def bare_gloo(store: Store, rank: int, name: str) -> Any:
    """A group of two without netloader, its device named as netloader does it."""
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()  # noqa: SLF001 - there is no public name
    options._timeout = TIMEOUT  # noqa: SLF001
    options._devices = [gloo.create_device(hostname=HOST)]  # noqa: SLF001
    return gloo(PrefixStore(name, store), rank, 2, options)


def catalog_of(model: Llama) -> Catalog:
    """A model on offer, its digests sealed."""
    published = publish(ModuleStore.of(model), Identity(IDENTITY), ServerOptions(max_clients=1))
    published.seal()
    return Catalog((published,))


def serve_all(pipe: Connection) -> None:
    """Serve in every way until the pipe closes; each name received is one bare gloo group."""
    model = Llama()
    scramble(model, SEED)
    options = ServerOptions()
    listener = Listener(bind(HOST, 0), catalog_of(model), options)
    memory = block()
    whole, stepped = _serve_plain(memory, GIB), _serve_plain(memory, PLAIN_SEND)
    store = TCPStore(HOST, 0, 2, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
    pipe.send(Ports(listener.endpoint.port, whole, stepped, store.port))
    try:
        while True:
            _serve_bare_gloo(store, pipe.recv(), model)
    except EOFError:
        listener.close()


def serve_model(pipe: Connection) -> None:
    """Serve one model over netloader until the pipe closes."""
    model = Llama()
    scramble(model, SEED)
    options = ServerOptions()
    listener = Listener(bind(HOST, 0), catalog_of(model), options)
    pipe.send(listener.endpoint.port)
    try:
        pipe.recv()
    except EOFError:
        listener.close()


def _serve_plain(memory: memoryview, step: int) -> int:
    """Send everything, `step` bytes a call, to whoever connects to the port that is returned."""
    server = socket.create_server((HOST, 0))

    def work() -> None:
        while True:
            connection, _ = server.accept()
            with connection:
                for start in range(0, len(memory), step):
                    connection.sendall(memory[start : start + step])

    threading.Thread(target=work, daemon=True).start()
    return int(server.getsockname()[1])


def _serve_bare_gloo(store: Store, name: str, model: Llama) -> None:
    group = bare_gloo(store, 0, name)
    for tensor in tensors_of(model):
        group.send([tensor], 1, 0).wait()
