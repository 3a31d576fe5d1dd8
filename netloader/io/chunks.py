"""How a segment is cut for moving: small neighbours together, big extents in slices.

The cut depends on the segment alone, so both sides make the same chunks without a message.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from netloader.fsm.manifest import Extent, Segment

SMALL_BYTES = 1 << 20
"""Extents smaller than this share a chunk: an operation costs about as much as moving 100 KiB."""
CHUNK_BYTES = 16 << 20
"""Largest chunk. Some are under way at once, and may need so much staging memory each; while they
are, a busy Python thread may keep the interpreter lock for 5 ms, in which a link moves 100 MB."""

Chunk: TypeAlias = tuple[Extent, ...]


def chunks(segment: Segment) -> Iterator[Chunk]:
    """The extents of a segment by operation, in order."""
    packed: list[Extent] = []
    room = CHUNK_BYTES
    for extent in segment.extents:
        small = extent.length < SMALL_BYTES
        if packed and (not small or extent.length > room):
            yield tuple(packed)
            packed, room = [], CHUNK_BYTES
        if small:
            packed.append(extent)
            room -= extent.length
        else:
            yield from _slices(extent)
    if packed:
        yield tuple(packed)


def _slices(extent: Extent) -> Iterator[Chunk]:
    for start in range(0, extent.length, CHUNK_BYTES):
        length = min(CHUNK_BYTES, extent.length - start)
        yield (Extent(extent.tensor, extent.start + start, length),)


def size_of(chunk: Chunk) -> int:
    """Bytes of a chunk."""
    return sum(extent.length for extent in chunk)


def sizes_digest(segments: Iterable[Segment]) -> str:
    """A digest of the sizes of all chunks of some segments, in order (SHA-256, hex)."""
    sizes = (size_of(chunk) for segment in segments for chunk in chunks(segment))
    return hashlib.sha256(" ".join(map(str, sizes)).encode()).hexdigest()
