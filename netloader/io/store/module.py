"""The tensors of a module as a store. Bytes go into existing storage; nothing is rebound.

A dense tensor is reached in place on its own device: its memory is what a socket, or a group of
accelerators, reads and writes. Tensors with holes or in private storage formats go through a copy
that is contiguous, on the same device. So each tensor has one place where it is put together, and a
source may go on where another failed, whatever their transports.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from netloader.errors import WeightsError
from netloader.fsm.manifest import Extent, Segment
from netloader.fsm.reasons import Reason
from netloader.io.chunks import chunks
from netloader.io.device import CPU, beside, follow
from netloader.io.failure import TransferError
from netloader.io.formats import assign, plain
from netloader.io.memory import HostMemory, memory_of, unwritable
from netloader.io.module_state import ModuleState
from netloader.io.sharing import address_range_of
from netloader.io.store.base import Store, Values
from netloader.io.store.copies import check_taken, fetched
from netloader.io.store.staging import Staging
from netloader.io.tensors import Named, describe, manifest_of, named_tensors

__all__ = ["ModuleStore", "Named", "WeightsError", "manifest_of", "named_tensors"]


def _flat(tensor: Tensor) -> Tensor:
    """A dense tensor's block of memory as bytes, in place."""
    block = tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    return block.view(torch.uint8)


def _part(block: Tensor, extent: Extent) -> Tensor:
    return block[extent.start : extent.start + extent.length]


def _room(tensor: Tensor) -> int:
    """Bytes of a tensor's storage from its first element on."""
    begin = int(tensor.storage_offset()) * tensor.element_size()
    return tensor.untyped_storage().nbytes() - begin


class ModuleStore:
    """Named tensors where they are: those of a module (see `of`), of a state dict, or any others.

    The order of the names is that of the manifest, so both sides must give them in the same one.
    The tensors are kept, and must not be resized or freed while the store is in use.

    Raises:
        WeightsError: a tensor cannot travel; the message names it, and what would help.
    """

    def __init__(self, named: Iterable[Named], state: ModuleState | None = None) -> None:
        pairs = [*named]
        self.manifest, self._flat = describe(pairs, state.values if state else ())
        self.state = state
        """What the walk of the module found; None for tensors without a module."""
        in_place = [flat and t.is_cpu for flat, (_, t) in zip(self._flat, pairs, strict=True)]
        self._memory = HostMemory((i, t) for i, (_, t) in enumerate(pairs) if in_place[i])
        self._tensors = {i: t.detach() for i, (_, t) in enumerate(pairs) if not in_place[i]}
        self._given_up = False
        self._staging = Staging()
        self.device = next((t.device for t in self._tensors.values() if not t.is_cpu), CPU)
        """The accelerator that holds the weights, or some of them; else the CPU."""
        follow(self.device)

    @classmethod
    def of(cls, module: nn.Module) -> "ModuleStore":
        """A store of all tensors found in a module: see `ModuleState`.

        Raises:
            WeightsError: some of it cannot travel.
        """
        state = ModuleState(module)
        return cls(state.named, state)

    # -- reading ---------------------------------------------------------------------------------

    def readers(self, most: int) -> int:
        """How many may read at once; on a device one, where a tensor has to be copied to be read.

        Segments that follow one another are often of one tensor, and each reader would copy it.
        """
        return most if self.device == CPU or all(self._flat) else 1

    def reader(self, device: torch.device = CPU) -> Callable[[Extent], Tensor]:
        """Read extents on a device: as `Store.reader`.

        A tensor that has to be copied first is copied once for extents that follow one another. One
        that is still put together is read from the copy in which that happens.
        """
        copied: dict[int, Tensor] = {}

        def read(extent: Extent) -> Tensor:
            if self._flat[extent.tensor]:
                return self._in_place(extent).to(device)
            tensor = self._alive(extent)
            if (staged := self._staging.peek(extent.tensor)) is not None:
                block = _flat(staged)
            else:
                if extent.tensor not in copied:
                    copied.clear()
                    copied[extent.tensor] = _flat(plain(tensor))
                block = copied[extent.tensor]
            return _part(block, extent).to(device)

        return read

    def views(self, segment: Segment) -> Iterator[memoryview]:
        """The memory of a segment: as `Store.views`."""
        if self.device != CPU:
            read = self.reader(self.device)
            yield from fetched((map(read, chunk) for chunk in chunks(segment)), self.device)
            return
        read = self.reader()
        for extent in segment.extents:
            view = self.host_view(extent)
            yield memory_of(read(extent)) if view is None else view

    def host_view(self, extent: Extent) -> memoryview | None:
        """The memory of an extent of a dense tensor of the host: as `InHostMemory.host_view`."""
        view = self._memory.view(*extent)
        if view is None:
            self._alive(extent)
        return view

    def _in_place(self, extent: Extent) -> Tensor:
        """The bytes of an extent of a dense tensor, where they are."""
        elements = self._memory.elements(*extent)
        return _part(_flat(self._alive(extent)), extent) if elements is None else elements

    def _alive(self, extent: Extent) -> Tensor:
        """The tensor of an extent, if it is not reached through `HostMemory`."""
        if self._given_up:
            raise TransferError(Reason.TRANSFER_FAILED, "the memory of the weights was given up")
        tensor = self._tensors.get(extent.tensor)
        spec = self.manifest.tensors[extent.tensor]
        needed = spec.nbytes if self._flat[extent.tensor] else 1
        if tensor is None or _room(tensor) < needed:
            raise TransferError(Reason.TRANSFER_FAILED, f"the memory of {spec.name} was freed")
        return tensor

    # -- writing ---------------------------------------------------------------------------------

    def check_writable(self) -> None:
        """Refuse memory that cannot be filled.

        Raises:
            WeightsError: a tensor of the host lies in memory that may only be read.
        """
        for name in unwritable(self._on_host())[:1]:
            remedy = "clone it, or map its file with mode 'c' or 'r+'"
            raise WeightsError(f"{name} lies in memory that cannot be written; {remedy}")

    def _on_host(self) -> Iterator[tuple[str, int, int]]:
        """The names of tensors of the host, with their addresses, in the order of the manifest."""
        for index, spec in enumerate(self.manifest.tensors):
            begin = self._memory.address(index)
            if not spec.nbytes:
                continue
            if begin is not None:
                yield spec.name, begin, begin + spec.nbytes
            elif (tensor := self._tensors[index]).is_cpu:
                yield spec.name, *address_range_of(0, tensor, spec.nbytes, dense=False)[:2]

    def place(self, extent: Extent) -> Tensor:
        """Where the bytes of an extent belong: as `Store.place`."""
        if self._flat[extent.tensor]:
            return self._in_place(extent)
        tensor = self._staging.room(extent.tensor, self._alive(extent))
        return _part(_flat(tensor), extent)

    def arrived(self, segment: Segment) -> None:
        """Take a segment: staged tensors that are whole move in. As `Store.arrived`."""
        staged = (extent for extent in segment.extents if not self._flat[extent.tensor])
        self._staging.arrived(staged, self._move_in)

    def restart(self) -> None:
        """Forget half-received tensors: what comes next is of another checkpoint."""
        self._staging.clear()

    def resume(self, segments: Sequence[Segment]) -> None:
        """Begin staged tensors with the bytes that they hold: as `Store.resume`.

        Without that, a staged tensor would wait for segments that are not sent again. A tensor of
        which all segments are there needs nothing.
        """
        held: dict[int, list[Extent]] = {}
        for extent in (extent for segment in segments for extent in segment.extents):
            held.setdefault(extent.tensor, []).append(extent)
        for index, extents in held.items():
            whole = sum(e.length for e in extents) == self.manifest.tensors[index].nbytes
            if self._flat[index] or whole:
                continue
            tensor = self._tensors[index]
            with beside(tensor.device):
                self._staging.room(index, tensor).copy_(plain(tensor))
            self._staging.arrived(extents, self._move_in)

    def _move_in(self, index: int, staged: Tensor) -> None:
        tensor = self._tensors[index]
        with beside(tensor.device):
            assign(tensor, staged)
            if self.device != CPU:
                self._check_assigned(index, staged)

    def _check_assigned(self, index: int, staged: Tensor) -> None:
        """Read a tensor back from where it belongs: a device that failed drops work in silence."""
        spec, device = self.manifest.tensors[index], self.device
        elements = _flat(plain(self._tensors[index]))
        whole = Segment(0, (Extent(index, 0, spec.nbytes),), spec.nbytes)
        back = (
            [elements[e.start : e.start + e.length].to(device) for e in chunk]
            for chunk in chunks(whole)
        )
        check_taken(spec.name, fetched(back, device), memory_of(_flat(staged).cpu()))

    # -- the end ---------------------------------------------------------------------------------

    def take_values(self, values: Values) -> Store:
        """Give values to the module, and look at it again: as `Store.take_values`."""
        if self.state is None:
            return self
        try:
            wanted = self.state.put(values)
            again = ModuleStore.of(self.state.module)
            shown = again.state.canonical() if again.state else ()
        except Exception as error:  # the module's own code runs here
            detail = f"the module does not take its extra state: {type(error).__name__}: {error}"
            raise TransferError(Reason.TRANSFER_FAILED, detail) from error
        for (name, value), (_, other) in zip(wanted, shown, strict=False):
            if value != other:
                detail = f"the module does not show the {name} that it was given"
                raise TransferError(Reason.DIGEST_MISMATCH, detail)
        return again

    def complete(self) -> None:
        """Do nothing: tensors stay where they are."""

    def give_up(self) -> None:
        """Keep no tensor alive any more; extents can be neither read nor written from now on."""
        self._given_up = True
        self._tensors = {}
        self._memory = HostMemory(())  # views have the storages that they show
        self._staging.clear()
