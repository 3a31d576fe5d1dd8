"""Pages populated ahead of what is received: there in time, and no byte is changed."""

import ctypes
import mmap
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from netloader.io import fill, populating
from netloader.io.memory import address_of, memory_of
from netloader.io.populating import AHEAD_BYTES, POPULATE_WRITE, STEP_BYTES, Populating
from netloader.io.store.module import ModuleStore
from netloader.testing.conformance.stores import WatchedStore
from tests.unit.io.helpers import (
    IDENTITY,
    MIB,
    SOON_S,
    asking,
    bytes_of,
    contents,
    eventually,
    module_of,
    random,
    sealed,
    serving,
)

PAGE = mmap.PAGESIZE
ADVICE_S = 15.0
"""A deadline only: two shared cores may be busy."""


def kernel_populates() -> bool:
    memory = mmap.mmap(-1, PAGE)
    advise = populating.system_madvise()
    return advise(address_of(memoryview(memory)), PAGE, POPULATE_WRITE) == 0


needs_linux_5_14 = pytest.mark.skipif(
    not kernel_populates(), reason="this kernel has no MADV_POPULATE_WRITE (Linux 5.14)"
)


def fresh(nbytes: int) -> Tensor:
    """Memory without pages."""
    return torch.frombuffer(
        mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8
    )


def resident(tensor: Tensor) -> float:
    """The share of a tensor's whole pages that are there (mincore(2))."""
    view = memory_of(tensor)
    begin = -(-address_of(view) // PAGE) * PAGE
    count = (address_of(view) + len(view) - begin) // PAGE
    there = (ctypes.c_ubyte * count)()
    call = ctypes.CDLL(None).mincore
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    assert call(begin, count * PAGE, there) == 0
    return sum(byte & 1 for byte in there) / count


def ended() -> bool:
    return not [t for t in threading.enumerate() if t.name == "netloader-populate"]


class Advised:
    """Stands for madvise(2): notes its calls, and answers as the kernel would."""

    def __init__(self, answer: int = 0, then: Callable[[], object] = lambda: None) -> None:
        self.calls: list[tuple[int, int]] = []
        self._answer = answer
        self._then = then

    def __call__(self, address: int, length: int, advice: int) -> int:
        assert advice == POPULATE_WRITE
        self.calls.append((address, address + length))
        self._then()
        return self._answer


def populated(*tensors: Tensor, advised: Advised | None = None) -> None:
    """Run it to its end for tensors of which nothing is received."""
    store = ModuleStore((str(i), tensor) for i, tensor in enumerate(tensors))
    work = Populating(store, lambda: 0, advised)
    work.begin()
    eventually(ended, ADVICE_S)
    work.end()


# -- what a client has of it ---------------------------------------------------------------------


@needs_linux_5_14
def test_a_clients_memory_is_there_before_the_first_byte_comes() -> None:
    source = module_of(w=random(40 * MIB, seed=1, dtype=torch.uint8))
    memory = fresh(40 * MIB)
    target = module_of(w=memory)
    assert resident(memory) == 0
    held = WatchedStore(ModuleStore.of(source))
    filled: list[bool] = []

    def work() -> None:
        filled.append(fill(target, [server.endpoint], IDENTITY, asking()).ok)

    with serving(held) as server:
        sealed(server)
        held.reading = type(held.reading)(1)
        client = threading.Thread(target=work)
        client.start()
        try:
            assert held.reading.reached.wait(SOON_S), "the server is about to read the first byte"
            eventually(lambda: resident(memory) == 1, ADVICE_S)
            assert not memory.any()
        finally:
            held.release()
            client.join(ADVICE_S)

    assert filled == [True]
    assert contents(target) == contents(source)
    assert ended()


@needs_linux_5_14
def test_no_byte_changes() -> None:
    memory = fresh(24 * MIB)
    memory[:: 3 * PAGE] = 7
    memory[5 * MIB : 6 * MIB] = random(MIB, seed=1, dtype=torch.uint8)
    before = bytes_of(memory)

    populated(memory)

    assert resident(memory) == 1
    assert bytes_of(memory) == before


@pytest.mark.parametrize("answer", [-1, 0])
def test_a_kernel_that_cannot_do_it_is_asked_once_and_the_fill_goes_on(
    monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    source = module_of(w=random(40 * MIB, seed=1, dtype=torch.uint8))
    target = module_of(w=fresh(40 * MIB))
    advised = Advised(answer)
    monkeypatch.setattr(populating, "system_madvise", lambda: advised)
    with serving(source) as server:
        assert fill(target, [sealed(server).endpoint], IDENTITY, asking()).ok

    assert contents(target) == contents(source)
    assert len(advised.calls) <= (1 if answer else 3)
    assert ended()


def test_a_system_without_threads_is_filled_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    work = Populating(ModuleStore([("w", fresh(STEP_BYTES))]), lambda: 0, Advised())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    work.begin()
    work.end()


# -- what is populated ---------------------------------------------------------------------------


def test_only_whole_pages_of_the_tensors_are_populated() -> None:
    memory = fresh(32 * MIB)
    one, none, other = memory[100 : 9 * MIB + 7], memory[:0], memory[15 * MIB + 1 : 25 * MIB - 1]
    advised = Advised()

    populated(one, none, other, advised=advised)

    begin = memory.data_ptr()
    assert advised.calls == [
        (begin + PAGE, begin + 9 * MIB),
        (begin + 15 * MIB + PAGE, begin + 25 * MIB - PAGE),
    ]


def test_neighbours_are_populated_with_one_call() -> None:
    memory = fresh(40 * MIB)
    step = 50_000
    parts = [memory[start : start + step - 64] for start in range(0, 20 * MIB, step)]
    advised = Advised()

    populated(*parts, advised=advised)

    assert len(advised.calls) == 2
    begin, end = memory.data_ptr(), parts[-1].data_ptr() + len(parts[-1])
    assert advised.calls[0][0] == begin
    assert advised.calls[1][1] == end // PAGE * PAGE
    assert all(end - begin <= STEP_BYTES + PAGE for begin, end in advised.calls)


def test_files_and_tiny_tensors_are_left_alone(tmp_path: Path) -> None:
    np.zeros(STEP_BYTES, "u1").tofile(tmp_path / "weights")
    mapped = np.memmap(tmp_path / "weights", "u1", "r+")
    advised = Advised()

    populated(torch.from_numpy(mapped), advised=advised)
    populated(*fresh(STEP_BYTES).view(-1, PAGE), advised=advised)

    assert not advised.calls


# -- its bounds ----------------------------------------------------------------------------------


def test_it_keeps_a_bound_ahead_of_what_is_received() -> None:
    # Untouched memory: nothing is populated here, and nothing read.
    memory = fresh(AHEAD_BYTES + 20 * STEP_BYTES)
    store, received = ModuleStore([("w", memory)]), 0
    advised = Advised()
    work = Populating(store, lambda: received, advised)
    work.begin()
    most = (AHEAD_BYTES // STEP_BYTES) + 1
    eventually(lambda: len(advised.calls) >= most, ADVICE_S)
    received += 4 * STEP_BYTES
    eventually(lambda: len(advised.calls) >= most + 4, ADVICE_S)

    work.end()

    assert len(advised.calls) == most + 4
    assert ended()
    work.begin()
    assert ended()


def test_a_store_that_is_given_up_is_populated_no_further() -> None:
    store = ModuleStore([("w", fresh(10 * STEP_BYTES))])
    advised = Advised(then=store.give_up)
    work = Populating(store, lambda: 0, advised)
    work.begin()
    eventually(ended, ADVICE_S)

    assert len(advised.calls) == 1, "the next step found no memory, and raised nothing"
    work.end()


def test_memory_that_is_freed_meanwhile_is_populated_no_further() -> None:
    memory = torch.empty(10 * STEP_BYTES, dtype=torch.uint8)
    advised = Advised(then=lambda: memory.untyped_storage().resize_(0))
    populated(memory, advised=advised)

    assert len(advised.calls) == 1
