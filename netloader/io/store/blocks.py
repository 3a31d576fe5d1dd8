"""Tensors as blocks of host memory. A block holds the bytes of one tensor as the wire has them.

The common part of the stores that are no model: files and host memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from netloader.fsm.manifest import Extent, Manifest, Segment
from netloader.fsm.reasons import Reason
from netloader.io.device import CPU
from netloader.io.failure import TransferError
from netloader.io.memory import HostMemory


class BlockStore:
    """One block (uint8, 1-d, `TensorSpec.nbytes` elements) for each tensor that travels, by index.

    Its methods are those of `Store`; all may be called from any thread.
    """

    def __init__(self, manifest: Manifest, blocks: Mapping[int, Tensor]) -> None:
        self.manifest = manifest
        self.device = CPU
        self._blocks = blocks
        self._memory = HostMemory(blocks.items())

    def close(self) -> None:
        """Free the memory; reads and writes fail from now on. Idempotent.

        Views that were given out stay valid, and keep their block, while they are kept.
        """
        self._blocks = {}
        self._memory = HostMemory({})

    def block(self, tensor: int) -> Tensor:
        """The bytes of one tensor, by its index; of tied ones, only the first has any.

        Raises:
            TransferError: the store was closed.
        """
        spec = self.manifest.tensors[tensor]
        if not spec.nbytes:
            return torch.empty(0, dtype=torch.uint8)
        block = self._blocks.get(tensor)
        if block is None:
            raise self._freed(tensor)
        return block

    def _freed(self, tensor: int) -> TransferError:
        name = self.manifest.tensors[tensor].name
        return TransferError(Reason.TRANSFER_FAILED, f"the memory of {name} was freed")

    # -- reading ---------------------------------------------------------------------------------

    def readers(self, most: int) -> int:
        """As many as want to: as `Store.readers`."""
        return most

    def reader(self, device: torch.device = CPU) -> Callable[[Extent], Tensor]:
        """Read extents on a device: as `Store.reader`."""

        def read(extent: Extent) -> Tensor:
            return self.block(extent.tensor)[extent.start : extent.start + extent.length].to(device)

        return read

    def views(self, segment: Segment) -> Iterator[memoryview]:
        """The memory of a segment: as `Store.views`."""
        for extent in segment.extents:
            yield self._view(extent)

    def _view(self, extent: Extent) -> memoryview:
        view = self._memory.view(extent.tensor, extent.start, extent.length)
        if view is None:
            raise self._freed(extent.tensor)
        return view

    # -- writing ---------------------------------------------------------------------------------

    def check_writable(self) -> None:
        """Accept: host memory can be written. As `Store.check_writable`."""

    def place(self, extent: Extent) -> Tensor:
        """Where the bytes of an extent belong: as `Store.place`."""
        return self.block(extent.tensor)[extent.start : extent.start + extent.length]

    def host_view(self, extent: Extent) -> memoryview | None:
        """The same as writable bytes: as `InHostMemory.host_view`."""
        return self._view(extent)

    def arrived(self, segment: Segment) -> None:
        """Do nothing: the bytes of a segment are in place."""

    def restart(self) -> None:
        """Do nothing: nothing is put together apart."""

    def resume(self, segments: Sequence[Segment]) -> None:
        """Do nothing: the bytes of a segment are in place."""

    # -- the end ---------------------------------------------------------------------------------

    def complete(self) -> None:
        """Do nothing: memory stays as it is."""
