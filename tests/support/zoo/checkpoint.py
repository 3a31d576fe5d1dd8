"""Checkpoints from tables of shapes: every tensor random, every name as the architecture has it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, HEADS, LAYERS, VOCABULARY, INNER = 256, 4, 2, 320, 512
HEAD = HIDDEN // HEADS

Shapes = Mapping[str, tuple[int, ...]]
Config = dict[str, Any]

FLOAT32 = ("A_log", "dt_bias", ".D", "e_score_correction_bias")
"""Names (their ends) that checkpoints hold in float32 whatever the rest is in."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A model: its config.json, and the shapes of its checkpoint."""

    config: Config
    shapes: Shapes

    def tensors(self, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Random weights."""
        chance = torch.Generator().manual_seed(seed)
        return {name: _draw(name, shape, dtype, chance) for name, shape in self.shapes.items()}


def _draw(name: str, shape: tuple[int, ...], dtype: torch.dtype, chance: torch.Generator) -> Tensor:
    """Near zero, except for what multiplies: norms, and the decay of a recurrence."""
    noise = torch.randn(shape, generator=chance) * 0.05
    parts = name.split(".")
    if name.endswith("A_log"):
        noise += torch.arange(1, shape[0] + 1).log()
    elif name.endswith(".D") or (len(shape) == 1 and "bias" not in parts[-1] and "norm" in name):
        noise += 1
    elif len(shape) == 1 and parts[-1] == "weight":
        noise += 1  # norms under other names: ln_1, ln_f
    return noise.to(torch.float32 if name.endswith(FLOAT32) else dtype)


def config_of(architecture: str, model_type: str, **more: Any) -> Config:
    """config.json with what all architectures here have in common."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **more,
    }


def at_each(prefix: str, layers: range | int, shapes: Shapes) -> Shapes:
    """`shapes` below `prefix`, once for every layer."""
    numbers = range(layers) if isinstance(layers, int) else layers
    return {f"{prefix}.{n}.{name}": shape for n in numbers for name, shape in shapes.items()}


def below(prefix: str, shapes: Shapes) -> Shapes:
    """`shapes` with a prefix."""
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def gated_mlp(inner: int = INNER, hidden: int = HIDDEN) -> Shapes:
    """gate, up and down."""
    return {
        "gate_proj.weight": (inner, hidden),
        "up_proj.weight": (inner, hidden),
        "down_proj.weight": (hidden, inner),
    }


def attention(hidden: int = HIDDEN) -> Shapes:
    """q, k, v and o."""
    return {f"{name}_proj.weight": (hidden, hidden) for name in "qkvo"}


def edges(embedding: str, norm: str, head: str = "lm_head.weight") -> Shapes:
    """What stands before and after the layers; `head` is '' when it is tied."""
    ends = {embedding: (VOCABULARY, HIDDEN), norm: (HIDDEN,)}
    return {**ends, head: (VOCABULARY, HIDDEN)} if head else ends


def write(folder: Path, config: Config, tensors: Mapping[str, Tensor] | None) -> Path:
    """A model folder; without tensors it is what a client has: the JSON files only."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if tensors is not None:
        plain = {k: t.clone(memory_format=torch.contiguous_format) for k, t in tensors.items()}
        save_file(plain, folder / "model.safetensors")
    return folder
