"""A model's tensors as manifest and memory. Law: bytes go into existing storage, never rebind.

A dense tensor is reached in place on its own device: its memory is what a socket, or a group of
accelerators, reads and writes. Tensors with holes or in private storage formats go through a copy
that is contiguous, on the same device. So each tensor has one place where it is put together, and a
source may go on where another failed, whatever their transports.
"""

import threading
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from netloader.errors import WeightsError
from netloader.fsm.manifest import Extent, Segment
from netloader.fsm.reasons import Reason
from netloader.io.chunks import CHUNK_BYTES, chunks
from netloader.io.device import CPU, Readback, beside, follow
from netloader.io.failure import TransferError
from netloader.io.formats import assign, plain
from netloader.io.memory import memory_of, span_of, unwritable
from netloader.io.module_state import ModuleState
from netloader.io.sharing import address_range_of
from netloader.io.tensors import Named, is_dense, manifest_of, named_tensors

__all__ = ["Named", "Weights", "WeightsError", "bring", "manifest_of", "named_tensors"]


def _flat(tensor: Tensor) -> Tensor:
    """A dense tensor's block of memory as bytes, in place."""
    block = tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    return block.view(torch.uint8)


class Weights:
    """The memory behind a manifest, extent by extent."""

    def __init__(self, named: Iterable[Named], state: ModuleState | None = None) -> None:
        pairs = [*named]
        self.manifest = manifest_of(pairs, state.values if state else ())
        self.state = state
        """What the module held from which they were taken; None for tensors without a module."""
        self._tensors = [tensor.detach() for _, tensor in pairs]
        specs = self.manifest.tensors
        flat = zip(specs, self._tensors, strict=True)
        self._flat = [not spec.format and is_dense(tensor) for spec, tensor in flat]
        self._staged: dict[int, tuple[Tensor, set[Extent]]] = {}
        self._lock = threading.Lock()
        self.device = next((t.device for t in self._tensors if not t.is_cpu), CPU)
        """The accelerator that holds the weights, or some of them; else the CPU."""
        follow(self.device)

    @classmethod
    def of(cls, module: nn.Module) -> "Weights":
        """All that is seen to belong to a module: see `ModuleState`.

        Raises:
            WeightsError: some of it cannot travel.
        """
        state = ModuleState(module)
        return cls(state.named, state)

    def check_writable(self) -> None:
        """Refuse memory that cannot be filled.

        Raises:
            WeightsError: a tensor of the host lies in memory that may only be read.
        """
        rows = zip(self.manifest.tensors, self._tensors, self._flat, strict=True)
        host = (
            (spec.name, *address_range_of(0, tensor, spec.nbytes, dense=flat)[:2])
            for spec, tensor, flat in rows
            if tensor.is_cpu and spec.nbytes
        )
        for name in unwritable(host)[:1]:
            remedy = "clone it, or map its file with mode 'c' or 'r+'"
            raise WeightsError(f"{name} lies in memory that cannot be written; {remedy}")

    def readers(self, most: int) -> int:
        """How many may read at once; on a device one, where a tensor has to be copied to be read.

        Segments that follow one another are often of one tensor, and each reader would copy it.
        """
        return most if self.device == CPU or all(self._flat) else 1

    def reader(self, device: torch.device = CPU) -> Callable[[Extent], Tensor]:
        """Reads extents: their bytes (uint8, 1-d) on a device, in place where the memory allows it.

        A tensor that has to be copied first is copied once for extents that follow one another. On
        an accelerator this belongs `beside` its engine.

        What it returns raises:
            TransferError: the memory was freed since the manifest was made.
        """
        copied: dict[int, Tensor] = {}

        def read(extent: Extent) -> Tensor:
            tensor = self._alive(extent)
            if self._flat[extent.tensor]:
                block = _flat(tensor)
            else:
                if extent.tensor not in copied:
                    copied.clear()
                    copied[extent.tensor] = _flat(plain(tensor))
                block = copied[extent.tensor]
            return block[extent.start : extent.start + extent.length].to(device)

        return read

    def place(self, extent: Extent) -> Tensor:
        """Where the bytes of an extent belong (uint8, 1-d); when they are there, `arrived`."""
        flat = self._flat[extent.tensor]
        block = _flat(self._tensors[extent.tensor] if flat else self._staging(extent.tensor))
        return block[extent.start : extent.start + extent.length]

    def _staging(self, index: int) -> Tensor:
        """A plain copy, with a storage of its shape: `npu_format_cast` goes by that."""
        tensor = self._tensors[index]
        with self._lock:
            if index not in self._staged:
                with beside(tensor.device):
                    room = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
                self._staged[index] = (room, set())
            return self._staged[index][0]

    def restart(self) -> None:
        """Forget half-received tensors: what comes next is of another checkpoint."""
        with self._lock:
            self._staged.clear()

    def arrived(self, segment: Segment) -> None:
        """A segment is in its places and verified: staged tensors that are whole move in.

        When this fails, all of the segment comes again, and until then it is not here.

        Raises:
            TransferError: a tensor did not take its bytes.
        """
        try:
            whole = [extent.tensor for extent in segment.extents if self._completes(extent)]
            for index in whole:
                self._move_in(index)
        except BaseException:
            self._take_back(segment)
            raise
        with self._lock:
            for index in whole:
                del self._staged[index]

    def _take_back(self, segment: Segment) -> None:
        with self._lock:
            for extent in segment.extents:
                if extent.tensor in self._staged:
                    self._staged[extent.tensor][1].discard(extent)

    def _completes(self, extent: Extent) -> bool:
        """Note an extent of a staged tensor, and tell whether that was all of it."""
        if self._flat[extent.tensor]:
            return False
        with self._lock:
            _, here = self._staged[extent.tensor]
            here.add(extent)
            return sum(p.length for p in here) == self.manifest.tensors[extent.tensor].nbytes

    def _move_in(self, index: int) -> None:
        tensor, staging = self._tensors[index], self._staged[index][0]
        with beside(tensor.device):
            assign(tensor, staging)
            if self.device != CPU:
                self._check_assigned(index, staging)

    def _check_assigned(self, index: int, staging: Tensor) -> None:
        """Read a tensor back from where it belongs: a device that failed drops work in silence."""
        spec = self.manifest.tensors[index]
        whole = Segment(0, (Extent(index, 0, spec.nbytes),), spec.nbytes)
        _check_taken(spec.name, self.views(whole), memory_of(_flat(staging).cpu()))

    def views(self, segment: Segment) -> Iterator[memoryview]:
        """The memory of a segment, to read from; each view may be read while it is kept.

        Raises:
            TransferError: some of it was freed since the manifest was made.
        """
        if self.device != CPU:
            read = self.reader(self.device)
            yield from _fetched((map(read, chunk) for chunk in chunks(segment)), self.device)
            return
        read = self.reader()
        for extent in segment.extents:
            if self._flat[extent.tensor]:
                yield span_of(self._alive(extent), extent.start, extent.length)
            else:
                yield memory_of(read(extent))

    def _alive(self, extent: Extent) -> Tensor:
        tensor = self._tensors[extent.tensor]
        begin = tensor.storage_offset() * tensor.element_size()
        if tensor.untyped_storage().nbytes() <= begin:
            name = self.manifest.tensors[extent.tensor].name
            raise TransferError(Reason.TRANSFER_FAILED, f"the memory of {name} was freed")
        return tensor


def bring(place: Tensor, received: Tensor) -> None:
    """Copy bytes (uint8, 1-d) to where they belong, which is on another device.

    Raises:
        TransferError: they did not arrive there; a device that failed drops work in silence.
    """
    if place.device == CPU:
        room = memory_of(place)
        for view in _fetched(_slices(received), received.device):
            room[: len(view)] = view
            room = room[len(view) :]
    else:
        with beside(place.device):
            place.copy_(received)
        back = _fetched(_slices(place), place.device)
        _check_taken(str(place.device), back, memory_of(received))


def _slices(block: Tensor) -> Iterator[list[Tensor]]:
    return ([block[at : at + CHUNK_BYTES]] for at in range(0, len(block), CHUNK_BYTES))


def _fetched(batches: Iterable[Iterable[Tensor]], device: torch.device) -> Iterator[memoryview]:
    """Through host memory; while one batch is looked at, the next is on its way."""
    never = threading.Event()
    ahead: Readback | None = None
    for batch in batches:
        with beside(device):
            fetch = Readback([*batch], device)
        if ahead is not None:
            yield memory_of(ahead.wait(never))
        ahead = fetch
    if ahead is not None:
        yield memory_of(ahead.wait(never))


def _check_taken(who: str, back: Iterable[memoryview], received: memoryview) -> None:
    for view in back:
        if view != received[: len(view)]:
            detail = f"{who} did not take the bytes that were received for it"
            raise TransferError(Reason.DIGEST_MISMATCH, detail)
        received = received[len(view) :]
