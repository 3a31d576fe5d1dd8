"""The shm transport: all bytes, the same host or nothing, and an end to every wait."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from netloader.fsm.manifest import Segment
from netloader.fsm.reasons import Reason
from netloader.io import fill
from netloader.io.transports import TransferError
from netloader.io.transports.shm import SLOT_BYTES, SLOTS
from tests.unit.io.helpers import (
    IDENTITY,
    MIB,
    SOON_S,
    asking,
    contents,
    eventually,
    module_of,
    places,
    random,
    serving,
    zoo,
)
from tests.unit.io.transports.ends import Ends, Join

ABORT_S = 2.0


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def moved(ends: Ends) -> None:
    ends.open()
    sent, received = ends.send(), ends.receive()
    assert sent.wait()
    assert received.wait()
    assert sent.failure == received.failure == []
    assert sent.result == received.result == [ends.ledger.total]


@pytest.mark.parametrize("segment_bytes", [64 << 10, 16 * MIB])
def test_every_kind_of_tensor_arrives_in_place(join: Join, segment_bytes: int) -> None:
    source, target = zoo(1), zoo(100)
    before = places(target)
    moved(join("shm", source, target, segment_bytes=segment_bytes))

    assert contents(target) == contents(source)
    assert places(target) == before


def test_more_than_the_file_holds_arrives(join: Join) -> None:
    source, target = (module_of(w=random(40 * MIB + 3, seed=s, dtype=torch.uint8)) for s in (1, 2))
    moved(join("shm", source, target, segment_bytes=9 * MIB))

    assert contents(target) == contents(source)


@pytest.mark.parametrize("aborted", ["sending", "receiving"])
def test_an_abort_ends_either_side(join: Join, aborted: str) -> None:
    big = module_of(w=torch.zeros(64 * MIB, dtype=torch.uint8))
    ends = join("shm", big, big, segment_bytes=MIB)
    ends.open()
    ending = ends.send() if aborted == "sending" else ends.receive()
    getattr(ends, aborted).abort()

    assert ending.wait(ABORT_S)
    assert ending.failure[0].reason is Reason.TRANSFER_FAILED


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("boot_id", "another", "another host"),
        ("pid", "../1", "no memory file"),
        ("pid", "4194305", "cannot be opened"),
        ("fd", "0", "no memory file|cannot be opened"),
        ("proof", "0" * 64, "not the server's"),
    ],
)
def test_a_peer_that_is_not_shown_to_be_on_this_host_is_left(
    join: Join, field: str, value: str, why: str
) -> None:
    ends = join("shm", zoo(1), zoo(2))

    with pytest.raises(TransferError, match=why):
        ends.receiving.open({**ends.sending.rendezvous(), field: value})
    assert ends.near == []


def test_a_client_that_has_not_read_the_file_gets_nothing(join: Join) -> None:
    ends = join("shm", zoo(1), zoo(2), stall_s=1.0)
    for answer in ({}, {"proof": "0" * 64}, {"proof": "\udcff"}):
        with pytest.raises(TransferError, match="has not read the memory file"):
            ends.sending.answered(answer)


def test_a_slot_is_filled_again_only_when_it_was_read(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client stops in the middle, as it does when its core is busy; then it goes on.
    count, stopped, go_on = 3 * SLOTS, threading.Event(), threading.Event()

    def stop(done: int, total: int) -> None:
        stopped.set()
        go_on.wait(SOON_S)

    source, target = (
        module_of(w=random(count * SLOT_BYTES, seed=s, dtype=torch.uint8)) for s in (1, 2)
    )
    ends = join("shm", source, target, segment_bytes=SLOT_BYTES, stall_s=5.0, report=stop)
    views, read = ends.giving.views, []

    def counted(segment: Segment) -> Iterator[memoryview]:
        read.append(segment)
        yield from views(segment)

    monkeypatch.setattr(ends.giving, "views", counted)
    ends.open()
    sent, received = ends.send(), ends.receive()
    assert stopped.wait(SOON_S)
    eventually(lambda: len(read) > 2 * SLOTS, timeout_s=0.5)
    go_on.set()

    assert received.wait()
    assert sent.wait()
    assert received.failure == sent.failure == []
    assert contents(target) == contents(source)


def memory_files() -> int:
    """Descriptors of memory files that this process has open."""
    links = (Path(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))  # noqa: PTH208
    return sum(os.path.lexists(p) and "/memfd:" in str(p.readlink()) for p in links)


def test_each_end_closes_the_memory_file_itself(join: Join) -> None:
    # Not when it is garbage: whatever refers to it would keep 16 MiB.
    before = memory_files()
    ends = join("shm", zoo(1), zoo(2))
    moved(ends)
    assert memory_files() == before + 2
    ends.close()

    assert memory_files() == before


def test_descriptors_come_back(join: Join) -> None:
    before = descriptors()
    for _ in range(3):
        ends = Ends("shm", zoo(1), zoo(2))
        moved(ends)
        ends.close()

    assert eventually(lambda: descriptors() <= before)


def test_a_model_is_filled_by_a_server_that_was_asked_for_shm() -> None:
    source, target = zoo(1), zoo(50)
    with serving(source, transports=("shm", "tcp")) as server:
        assert fill(target, [server.endpoint], IDENTITY, asking("shm")).ok
    assert contents(target) == contents(source)
