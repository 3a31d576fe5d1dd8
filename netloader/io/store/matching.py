"""Find the bytes of one rank's tensors in the files of a checkpoint.

Nothing is known here of how an engine cuts, merges and renames tensors. Rows of a rank's tensor are
looked up by a hash among the rows of all tensors of the checkpoint, and among the parts of their
rows where a row is a multiple of it: tensors that are cut in columns. A row that is found begins a
run, which goes on for as long as the next rows follow there at the same distance. A hash is no
proof: whoever makes a map compares the digests of what it composes.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final

import torch
from torch import Tensor

from netloader.fsm.manifest import TensorSpec
from netloader.io.store.composed import Piece

SMALLEST_BYTES: Final = 1 << 12
"""Smaller tensors are kept: most norms, biases and scales."""
MOST_PARTS: Final = 64
"""Into how many columns a row may be cut."""
MOST_PIECES: Final = 1024
"""Of one tensor. One that is in more pieces is kept: small pieces are slow to read."""
MOST_STARTS: Final = 16
"""As many equal rows are tried as the beginning of a run."""
WORD: Final = 8
"""Bytes that are hashed at once."""
STEP_ROWS_BYTES: Final = 1 << 24
"""Of rows that are hashed at once."""

Whole = Mapping[str, tuple[TensorSpec, Tensor]]
"""The tensors of a checkpoint by name, with their bytes: as `folders.mapped` returns them."""


class Matcher:
    """Looks for tensors in one checkpoint. Keeps the hashes of its rows; not thread-safe."""

    def __init__(self, whole: Whole) -> None:
        self._whole = whole
        self._by_width: dict[int, _Rows] = {}

    def pieces_of(self, spec: TensorSpec, block: Tensor) -> tuple[Piece, ...] | None:
        """The pieces that a tensor (`block`: its bytes) is composed of.

        None where nothing of it is found, or it is not worth it. Bytes that are not found are
        pieces without a tensor: they follow each other in what is to be kept.
        """
        width = _width(spec)
        if spec.nbytes < SMALLEST_BYTES or width % WORD or not width:
            return None
        if width not in self._by_width:
            self._by_width[width] = _Rows(self._whole, width)
        runs = self._by_width[width].runs(_hashes(block, width))
        pieces = [*islice(runs, MOST_PIECES + 1)]  # each costs a look at all rows after it
        found = any(not piece.is_own for piece in pieces)
        return tuple(pieces) if found and len(pieces) <= MOST_PIECES else None


def _width(spec: TensorSpec) -> int:
    """Bytes of a row."""
    rows = 1
    for size in spec.shape[:-1]:
        rows *= size
    return spec.nbytes // rows if rows else 0


class _Rows:
    """All rows, and parts of rows, of one width in a checkpoint, by their hash."""

    def __init__(self, whole: Whole, width: int) -> None:
        self._width = width
        self._names: list[str] = []
        self._hashes: list[Tensor] = []
        self._parts: list[int] = []
        """How many such widths a row of each tensor has."""
        for name, (spec, block) in whole.items():
            row = _width(spec)
            if row and not row % width and row // width <= MOST_PARTS:
                self._names.append(name)
                self._hashes.append(_hashes(block, width))
                self._parts.append(row // width)
        every = torch.cat([torch.empty(0, dtype=torch.int64), *self._hashes])
        self._sorted, self._order = every.sort()
        counts = torch.tensor([0, *(len(each) for each in self._hashes)])
        self._begins = counts.cumsum(0)

    def runs(self, rows: Tensor) -> Iterator[Piece]:
        """The pieces of a tensor whose rows have these hashes, in order."""
        low = torch.searchsorted(self._sorted, rows)
        high = torch.searchsorted(self._sorted, rows, right=True)
        known = (high > low).tolist()
        at = kept = 0
        while at < len(rows):
            if known[at]:
                piece = self._longest(rows[at:], int(low[at]), int(high[at]))
                at += piece.rows
            else:
                end = next((i for i in range(at, len(rows)) if known[i]), len(rows))
                size = (end - at) * self._width
                piece = Piece("", kept, size, 1, size)
                at, kept = end, kept + size
            yield piece

    def _longest(self, rows: Tensor, low: int, high: int) -> Piece:
        """The longest run that begins with the first of some rows, at one of its places."""
        best = Piece("", 0, 0, 0, 0)
        for place in self._order[low : min(high, low + MOST_STARTS)].tolist():
            number = int(torch.searchsorted(self._begins, place, right=True)) - 1
            first = place - int(self._begins[number])
            for step in {1, self._parts[number]}:
                there = self._hashes[number][first::step][: len(rows)]
                unlike = (there != rows[: len(there)]).nonzero()
                count = int(unlike[0]) if len(unlike) else len(there)
                if count > best.rows:
                    width = self._width
                    name = self._names[number]
                    best = Piece(name, first * width, step * width, count, width)
        return best


def _hashes(block: Tensor, width: int) -> Tensor:
    """A number of 64 bits for each `width` bytes: a sum of words, each times an odd number."""
    words = width // WORD
    generator = torch.Generator().manual_seed(words)
    high, low = (torch.randint(0, 1 << 31, (words,), generator=generator) for _ in range(2))
    factors = (high << 32 | low << 1) | 1
    step = max(1, STEP_ROWS_BYTES // width) * width
    return torch.cat(
        [
            _aligned(block[at : at + step]).view(-1, words).mul(factors).sum(1)
            for at in range(0, len(block), step)
        ]
    )


def _aligned(part: Tensor) -> Tensor:
    """Bytes as words; copied where they do not begin at one."""
    placed = part if part.storage_offset() % WORD == 0 else part.clone()
    return placed.view(torch.int64)
