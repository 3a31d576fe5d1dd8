"""A store for two over one connection."""

import contextlib
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest

from netloader.io.transports.lane_store import LENGTHS, MAX_BYTES, LaneStore
from tests.unit.io.helpers import SOON_S, connected_pair, eventually


@pytest.fixture
def stores() -> Iterator[tuple[LaneStore, LaneStore]]:
    near, far = connected_pair()
    with near, far:
        pair = LaneStore(near, SOON_S), LaneStore(far, SOON_S)
        yield pair
        for store in pair:
            store.close()


def test_what_one_side_sets_both_can_get(stores: tuple[LaneStore, LaneStore]) -> None:
    near, far = stores
    near.set("address", b"\x00\xff binary")
    far.set("word", "text")

    assert near.get("address") == far.get("address") == b"\x00\xff binary"
    assert near.get("word") == far.get("word") == b"text"


def test_check_does_not_wait(stores: tuple[LaneStore, LaneStore]) -> None:
    near, far = stores
    assert not far.check(["a"])

    near.set("a", b"1")

    assert near.check(["a"])
    assert eventually(lambda: far.check(["a"]))
    assert not far.check(["a", "b"])


def test_a_waiting_side_is_woken_by_the_other(stores: tuple[LaneStore, LaneStore]) -> None:
    near, far = stores
    waiter = threading.Thread(target=near.wait, args=(["a", "b"],))
    waiter.start()
    far.set("b", b"")
    far.set("a", b"")
    waiter.join(SOON_S)

    assert not waiter.is_alive()


def test_a_key_that_is_never_set_is_named(stores: tuple[LaneStore, LaneStore]) -> None:
    with pytest.raises(RuntimeError, match="did not set one, two"):
        stores[0].wait(["one", "two"], timedelta(milliseconds=10))


def test_the_end_of_a_lane_wakes_waiters_on_both_sides(stores: tuple[LaneStore, LaneStore]) -> None:
    near, far = stores
    failures: list[str] = []

    def wait() -> None:
        try:
            near.wait(["never"], timedelta(seconds=SOON_S * 10))
        except RuntimeError as error:
            failures.append(str(error))

    waiter = threading.Thread(target=wait)
    waiter.start()
    far.close()
    waiter.join(SOON_S)

    assert failures == ["the other side did not set never"]


def test_a_frame_beyond_bounds_ends_the_store() -> None:
    near, far = connected_pair()
    with near, far:
        store = LaneStore(near, SOON_S)
        far.sendall(LENGTHS.pack(MAX_BYTES + 1, 0))

        with pytest.raises(RuntimeError, match="did not set"):
            store.wait(["never"])


def test_a_peer_cannot_fill_the_memory_with_keys() -> None:
    # Two members of a group set a few keys of some hundred bytes each; this is 64 MiB.
    near, far = connected_pair()
    value = bytes(MAX_BYTES)
    with near, far:
        store = LaneStore(near, SOON_S)
        for number in range(64):
            key = b"%8d" % number
            with contextlib.suppress(ConnectionError):
                far.sendall(LENGTHS.pack(len(key), len(value)) + key + value)
        kept = sum(store.check([f"{number:8}"]) for number in range(64))
        store.close()

    assert kept < 16
