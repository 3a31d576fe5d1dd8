"""Data connections by number, and threads that wait for them."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from netloader.fsm.reasons import Reason
from netloader.io.clock import monotonic
from netloader.io.transports import TransferError
from netloader.io.transports.lanes import Lanes, set_stall, side_by_side, suit_own_host
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


# -- congestion control --------------------------------------------------------------------------


def congestion_of(lane: socket.socket) -> bytes:
    return lane.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


class Between(socket.socket):
    """A socket that says it connects these two addresses."""

    def __init__(self, near: str, far: str) -> None:
        super().__init__(socket.AF_INET6 if ":" in far else socket.AF_INET)
        self.near, self.far = near, far

    def getsockname(self) -> tuple[str, int]:
        return self.near, 1

    def getpeername(self) -> tuple[str, int]:
        return self.far, 2


@pytest.mark.parametrize(
    ("near", "far", "own"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", True),
        ("::1", "::1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("fe80::1", "fe80::2%eth0", False),
    ],
)
def test_only_to_its_own_host_does_a_lane_choose_its_congestion_control(
    near: str, far: str, own: bool
) -> None:
    with Between(near, far) as lane:
        before = congestion_of(lane)
        suit_own_host(lane)

        assert congestion_of(lane) == (b"reno" if own else before)


def test_a_system_without_that_congestion_control_keeps_its_own(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "TCP_CONGESTION", 9999)
    suit_own_host(pair[0])
    near, far = socket.socketpair()
    with near, far:
        suit_own_host(near)
