"""How a segment is cut for moving: small neighbours together, big pieces in slices.

Law: a function of the segment alone, so both sides cut the same parcels and need not talk of them.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from netloader.fsm.manifest import Piece, Segment

SMALL_BYTES = 1 << 20
"""Pieces smaller than this share a parcel: an operation costs about as much as moving 100 KiB."""
PARCEL_BYTES = 16 << 20
"""Largest parcel. Some are under way at once, and may need so much staging memory each; while they
are, a busy Python thread may keep the interpreter lock for 5 ms, in which a link moves 100 MB."""

Parcel: TypeAlias = tuple[Piece, ...]


def parcels(segment: Segment) -> Iterator[Parcel]:
    """The pieces of a segment by operation, in order."""
    packed: list[Piece] = []
    room = PARCEL_BYTES
    for piece in segment.pieces:
        small = piece.length < SMALL_BYTES
        if packed and (not small or piece.length > room):
            yield tuple(packed)
            packed, room = [], PARCEL_BYTES
        if small:
            packed.append(piece)
            room -= piece.length
        else:
            yield from _slices(piece)
    if packed:
        yield tuple(packed)


def _slices(piece: Piece) -> Iterator[Parcel]:
    for start in range(0, piece.length, PARCEL_BYTES):
        length = min(PARCEL_BYTES, piece.length - start)
        yield (Piece(piece.tensor, piece.start + start, length),)


def size_of(parcel: Parcel) -> int:
    """Bytes of a parcel."""
    return sum(piece.length for piece in parcel)


def sizes_digest(segments: Iterable[Segment]) -> str:
    """One word for the sizes of all parcels of some segments, in order (SHA-256, hex)."""
    sizes = (size_of(parcel) for segment in segments for parcel in parcels(segment))
    return hashlib.sha256(" ".join(map(str, sizes)).encode()).hexdigest()
