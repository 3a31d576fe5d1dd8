"""Every tensor that a model of vllm-ascend holds, found without netloader.

netloader has a walk of its own, `inventory.take`, which is under test here.
"""

import hashlib
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn

PLAIN: Final = ("Format.ND", "Format.NCHW", "Format.UNDEFINED")
OURS: Final = ("vllm.", "vllm_ascend.", "torch.nn.")
"""Packages whose objects hold weights in their attributes."""
NOT_WEIGHTS: Final = frozenset({"kv_cache", "vllm_config", "quant_config", "config"})
"""Attributes that an engine binds, or that are settings."""


def held_by(model: nn.Module) -> dict[str, str]:
    """Description and digest of every tensor of a model, by path."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    found = dict(named)
    seen: set[int] = {id(tensor) for tensor in found.values()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in NOT_WEIGHTS and not name.startswith("_"):
                found.update(_within(f"{path}.{name}", value, seen, 4))
    return {path: described(tensor) for path, tensor in sorted(found.items())}


def _within(path: str, value: Any, seen: set[int], depth: int) -> Iterator[tuple[str, Tensor]]:
    """Tensors in an attribute: in containers, and in objects of vLLM."""
    if id(value) in seen or depth == 0 or isinstance(value, nn.Module):
        return
    if isinstance(value, Tensor):
        seen.add(id(value))
        yield path, value
    elif isinstance(value, dict):
        seen.add(id(value))
        for key, item in value.items():
            yield from _within(f"{path}[{key!r}]", item, seen, depth - 1)
    elif isinstance(value, (list, tuple)):
        seen.add(id(value))
        for number, item in enumerate(value):
            yield from _within(f"{path}[{number}]", item, seen, depth - 1)
    elif type(value).__module__.startswith(OURS) and hasattr(value, "__dict__"):
        seen.add(id(value))
        for name, item in vars(value).items():
            if name not in NOT_WEIGHTS:
                yield from _within(f"{path}.{name}", item, seen, depth - 1)


def described(tensor: Tensor) -> str:
    """Dtype, shape, storage format and a digest of the values: equal texts, equal tensors."""
    text = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
    if tensor.is_meta:
        return f"{text} meta"
    plain = tensor.detach()
    if tensor.device.type == "npu":
        import torch_npu

        form = str(torch_npu.get_npu_format(tensor))
        text += f" {form}"
        if form not in PLAIN:
            plain = torch_npu.npu_format_cast(plain, torch_npu.Format.ND)
    data = plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{text} {hashlib.sha256(data).hexdigest()[:16]}"
