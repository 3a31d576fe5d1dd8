"""The memory that is received into: fresh (no page of it exists yet) or touched."""

import ctypes
import gc
from enum import Enum
from typing import Final

import torch
from torch import Tensor, nn

from benchmarks.workload import Workload, tensors_of, wipe

TRIM: Final = ctypes.CDLL(None).malloc_trim
SAMPLE_BYTES: Final = 1024
"""Less than the smallest tensor of any workload has."""


class Memory(Enum):
    """What was done to the target memory before."""

    FRESH = "fresh"
    """Nothing, as when a client builds its model: the kernel finds a page for each first write."""
    TOUCHED = "touched"
    """Every page was written to."""


class Target:
    """Tensors to receive into; made before the clock starts, and let go before the next ones."""

    def __init__(self, workload: Workload, memory: Memory) -> None:
        self.workload = workload
        self.memory = memory
        self._model: nn.Module | None = None
        self._block: Tensor | None = None
        self._last: list[Tensor] = []

    def model(self) -> nn.Module:
        """The workload's module, fresh or wiped."""
        if self._model is None or self.memory is Memory.FRESH:
            self.free()
            self._model = self.workload.build()
        if self.memory is Memory.TOUCHED:
            wipe(self._model)
        tensors = tensors_of(self._model)
        self._last = [tensors[0], tensors[-1]]
        return self._model

    def block(self) -> Tensor:
        """As many bytes in one piece (uint8), fresh or wiped."""
        if self._block is None or self.memory is Memory.FRESH:
            self.free()
            self._block = torch.empty(self.workload.nbytes, dtype=torch.uint8)
        if self.memory is Memory.TOUCHED:
            self._block.zero_()
        self._last = [self._block]
        return self._block

    def received(self) -> list[bytes]:
        """The beginnings of the first and the last tensor that were received last, or the block."""
        return [sample(tensor) for tensor in self._last]

    def free(self) -> None:
        """Give the memory back to the kernel, so that the next is fresh."""
        self._model = self._block = None
        self._last = []
        gc.collect()
        TRIM(0)


def sample(tensor: Tensor) -> bytes:
    """The first bytes of a tensor."""
    return bytes(tensor.reshape(-1).view(torch.uint8)[:SAMPLE_BYTES].numpy())
