"""Tiny random checkpoints, made in a second: real architectures, hidden size 256."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, HEADS, LAYERS, VOCABULARY, INNER = 256, 4, 2, 320, 512


def llama_config(**changes: Any) -> dict[str, Any]:
    """config.json of a small Llama."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HIDDEN // HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return {**config, **changes}


def llama_tensors(seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random weights under the names of a Llama checkpoint."""
    chance = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=chance) * 0.05).to(dtype)

    tensors = {
        "model.embed_tokens.weight": draw(VOCABULARY, HIDDEN),
        "model.norm.weight": torch.ones(HIDDEN, dtype=dtype),
        "lm_head.weight": draw(VOCABULARY, HIDDEN),
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for name in ("q", "k", "v", "o"):
            tensors[f"{at}self_attn.{name}_proj.weight"] = draw(HIDDEN, HIDDEN)
        tensors[f"{at}mlp.gate_proj.weight"] = draw(INNER, HIDDEN)
        tensors[f"{at}mlp.up_proj.weight"] = draw(INNER, HIDDEN)
        tensors[f"{at}mlp.down_proj.weight"] = draw(HIDDEN, INNER)
        tensors[f"{at}input_layernorm.weight"] = torch.ones(HIDDEN, dtype=dtype)
        tensors[f"{at}post_attention_layernorm.weight"] = torch.ones(HIDDEN, dtype=dtype)
    return tensors


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor] | None) -> Path:
    """A model folder; without tensors it is what a client has: the JSON files only."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if tensors is not None:
        save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "model.safetensors")
    return folder
