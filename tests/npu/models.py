"""Models for the NPU tests, and what is in them. A seed and a name give the same bytes."""

from collections.abc import Callable
from functools import cache
from typing import Final

import torch
from blake3 import blake3
from torch import Tensor, nn

from netloader.io.memory import memory_of
from tests.npu.simulator import torch_npu

MIB: Final = 1 << 20
FRACTAL_NZ: Final = 29
DTYPES: Final = (
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
"""What weights are made of; bool is there too, but not every byte is one."""


@cache
def _noise() -> Tensor:
    """Not made at import: work of torch starts threads, and who is forked would wait for them."""
    source = torch.Generator().manual_seed(7)
    return torch.randint(256, (16 * MIB,), dtype=torch.uint8, generator=source)


def noise(seed: int, *shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Any bytes, also those of odd numbers and NaNs, as a CPU tensor."""
    count = torch.Size(shape).numel() * dtype.itemsize
    start = seed * 7919 % (len(_noise()) - count)
    return _noise()[start : start + count].add(seed % 251).view(dtype).view(shape)


def every_kind(seed: int, device: torch.device) -> nn.Module:
    """A module with a tensor of each dtype and of each shape that is a special case."""
    module = nn.Module()

    def add(name: str, tensor: Tensor) -> None:
        module.register_buffer(name, tensor)

    for number, dtype in enumerate(DTYPES):
        values = noise(seed + number, 37, 29, dtype=dtype)
        add(f"of_{str(dtype).removeprefix('torch.')}", values.to(device))
    add("of_bool", (noise(seed, 33) > 127).to(device))
    add("scalar", noise(seed, dtype=torch.float32).to(device))
    add("empty", torch.empty(0, 5, device=device))
    add("odd", noise(seed, 13).to(device))
    add("transposed", noise(seed, 30, 50, dtype=torch.bfloat16).to(device).t())
    add("holes", noise(seed, 64, 64, dtype=torch.float16).to(device)[:, ::2])
    add("larger_than_a_segment", noise(seed, 5 * MIB + 3).to(device))
    weight = nn.Parameter(noise(seed, 300, 40, dtype=torch.int16).to(device), requires_grad=False)
    module.register_parameter("embedding", weight)
    module.register_parameter("head", weight)
    add("a_part_of_it", weight[100:200])
    return module


def plain(seed: int, device: torch.device) -> nn.Module:
    """24 MiB in tensors of some sizes: in place, packed, and one larger than a segment."""
    module = nn.Module()
    sizes = [6 * MIB, 6 * MIB, 4 * MIB, *[2 * MIB] * 3, *[64 << 10] * 28, *[256] * 64]
    for number, size in enumerate(sizes):
        module.register_buffer(f"t{number}", noise(seed + number, size).to(device))
    return module


def large(seed: int, device: torch.device) -> nn.Module:
    """192 MiB: long enough for something to happen in the middle."""
    module = nn.Module()
    for number in range(24):
        module.register_buffer(f"t{number}", noise(seed + number, 8 * MIB).to(device))
    return module


def crumbs(seed: int, device: torch.device) -> nn.Module:
    """10,000 small tensors, of 50 bytes to 12 KiB: 60 MiB in all."""
    module = nn.Module()
    for number in range(10_000):
        module.register_buffer(f"t{number}", noise(seed + number, 50 + number * 7919 % 12_000))
    return module.to(device)


def in_fractal_nz(matrix: Tensor) -> Tensor:
    """A copy as the matrix units like it, which torch_npu makes only where it may."""
    torch_npu.npu.config.allow_internal_format = True  # as vllm-ascend
    cast: Tensor = torch_npu.npu_format_cast(matrix, FRACTAL_NZ)
    assert int(torch_npu.get_npu_format(cast)) == FRACTAL_NZ
    return cast


def fractal(seed: int, device: torch.device) -> nn.Module:
    """Matrices as the kernels of an NPU like them: permuted and padded, beside plain ones."""
    module = nn.Module()
    for number, (rows, columns) in enumerate([(64, 96), (33, 45), (1, 16), (1030, 700)]):
        for dtype in (torch.bfloat16, torch.float16, torch.int8):
            matrix = noise(seed + number, rows, columns, dtype=dtype).to(device)
            name = f"{str(dtype).removeprefix('torch.')}_{number}"
            module.register_buffer(name, in_fractal_nz(matrix))
    module.register_buffer("plain", noise(seed, 1000).to(device))
    return module


def fractal_packed(seed: int, device: torch.device) -> nn.Module:
    """Layers and experts of a W4A8 model: int8 in FRACTAL_NZ that looks like int32."""
    module = nn.Module()
    for number, shape in enumerate([(64, 96), (4, 32, 64)]):
        matrix = noise(seed + number, *shape, dtype=torch.int8).to(device)
        module.register_buffer(f"packed_{number}", packed(matrix))
    return module


def packed(matrix: Tensor) -> Tensor:
    """Four of int8 as one of int32, as vllm-ascend packs the weights of W4A8 after the cast."""
    return in_fractal_nz(matrix).view(torch.int32).contiguous()


def unpacked(tensor: Tensor) -> Tensor:
    """What torch_npu can bring to the host: it knows nothing of int8 that was packed."""
    if tensor.device.type == "npu" and tensor.dtype == torch.int32:
        packs = int(torch_npu.get_npu_format(tensor)) == FRACTAL_NZ
        return tensor.view(torch.int8) if packs else tensor
    return tensor


def few_and_large(seed: int, device: torch.device) -> nn.Module:
    """Tensors larger than all that may be under way at once."""
    module = nn.Module()
    for number in range(2):
        module.register_buffer(f"t{number}", noise(seed + number, 12 * MIB).repeat(8).to(device))
    return module


def both_devices(seed: int, device: torch.device) -> nn.Module:
    """As `few_and_large`, with a tensor that stays in the memory of the host."""
    module = few_and_large(seed, device)
    module.register_buffer("t0", module.get_buffer("t0").cpu())
    return module


def few_fractal(seed: int, device: torch.device) -> nn.Module:
    """As `few_and_large`, in FRACTAL_NZ."""
    module = nn.Module()
    matrix = noise(seed, 12 * MIB).repeat(8).view(torch.int8).view(8 * 1024, -1)
    module.register_buffer("t0", in_fractal_nz(matrix.to(device)))
    return module


MODELS: Final[dict[str, Callable[[int, torch.device], nn.Module]]] = {
    function.__name__: function
    for function in (
        every_kind,
        plain,
        large,
        crumbs,
        fractal,
        fractal_packed,
        few_and_large,
        both_devices,
        few_fractal,
    )
}


def digest(module: nn.Module) -> str:
    """One word for all elements in order, fetched tensor by tensor."""
    total = blake3()
    for tensor in (*module.parameters(), *module.buffers()):
        elements = unpacked(tensor.detach()).cpu().contiguous()
        if elements.numel():
            total.update(memory_of(elements))
    return total.hexdigest()
