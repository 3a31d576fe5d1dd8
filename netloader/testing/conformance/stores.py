"""Models for the checks, and stores that see what a transport does with them."""

import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from netloader.fsm.manifest import Extent, Manifest, Segment
from netloader.io.device import CPU
from netloader.io.store.base import Store, Values
from netloader.io.store.module import ModuleStore, named_tensors
from netloader.testing.conformance.calls import SOON_S

MIB = 1 << 20


def model_of(*tensors: Tensor) -> nn.Module:
    """A module with these tensors, in this order."""
    module = nn.Module()
    for index, tensor in enumerate(tensors):
        module.register_buffer(f"t{index}", tensor)
    return module


def random_bytes(count: int, seed: int) -> Tensor:
    """Bytes that are the same for the same seed (uint8, 1-d)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count,), generator=generator, dtype=torch.uint8)


def empty(seed: int) -> nn.Module:
    """A tensor, and no byte."""
    return model_of(random_bytes(0, seed))


def one_byte(seed: int) -> nn.Module:
    """One byte."""
    return model_of(random_bytes(1, seed))


def many_small(seed: int) -> nn.Module:
    """3000 tensors of 1 to 97 bytes: more than a system call takes."""
    return model_of(*(random_bytes(1 + i * 7 % 97, seed + i) for i in range(3000)))


def one_big(seed: int) -> nn.Module:
    """One tensor of 40 MiB and three bytes."""
    return model_of(random_bytes(40 * MIB + 3, seed))


def medium(seed: int) -> nn.Module:
    """32 MiB in four tensors: more than the buffers of a connection hold."""
    return model_of(*(random_bytes(8 * MIB, seed + i) for i in range(4)))


def staged(seed: int) -> nn.Module:
    """Tensors that have to be copied to be read as they travel, and two that do not."""
    plain = random_bytes(300 * 400 * 3, seed)
    transposed = plain.clone().view(torch.uint8).view(300, 1200).t()
    holes = random_bytes(200 * 1000, seed + 1).view(200, 1000)[:, 10:900:3]
    return model_of(transposed, plain, holes, random_bytes(17, seed + 2))


def contents(module: nn.Module) -> bytes:
    """What a module holds, in the order of its tensors."""
    flat = [tensor.cpu().contiguous().reshape(-1) for _, tensor in named_tensors(module)]
    return b"".join(tensor.view(torch.uint8).numpy().tobytes() for tensor in flat)


class Gate:
    """Holds the threads that come to it from the n-th call on, until it is opened.

    Closed from call `after` on; never, if that is 0.
    """

    def __init__(self, after: int) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()
        self._after = after
        self._calls = 0
        self._lock = threading.Lock()

    def open(self) -> None:
        """Let all go on."""
        self._open.set()

    def passed(self) -> None:
        """Go through the gate."""
        with self._lock:
            self._calls += 1
            held = 0 < self._after <= self._calls
        if held:
            self.reached.set()
            self._open.wait(3 * SOON_S)


class WatchedStore:
    """A store that counts what is read of it, and can hold a reader or a writer in the middle."""

    def __init__(self, store: ModuleStore, hold_read: int = 0, hold_write: int = 0) -> None:
        self.manifest: Manifest = store.manifest
        self.device: torch.device = store.device
        self.reads = 0
        self.reading = Gate(hold_read)
        self.writing = Gate(hold_write)
        self._store = store

    def release(self) -> None:
        """Release the threads that are held."""
        self.reading.open()
        self.writing.open()

    def readers(self, most: int) -> int:
        """As `Store.readers`."""
        return self._store.readers(most)

    def reader(self, device: torch.device = CPU) -> Callable[[Extent], Tensor]:
        """As `Store.reader`."""
        read = self._store.reader(device)

        def watched(extent: Extent) -> Tensor:
            self._read()
            return read(extent)

        return watched

    def views(self, segment: Segment) -> Iterator[memoryview]:
        """As `Store.views`."""
        self._read()
        yield from self._store.views(segment)

    def _read(self) -> None:
        self.reads += 1
        self.reading.passed()

    def check_writable(self) -> None:
        """As `Store.check_writable`."""
        self._store.check_writable()

    def place(self, extent: Extent) -> Tensor:
        """As `Store.place`."""
        return self._store.place(extent)

    def arrived(self, segment: Segment) -> None:
        """As `Store.arrived`."""
        self.writing.passed()
        self._store.arrived(segment)

    def restart(self) -> None:
        """As `Store.restart`."""
        self._store.restart()

    def resume(self, segments: Sequence[Segment]) -> None:
        """As `Store.resume`."""
        self._store.resume(segments)

    def take_values(self, values: Values) -> Store:
        """As `Store.take_values`."""
        return self._store.take_values(values)

    def complete(self) -> None:
        """As `Store.complete`."""
        self._store.complete()
