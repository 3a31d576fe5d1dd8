"""Memory of the host as bytes. Law: no copy, and the tensor lives as long as the view.

Numbers only: a torch operation gives up the interpreter lock, and beside a busy thread it takes up
to 5 ms to have it back, for each of ten thousand tensors.
"""

import ctypes

from torch import Tensor


def memory_of(flat: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor as writable bytes; keeps the tensor alive."""
    return span_of(flat, 0, flat.numel() * flat.element_size())


def span_of(tensor: Tensor, start: int, length: int) -> memoryview:
    """`length` bytes of a dense CPU tensor, from byte `start` of its memory; keeps it alive."""
    array = (ctypes.c_ubyte * length).from_address(tensor.data_ptr() + start)
    array.keep = tensor  # type: ignore[attr-defined]  # ctypes arrays take attributes
    return memoryview(array).cast("B")
