"""Host memory as bytes, without a copy. A tensor lives as long as its views.

Memory is found by its address, without a torch operation. A torch operation gives up the
interpreter lock, and next to a busy thread it takes up to 5 ms to get it back: for each of ten
thousand tensors.
"""

import bisect
import contextlib
import ctypes
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

MAPS = Path("/proc/self/maps")
"""What this process has mapped, and whether it may write there (Linux)."""
NO_COUNTER = -1
"""The version of a tensor for which torch counts no writes."""
EVERY_ADDRESS = ctypes.c_ubyte * ((1 << 63) - 1)
"""Bytes at all addresses there can be."""


class HostMemory:
    """The memory of dense tensors of the host, by number, as it was when they were given.

    Their storages are kept, and so is each by every view, because all views are slices of one array
    that begins at address 0: a slice takes 0.1 microseconds, an array of its own (see `memory_of`)
    1.6, and up to 20 for a length that comes for the first time.
    """

    def __init__(self, tensors: Iterable[tuple[int, Tensor]]) -> None:
        given = dict(tensors)
        self._storages = {number: tensor.untyped_storage() for number, tensor in given.items()}
        self._begins = {n: int(t.storage_offset()) * t.element_size() for n, t in given.items()}
        every = EVERY_ADDRESS.from_address(0)
        every.keep = self._storages  # type: ignore[attr-defined]  # ctypes arrays take attributes
        self._bytes = memoryview(every).cast("B")

    def address(self, number: int) -> int | None:
        """The address of a tensor's first byte; None for a number that has no tensor here."""
        storage = self._storages.get(number)
        return None if storage is None else storage.data_ptr() + self._begins[number]

    def view(self, number: int, start: int, length: int) -> memoryview | None:
        """`length` bytes from byte `start` of a tensor, writable, where they are now.

        None for a number that has no tensor here, and for memory that was freed.
        """
        storage = self._storages.get(number)
        if storage is None:
            return None
        begin = self._begins[number] + start
        if begin + length > storage.nbytes():
            return None
        begin += storage.data_ptr()
        return self._bytes[begin : begin + length]

    def elements(self, number: int, start: int, length: int) -> Tensor | None:
        """The same as a tensor of bytes; it keeps the storage only."""
        if self.view(number, start, length) is None:
            return None
        begin = self._begins[number] + start
        return torch.empty(0, dtype=torch.uint8).set_(
            self._storages[number], begin, (length,), (1,)
        )


def memory_of(flat: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor as writable bytes; keeps the tensor alive."""
    array = (ctypes.c_ubyte * flat.nbytes).from_address(flat.data_ptr())
    array.keep = flat  # type: ignore[attr-defined]  # ctypes arrays take attributes
    return memoryview(array).cast("B")


def address_of(view: memoryview) -> int:
    """The address of the first byte of a writable view."""
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(view))


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
    begins, ends = mappings(lambda rights, inode: "w" in rights)  # noqa: ARG005 - files too
    found: list[str] = []
    first = last = 0
    for name, begin, end in extents if begins else ():
        if first <= begin and end <= last:  # in the mapping of the one before it, as most are
            continue
        place = bisect.bisect_right(begins, begin) - 1
        if place < 0 or end > ends[place]:
            found.append(name)
        else:
            first, last = begins[place], ends[place]
    return found


def mappings(wanted: Callable[[str, str], bool]) -> tuple[list[int], list[int]]:
    """Begins and ends of the mappings wanted, ascending; adjacent ones are joined.

    `wanted` is asked with the rights of each ("rw-p") and the number of its file ("0": none).
    """
    begins: list[int] = []
    ends: list[int] = []
    with contextlib.suppress(OSError):
        for line in MAPS.read_text(errors="replace").splitlines():
            span, rights, _, _, inode = line.split(maxsplit=5)[:5]
            begin, end = (int(address, 16) for address in span.split("-"))
            if not wanted(rights, inode):
                continue
            if ends and ends[-1] == begin:
                ends[-1] = end
            else:
                begins.append(begin)
                ends.append(end)
    return begins, ends
