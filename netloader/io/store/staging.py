"""Tensors that cannot be written in place. Each is assigned when all of its bytes have arrived.

A tensor with holes, or in a private storage format, is put together in a contiguous copy on the
same device. When it is whole, its elements are assigned to the tensor.
"""

import threading
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from netloader.fsm.manifest import Extent
from netloader.io.device import beside


class Staging:
    """The copies of some tensors, by index. Safe to use from any thread."""

    def __init__(self) -> None:
        self._rooms: dict[int, tuple[Tensor, set[Extent]]] = {}
        """A copy, and the extents that have arrived in it."""
        self._lock = threading.Lock()

    def room(self, index: int, tensor: Tensor) -> Tensor:
        """The copy of a tensor, made with its shape: `npu_format_cast` goes by that."""
        with self._lock:
            if index not in self._rooms:
                with beside(tensor.device):
                    room = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
                self._rooms[index] = (room, set())
            return self._rooms[index][0]

    def peek(self, index: int) -> Tensor | None:
        """The copy of a tensor, if there is one."""
        with self._lock:
            entry = self._rooms.get(index)
            return entry[0] if entry else None

    def arrived(self, extents: Iterable[Extent], move_in: Callable[[int, Tensor], None]) -> None:
        """Note extents, then call `move_in(index, copy)` for every tensor that is complete.

        When that raises, the extents have not arrived.
        """
        extents = [*extents]
        try:
            whole = [extent.tensor for extent in extents if self._completes(extent)]
            for index in whole:
                move_in(index, self._rooms[index][0])
        except BaseException:
            self._take_back(extents)
            raise
        with self._lock:
            for index in whole:
                del self._rooms[index]

    def clear(self) -> None:
        """Forget all copies."""
        with self._lock:
            self._rooms.clear()

    def _completes(self, extent: Extent) -> bool:
        """Note an extent, and tell whether that was all of its tensor."""
        with self._lock:
            room, here = self._rooms[extent.tensor]
            here.add(extent)
            return sum(e.length for e in here) == room.nbytes

    def _take_back(self, extents: Iterable[Extent]) -> None:
        with self._lock:
            for extent in extents:
                if extent.tensor in self._rooms:
                    self._rooms[extent.tensor][1].discard(extent)
