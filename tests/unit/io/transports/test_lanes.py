"""Data connections by number, and threads that wait for them."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from netloader.fsm.reasons import Reason
from netloader.io.clock import monotonic
from netloader.io.transports import TransferError
from netloader.io.transports.lanes import Lanes, set_stall, side_by_side
from tests.unit.io.helpers import SOON_S, connected_pair


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = connected_pair()
    with near, far:
        yield near, far


def test_lanes_come_in_order_of_their_numbers() -> None:
    lanes, pairs = Lanes(), [connected_pair() for _ in range(3)]
    for index in (2, 0, 1):
        lanes.attach(index, pairs[index][0])

    assert lanes.take(3, SOON_S) == [near for near, _ in pairs]

    lanes.close()
    assert all(near.fileno() == -1 for near, _ in pairs)
    for _, far in pairs:
        far.close()


def test_taking_lanes_waits_until_all_are_attached(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    lanes, taken = Lanes(), list[socket.socket]()
    waiter = threading.Thread(target=lambda: taken.extend(lanes.take(1, SOON_S)))
    waiter.start()

    lanes.attach(0, pair[0])
    waiter.join(SOON_S)

    assert taken == [pair[0]]


def test_lanes_that_never_come_are_a_stall() -> None:
    with pytest.raises(TransferError, match="fewer than 2 data lanes") as caught:
        Lanes().take(2, 0.01)

    assert caught.value.reason is Reason.TRANSFER_STALLED


def test_a_second_lane_of_a_number_is_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    lanes = Lanes()
    other, _far = connected_pair()
    lanes.attach(0, pair[0])
    lanes.attach(0, other)

    assert other.fileno() == -1
    assert pair[0].fileno() != -1
    _far.close()


def test_a_lane_that_comes_after_the_end_is_closed(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    lanes = Lanes()
    lanes.abort()
    lanes.attach(0, pair[0])

    assert pair[0].fileno() == -1
    with pytest.raises(TransferError, match="aborted"):
        lanes.take(1, SOON_S)


def test_abort_closes_lanes_that_were_not_taken(pair: tuple[socket.socket, socket.socket]) -> None:
    lanes = Lanes()
    lanes.attach(0, pair[0])
    lanes.abort()
    lanes.abort()

    assert pair[0].fileno() == -1
    assert pair[1].recv(1) == b""


def test_abort_wakes_a_thread_blocked_in_a_lane(pair: tuple[socket.socket, socket.socket]) -> None:
    lanes, read = Lanes(), list[bytes]()
    lanes.attach(0, pair[0])
    (lane,) = lanes.take(1, SOON_S)
    reader = threading.Thread(target=lambda: read.append(lane.recv(1)))
    reader.start()

    lanes.abort()
    reader.join(SOON_S)

    assert read == [b""]
    lanes.close()


def test_a_blocked_read_gives_up_after_the_stall_deadline(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    pair[0].setblocking(False)
    set_stall(pair[0], 0.2)
    start = monotonic()

    with pytest.raises(BlockingIOError):
        pair[0].recv(1)

    assert 0.1 < monotonic() - start < SOON_S


def test_a_blocked_write_gives_up_after_the_stall_deadline(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    set_stall(pair[0], 0.2)

    with pytest.raises(BlockingIOError):
        pair[0].sendall(bytes(64 << 20))  # more than the kernel takes for a peer that reads nothing


def test_jobs_run_at_the_same_time_and_their_results_add_up() -> None:
    meeting = threading.Barrier(3, timeout=SOON_S)

    def job() -> int:
        meeting.wait()
        return 5

    assert side_by_side([job, job, job], lambda: None) == 15


def test_the_first_failure_aborts_the_other_jobs_and_is_the_one_reported() -> None:
    over = threading.Event()

    def fails() -> int:
        raise TransferError(Reason.TRANSFER_FAILED, "the first")

    def waits() -> int:
        assert over.wait(SOON_S)
        raise TransferError(Reason.TRANSFER_FAILED, "a consequence")

    for jobs in ([fails, waits], [waits, fails, waits]):
        over.clear()
        with contextlib.suppress(TransferError):
            side_by_side(jobs, over.set)
        assert over.is_set()
        over.clear()
        with pytest.raises(TransferError, match="the first"):
            side_by_side(jobs, over.set)
