"""Weights that are put together from the tensors of a checkpoint, by a map. Read only.

A rank of an instance has rows or columns of a checkpoint's tensors, merged and renamed. A map says
of which bytes each of its tensors consists, so the rank can be served from the files of the
checkpoint, which serve all ranks of all instances. Bytes that no file has are in the folder of the
map. The map proves nothing: a client compares what it receives with the digests of the card.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Final, Self

import msgspec
import torch
from torch import Tensor

from netloader.errors import WeightsError
from netloader.fsm.manifest import Extent, Manifest, Segment
from netloader.fsm.reasons import Reason
from netloader.io.device import CPU
from netloader.io.failure import TransferError
from netloader.io.memory import memory_of
from netloader.io.store.base import Values
from netloader.io.store.blocks import BlockStore
from netloader.io.store.cards import decoded
from netloader.io.store.folders import mapped

MAP: Final = "netloader-map.json"
STEP_BYTES: Final = 1 << 22
"""Of columns that are copied at once: a lane that sends them holds little more."""
AGAIN: Final = "copy the weights again, or serve them with the checkpoint of the copy"
READ_ONLY: Final = "what is composed from a checkpoint is only read; fill a FileStore"


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """`rows` runs of `length` bytes of a file's tensor, the first at `begin`, `stride` apart.

    One run is a row of the rank's tensor, or a part of one row of the file's.
    """

    tensor: str
    """A tensor of the checkpoint; empty: the bytes in the folder of the map, under the name of the
    rank's own tensor."""
    begin: int
    stride: int
    rows: int
    length: int

    @property
    def nbytes(self) -> int:
        """Bytes in all."""
        return self.rows * self.length

    @property
    def is_own(self) -> bool:
        """Whether its bytes are in the folder of the map."""
        return not self.tensor

    @property
    def is_dense(self) -> bool:
        """Whether all its bytes lie one after the other."""
        return self.rows == 1 or self.stride == self.length


class RankMap(msgspec.Struct, frozen=True):
    """The pieces of each tensor of a rank, in the order of its bytes, by its name."""

    checkpoint: str
    """The folder of the checkpoint."""
    tensors: dict[str, tuple[Piece, ...]]

    def write(self, folder: Path) -> None:
        """Put it beside the card.

        Raises:
            OSError: it cannot be written.
        """
        (folder / MAP).write_bytes(msgspec.json.encode(self))


def map_in(folder: Path) -> RankMap | None:
    """The map of a folder; None without one.

    Raises:
        WeightsError: it cannot be read.
    """
    return decoded(folder / MAP, RankMap, "copy the weights again")


@dataclass(frozen=True, slots=True)
class Composed:
    """One tensor: its pieces, each with the bytes of the tensor that it is of, in order."""

    pieces: tuple[tuple[Piece, Tensor], ...]
    ends: tuple[int, ...]
    """Where each piece ends in the tensor."""

    def parts(self, start: int, end: int) -> Iterator[Tensor]:
        """The bytes of a range: in place where they lie so, and copies of what lies in columns."""
        for (piece, block), reached in zip(self.pieces, self.ends, strict=True):
            first = reached - piece.nbytes
            low, stop = max(start, first) - first, min(end, reached) - first
            while low < stop:
                high = stop if piece.is_dense else min(stop, low + STEP_BYTES)
                yield _bytes_of(piece, block, low, high)
                low = high


def _bytes_of(piece: Piece, block: Tensor, low: int, high: int) -> Tensor:
    """Some bytes of a piece, from its byte `low` to `high`."""
    if piece.is_dense:
        return block[piece.begin + low : piece.begin + high]
    row, end = low // piece.length, -(-high // piece.length)
    begin = int(block.storage_offset()) + piece.begin + row * piece.stride
    rows = block.as_strided((end - row, piece.length), (piece.stride, 1), begin).reshape(-1)
    return rows[low - row * piece.length : high - row * piece.length]


class ComposedStore(BlockStore):
    """Tensors that a map composes; see `open`. Its methods are those of `Store`, from any thread.

    `blocks` are the bytes (uint8, 1-d) of the tensors of the checkpoint, `own` those in the folder
    of the map, by name.

    Raises:
        WeightsError: the map does not fit the manifest, or a tensor that it names.
    """

    def __init__(
        self,
        manifest: Manifest,
        rank_map: RankMap,
        blocks: Mapping[str, Tensor],
        own: Mapping[str, Tensor],
    ) -> None:
        super().__init__(manifest, {})
        self._composed: dict[int, Composed] = {}
        for index in manifest.payload:
            name, nbytes = manifest.tensors[index].name, manifest.tensors[index].nbytes
            pieces = rank_map.tensors.get(name, ())
            if sum(piece.nbytes for piece in pieces) != nbytes:
                raise WeightsError(f"the map does not have the {nbytes} bytes of {name}; {AGAIN}")
            found = [
                own.get(name) if piece.is_own else blocks.get(piece.tensor) for piece in pieces
            ]
            placed = tuple(
                (piece, _checked(piece, block, name))
                for piece, block in zip(pieces, found, strict=True)
            )
            ends = tuple(accumulate(piece.nbytes for piece in pieces))
            self._composed[index] = Composed(placed, ends)

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, rank_map: RankMap) -> Self:
        """Map the files of a folder with a map, and those of its checkpoint, into memory.

        Raises:
            WeightsError: a file is missing or damaged, or the map does not fit.
            OSError: a file cannot be read.
        """
        own = mapped(folder) if any(folder.glob("*.safetensors")) else {}
        whole = mapped(Path(rank_map.checkpoint))
        bytes_of = ({name: block for name, (_, block) in of.items()} for of in (whole, own))
        return cls(manifest, rank_map, *bytes_of)

    def close(self) -> None:
        """Unmap the files: as `BlockStore.close`."""
        super().close()
        self._composed = {}

    def reader(self, device: torch.device = CPU) -> Callable[[Extent], Tensor]:
        """Read extents on a device: as `Store.reader`."""

        def read(extent: Extent) -> Tensor:
            parts = [*self._parts(extent)]
            return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(device)

        return read

    def views(self, segment: Segment) -> Iterator[memoryview]:
        """The bytes of a segment: as `Store.views`."""
        for extent in segment.extents:
            yield from map(memory_of, self._parts(extent))

    def _parts(self, extent: Extent) -> Iterator[Tensor]:
        composed = self._composed.get(extent.tensor)
        if composed is None:
            raise self._freed(extent.tensor)
        return composed.parts(extent.start, extent.start + extent.length)

    def check_writable(self) -> None:
        """Refuse: files are only read. As `Store.check_writable`."""
        raise WeightsError(READ_ONLY)

    def place(self, extent: Extent) -> Tensor:
        """Refuse: as `check_writable`, while something is received. As `Store.place`."""
        del extent
        raise TransferError(Reason.TRANSFER_FAILED, READ_ONLY)

    def host_view(self, extent: Extent) -> memoryview | None:
        """None: nothing has one place. As `InHostMemory.host_view`."""
        del extent
        return None

    def take_values(self, values: Values) -> Self:
        """Refuse: as `place`. As `Store.take_values`."""
        del values
        raise TransferError(Reason.TRANSFER_FAILED, READ_ONLY)


def _checked(piece: Piece, block: Tensor | None, name: str) -> Tensor:
    """The bytes that a piece is of, if they have it."""
    where = piece.tensor or name
    if block is None:
        raise WeightsError(f"no file has {where}, of which {name} is composed; {AGAIN}")
    end = piece.begin + (piece.rows - 1) * piece.stride + piece.length
    good = min(piece.begin, piece.rows - 1, piece.length - 1, piece.stride - piece.length) >= 0
    if not good or end > block.nbytes:
        raise WeightsError(f"{where} has {block.nbytes} bytes, but {name} is said to end at {end}")
    return block
