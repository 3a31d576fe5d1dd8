"""Tensors that are composed from others: found by their bytes, read at any place, refused."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from netloader.errors import WeightsError
from netloader.fsm.manifest import Extent, Manifest, segments_of
from netloader.io.failure import TransferError
from netloader.io.store import matching
from netloader.io.store.composed import MAP, ComposedStore, Piece, RankMap, map_in
from netloader.io.store.matching import MOST_PIECES, Matcher, Whole
from netloader.io.store.module import ModuleStore, manifest_of
from tests.unit.io.helpers import bytes_of, random

EXPERTS, ROWS, WIDE = 3, 48, 128


def whole_of(tensors: dict[str, Tensor]) -> Whole:
    specs = manifest_of([*tensors.items()]).tensors
    flat = {
        name: torch.frombuffer(bytearray(bytes_of(t)), dtype=torch.uint8)
        for name, t in tensors.items()
    }
    return {spec.name: (spec, flat[spec.name]) for spec in specs}


def experts() -> dict[str, Tensor]:
    names = [f"{i}.{name}" for i in range(EXPERTS) for name in ("gate", "up", "down")]
    return {name: random(ROWS, WIDE, seed=i, dtype=torch.bfloat16) for i, name in enumerate(names)}


def merged(whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """Experts in one tensor, as engines have them: the second of two ranks."""
    half = ROWS // 2
    rows = [whole[f"{i}.{name}"][half:] for i in range(EXPERTS) for name in ("gate", "up")]
    columns = [whole[f"{i}.down"][:, WIDE // 2 :] for i in range(EXPERTS)]
    return {
        "w13": torch.cat(rows).view(EXPERTS, 2 * half, WIDE),
        "w2": torch.stack(columns),
        "other": random(ROWS, WIDE, seed=99, dtype=torch.bfloat16),
        "zeros": torch.zeros(ROWS, WIDE, dtype=torch.bfloat16),
    }


def composed() -> tuple[dict[str, Tensor], ComposedStore, RankMap]:
    whole = experts()
    rank = merged(whole)
    files, tensors = whole_of(whole), whole_of(rank)
    matcher = Matcher(files)
    own = {name: block for name, (_, block) in tensors.items()}
    found = {
        name: matcher.pieces_of(spec, block) or (Piece("", 0, spec.nbytes, 1, spec.nbytes),)
        for name, (spec, block) in tensors.items()
    }
    rank_map = RankMap("nowhere", found)
    blocks = {name: block for name, (_, block) in files.items()}
    return rank, ComposedStore(manifest_of([*rank.items()]), rank_map, blocks, own), rank_map


def test_experts_are_found_in_as_many_pieces_as_they_were_cut_of() -> None:
    _, _, rank_map = composed()
    counts = {name: len(pieces) for name, pieces in rank_map.tensors.items()}
    assert counts == {"w13": 2 * EXPERTS, "w2": EXPERTS, "other": 1, "zeros": 1}
    assert [p.is_own for p in (*rank_map.tensors["other"], *rank_map.tensors["zeros"])] == [
        True
    ] * 2


def test_a_tensor_in_too_many_pieces_is_given_up_at_the_first_one_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Piece] = []
    runs = matching._Rows.runs

    def counted(rows: matching._Rows, hashes: Tensor) -> Iterator[Piece]:
        for piece in runs(rows, hashes):
            made.append(piece)
            yield piece

    monkeypatch.setattr(matching._Rows, "runs", counted)
    rows = random(4 * MOST_PIECES, 2, seed=1)
    matcher = Matcher(whole_of({"rows": rows}))

    def pieces(tensor: Tensor) -> tuple[Piece, ...] | None:
        made.clear()
        return matcher.pieces_of(*whole_of({"backwards": tensor})["backwards"])

    assert len(pieces(rows[:MOST_PIECES].flip(0)) or ()) == MOST_PIECES
    assert pieces(rows.flip(0)) is None
    assert len(made) == MOST_PIECES + 1


def test_every_range_has_the_bytes_of_the_tensors() -> None:
    rank, store, _ = composed()
    plain = ModuleStore([*rank.items()])
    read = store.reader()
    for size in (1000, 4096, 1 << 20):
        for segment in segments_of(store.manifest, size):
            expected = b"".join(map(bytes, plain.views(segment)))
            assert b"".join(map(bytes, store.views(segment))) == expected
            assert b"".join(bytes_of(read(extent)) for extent in segment.extents) == expected


def test_what_is_composed_is_only_read_and_gone_when_it_is_closed() -> None:
    _, store, _ = composed()
    (segment,) = segments_of(store.manifest, 1 << 30)
    with pytest.raises(WeightsError, match="only read"):
        store.check_writable()
    for refused in (lambda: store.place(segment.extents[0]), lambda: store.take_values(())):
        with pytest.raises(TransferError, match="only read"):
            refused()
    assert store.host_view(Extent(0, 0, 1)) is None
    store.close()
    with pytest.raises(TransferError, match="the memory of w13 was freed"):
        next(store.views(segment))


@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        ((), "does not have the 16 bytes of w"),
        ((Piece("a", 0, 8, 1, 8),), "does not have the 16 bytes of w"),
        ((Piece("b", 0, 16, 1, 16),), "no file has b, of which w is composed"),
        ((Piece("a", 8, 16, 1, 16),), "a has 16 bytes, but w is said to end at 24"),
        ((Piece("a", -8, 16, 1, 16),), "a has 16 bytes"),
        ((Piece("a", 0, 4, 2, 8),), "a has 16 bytes"),
        ((Piece("", 0, 16, 1, 16),), "no file has w"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(pieces: tuple[Piece, ...], says: str) -> None:
    manifest: Manifest = manifest_of([("w", torch.zeros(4))])
    blocks = {"a": torch.zeros(16, dtype=torch.uint8)}
    with pytest.raises(WeightsError, match=says):
        ComposedStore(manifest, RankMap("", {"w": pieces}), blocks, {})


def test_a_file_that_is_no_map_is_named(tmp_path: Path) -> None:
    assert map_in(tmp_path) is None
    (tmp_path / MAP).write_text("{}")
    with pytest.raises(WeightsError, match=f"{MAP} cannot be read"):
        map_in(tmp_path)
