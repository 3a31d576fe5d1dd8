"""Host memory as bytes, without a copy. A tensor lives as long as its views.

Numbers only: a torch operation gives up the interpreter lock, and beside a busy thread it takes up
to 5 ms to have it back, for each of ten thousand tensors.
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
    """How often a tensor was written in place, as far as torch counts: not through `.data`.

    NO_COUNTER for one that was made in inference mode. `is_inference()` would tell, but it gives up
    the interpreter lock.
    """
    try:
        return tensor._version  # noqa: SLF001 - torch has no other name for it
    except RuntimeError:
        return NO_COUNTER


def unwritable(extents: Iterable[tuple[str, int, int]]) -> list[str]:
    """The names of what lies, in part, in memory that this process may only read.

    `extents` are names, each with the addresses of its first byte and of the one after its last.
    Looks at the kernel's list of mappings and touches no memory, which others may be reading. Where
    there is no such list, all counts as writable.
    """
    begins, ends = _writable()
    found: list[str] = []
    for name, begin, end in extents if begins else ():
        place = bisect.bisect_right(begins, begin) - 1
        if place < 0 or end > ends[place]:
            found.append(name)
    return found


def _writable() -> tuple[list[int], list[int]]:
    """Where memory that may be written begins and ends, neighbours joined; ascending."""
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
