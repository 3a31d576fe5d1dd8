"""Host memory as a store. One allocation for all tensors, which lives as long as they do.

For programs that receive weights without a model, or keep them to serve them.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from netloader.errors import WeightsError
from netloader.fsm.manifest import Manifest, TensorSpec
from netloader.io.store.base import Values
from netloader.io.store.blocks import BlockStore
from netloader.io.tensors import is_dense

ALIGNMENT = 64
"""Tensors begin at multiples of this: of the size of any element, and of a cache line."""


def pageable(nbytes: int) -> Tensor:
    """Ordinary memory."""
    return torch.empty(nbytes, dtype=torch.uint8)


def page_locked(nbytes: int) -> Tensor:
    """Memory that an accelerator copies from by itself."""
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)


class HostStore(BlockStore):
    """Host memory for the tensors of a manifest, not initialized. See also `pinned`.

    `manifest` is that of another store of the same weights. The store takes `manifest.nbytes` bytes
    and up to 64 more for each tensor, which `allocate` makes: a function from a number of bytes to
    a tensor (uint8, 1-d) of the host. The methods may be called from any thread.

    Raises:
        WeightsError: the memory cannot be allocated.
    """

    def __init__(self, manifest: Manifest, allocate: Callable[[int], Tensor] = pageable) -> None:
        begins: dict[int, int] = {}
        end = 0
        for index in manifest.payload:
            begins[index] = end
            end += -(-manifest.tensors[index].nbytes // ALIGNMENT) * ALIGNMENT
        try:
            memory = allocate(end)
        except RuntimeError as error:  # torch raises it for every failure of an allocator
            raise WeightsError(f"no host memory of {end} bytes can be had: {error}") from error
        blocks = {
            index: memory[begin : begin + manifest.tensors[index].nbytes]
            for index, begin in begins.items()
        }
        super().__init__(manifest, blocks)

    @classmethod
    def pinned(cls, manifest: Manifest) -> "HostStore":
        """The same in page-locked memory, from which an accelerator copies faster.

        Raises:
            WeightsError: there is no accelerator, or not so much memory that can be locked.
        """
        return cls(manifest, page_locked)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name: views of the store's memory, which they keep. Tied ones share it.

        A tensor with holes, or in a private storage format, is contiguous here. After a successful
        `fill` they hold the server's weights; before, their contents are undefined.

        Raises:
            TransferError: the store was closed.
        """
        travels = {*self.manifest.payload}
        found: dict[str, Tensor] = {}
        for index, spec in enumerate(self.manifest.tensors):
            twin = spec.nbytes and index not in travels
            found[spec.name] = _shaped(spec, self.block(spec.shares if twin else index))
        return found

    def take_values(self, values: Values) -> "HostStore":
        """Keep the values, in `manifest.values`: as `Store.take_values`."""
        self.manifest = replace(self.manifest, values=values)
        return self


def _shaped(spec: TensorSpec, block: Tensor) -> Tensor:
    """The bytes of a tensor as that tensor."""
    elements = block.view(getattr(torch, spec.dtype))
    like = torch.empty_strided(spec.shape, spec.stride, dtype=elements.dtype, device="meta")
    if is_dense(like) and not spec.format:
        return elements.as_strided(spec.shape, spec.stride)
    return elements.view(spec.shape)
