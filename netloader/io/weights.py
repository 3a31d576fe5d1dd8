"""A model's tensors as manifest and memory. Law: bytes go into existing storage, never rebind.

Dense CPU tensors are reached in place: their memory is what the socket reads and writes. Tensors
with holes and tensors of other devices go through a contiguous copy on the CPU, one tensor long.
"""

import ctypes
import threading
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from netloader.errors import NetloaderError
from netloader.fsm.manifest import Manifest, Piece, Segment, TensorSpec
from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError

Named = tuple[str, Tensor]


class WeightsError(NetloaderError):
    """A tensor cannot be sent or filled; the message names it."""


def named_tensors(module: nn.Module) -> list[Named]:
    """Parameters and persistent buffers in model order, tied ones under each of their names."""
    return list(_walk(module))


def _walk(module: nn.Module) -> Iterator[Named]:
    for prefix, part in module.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        passing = part._non_persistent_buffers_set  # noqa: SLF001 - torch has no public name for it
        for name, parameter in part._parameters.items():  # noqa: SLF001 - ordered, with duplicates
            if parameter is not None:
                yield dot + name, parameter
        for name, buffer in part._buffers.items():  # noqa: SLF001 - as above
            if buffer is not None and name not in passing:
                yield dot + name, buffer


def manifest_of(named: Sequence[Named]) -> Manifest:
    """Describe tensors as the wire does.

    Raises:
        WeightsError: a tensor has no memory (it is on the meta device) or is not strided.
    """
    first_in: dict[int, int] = {}
    specs: list[TensorSpec] = []
    for index, (name, tensor) in enumerate(named):
        if tensor.is_meta or tensor.layout != torch.strided:
            raise WeightsError(f"{name} has no plain memory ({tensor.device}, {tensor.layout})")
        nbytes = tensor.numel() * tensor.element_size()
        storage = tensor.untyped_storage().data_ptr()
        first = first_in.setdefault(storage, index) if nbytes else index
        shared = first != index
        specs.append(
            TensorSpec(
                name=name,
                dtype=str(tensor.dtype).removeprefix("torch."),
                shape=tuple(tensor.shape),
                stride=tuple(tensor.stride()),
                nbytes=nbytes,
                shares=first if shared else -1,
                offset=tensor.data_ptr() - named[first][1].data_ptr() if shared else 0,
            )
        )
    return Manifest(tuple(specs))


def memory_of(flat: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor as writable bytes; keeps the tensor alive."""
    return _span(flat, 0, flat.numel() * flat.element_size())


def _span(tensor: Tensor, start: int, length: int) -> memoryview:
    """`length` bytes of a dense CPU tensor, from byte `start` of its memory; keeps it alive.

    Numbers only: a torch operation gives up the interpreter lock, and beside a busy thread it takes
    up to 5 ms to have it back, for each of ten thousand tensors.
    """
    array = (ctypes.c_ubyte * length).from_address(tensor.data_ptr() + start)
    array.keep = tensor  # type: ignore[attr-defined]  # ctypes arrays take attributes
    return memoryview(array).cast("B")


def _dense(tensor: Tensor) -> bool:
    """Whether the elements fill one block of memory, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _flat(tensor: Tensor) -> Tensor:
    """A dense tensor's block of memory as bytes, in place."""
    block = tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    return block.view(torch.uint8)


class Weights:
    """The memory behind a manifest, piece by piece."""

    def __init__(self, named: Iterable[Named]) -> None:
        pairs = [(name, tensor.detach()) for name, tensor in named]
        self.manifest = manifest_of(pairs)
        self._tensors = [tensor for _, tensor in pairs]
        self._in_place = [t.device.type == "cpu" and _dense(t) for t in self._tensors]
        self._staged: dict[int, tuple[Tensor, int]] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, module: nn.Module) -> "Weights":
        """The weights of a module: `named_tensors` of it."""
        return cls(named_tensors(module))

    def read(self, piece: Piece) -> Tensor:
        """Bytes of a piece (uint8, 1-d, CPU); in place where the memory allows it.

        Raises:
            TransferError: the memory was freed since the manifest was made.
        """
        tensor = self._alive(piece)
        end = piece.start + piece.length
        if self._in_place[piece.tensor] or _dense(tensor):
            return _flat(tensor)[piece.start : end].cpu()
        return _flat(tensor.contiguous())[piece.start : end].cpu()

    def target(self, piece: Piece) -> Tensor:
        """Where the bytes of a piece belong (uint8, 1-d, CPU); then call `arrived`."""
        end = piece.start + piece.length
        if self._in_place[piece.tensor]:
            return _flat(self._tensors[piece.tensor])[piece.start : end]
        with self._lock:
            if piece.tensor not in self._staged:
                nbytes = self.manifest.tensors[piece.tensor].nbytes
                self._staged[piece.tensor] = (torch.empty(nbytes, dtype=torch.uint8), nbytes)
            return self._staged[piece.tensor][0][piece.start : end]

    def restart(self) -> None:
        """Forget half-received tensors: what comes next is of another checkpoint."""
        with self._lock:
            self._staged.clear()

    def arrived(self, segment: Segment) -> None:
        """A segment is in its targets and verified: staged tensors that are whole move in."""
        for piece in segment.pieces:
            if not self._in_place[piece.tensor]:
                self._advance(piece)

    def _advance(self, piece: Piece) -> None:
        with self._lock:
            staging, missing = self._staged[piece.tensor]
            missing -= piece.length
            if missing:
                self._staged[piece.tensor] = (staging, missing)
                return
            del self._staged[piece.tensor]
        tensor = self._tensors[piece.tensor]
        whole = staging.view(tensor.dtype).view(tensor.shape)
        for dimension, stride in enumerate(tensor.stride()):
            if not stride:  # expanded: one element is stored, and shown many times
                tensor, whole = tensor.narrow(dimension, 0, 1), whole.narrow(dimension, 0, 1)
        with torch.no_grad():
            tensor.copy_(whole)

    def views(self, segment: Segment) -> list[memoryview]:
        """The memory of a segment, to read from.

        Raises:
            TransferError: some of it was freed since the manifest was made.
        """
        return [
            _span(self._alive(piece), piece.start, piece.length)
            if self._in_place[piece.tensor]
            else memory_of(self.read(piece))
            for piece in segment.pieces
        ]

    def _alive(self, piece: Piece) -> Tensor:
        tensor = self._tensors[piece.tensor]
        begin = tensor.storage_offset() * tensor.element_size()
        if tensor.untyped_storage().nbytes() <= begin:
            name = self.manifest.tensors[piece.tensor].name
            raise TransferError(Reason.TRANSFER_FAILED, f"the memory of {name} was freed")
        return tensor
