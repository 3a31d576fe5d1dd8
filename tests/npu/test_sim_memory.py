"""Device memory on the simulated runtime, under the real torch_npu."""

import ctypes
import threading
from pathlib import Path
from typing import Final

import pytest
import torch

from tests.ascend_sim.probe import (
    NO_DEVICE_IN_THREAD,
    OUT_OF_MEMORY,
    PARAMETER_REFUSED,
    PATIENCE,
    POISON,
    npu,
    run,
    runtime,
)
from tests.npu.models import DTYPES

WEIGHT_DTYPES: Final = (*DTYPES, torch.bool)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES, ids=str)
def test_every_dtype_comes_back_as_it_went(dtype: torch.dtype) -> None:
    count = 1001
    there = torch.randint(0, 2 if dtype is torch.bool else 256, (count * dtype.itemsize,))
    there = there.to(torch.uint8).view(dtype)
    on_device = there.to("npu")
    again = torch.empty_like(on_device).copy_(on_device).cpu()
    assert on_device.device.type == "npu"
    assert bytes(again.view(torch.uint8).numpy()) == bytes(there.view(torch.uint8).numpy())


@pytest.mark.parametrize("size", [64, 3 << 20, 100 << 20])
def test_fresh_memory_is_poisoned_everywhere(size: int) -> None:
    npu.empty_cache()
    fresh = torch.empty(size, dtype=torch.uint8, device="npu").cpu()
    assert bool((fresh == POISON).all())


def test_free_memory_is_what_was_not_allocated() -> None:
    npu.empty_cache()
    before, total = npu.mem_get_info()
    block = torch.empty(32 << 20, dtype=torch.uint8, device="npu")
    during, _ = npu.mem_get_info()
    del block
    npu.empty_cache()
    assert total == 64 << 30
    assert before - during >= 32 << 20
    assert npu.mem_get_info() == (before, total)


def test_every_device_has_memory_of_its_own() -> None:
    npu.empty_cache()
    before = npu.mem_get_info(0), npu.mem_get_info(1)
    block = torch.empty(32 << 20, dtype=torch.uint8, device="npu:1")
    assert npu.mem_get_info(0) == before[0]
    assert npu.mem_get_info(1)[0] < before[1][0]
    del block
    npu.empty_cache()


def test_freed_memory_goes_back_to_the_host() -> None:
    def mapped() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * 4096

    npu.empty_cache()
    before = mapped()
    block = torch.empty(1 << 30, dtype=torch.uint8, device="npu")
    assert mapped() - before >= 1 << 30
    del block
    npu.empty_cache()
    assert mapped() - before < 64 << 20


def test_what_does_not_fit_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    npu.empty_cache()
    free, total = npu.mem_get_info()
    monkeypatch.setenv("SIM_HBM_BYTES", str(total - free + (64 << 20)))
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(65 << 20, dtype=torch.uint8, device="npu")
    fits = torch.empty(40 << 20, dtype=torch.uint8, device="npu")
    assert npu.mem_get_info()[0] <= 24 << 20
    del fits
    npu.empty_cache()


def test_bytes_can_be_counted_without_being_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    def account(count: int) -> int:
        return int(runtime.sim_account(0, ctypes.c_int64(count)))

    free, total = npu.mem_get_info()
    assert account(1 << 30) == 0
    try:
        assert npu.mem_get_info()[0] == free - (1 << 30)
        monkeypatch.setenv("SIM_HBM_BYTES", str(total - free + (1 << 30)))
        assert account(1) == OUT_OF_MEMORY
        assert npu.mem_get_info()[0] == 0
    finally:
        assert account(-(1 << 30)) == 0
    assert npu.mem_get_info()[0] == 1 << 30


def test_a_copy_beyond_its_block_is_refused_before_a_byte_moves() -> None:
    room = torch.zeros(64, dtype=torch.uint8).pin_memory()
    block = ctypes.c_void_p()
    assert runtime.aclrtMalloc(ctypes.byref(block), ctypes.c_size_t(32), 0) == 0
    size = ctypes.c_size_t(64)
    target = ctypes.c_void_p(room.data_ptr())
    assert runtime.aclrtMemcpy(block, size, target, size, 1) == PARAMETER_REFUSED
    assert ctypes.string_at(block.value or 0, 32) == bytes([POISON]) * 32
    assert runtime.aclrtFree(block) == 0
    assert runtime.aclrtFree(block) == PARAMETER_REFUSED


def test_expandable_segments_grow_and_shrink() -> None:
    ran = run(
        """
        import torch, torch_npu
        free = torch.npu.mem_get_info()[0]
        tensors = [torch.full((9 << 20,), i, dtype=torch.uint8).to("npu") for i in range(8)]
        assert free - torch.npu.mem_get_info()[0] >= 72 << 20
        assert all(bool((t.cpu() == i).all()) for i, t in enumerate(tensors))
        del tensors
        torch.npu.empty_cache()
        assert torch.npu.mem_get_info()[0] == free
        """,
        PYTORCH_NPU_ALLOC_CONF="expandable_segments:True",
    )
    assert ran.code == 0, ran.errors
    assert any(" aclrtMapMem " in line for line in ran.trace)


def test_the_current_device_belongs_to_the_thread() -> None:
    npu.set_device(1)
    seen: list[int] = []

    def in_a_new_thread() -> None:
        device = ctypes.c_int32(-1)
        seen.append(runtime.aclrtGetDevice(ctypes.byref(device)))
        seen.append(npu.current_device())

    thread = threading.Thread(target=in_a_new_thread)
    thread.start()
    thread.join(PATIENCE)
    assert seen == [NO_DEVICE_IN_THREAD, 0]
    assert npu.current_device() == 1


def test_two_devices_hold_and_exchange_tensors() -> None:
    zero = torch.arange(1000).to("npu:0")
    one = zero.to("npu:1")
    assert (zero.device.index, one.device.index) == (0, 1)
    assert torch.equal(one.cpu(), torch.arange(1000))
    assert runtime.sim_memory_device(ctypes.c_void_p(zero.data_ptr())) == 0
    assert runtime.sim_memory_device(ctypes.c_void_p(one.data_ptr())) == 1


def test_the_number_of_devices_is_a_knob() -> None:
    for count in (0, 3):
        ran = run(
            f"import torch, torch_npu; assert torch.npu.device_count() == {count}",
            SIM_NPU_COUNT=str(count),
        )
        assert ran.code == 0, ran.errors
