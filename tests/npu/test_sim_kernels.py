"""The simulated kernels under the real torch_npu.

What a kernel gives is what torch gives on the CPU, bit for bit; what is not simulated says its
name and ends the process.
"""

import ctypes
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ascend_sim.probe import run
from tests.npu.ranks import Rank, World, noise, ranks, same_bytes
from tests.npu.simulator import torch_npu

NUMBERS = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip
FORMAT_ND, FORMAT_FRACTAL_NZ = 2, 29
NEW_CANN = "9.1.0"
"""From here on torch_npu casts formats with aclnnNpuFormatCast, before with an aclop operator."""
CASTS_THE_NEW_WAY = not torch_npu.__version__.startswith("2.10.")
"""torch_npu 2.10 casts with the older operator on A2, whatever CANN has."""


def values() -> torch.Tensor:
    """Numbers that every type can hold, and some that need rounding in the narrow ones."""
    plain = torch.arange(0, 120, dtype=torch.float64)
    return torch.cat([plain, plain / 7, torch.tensor([0.0, 1.0, 0.5, 1 / 3])])


def cast_all(world: World) -> list[str]:
    return [
        f"{source} to {target}"
        for source in NUMBERS
        for target in NUMBERS[:-1]  # torch_npu makes float32 of what is cast to float64
        if not same_bytes(
            values().to(source).to("npu").to(target).cpu(), values().to(source).to(target)
        )
    ]


def round_floats(world: World) -> list[str]:
    """Half ways, subnormal numbers, overflow, both signs."""
    exact = torch.tensor(
        [2049.0, 2051.0, 65519.9, 65520.0, 1e9, 6e-8, 2.9e-8, 6.1e-5, 5.96e-8, 0.1, 1.00390625]
    )
    told = torch.cat([exact, -exact, torch.randn(5000, generator=torch.Generator().manual_seed(1))])
    return [
        str(target)
        for target in (torch.float16, torch.bfloat16)
        if not same_bytes(told.to("npu").to(target).cpu(), told.to(target))
    ]


def views(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Transposed, sliced, and repeated."""
    return [tensor.transpose(0, 2), tensor[1:, ::2, 3:], tensor[:, :1].expand(4, 6, 10)]


def strides(world: World) -> list[str]:
    wrong = []
    for dtype in (*NUMBERS, torch.float8_e4m3fn, torch.complex64):
        told = noise(dtype, 4 * 6 * 10, 3).reshape(4, 6, 10)
        there = told.to("npu")
        for mine, expected in zip(views(there), views(told), strict=True):
            if not same_bytes(mine.contiguous().cpu(), expected.contiguous()):
                wrong.append(f"{dtype} {mine.shape} {mine.stride()}")
        written, expected = torch.zeros_like(told).to("npu"), torch.zeros_like(told)
        written[:, ::3].copy_(there[:, ::3])
        expected[:, ::3].copy_(told[:, ::3])
        if not same_bytes(written.cpu(), expected):
            wrong.append(f"{dtype} written through a slice")
    return wrong


def fill(world: World) -> list[str]:
    wrong = []
    for dtype in NUMBERS:
        ones = torch.ones(5, dtype=dtype, device="npu").cpu()
        full = torch.full((5,), 3, dtype=dtype, device="npu")
        if not torch.equal(ones, torch.ones(5, dtype=dtype)):
            wrong.append(f"ones of {dtype}")
        if not torch.equal(full.cpu(), torch.full((5,), 3, dtype=dtype)):
            wrong.append(f"full of {dtype}")
        if full.zero_().cpu().any():
            wrong.append(f"zero_ of {dtype}")
    return wrong


def compare(world: World) -> list[bool]:
    a = values().to("npu")
    b = a.clone()
    same = torch.equal(a, b)
    b[7] = 99.0
    nan = torch.full((2,), float("nan"), device="npu")
    return [same, torch.equal(a, b), torch.equal(nan, nan.clone())]


@pytest.fixture
def rank() -> Any:
    with ranks(1) as (one,):
        yield one


def test_kernels_give_what_torch_gives_on_the_cpu(rank: Rank) -> None:
    assert rank.takes(cast_all) == []
    assert rank.takes(round_floats) == []
    assert rank.takes(strides) == []
    assert rank.takes(fill) == []
    assert rank.takes(compare) == [True, False, False]


def add(world: World, log: str) -> None:
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    x = torch.ones(3, device="npu")
    (x + x).cpu()


def cast_to_eight_bits(world: World) -> None:
    torch.ones(3, device="npu").to(torch.float8_e4m3fn).cpu()


def test_a_kernel_that_is_not_simulated_ends_the_process(rank: Rank, tmp_path: Path) -> None:
    rank.begin(add, str(tmp_path / "log"))
    rank.process.join(30)
    assert rank.process.exitcode == -signal.SIGABRT
    assert "Add (aclop) is not simulated" in (tmp_path / "log").read_text()


def test_a_cast_that_the_device_cannot_do_is_refused(rank: Rank) -> None:
    rank.begin(cast_to_eight_bits)
    rank.failure()


def fractals(plain: torch.Tensor, width: int) -> torch.Tensor:
    """FRACTAL_NZ of a tensor, by torch's own reshaping."""
    *batches, rows, columns = plain.shape
    down, across = -(-rows // 16), -(-columns // width)
    padded = torch.zeros(*batches, down * 16, across * width, dtype=plain.dtype)
    padded[..., :rows, :columns] = plain
    cut = padded.reshape(*batches, down, 16, across, width)
    return cut.movedim(-2, -4).contiguous()


def formats(world: World | None) -> list[str]:
    """What is wrong with tensors of many types and shapes in FRACTAL_NZ."""
    torch_npu.npu.config.allow_internal_format = True
    wrong = []
    for dtype in (torch.bfloat16, torch.float16, torch.int8, torch.float32, torch.int32):
        for shape in ((32, 64), (20, 35), (3, 17, 33), (1, 1)):
            wrong += [f"{dtype} {shape}: {what}" for what in wrong_with(dtype, shape)]
    return wrong


def wrong_with(dtype: torch.dtype, shape: tuple[int, ...]) -> list[str]:
    plain = noise(dtype, int(torch.tensor(shape).prod()), 5).reshape(shape)
    cast = torch_npu.npu_format_cast(plain.to("npu"), FORMAT_FRACTAL_NZ)
    empty = torch.empty_like(plain)
    torch_npu.npu.synchronize()
    expected = fractals(plain, 32 if plain.element_size() == 1 else 16)
    stored = ctypes.string_at(cast.data_ptr(), expected.nbytes)  # device memory is host memory
    into_plain = empty.to("npu").copy_(cast)
    into_fractals = torch_npu.npu_format_cast(empty.to("npu"), FORMAT_FRACTAL_NZ)
    checks = {
        "format": int(torch_npu.get_npu_format(cast)) == FORMAT_FRACTAL_NZ,
        "size of the storage": cast.untyped_storage().size() >= expected.nbytes,
        "bytes in the storage": stored == bytes(expected.view(torch.uint8).flatten().tolist()),
        "cast back": same_bytes(torch_npu.npu_format_cast(cast, FORMAT_ND).cpu(), plain),
        "read by the host": same_bytes(cast.cpu(), plain),
        "copied to a plain one": same_bytes(into_plain.cpu(), plain),
        "copied from a plain one": same_bytes(into_fractals.copy_(plain.to("npu")).cpu(), plain),
        "copied from its like": same_bytes(into_fractals.copy_(cast).cpu(), plain),
    }
    return [what for what, right in checks.items() if not right]


def test_fractal_nz_is_stored_permuted_and_copied_back_the_same(rank: Rank) -> None:
    assert rank.takes(formats) == []


def test_fractal_nz_on_a_new_cann() -> None:
    ran = run(
        """
        from tests.npu.test_sim_kernels import formats
        print(formats(None))
        """,
        SIM_CANN_VERSION=NEW_CANN,
    )
    assert ran.said[-1:] == ["[]"], ran.errors
    assert any("aclnnNpuFormatCast" in line for line in ran.trace) is CASTS_THE_NEW_WAY


def cast_whole_numbers(world: World) -> None:
    torch_npu.npu.config.allow_internal_format = True
    torch_npu.npu_format_cast(torch.zeros(16, 16, dtype=torch.int64).to("npu"), FORMAT_FRACTAL_NZ)


def test_a_type_that_fractals_do_not_hold_ends_the_process(rank: Rank) -> None:
    rank.begin(cast_whole_numbers)
    rank.process.join(30)
    assert rank.process.exitcode == -signal.SIGABRT
