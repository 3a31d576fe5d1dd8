"""How segments are cut for moving: every byte once, in order, in chunks of bounded size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloader.fsm.manifest import Extent, Segment
from netloader.io.chunks import CHUNK_BYTES, SMALL_BYTES, chunks, size_of, sizes_digest


def segment(*lengths: int) -> Segment:
    """One segment of a tensor for each length, whole."""
    extents = tuple(Extent(i, 0, length) for i, length in enumerate(lengths))
    return Segment(0, extents, sum(lengths))


def test_ten_thousand_small_extents_take_a_few_chunks() -> None:
    cut = list(chunks(segment(*[4096] * 10_000)))

    assert len(cut) == -(-10_000 * 4096 // CHUNK_BYTES)
    assert all(size_of(chunk) <= CHUNK_BYTES for chunk in cut)


def test_a_big_extent_goes_in_slices_of_its_own() -> None:
    cut = list(chunks(segment(10, 2 * CHUNK_BYTES + 5, 20)))

    assert [size_of(chunk) for chunk in cut] == [10, CHUNK_BYTES, CHUNK_BYTES, 5, 20]
    assert cut[2] == (Extent(1, CHUNK_BYTES, CHUNK_BYTES),)


lengths = st.integers(1, 64) | st.sampled_from(
    [SMALL_BYTES - 1, SMALL_BYTES, CHUNK_BYTES, 3 * CHUNK_BYTES + 7]
)


@given(st.lists(lengths, min_size=1, max_size=30))
def test_every_byte_is_in_one_chunk_and_in_order(sizes: list[int]) -> None:
    whole = segment(*sizes)
    cut = list(chunks(whole))

    extents = [extent for chunk in cut for extent in chunk]
    joined: list[tuple[int, int]] = []
    for extent in extents:
        if joined and joined[-1][0] == extent.tensor:
            assert extent.start == joined[-1][1]
            joined[-1] = (extent.tensor, extent.start + extent.length)
        else:
            assert extent.start == 0
            joined.append((extent.tensor, extent.length))
    assert joined == list(enumerate(sizes))
    for chunk in cut:
        assert size_of(chunk) <= CHUNK_BYTES


@pytest.mark.parametrize("other", [(10, 21), (20, 10), (10,), (10, 20, 30)])
def test_other_chunk_sizes_have_another_digest(other: tuple[int, ...]) -> None:
    extents = [size * SMALL_BYTES for size in other]
    assert sizes_digest([segment(*extents)]) != sizes_digest(
        [segment(10 * SMALL_BYTES, 20 * SMALL_BYTES)]
    )
