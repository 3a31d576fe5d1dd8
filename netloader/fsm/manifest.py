"""The ordered list of tensors, and how it is cut into segments. Plain data, without tensors.

Both sides build their own manifest from their own model; a transfer needs the two to be equal.
The plan follows from the manifest and one number, so it is never sent.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from netloader.fsm.canonical import canonical, canonical_text
from netloader.fsm.identity import ABSENT, Difference

MIB = 1 << 20
MIN_SEGMENT_BYTES = 64 * 1024
"""Smaller segments in an offer are refused: there would be millions of them."""


class TensorSpec(NamedTuple):
    """One tensor as the model stores it.

    `shape` and `stride` are in elements, `nbytes` is elements times element size. `shares` is the
    index of the first tensor of the manifest that it has bytes in common with, be it through others
    (-1: none before it), and `offset` the distance in bytes from that tensor's first element, so
    tied weights stay tied. `format` is the device's private storage format, empty where shape and
    stride tell all: elements travel, and each side stores them as it does.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    nbytes: int
    shares: int = -1
    offset: int = 0
    format: str = ""


@dataclass(frozen=True)
class Manifest:
    """All tensors of one model on one rank, in model order, and what it holds beside tensors.

    `values` are names with plain data as JSON (extra state). Both sides must have the same names;
    the client takes the server's data.
    """

    tensors: tuple[TensorSpec, ...]
    values: tuple[tuple[str, str], ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every tensor's fields and the values, in their order; 64 hex digits.

        Of the canonical bytes of two lists of lists, but never all of them at once. Most tensors
        have all fields but the name in common with another one, so these are encoded once.
        """
        hasher = hashlib.sha256(b"l")
        kinds: dict[tuple[object, ...], bytes] = {}
        for spec in self.tensors:
            kind = spec[1:]
            encoded = kinds.get(kind)
            if encoded is None:
                encoded = kinds[kind] = b"".join(map(canonical, kind))
            hasher.update(b"l%b%be" % (canonical_text(spec.name), encoded))
        hasher.update(b"e" + canonical(self.values))
        return hasher.hexdigest()

    @cached_property
    def payload(self) -> tuple[int, ...]:
        """Indices of the tensors whose bytes travel: not empty, and not a tied twin."""
        rows = enumerate(self.tensors)
        return tuple(i for i, t in rows if t.nbytes and (t.shares < 0 or not self._twin(i)))

    @cached_property
    def nbytes(self) -> int:
        """Bytes that travel."""
        return sum(self.tensors[i].nbytes for i in self.payload)

    def _twin(self, index: int) -> bool:
        spec = self.tensors[index]
        if not 0 <= spec.shares < index or spec.offset:
            return False
        first = self.tensors[spec.shares]
        return (spec.dtype, spec.shape, spec.stride) == (first.dtype, first.shape, first.stride)

    def difference(self, theirs: "Manifest") -> Difference | None:
        """The first difference between two manifests; None if bytes may be sent between them.

        What the values are does not matter, only their names.
        """
        if self.tensors != theirs.tensors:
            kinds, their_kinds = ({t.name: t.dtype for t in m.tensors} for m in (self, theirs))
            if missing := _first_missing("tensor", kinds, their_kinds):
                return missing
            for place, (mine, other) in enumerate(zip(self.tensors, theirs.tensors, strict=False)):
                if mine != other:
                    return _between(place, (self, mine), (theirs, other))
            return Difference("tensors", str(len(self.tensors)), str(len(theirs.tensors)), REBUILD)
        names, their_names = (dict.fromkeys(dict(m.values), "a value") for m in (self, theirs))
        return _first_missing("state", names, their_names)

    def partner(self, spec: TensorSpec) -> str:
        """The name of the tensor that one of this manifest's shares bytes with."""
        shares = spec.shares < len(self.tensors)
        return self.tensors[spec.shares].name if spec.shares >= 0 and shares else "no other"


def _between(
    place: int, mine: tuple[Manifest, TensorSpec], theirs: tuple[Manifest, TensorSpec]
) -> Difference:
    """The difference between the two tensors at an index, with a remedy."""
    (my_manifest, a), (their_manifest, b) = mine, theirs
    if a.name != b.name:
        return Difference(f"tensor {place} name", a.name, b.name, REBUILD)
    field = next(name for name in FIELDS if getattr(a, name) != getattr(b, name))
    values = str(getattr(a, field)), str(getattr(b, field))
    if field == "shares":
        values = my_manifest.partner(a), their_manifest.partner(b)
    return Difference(f"{a.name} {field}", *values, REMEDIES.get(field, REBUILD))


FIELDS = ("dtype", "shape", "shares", "stride", "nbytes", "offset", "format")
"""In the order in which a difference is named: a tensor that is tied often has another stride."""
REBUILD = "build the same model"
TIE = "tie these tensors on both sides, or on neither"
REMEDIES = {
    "dtype": "cast the model of one side, with model.to(dtype)",
    "stride": "store the tensor in the same memory order on both sides, with contiguous()",
    "shares": TIE,
    "offset": TIE,
    "format": "store the tensor in the same format on both sides",
}
"""By the field that differs."""


def _first_missing(
    what: str, mine: Mapping[str, str], theirs: Mapping[str, str]
) -> Difference | None:
    for name, kind in mine.items():
        if name not in theirs:
            return Difference(f"{what} {name}", kind, ABSENT, _help_with(name))
    for name, kind in theirs.items():
        if name not in mine:
            return Difference(f"{what} {name}", ABSENT, kind, _help_with(name))
    return None


def _help_with(name: str) -> str:
    """A remedy for something that one side has: a path with brackets is no name in a state_dict."""
    if "[" in name or "(" in name:
        return "bring both modules to the same point, or keep this in a registered buffer"
    return REBUILD


class Extent(NamedTuple):
    """`length` bytes of tensor number `tensor`, from byte `start` of its contiguous form."""

    tensor: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of manifest bytes: the unit of transfer, verification and resume."""

    index: int
    extents: tuple[Extent, ...]
    nbytes: int


def suitable_segment_bytes(nbytes: int) -> int:
    """The size of a segment for a model of `nbytes`: a 256th in whole MiB, from 1 to 64 MiB.

    A relay has a segment to give when all of it is verified, so a chain of relays ends as many
    segments later as it is long.
    """
    return min(max(-(-nbytes // 256 // MIB), 1), 64) * MIB


def segment_count(nbytes: int, segment_bytes: int) -> int:
    """How many segments a manifest of `nbytes` has."""
    return -(-nbytes // segment_bytes)


def span(nbytes: int, segment_bytes: int, segments: Collection[int]) -> int:
    """Bytes in some segments of a manifest of `nbytes`: all are full but, perhaps, the last."""
    last = segment_count(nbytes, segment_bytes) - 1
    missing = (last + 1) * segment_bytes - nbytes if last in segments else 0
    return len(segments) * segment_bytes - missing


def segments_of(manifest: Manifest, segment_bytes: int) -> tuple[Segment, ...]:
    """Cut the payload every `segment_bytes`: small tensors share one, big ones span many."""
    segments: list[Segment] = []
    extents: list[Extent] = []
    room = segment_bytes
    for index in manifest.payload:
        start, left = 0, manifest.tensors[index].nbytes
        while left:
            length = min(left, room)
            extents.append(Extent(index, start, length))
            start, left, room = start + length, left - length, room - length
            if not room:
                segments.append(Segment(len(segments), tuple(extents), segment_bytes))
                extents, room = [], segment_bytes
    if extents:
        segments.append(Segment(len(segments), tuple(extents), segment_bytes - room))
    return tuple(segments)


@dataclass(frozen=True, slots=True)
class Progress:
    """What a client already holds, verified, from earlier sources.

    Segments are kept only while the whole list of digests is the one they were verified against:
    bytes of two different checkpoints are never mixed.
    """

    digest_algorithm: str = ""
    segment_bytes: int = 0
    segment_digests: tuple[str, ...] = ()
    verified: frozenset[int] = frozenset()

    def continued(
        self, digest_algorithm: str, segment_bytes: int, segment_digests: tuple[str, ...]
    ) -> "Progress":
        """The part of it that is valid for a source that offers `segment_digests`."""
        offered = Progress(digest_algorithm, segment_bytes, segment_digests)
        return self if replace(self, verified=frozenset()) == offered else offered

    def missing(self) -> tuple[int, ...]:
        """Segments that are not verified yet, ascending."""
        return tuple(i for i in range(len(self.segment_digests)) if i not in self.verified)


def root_digest(segment_digests: Iterable[str]) -> str:
    """One digest over the digests of all segments (SHA-256, 64 hex digits)."""
    return hashlib.sha256("\n".join(segment_digests).encode()).hexdigest()
