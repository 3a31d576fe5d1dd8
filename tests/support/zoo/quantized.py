"""Llama checkpoints with quantized linear layers, as tools write them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.support.zoo.checkpoint import Config, Recipe
from tests.support.zoo.dense import llama

GROUP = 64
"""Values that share a scale, in formats of four bits."""

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

Quantize = Callable[[Tensor], dict[str, Tensor]]
"""A float32 weight [N, K] of a linear layer to what a checkpoint holds in its place."""


def apply(recipe: Recipe, seed: int, dtype: torch.dtype, quantize: Quantize) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose linear layers went through `quantize`."""
    found: dict[str, Tensor] = {}
    for name, tensor in recipe.tensors(seed, dtype).items():
        if name.endswith("_proj.weight"):
            layer = name.removesuffix("weight")
            found |= {layer + part: value for part, value in quantize(tensor.float()).items()}
        else:
            found[name] = tensor
    return found


def _compressed(form: str, weights: Config, activations: Config | None) -> Config:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


def _int(bits: int, strategy: str, symmetric: bool = True, **more: Any) -> Config:
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": strategy,
        "dynamic": False,
        **more,
    }


TOKEN = _int(8, "token", dynamic=True)


def _w8(weight: Tensor, per_row: bool, more: dict[str, Tensor]) -> dict[str, Tensor]:
    largest = weight.abs().amax(1, keepdim=True) if per_row else weight.abs().max().view(1)
    scale = largest / 127
    return {"weight": (weight / scale).round().to(torch.int8), "weight_scale": scale, **more}


def _fp8(weight: Tensor) -> dict[str, Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 448
    return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


def _nibbles(values: Tensor, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Eight values of four bits in an int32, along the last dimension, low bits first."""
    grouped = values.to(torch.int64).reshape(*values.shape[:-1], -1, 8)[..., list(order)]
    packed = (grouped << (torch.arange(8) * 4)).sum(-1)
    return packed.where(packed < 2**31, packed - 2**32).to(torch.int32)


def _grouped(weight: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Values 0 to 15 [N, K], scales and zero points [N, K / GROUP]."""
    groups = weight.reshape(len(weight), -1, GROUP)
    if symmetric:
        scale = groups.abs().amax(-1) / 7
        zero = torch.full_like(scale, 8)
    else:
        low, high = groups.amin(-1), groups.amax(-1)
        scale = (high - low) / 15
        zero = (-low / scale).round().clamp(0, 15)
    values = (groups / scale.unsqueeze(-1)).round() + zero.unsqueeze(-1)
    return values.clamp(0, 15).flatten(1), scale, zero


def _w4(weight: Tensor, symmetric: bool) -> dict[str, Tensor]:
    values, scale, zero = _grouped(weight, symmetric)
    parts = {
        "weight_packed": _nibbles(values),
        "weight_scale": scale.to(torch.bfloat16),
        "weight_shape": torch.tensor(weight.shape),
    }
    return parts if symmetric else {**parts, "weight_zero_point": _nibbles(zero.t()).t()}


def _gptq(weight: Tensor) -> dict[str, Tensor]:
    values, scale, zero = _grouped(weight, symmetric=True)
    return {
        "qweight": _nibbles(values).t(),
        "qzeros": _nibbles(zero.t() - 1),
        "scales": scale.t().to(torch.bfloat16),
        "g_idx": (torch.arange(weight.shape[1]) // GROUP).to(torch.int32),
    }


def _awq(weight: Tensor) -> dict[str, Tensor]:
    values, scale, zero = _grouped(weight, symmetric=False)
    return {
        "qweight": _nibbles(values.t(), AWQ_ORDER),
        "qzeros": _nibbles(zero.t(), AWQ_ORDER),
        "scales": scale.t().to(torch.float16),
    }


def _static(symmetric: bool) -> tuple[Config, dict[str, Tensor]]:
    extra = {"input_scale": torch.tensor([0.02])}
    if not symmetric:
        extra["input_zero_point"] = torch.tensor([3], dtype=torch.int8)
    return _int(8, "tensor", symmetric), extra


def _w8a8(strategy: str, activations: Config, more: dict[str, Tensor]) -> tuple[Config, Quantize]:
    scheme = _compressed("int-quantized", _int(8, strategy), activations)
    return scheme, partial(_w8, per_row=strategy == "channel", more=more)


def _w4a16(symmetric: bool) -> tuple[Config, Quantize]:
    weights = _int(4, "group", symmetric, group_size=GROUP)
    return _compressed("pack-quantized", weights, None), partial(_w4, symmetric=symmetric)


def _fp8_scheme() -> Config:
    kind = {"num_bits": 8, "type": "float", "symmetric": True}
    weights = {**kind, "strategy": "channel", "dynamic": False}
    return _compressed("float-quantized", weights, {**kind, "strategy": "token", "dynamic": True})


FOUR_BITS = {"bits": 4, "group_size": GROUP}

SCHEMES: dict[str, tuple[Config, Quantize]] = {
    "w8a8": _w8a8("channel", TOKEN, {}),
    "w8a8-tensor": _w8a8("tensor", TOKEN, {}),
    "w8a8-static": _w8a8("channel", *_static(symmetric=True)),
    "w8a8-asymmetric": _w8a8("channel", *_static(symmetric=False)),
    "fp8": (_fp8_scheme(), _fp8),
    "w4a16": _w4a16(symmetric=True),
    "w4a16-asymmetric": _w4a16(symmetric=False),
    "gptq": (
        {**FOUR_BITS, "quant_method": "gptq", "desc_act": False, "sym": True,
         "checkpoint_format": "gptq"},
        _gptq,
    ),
    "awq": ({**FOUR_BITS, "quant_method": "awq", "zero_point": True, "version": "gemm"}, _awq),
}  # fmt: skip
"""quantization_config, and what happens to each linear layer."""


def quantized_llama(scheme: str, dtype: str = "bfloat16") -> tuple[Config, dict[str, Tensor]]:
    """config.json and tensors of a Llama quantized by one of SCHEMES."""
    settings, quantize = SCHEMES[scheme]
    recipe = llama(quantization_config=settings, torch_dtype=dtype)
    return recipe.config, apply(recipe, 1, getattr(torch, dtype), quantize)
