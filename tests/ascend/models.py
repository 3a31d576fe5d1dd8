"""Tiny models as users of vllm-ascend have them: plain ones, and such that ModelSlim quantized.

ModelSlim writes the quantized tensors under names of its own and, beside them, one file that says
for each tensor how it is quantized: `quant_model_description.json`. A client without weights needs
that file and config.json.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tests.support.zoo.checkpoint import HEADS, HIDDEN, INNER, VOCABULARY, Recipe, write
from tests.support.zoo.dense import llama
from tests.support.zoo.experts import deepseek_v2, deepseek_v3, deepseek_v3_mtp, qwen3_moe

DESCRIPTION = "quant_model_description.json"
FLOAT, STATIC, DYNAMIC, FOUR_BITS = "FLOAT", "W8A8", "W8A8_DYNAMIC", "W4A8_DYNAMIC"

Quantized = Mapping[str, Tensor]


class Folders(NamedTuple):
    """A model with its weights, and what a client has of it."""

    full: Path
    bare: Path


def _scales(rows: int, chance: torch.Generator) -> Quantized:
    scale = torch.rand(rows, 1, generator=chance) * 0.01 + 0.001
    return {
        "weight_scale": scale.to(torch.bfloat16),
        "weight_offset": torch.zeros(rows, 1, dtype=torch.bfloat16),
    }


def _int8(shape: tuple[int, ...], chance: torch.Generator) -> Tensor:
    return torch.randint(-127, 128, shape, generator=chance, dtype=torch.int8)


def _dynamic(shape: tuple[int, ...], chance: torch.Generator) -> Quantized:
    return {"weight": _int8(shape, chance), **_scales(shape[0], chance)}


def _static(shape: tuple[int, ...], chance: torch.Generator) -> Quantized:
    rows = shape[0]
    scale = torch.rand(1, generator=chance) * 0.1 + 0.01
    return {
        **_dynamic(shape, chance),
        "input_scale": scale.to(torch.bfloat16),
        "input_offset": torch.randint(-5, 5, (1,), generator=chance).to(torch.bfloat16),
        "quant_bias": torch.randint(-1000, 1000, (rows,), generator=chance, dtype=torch.int32),
        "deq_scale": torch.rand(rows, generator=chance) * 0.001,
    }


def _four_bits(shape: tuple[int, ...], chance: torch.Generator) -> Quantized:
    """Two values in a byte, along the rows; one scale for each row."""
    rows, columns = shape
    biases = 16 if rows > columns else 1  # down_proj has as many as ranks may share it
    return {
        "weight": _int8((rows // 2, columns), chance),
        "weight_scale": torch.rand(rows, 1, generator=chance) * 0.01 + 0.001,
        "weight_offset": torch.zeros(rows, 1),
        "scale_bias": torch.rand(rows, biases, generator=chance),
    }


WRITERS: Mapping[str, Callable[[tuple[int, ...], torch.Generator], Quantized]] = {
    STATIC: _static,
    DYNAMIC: _dynamic,
    FOUR_BITS: _four_bits,
}

Choose = Callable[[str], str]
"""From the name of a weight to how it is quantized."""


def attention_static(name: str) -> str:
    """As ModelSlim does by default: attention static, the rest of the layers dynamic."""
    if not name.endswith("_proj.weight"):
        return FLOAT
    return STATIC if "self_attn" in name else DYNAMIC


def attention_dynamic(name: str) -> str:
    """Everything dynamic; `kv_b_proj` stays, since MLA takes it apart."""
    linear = name.endswith(("_proj.weight", "_mqa.weight")) and "kv_b_proj" not in name
    return DYNAMIC if linear else FLOAT


def experts_of_four_bits(name: str) -> str:
    """W4A8: experts of four bits, attention of eight."""
    return FOUR_BITS if ".experts." in name and "shared" not in name else attention_dynamic(name)


def quantized(recipe: Recipe, choose: Choose, folders: Folders) -> Folders:
    """Write what ModelSlim would."""
    chance = torch.Generator().manual_seed(5)
    tensors: dict[str, Tensor] = {}
    words: dict[str, object] = {"model_quant_type": "W8A8", "version": "1.0.0", "group_size": 0}
    for name, tensor in recipe.tensors(1, torch.bfloat16).items():
        kind = choose(name)
        parts = {"weight": tensor}
        if kind != FLOAT:
            parts = dict(WRITERS[kind](tuple(tensor.shape), chance))
            tensors |= {name.removesuffix("weight") + key: part for key, part in parts.items()}
            words |= {name.removesuffix("weight") + key: kind for key in parts}
        else:
            tensors[name] = tensor
            words[name] = FLOAT
    _write(folders, recipe, tensors)
    for folder in folders:
        (folder / DESCRIPTION).write_text(json.dumps(words))
    return folders


def plain(recipe: Recipe, folders: Folders) -> Folders:
    """Write a model as it was trained."""
    _write(folders, recipe, recipe.tensors(1, torch.bfloat16))
    return folders


def _write(folders: Folders, recipe: Recipe, tensors: Mapping[str, Tensor]) -> None:
    write(folders.full, recipe.config, tensors)
    write(folders.bare, recipe.config, None)


def large() -> Recipe:
    """A Llama of 140 MB, so that a transfer takes a moment."""
    wide = {HIDDEN: 4 * HIDDEN, INNER: 4 * INNER, VOCABULARY: 4 * VOCABULARY}
    small = llama(6)
    shapes = {name: tuple(wide[size] for size in shape) for name, shape in small.shapes.items()}
    changes = {
        "hidden_size": 4 * HIDDEN,
        "intermediate_size": 4 * INNER,
        "vocab_size": 4 * VOCABULARY,
        "num_attention_heads": 4 * HEADS,
        "num_key_value_heads": 4 * HEADS,
    }
    return Recipe({**small.config, **changes}, shapes)


MODELS: Mapping[str, Callable[[Folders], Folders]] = {
    "llama": partial(plain, llama()),
    "llama-large": partial(plain, large()),
    "llama-w8a8": partial(quantized, llama(), attention_static),
    "moe": partial(plain, qwen3_moe()),
    "moe-w8a8": partial(quantized, qwen3_moe(), attention_static),
    "deepseek-v2": partial(plain, deepseek_v2()),
    "deepseek-v3-w8a8": partial(quantized, deepseek_v3(), attention_dynamic),
    "deepseek-v3-mtp": partial(plain, deepseek_v3_mtp()),
    "moe-w4a8": partial(quantized, qwen3_moe(), experts_of_four_bits),
}


def is_quantized(model: str) -> bool:
    """Whether `quantization="ascend"` is needed."""
    return model.endswith(("w8a8", "w4a8"))
