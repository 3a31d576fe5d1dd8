"""Manifest and plan: every byte that travels, once, in order, and the same on both sides."""

import math
from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from netloader.fsm.manifest import (
    Manifest,
    Progress,
    Segment,
    TensorSpec,
    root_digest,
    segment_count,
    segments_of,
)
from netloader.fsm.messages import Offer
from netloader.wire.frames import Decoder, encode
from tests.support.messages import OFFER

ELEMENT = 2
shapes = st.lists(st.integers(0, 6), max_size=3)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Small, big, empty and 0-dim tensors, some tied to an earlier one, some views of it."""
    specs: list[TensorSpec] = []
    for index in range(draw(st.integers(0, 6))):
        shape = tuple(draw(shapes))
        nbytes = ELEMENT * math.prod(shape)
        stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        spec = TensorSpec(f"t{index}", "bfloat16", shape, stride, nbytes)
        firsts = [i for i, s in enumerate(specs) if s.nbytes and s.shares < 0]
        alias = draw(st.booleans())
        if firsts and alias:
            first = draw(st.sampled_from(firsts))
            tied, offset = draw(st.booleans()), draw(st.integers(0, 3))
            like = specs[first] if tied else spec
            spec = TensorSpec(
                *(spec.name, like.dtype, like.shape, like.stride, like.nbytes),
                shares=first,
                offset=0 if tied else offset,
            )
        specs.append(spec)
    return Manifest(tuple(specs))


sizes = st.integers(1, 300)


@given(manifests(), sizes)
def test_a_plan_covers_every_byte_that_travels_once_and_in_order(
    manifest: Manifest, segment_bytes: int
) -> None:
    segments = segments_of(manifest, segment_bytes)

    covered = [
        (extent.tensor, byte)
        for segment in segments
        for extent in segment.extents
        for byte in range(extent.start, extent.start + extent.length)
    ]
    travels = [(i, byte) for i in manifest.payload for byte in range(manifest.tensors[i].nbytes)]
    assert covered == travels
    assert len(covered) == manifest.nbytes


@given(manifests(), sizes)
def test_all_segments_but_the_last_are_full(manifest: Manifest, segment_bytes: int) -> None:
    segments = segments_of(manifest, segment_bytes)

    assert [s.index for s in segments] == list(range(len(segments)))
    assert len(segments) == segment_count(manifest.nbytes, segment_bytes)
    assert all(s.nbytes == segment_bytes for s in segments[:-1])
    for segment in segments:
        assert 0 < segment.nbytes <= segment_bytes
        assert segment.nbytes == sum(extent.length for extent in segment.extents)
        assert all(extent.length > 0 for extent in segment.extents)
        assert all(a.tensor < b.tensor for a, b in pairwise(segment.extents))


@given(manifests())
def test_every_tensor_travels_or_is_empty_or_tied_to_one_that_does(manifest: Manifest) -> None:
    for index, spec in enumerate(manifest.tensors):
        if index in manifest.payload or not spec.nbytes:
            continue
        first = manifest.tensors[spec.shares]
        assert spec.shares in manifest.payload
        assert (spec.nbytes, spec.offset) == (first.nbytes, 0)


@given(manifests(), sizes)
def test_both_sides_derive_the_same_plan(manifest: Manifest, segment_bytes: int) -> None:
    sent = replace(OFFER, manifest=manifest, segment_bytes=segment_bytes)

    (heard,) = Decoder(2**20).feed(encode(sent))

    assert isinstance(heard, Offer)
    assert heard.manifest is not None
    assert manifest.difference(heard.manifest) is None
    assert heard.manifest.digest == manifest.digest
    assert segments_of(heard.manifest, heard.segment_bytes) == segments_of(manifest, segment_bytes)


@given(manifests(), manifests())
def test_a_difference_is_found_exactly_when_there_is_one(mine: Manifest, theirs: Manifest) -> None:
    found, seen = mine.difference(theirs), theirs.difference(mine)

    assert (found is None) == (mine.tensors == theirs.tensors) == (mine.digest == theirs.digest)
    assert (found is None) == (seen is None)
    if found is not None:
        assert found.mine != found.theirs


# -- resume --------------------------------------------------------------------------------------

lists_of_digests = st.lists(st.sampled_from("abc"), max_size=6).map(tuple)
algorithms = st.sampled_from(["blake3", "sha256"])
segment_sizes = st.sampled_from([65_536, 131_072])


@given(algorithms, segment_sizes, lists_of_digests, st.data())
def test_another_source_of_the_same_bytes_is_asked_for_the_rest_only(
    algorithm: str, segment_bytes: int, digests: tuple[str, ...], data: st.DataObject
) -> None:
    places = range(len(digests))
    verified = frozenset(i for i in places if data.draw(st.booleans()))
    held = Progress(algorithm, segment_bytes, digests, verified)

    again = held.continued(algorithm, segment_bytes, digests)

    assert again == held
    assert sorted((*again.missing(), *again.verified)) == list(places)
    assert list(again.missing()) == sorted(again.missing())


@given(
    st.tuples(algorithms, segment_sizes, lists_of_digests),
    st.tuples(algorithms, segment_sizes, lists_of_digests),
)
def test_bytes_under_other_digests_never_count(
    old: tuple[str, int, tuple[str, ...]], new: tuple[str, int, tuple[str, ...]]
) -> None:
    held = Progress(*old, verified=frozenset(range(len(old[2]))))

    continued = held.continued(*new)

    assert (continued.digest_algorithm, continued.segment_bytes, continued.segment_digests) == new
    if old != new:
        assert continued.missing() == tuple(range(len(new[2])))


@given(lists_of_digests, lists_of_digests)
def test_the_digest_of_the_whole_tells_lists_apart(
    one: tuple[str, ...], other: tuple[str, ...]
) -> None:
    assert (root_digest(one) == root_digest(other)) == (one == other)


def test_a_model_of_one_huge_tensor_is_planned_without_counting_bytes() -> None:
    nbytes = 2**40
    manifest = Manifest((TensorSpec("w", "int8", (nbytes,), (1,), nbytes),))

    segments: tuple[Segment, ...] = segments_of(manifest, 2**26)

    assert len(segments) == 2**14
    assert segments[-1].extents[0].start == nbytes - 2**26
