"""What is moved: tensors of some shapes, made in memory that nothing has touched yet."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from netloader.io.memory import memory_of

GIB: Final = 1 << 30
KIB: Final = 1 << 10
MIB: Final = 1 << 20
TENSORS: Final = 226
IDENTITY: Final = {"model": "bench/llama-1gib"}

LAYERS: Final = 28
HIDDEN: Final = 1024
INNER: Final = 4096
ELEMENT_BYTES: Final = 2  # bfloat16
SMALL_TENSORS: Final = 20_000
SMALL_ELEMENTS: Final = 25_600


class Llama(nn.Module):
    """The tensors of a small Llama, as vLLM keeps them; it computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_layer() for _ in range(LAYERS))
        self.norm = _weight(HIDDEN)
        used = sum(p.numel() for p in self.parameters())
        # The embedding takes what is left, as it does in small models with a large vocabulary.
        self.embed = _weight((GIB // ELEMENT_BYTES - used) // HIDDEN, HIDDEN)


def _layer() -> nn.ParameterDict:
    kv = HIDDEN // 4
    shapes = {
        "input_norm": (HIDDEN,),
        "q_proj": (HIDDEN, HIDDEN),
        "k_proj": (kv, HIDDEN),
        "v_proj": (kv, HIDDEN),
        "o_proj": (HIDDEN, HIDDEN),
        "post_norm": (HIDDEN,),
        "gate_up_proj": (2 * INNER, HIDDEN),
        "down_proj": (HIDDEN, INNER),
    }
    return nn.ParameterDict({name: _weight(*shape) for name, shape in shapes.items()})


class Many(nn.Module):
    """Tensors by the thousand, all of one size."""

    def __init__(self, count: int, elements: int) -> None:
        super().__init__()
        self.each = nn.ParameterList(_weight(elements) for _ in range(count))


def _weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=torch.bfloat16), requires_grad=False)


@dataclass(frozen=True, slots=True)
class Workload:
    """A model by name; `build` makes its tensors without touching their memory."""

    name: str
    title: str
    build: Callable[[], nn.Module]
    tensors: int
    nbytes: int


LARGE: Final = Workload("large", "1 GiB in 226 tensors", Llama, TENSORS, GIB)
SMALL: Final = Workload(
    "small",
    "20,000 tensors of 50 KB",
    lambda: Many(SMALL_TENSORS, SMALL_ELEMENTS),
    SMALL_TENSORS,
    SMALL_TENSORS * SMALL_ELEMENTS * ELEMENT_BYTES,
)
TINY: Final = Workload("tiny", "4 MiB in 8 tensors", lambda: Many(8, MIB // 4), 8, 4 * MIB)
"""For tests of the benchmarks themselves."""
WORKLOADS: Final = {workload.name: workload for workload in (LARGE, SMALL, TINY)}


def named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What travels, by name, in model order."""
    for name, parameter in model.named_parameters():
        yield name, parameter.detach()


def tensors_of(model: nn.Module) -> list[Tensor]:
    """What travels, in model order."""
    return [tensor for _, tensor in named(model)]


def views_of(model: nn.Module) -> list[memoryview]:
    """The memory of each tensor."""
    return [memory_of(tensor) for tensor in tensors_of(model)]


def scramble(model: nn.Module, seed: int) -> None:
    """Fill a model with random bytes, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors_of(model):
        tensor.view(torch.int64).random_(generator=generator)


def wipe(model: nn.Module) -> None:
    """Write zeros, so that every page is there and no old byte can pass for a new one."""
    for tensor in tensors_of(model):
        tensor.zero_()
