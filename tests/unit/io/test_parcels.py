"""How segments are cut for moving: every byte once, in order, in parcels of bounded size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloader.fsm.manifest import Piece, Segment
from netloader.io.parcels import PARCEL_BYTES, SMALL_BYTES, parcels, size_of, sizes_digest


def segment(*lengths: int) -> Segment:
    """One segment of a tensor for each length, whole."""
    pieces = tuple(Piece(i, 0, length) for i, length in enumerate(lengths))
    return Segment(0, pieces, sum(lengths))


def test_ten_thousand_small_pieces_take_a_few_parcels() -> None:
    cut = list(parcels(segment(*[4096] * 10_000)))

    assert len(cut) == -(-10_000 * 4096 // PARCEL_BYTES)
    assert all(size_of(parcel) <= PARCEL_BYTES for parcel in cut)


def test_a_big_piece_goes_in_slices_of_its_own() -> None:
    cut = list(parcels(segment(10, 2 * PARCEL_BYTES + 5, 20)))

    assert [size_of(parcel) for parcel in cut] == [10, PARCEL_BYTES, PARCEL_BYTES, 5, 20]
    assert cut[2] == (Piece(1, PARCEL_BYTES, PARCEL_BYTES),)


lengths = st.integers(1, 64) | st.sampled_from(
    [SMALL_BYTES - 1, SMALL_BYTES, PARCEL_BYTES, 3 * PARCEL_BYTES + 7]
)


@given(st.lists(lengths, min_size=1, max_size=30))
def test_every_byte_is_in_one_parcel_and_in_order(sizes: list[int]) -> None:
    whole = segment(*sizes)
    cut = list(parcels(whole))

    pieces = [piece for parcel in cut for piece in parcel]
    joined: list[tuple[int, int]] = []
    for piece in pieces:
        if joined and joined[-1][0] == piece.tensor:
            assert piece.start == joined[-1][1]
            joined[-1] = (piece.tensor, piece.start + piece.length)
        else:
            assert piece.start == 0
            joined.append((piece.tensor, piece.length))
    assert joined == list(enumerate(sizes))
    for parcel in cut:
        assert size_of(parcel) <= PARCEL_BYTES


@pytest.mark.parametrize("other", [(10, 21), (20, 10), (10,), (10, 20, 30)])
def test_other_sizes_make_another_word(other: tuple[int, ...]) -> None:
    pieces = [size * SMALL_BYTES for size in other]
    assert sizes_digest([segment(*pieces)]) != sizes_digest(
        [segment(10 * SMALL_BYTES, 20 * SMALL_BYTES)]
    )
