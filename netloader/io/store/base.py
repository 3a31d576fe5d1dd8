"""The store contract: a store moves bytes between segments and memory, and decides nothing.

A store holds the bytes of one manifest: in the tensors of a module (`module`), in a folder of
safetensors files (`files`), or in memory of the host (`memory`). Which of these bytes are verified
is known to the ledger of a fetch, not to the store.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from netloader.fsm.manifest import Extent, Manifest, Segment

Values = tuple[tuple[str, str], ...]
"""Names with plain data as JSON: what a model holds beside tensors."""


@runtime_checkable
class Store(Protocol):
    """The bytes of one manifest. Its methods may be called from any thread, several at once.

    Bytes are always of the wire's form: those of a tensor in the order in which the manifest
    describes them, `TensorSpec.nbytes` of them. Reads and writes of different extents do not
    disturb each other. The caller sees to it that an extent is not read while it is written.
    """

    @property
    def manifest(self) -> Manifest:
        """The tensors of the store, in the order of their segments."""

    @property
    def device(self) -> torch.device:
        """The accelerator that holds the bytes, or some of them; else the CPU."""

    # -- reading ---------------------------------------------------------------------------------

    def readers(self, most: int) -> int:
        """How many threads may read at once, of the `most` that want to: at least 1."""

    def reader(self, device: torch.device = ...) -> Callable[[Extent], Tensor]:
        """Make a function that reads extents, for one thread.

        It returns the bytes of an extent on `device` (uint8, 1-d, `extent.length` elements), in
        place where the memory allows it. On an accelerator, call it `beside` the engine. It raises
        a TransferError when the memory was freed.
        """

    def views(self, segment: Segment) -> Iterator[memoryview]:
        """The bytes of a segment in host memory, in order, in as many views as is convenient.

        A view stays valid while it is kept, and is not to be written to.

        Raises:
            TransferError: some of the memory was freed, or a device does not answer.
        """

    # -- writing ---------------------------------------------------------------------------------

    def check_writable(self) -> None:
        """Refuse a store that cannot be filled, before anything is received.

        Raises:
            WeightsError: it can only be read; the message says what to do.
        """

    def place(self, extent: Extent) -> Tensor:
        """Where the bytes of an extent are to be written: uint8, 1-d, `extent.length` elements.

        It is on the device of the tensor, and is the tensor's own memory or a copy that is put
        together first. Its segment is in the store when `arrived` has returned.
        """

    def arrived(self, segment: Segment) -> None:
        """Take a segment whose bytes are all in their places and match their digest.

        After an error the segment is not in the store, and all of it has to be written again.

        Raises:
            TransferError: a tensor did not take its bytes.
        """

    def restart(self) -> None:
        """Forget every segment that has arrived: what comes next is of other weights."""

    def resume(self, segments: Sequence[Segment]) -> None:
        """Take segments as arrived whose bytes the store holds already, as `views` shows them.

        Called before anything is written, with segments that were compared with their digests.

        Raises:
            TransferError: a tensor does not take its bytes.
        """

    # -- the end ---------------------------------------------------------------------------------

    def take_values(self, values: Values) -> "Store":
        """Take what the server's model holds beside tensors, after all segments have arrived.

        Returns a store of what is held afterwards, whose bytes are to be compared once more: this
        one, where values cannot change bytes.

        Raises:
            TransferError: the values are not taken, or others are shown afterwards.
        """

    def complete(self) -> None:
        """Keep what is in the store: every segment has arrived, and the values were taken.

        Raises:
            TransferError: it cannot be kept, for instance because the disk is full.
        """


@runtime_checkable
class InHostMemory(Protocol):
    """A store that can show places as memory of the host, which takes no torch operation each."""

    def host_view(self, extent: Extent) -> memoryview | None:
        """The place of an extent (see `Store.place`) as writable bytes, which keep it alive.

        None where its bytes do not go into memory of the host in place: `Store.place` answers then.

        Raises:
            TransferError: the memory was freed.
        """
