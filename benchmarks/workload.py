"""One GiB in 226 tensors, shaped like a Llama: a huge one, many of some MiB, many tiny norms."""

import time
from collections.abc import Callable
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


def _weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=torch.bfloat16), requires_grad=False)


def tensors_of(model: nn.Module) -> list[Tensor]:
    """What travels, in model order."""
    tensors = [p.detach() for p in model.parameters()]
    assert len(tensors) == TENSORS
    assert sum(t.numel() * t.element_size() for t in tensors) == GIB
    return tensors


def scramble(model: nn.Module, seed: int) -> None:
    """Fill a model with random bytes, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors_of(model):
        tensor.view(torch.int64).random_(generator=generator)


def wipe(model: nn.Module) -> None:
    """Write zeros, so that every page is there and no old byte can pass for a new one."""
    for tensor in tensors_of(model):
        tensor.zero_()


def block() -> memoryview:
    """One GiB of touched memory."""
    return memory_of(torch.zeros(GIB, dtype=torch.uint8))


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
