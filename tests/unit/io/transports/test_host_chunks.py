"""Chunks of host memory: cut, in place or packed, and verified while the next ones arrive."""

import threading

import pytest
import torch

from netloader.fsm.manifest import Extent, Segment
from netloader.fsm.reasons import Reason
from netloader.io.chunks import CHUNK_BYTES, SMALL_BYTES, chunks, size_of
from netloader.io.failure import TransferError
from netloader.io.memory import memory_of
from netloader.io.transports.host_chunks import Stage, in_place, pack, parts_of, unpack
from tests.unit.io.helpers import SOON_S


def segment_of(*lengths: int) -> Segment:
    extents = tuple(Extent(i, 0, length) for i, length in enumerate(lengths))
    return Segment(0, extents, sum(lengths))


@pytest.mark.parametrize("step", [7, 1000, SMALL_BYTES, 3 * CHUNK_BYTES])
def test_chunks_get_their_bytes_however_a_store_divides_its_views(step: int) -> None:
    segment = segment_of(5, 0, 2000, CHUNK_BYTES + SMALL_BYTES, 30)
    memory = memory_of(torch.arange(segment.nbytes, dtype=torch.int32).to(torch.uint8))
    step = max(step, segment.nbytes // 5000)
    views = [memory[at : at + step] for at in range(0, len(memory), step)]

    cut = [b"".join(parts) for parts in parts_of(segment, views)]

    assert [len(chunk) for chunk in cut] == [size_of(chunk) for chunk in chunks(segment)]
    assert b"".join(cut) == memory


def test_one_place_is_used_as_it_is_and_several_are_packed() -> None:
    block = torch.zeros(100, dtype=torch.uint8)
    alone = in_place([memory_of(block)[10:20]])

    assert alone is not None
    alone.fill_(3)
    assert block.sum() == 30
    assert in_place([memory_of(block)[:10], memory_of(block)[20:30]]) is None


def test_memory_that_may_only_be_read_is_packed() -> None:
    assert in_place([memoryview(b"weights")]) is None


def test_what_was_packed_is_unpacked_to_other_places() -> None:
    sent, received = bytearray(b"0123456789"), bytearray(10)
    row = torch.zeros(6, dtype=torch.uint8)

    pack(row, [memoryview(sent)[1:3], memoryview(sent)[5:9]])
    filled = unpack(row, [memoryview(received)[:4], memoryview(received)[7:9]])

    assert [bytes(part) for part in filled] == [b"1256", b"78"]
    assert received == b"1256\0\0\x0078\0"


# -- the thread that verifies --------------------------------------------------------------------


def test_a_job_runs_while_its_owner_goes_on_and_before_the_next_job() -> None:
    go_on, order = threading.Event(), list[str]()

    def first() -> None:
        assert go_on.wait(SOON_S)
        order.append("first")

    with Stage("netloader-verify") as stage:
        stage.put(first)
        order.append("owner")
        go_on.set()
        stage.put(lambda: order.append("second"))
        stage.wait()

    assert order == ["owner", "first", "second"]


@pytest.mark.parametrize("more", [0, 1])
def test_what_a_job_raises_reaches_its_owner(more: int) -> None:
    ran = list[int]()

    def fail() -> None:
        raise TransferError(Reason.DIGEST_MISMATCH, "other bytes")

    def use() -> None:
        with Stage("netloader-verify") as stage:
            stage.put(fail)
            for _ in range(more):
                stage.put(lambda: ran.append(1))

    with pytest.raises(TransferError, match="other bytes"):
        use()

    assert ran == []


def test_no_job_runs_any_more_when_the_stage_is_left_by_an_error() -> None:
    begun, go_on, over = threading.Event(), threading.Event(), list[int]()

    def slow() -> None:
        begun.set()
        assert go_on.wait(SOON_S)
        over.append(1)

    def leave() -> None:
        with Stage("netloader-verify") as stage:
            stage.put(slow)
            assert begun.wait(SOON_S)
            go_on.set()
            raise TransferError(Reason.TRANSFER_FAILED, "aborted")

    with pytest.raises(TransferError, match="aborted"):
        leave()

    assert over == [1]


def test_a_process_that_has_no_more_threads_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)

    with pytest.raises(TransferError, match=r"raise pids\.max"), Stage("netloader-verify"):
        pass
