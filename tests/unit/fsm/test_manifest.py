"""Manifest: what travels, what differs, how it is cut, what is kept. (See also tests/property.)"""

from typing import Any

import pytest

from netloader.fsm.identity import ABSENT
from netloader.fsm.manifest import (
    Extent,
    Manifest,
    Progress,
    Segment,
    TensorSpec,
    root_digest,
    segment_count,
    segments_of,
    suitable_segment_bytes,
)


def spec(name: str, *shape: int, **changes: Any) -> TensorSpec:
    """A dense float32 tensor of at most two dimensions."""
    count = 1
    for size in shape:
        count *= size
    stride = (1,) * len(shape[:1]) if len(shape) < 2 else (shape[1], 1)
    return TensorSpec(name, "float32", shape, stride, 4 * count)._replace(**changes)


A, B, C = spec("a", 5), spec("b"), spec("c", 2, 5)
THREE = Manifest((A, B, C))


# what travels


def test_every_tensor_with_bytes_travels_in_model_order() -> None:
    assert THREE.payload == (0, 1, 2)
    assert THREE.nbytes == 20 + 4 + 40


def test_empty_tensors_and_tied_twins_do_not_travel() -> None:
    tied = A._replace(name="tied", shares=1)
    manifest = Manifest((spec("empty", 0), A, spec("also_empty", 3, 0), tied))

    assert manifest.payload == (1,)
    assert manifest.nbytes == 20


@pytest.mark.parametrize(
    "alias",
    [
        A._replace(name="shifted", shares=0, offset=4),
        A._replace(name="other type", shares=0, dtype="int32"),
        spec("other shape", 1, 5, shares=0),
        A._replace(name="strided", shares=0, stride=(2,)),
        A._replace(name="forward", shares=2),
        A._replace(name="itself", shares=1),
    ],
    ids=lambda alias: alias.name,
)
def test_an_alias_that_is_no_twin_travels_by_itself(alias: TensorSpec) -> None:
    assert Manifest((A, alias, B)).payload == (0, 1, 2)


def test_nothing_to_send_is_a_manifest_too() -> None:
    assert (Manifest(()).payload, Manifest(()).nbytes, segments_of(Manifest(()), 10)) == ((), 0, ())


# what differs


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "z"),
        ("dtype", "int32"),
        ("shape", (1, 5)),
        ("stride", (2,)),
        ("nbytes", 24),
        ("shares", 0),
        ("offset", 8),
    ],
)
def test_a_difference_in_any_field_is_seen_and_named(field: str, value: Any) -> None:
    other = Manifest((A._replace(**{field: value}), B, C))

    found = THREE.difference(other)

    assert found is not None
    assert other.digest != THREE.digest
    if field == "name":
        assert (found.field, found.mine, found.theirs) == ("tensor a", "float32", ABSENT)
    else:
        theirs = "a" if field == "shares" else str(value)
        assert (found.field, found.theirs) == (f"a {field}", theirs)
        assert found.remedy


def test_equal_manifests_do_not_differ() -> None:
    twin = Manifest((A._replace(), B._replace(), C._replace()))

    assert THREE.difference(twin) is None
    assert twin.digest == THREE.digest
    assert len(THREE.digest) == 64


def test_a_tensor_that_only_they_have_is_named() -> None:
    found = Manifest((A, B)).difference(THREE)

    assert found is not None
    assert (found.field, found.mine, found.theirs) == ("tensor c", ABSENT, "float32")


def test_another_order_is_a_difference() -> None:
    found = THREE.difference(Manifest((A, C, B)))

    assert found is not None
    assert (found.field, found.mine, found.theirs) == ("tensor 1 name", "b", "c")
    assert Manifest((A, C, B)).digest != THREE.digest


def test_the_same_names_more_often_is_a_difference() -> None:
    found = THREE.difference(Manifest((A, B, C, A)))

    assert found is not None
    assert (found.field, found.mine, found.theirs) == ("tensors", "3", "4")


# how it is cut


def test_small_tensors_share_a_segment_and_big_ones_span_many() -> None:
    assert segments_of(THREE, 28) == (
        Segment(0, (Extent(0, 0, 20), Extent(1, 0, 4), Extent(2, 0, 4)), 28),
        Segment(1, (Extent(2, 4, 28),), 28),
        Segment(2, (Extent(2, 32, 8),), 8),
    )


@pytest.mark.parametrize(("size", "count"), [(1, 64), (63, 2), (64, 1), (65, 1), (2**30, 1)])
def test_the_number_of_segments_is_known_without_a_plan(size: int, count: int) -> None:
    assert segment_count(THREE.nbytes, size) == count == len(segments_of(THREE, size))
    assert segment_count(0, size) == 0


# what is kept


HELD = Progress("sha256", 64, ("x", "y", "z"), frozenset({0, 2}))


def test_what_is_verified_is_kept_for_a_source_of_the_same_bytes() -> None:
    assert HELD.continued("sha256", 64, ("x", "y", "z")) == HELD
    assert HELD.missing() == (1,)


@pytest.mark.parametrize(
    ("algorithm", "size", "digests"),
    [
        ("blake3", 64, ("x", "y", "z")),
        ("sha256", 32, ("x", "y", "z")),
        ("sha256", 64, ("x", "y", "other")),
        ("sha256", 64, ("x", "y")),
    ],
)
def test_nothing_is_kept_when_anything_else_is_offered(
    algorithm: str, size: int, digests: tuple[str, ...]
) -> None:
    fresh = HELD.continued(algorithm, size, digests)

    assert fresh == Progress(algorithm, size, digests)
    assert fresh.missing() == tuple(range(len(digests)))


def test_without_progress_every_segment_is_missing() -> None:
    assert Progress().missing() == ()
    assert Progress().continued("sha256", 64, ("x", "y")).missing() == (0, 1)


def test_the_digest_of_the_whole_depends_on_every_digest_and_their_order() -> None:
    whole = root_digest(["x", "y"])

    assert len(whole) == 64
    assert whole == root_digest(("x", "y"))
    assert len({whole, root_digest(["y", "x"]), root_digest(["x"]), root_digest([])}) == 4


@pytest.mark.parametrize(
    ("nbytes", "mib"),
    [(1, 1), (256 << 20, 1), ((256 << 20) + 1, 2), (1 << 30, 4), (16 << 30, 64), (1 << 40, 64)],
)
def test_segments_are_small_against_the_model(nbytes: int, mib: int) -> None:
    assert suitable_segment_bytes(nbytes) == mib << 20
