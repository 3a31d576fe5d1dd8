"""Host memory as bytes, without a copy. A tensor lives as long as its views.

Memory is found by its address, without a torch operation. A torch operation gives up the
interpreter lock, and next to a busy thread it takes up to 5 ms to get it back: for each of ten
thousand tensors.
"""

import bisect
import contextlib
import ctypes
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

MAPS = Path("/proc/self/maps")
"""What this process has mapped, and whether it may write there (Linux)."""
NO_COUNTER = -1
"""The version of a tensor for which torch counts no writes."""


def memory_of(flat: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor as writable bytes; keeps the tensor alive."""
    return span_of(flat, 0, flat.numel() * flat.element_size())


def span_of(tensor: Tensor, start: int, length: int) -> memoryview:
    """`length` bytes of a dense CPU tensor, from byte `start` of its memory; keeps it alive."""
    array = (ctypes.c_ubyte * length).from_address(tensor.data_ptr() + start)
    array.keep = tensor  # type: ignore[attr-defined]  # ctypes arrays take attributes
    return memoryview(array).cast("B")


def version_of(tensor: Tensor) -> int:
    """How often torch saw a tensor written in place. Writes through `.data` are not counted.

    NO_COUNTER for a tensor that was made in inference mode. (`is_inference()` would answer that
    too, but gives up the interpreter lock.)
    """
    try:
        return tensor._version  # noqa: SLF001 - torch has no other name for it
    except RuntimeError:
        return NO_COUNTER


def unwritable(extents: Iterable[tuple[str, int, int]]) -> list[str]:
    """The names of the extents of which some byte is in memory that this process may only read.

    `extents` are names, each with the addresses of its first byte and of the one after its last.
    Reads the kernel's list of mappings, and does not touch the memory itself. Without such a list,
    all counts as writable.
    """
    begins, ends = _writable()
    found: list[str] = []
    for name, begin, end in extents if begins else ():
        place = bisect.bisect_right(begins, begin) - 1
        if place < 0 or end > ends[place]:
            found.append(name)
    return found


def _writable() -> tuple[list[int], list[int]]:
    """Begins and ends of the writable mappings, ascending; adjacent ones are joined."""
    begins: list[int] = []
    ends: list[int] = []
    with contextlib.suppress(OSError):
        for line in MAPS.read_text(errors="replace").splitlines():
            span, rights = line.split(maxsplit=2)[:2]
            begin, end = (int(address, 16) for address in span.split("-"))
            if "w" not in rights:
                continue
            if ends and ends[-1] == begin:
                ends[-1] = end
            else:
                begins.append(begin)
                ends.append(end)
    return begins, ends
