"""Copies between devices. Each is read back: some devices report success and write nothing.

A device that failed may drop work without an error, so what was written to one is read back.
"""

import threading
from collections.abc import Iterable, Iterator

from torch import Tensor, device

from netloader.fsm.reasons import Reason
from netloader.io.chunks import CHUNK_BYTES
from netloader.io.device import CPU, Readback, beside
from netloader.io.failure import TransferError
from netloader.io.memory import memory_of


def bring(place: Tensor, received: Tensor) -> None:
    """Copy bytes (uint8, 1-d) to where they belong, on whatever devices both are.

    Raises:
        TransferError: they did not arrive there.
    """
    if place.device == CPU:
        room = memory_of(place)
        for view in _on_host(received):
            room[: len(view)] = view
            room = room[len(view) :]
    else:
        with beside(place.device):
            place.copy_(received)
        for view, wanted in zip(_on_host(place), _on_host(received), strict=True):
            check_taken(str(place.device), [view], wanted)


def _on_host(block: Tensor) -> Iterator[memoryview]:
    """The bytes of a block, in slices."""
    slices = (block[at : at + CHUNK_BYTES] for at in range(0, len(block), CHUNK_BYTES))
    if block.device == CPU:
        return map(memory_of, slices)
    return fetched(([part] for part in slices), block.device)


def fetched(batches: Iterable[Iterable[Tensor]], device: device) -> Iterator[memoryview]:
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


def check_taken(who: str, back: Iterable[memoryview], received: memoryview) -> None:
    """Compare bytes that were read back with those that were written.

    Raises:
        TransferError: they differ.
    """
    for view in back:
        if view != received[: len(view)]:
            detail = f"{who} did not take the bytes that were received for it"
            raise TransferError(Reason.DIGEST_MISMATCH, detail)
        received = received[len(view) :]
