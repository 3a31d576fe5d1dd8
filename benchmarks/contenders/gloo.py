"""Gloo without netloader: one `recv` and one `wait` for each tensor."""

import itertools
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import PrefixStore, Store

from benchmarks.sender import HOST, Sender, Stage
from benchmarks.target import Target
from benchmarks.workload import tensors_of

TIMEOUT: Final = timedelta(seconds=120)


class BareGloo:
    """A process group of two; making it is not timed."""

    name: str = "bare gloo"
    kind: str = "network"
    workloads: tuple[str, ...] = ("large", "small", "tiny")

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def obstacle(self) -> str:
        """Why it cannot take part, or ''."""
        available = dist.is_available() and dist.is_gloo_available()
        return "" if available else "this torch has no gloo"

    def prepare(self, sender: Sender, target: Target) -> Callable[[], object]:
        """The returned function receives the tensors one by one."""
        tensors = tensors_of(target.model())
        name = f"bare-{next(self._numbers)}"
        port = sender.do(serve, name)
        store = TCPStore(HOST, port, 2, is_master=False, timeout=TIMEOUT)
        group = _group(store, 1, name)

        def receive() -> None:
            for tensor in tensors:
                group.recv([tensor], 0, 0).wait()

        return receive


def serve(stage: Stage, name: str) -> int:
    """Send the tensors to a group of this name; the port of its store."""
    store = stage.once("gloo store", _store)

    def work() -> None:
        group = _group(store, 0, name)
        for tensor in tensors_of(stage.model):
            group.send([tensor], 1, 0).wait()

    threading.Thread(target=work, daemon=True).start()
    return int(store.port)


def _store() -> TCPStore:
    return TCPStore(HOST, 0, 2, is_master=True, wait_for_workers=False, timeout=TIMEOUT)


def _group(store: Store, rank: int, name: str) -> Any:
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()  # noqa: SLF001 - there is no public name
    options._timeout = TIMEOUT  # noqa: SLF001
    options._devices = [gloo.create_device(hostname=HOST)]  # noqa: SLF001
    return gloo(PrefixStore(name, store), rank, 2, options)
