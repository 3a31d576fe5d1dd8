"""The tcp transport over real sockets: all bytes, in place, and an end to every wait."""

import errno
import fcntl
import signal
import socket
import sys
import termios
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from netloader.fsm.reasons import Reason
from netloader.io.clock import monotonic
from netloader.io.transports import TransferError
from netloader.io.transports.lanes import set_stall
from netloader.io.transports.tcp import IOV_MAX, after, batches, receive_batch, send_batch
from tests.unit.io.helpers import (
    MIB,
    SOON_S,
    connected_pair,
    contents,
    eventually,
    module_of,
    places,
    random,
    zoo,
)
from tests.unit.io.transports.ends import Join

ABORT_S = 2.0
"""An abort takes milliseconds; a second is promised; two cores may be busy."""


def views(*sizes: int) -> list[memoryview]:
    return [memoryview(bytearray([i % 256]) * size) for i, size in enumerate(sizes)]


# -- cutting memory into calls -------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(), (0,), (10,), (3, 0, 7, 25), (1,) * 50, (10, 10, 10)])
def test_batches_hold_everything_in_order_and_nothing_too_large(sizes: tuple[int, ...]) -> None:
    memory = views(*sizes)
    cut = list(batches(memory, 10))

    assert b"".join(b"".join(batch) for batch in cut) == b"".join(memory)
    assert all(0 < sum(map(len, batch)) <= 10 for batch in cut)
    assert all(sum(map(len, batch)) == 10 for batch in cut[:-1])


def test_batches_hold_no_more_buffers_than_a_system_call_takes() -> None:
    cut = list(batches(views(*([1] * (2 * IOV_MAX + 1))), 1 << 30))

    assert [len(batch) for batch in cut] == [IOV_MAX, IOV_MAX, 1]


@pytest.mark.parametrize("done", range(8))
def test_what_is_left_after_a_short_call(done: int) -> None:
    memory = views(2, 3, 2)

    assert b"".join(after(memory, done)) == b"".join(memory)[done:]


def test_a_batch_of_more_than_the_socket_holds_arrives_whole() -> None:
    near, far = connected_pair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    source, sink = random(3 * MIB, dtype=torch.uint8), bytearray(3 * MIB)
    data = memoryview(source.numpy()).cast("B")  # type: ignore[arg-type]  # numpy's stubs
    with near, far:
        sender = threading.Thread(target=send_batch, args=(near, [data[:5], data[5:]]))
        sender.start()
        receive_batch(far, [memoryview(sink)[:100], memoryview(sink)[100:]])
        sender.join()

    assert bytes(sink) == bytes(data)


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """A signal that does nothing but cut a system call short."""
    signals: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: signals.append(number))
    yield signals
    signal.signal(signal.SIGUSR1, before)


def unread(sock: socket.socket) -> int:
    """Bytes that have arrived and that nobody has taken."""
    return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.parametrize("who", ["sender", "receiver"])
def test_a_call_that_a_signal_cut_short_is_no_stall(who: str, heard: list[int]) -> None:
    # As a debugger, SIGSTOP or a freezer does. The deadline is far away, and nobody is late.
    near, far = connected_pair()
    source, sink = random(8 * MIB, dtype=torch.uint8), bytearray(8 * MIB)
    data = memoryview(source.numpy()).cast("B")  # type: ignore[arg-type]  # numpy's stubs
    over: list[None] = []
    with near, far:
        for lane in (near, far):
            set_stall(lane, SOON_S)

        def work() -> None:
            if who == "sender":
                send_batch(near, [data])
            else:
                receive_batch(far, [memoryview(sink)])
            over.append(None)

        thread = threading.Thread(target=work)
        thread.start()
        if who == "receiver":
            near.sendall(data[:1000])
            assert eventually(lambda: unread(far) == 0)
        else:
            assert eventually(lambda: unread(far) > 0)
            threading.Event().wait(0.1)  # until the buffers are full
        assert thread.ident is not None
        signal.pthread_kill(thread.ident, signal.SIGUSR1)
        assert eventually(lambda: heard)
        threading.Event().wait(0.1)
        if who == "receiver":
            near.sendall(data[1000:])
        else:
            receive_batch(far, [memoryview(sink)])
        thread.join(SOON_S)

    assert len(over) == 1
    assert bytes(sink) == bytes(data)


def test_a_connection_that_closes_early_is_a_failure_not_a_short_tensor() -> None:
    near, far = connected_pair()
    near.sendall(b"only this")
    near.close()

    with far, pytest.raises(TransferError, match="closed early") as caught:
        receive_batch(far, [memoryview(bytearray(100))])

    assert caught.value.reason is Reason.TRANSFER_FAILED


# -- both ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_every_kind_of_tensor_arrives_over_any_number_of_lanes(join: Join, lanes: int) -> None:
    source, target = zoo(1), zoo(100)
    before = places(target)
    ends = join("tcp", source, target, lanes=lanes)
    ends.open()

    sent, received = ends.send(), ends.receive()

    assert sent.wait()
    assert received.wait()
    assert sent.result == received.result == [ends.ledger.total]
    assert contents(target) == contents(source)
    assert places(target) == before


def test_ten_thousand_tiny_tensors_arrive(join: Join) -> None:
    def build(seed: int) -> nn.Module:
        block = random(10_000, 3, seed=seed)
        return module_of(**{f"n{i}": row.clone() for i, row in enumerate(block)})

    source, target = build(1), build(2)
    ends = join("tcp", source, target)
    ends.open()
    ends.send()

    assert ends.receive().wait()
    assert contents(target) == contents(source)


def test_only_the_segments_asked_for_are_sent(join: Join) -> None:
    source, target = module_of(w=random(MIB)), module_of(w=random(MIB, seed=9))
    kept = contents(target)["w"]
    ends = join("tcp", source, target, lanes=2)
    some = ends.segments[3:40:5]
    ends.open()

    sent, received = ends.send(some), ends.receive(some)

    assert sent.wait()
    assert received.wait()
    assert sent.result == [sum(s.nbytes for s in some)]
    assert ends.ledger.progress.verified == {s.index for s in some}
    untouched = ends.segments[0].nbytes
    assert contents(target)["w"][:untouched] == kept[:untouched]


# -- ends that come early ------------------------------------------------------------------------


def big() -> nn.Module:
    """More than both socket buffers hold, so that both ends block."""
    return module_of(w=torch.zeros(64 * MIB, dtype=torch.uint8))


@pytest.mark.parametrize("lanes", [1, 3])
def test_an_abort_ends_a_sender_that_nobody_reads_from(join: Join, lanes: int) -> None:
    ends = join("tcp", big(), big(), lanes=lanes)
    ends.open()
    sent = ends.send()
    start = monotonic()
    ends.sending.abort()
    ends.sending.abort()

    assert sent.wait(ABORT_S)
    assert monotonic() - start < ABORT_S
    assert sent.failure[0].reason is Reason.TRANSFER_FAILED


@pytest.mark.parametrize("lanes", [1, 3])
def test_an_abort_ends_a_receiver_that_nobody_sends_to(join: Join, lanes: int) -> None:
    ends = join("tcp", big(), big(), lanes=lanes)
    ends.open()
    received = ends.receive()
    ends.receiving.abort()

    assert received.wait(ABORT_S)
    assert received.failure[0].reason is Reason.TRANSFER_FAILED


def test_the_end_of_one_side_ends_the_other(join: Join) -> None:
    ends = join("tcp", big(), big(), lanes=2)
    ends.open()
    sent = ends.send()
    ends.receiving.abort()

    assert sent.wait(ABORT_S)
    assert sent.failure[0].reason is Reason.TRANSFER_FAILED


def test_a_silent_sender_is_noticed_after_the_stall_deadline(join: Join) -> None:
    ends = join("tcp", big(), big(), stall_s=0.3)
    ends.open()
    received = ends.receive()

    assert received.wait()
    assert received.failure[0].reason is Reason.TRANSFER_STALLED


def test_a_reader_that_stops_is_noticed_after_the_stall_deadline(join: Join) -> None:
    ends = join("tcp", big(), big(), stall_s=0.3)
    ends.open()
    sent = ends.send()

    assert sent.wait()
    assert sent.failure[0].reason is Reason.TRANSFER_STALLED


def test_a_sender_that_stops_inside_a_call_is_noticed_after_one_stall_deadline(join: Join) -> None:
    # A receive call that has some of its bytes returns them when its time is up; the next call
    # must not wait for the whole deadline again.
    ends = join("tcp", big(), big(), stall_s=3.0)
    ends.open()
    received = ends.receive()
    start = monotonic()
    ends.far[0].sendall(bytes(100_001))

    assert received.wait()
    assert received.failure[0].reason is Reason.TRANSFER_STALLED
    assert monotonic() - start < 5.0


def test_a_client_that_opens_too_few_lanes_is_noticed(join: Join) -> None:
    ends = join("tcp", big(), big(), lanes=2, stall_s=0.3)
    ends.dial(0)
    sent = ends.send()

    assert sent.wait()
    assert sent.failure[0].reason is Reason.TRANSFER_STALLED


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "ECONNREFUSED"),
        (TimeoutError(errno.ETIMEDOUT, "no answer to connect"), "ETIMEDOUT"),
    ],
)
def test_a_lane_that_cannot_be_opened_is_a_failure_not_a_stall(
    join: Join, error: OSError, name: str
) -> None:
    def fail(index: int) -> socket.socket:
        raise error

    ends = join("tcp", big(), big(), dial=fail)

    with pytest.raises(TransferError, match=f"could not be opened .{name}") as caught:
        ends.open()
    assert caught.value.reason is Reason.TRANSFER_FAILED
