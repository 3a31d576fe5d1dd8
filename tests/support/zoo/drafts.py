"""Targets that repeat themselves, and draft models that foresee it.

A random draft is never right, and the tokens of its target hide that it is broken. Here the target
mostly says its last token again (its head is its embedding, and that is large), and a draft's
projection mostly hands on the token's embedding: so drafts are accepted as long as their weights
are right.
"""

import torch
from torch import Tensor

from tests.support.zoo.checkpoint import (
    HIDDEN,
    LAYERS,
    Config,
    Recipe,
    attention,
    below,
    gated_mlp,
)
from tests.support.zoo.dense import NORMS, llama, llama_config
from tests.support.zoo.experts import deepseek_v3_mtp

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DRAFT_VOCABULARY, SHIFT = 128, 2
"""An EAGLE-3 draft's token is its target's token minus SHIFT."""

TAPPED, DEEP = 3, 8
"""EAGLE-3 looks at three layers (2, n // 2, n - 3) of its target."""

Checkpoint = tuple[Config, dict[str, Tensor]]


def echo(recipe: Recipe) -> Checkpoint:
    """A target that repeats its last token."""
    tensors = recipe.tensors(1, torch.bfloat16)
    tensors[EMBEDDING] *= 20
    tensors[HEAD] = tensors[EMBEDDING] / 20
    return recipe.config, tensors


def _hand_on(tensor: Tensor, blocks: tuple[float, ...]) -> Tensor:
    """A projection from len(blocks) inputs of HIDDEN to one: so much of each, and some noise."""
    eye = torch.eye(HIDDEN, dtype=tensor.dtype)
    return tensor * 0.1 + torch.cat([eye * share for share in blocks], dim=1)


def _eagle_layer(prefix: str, inputs: int) -> dict[str, tuple[int, ...]]:
    layer = {**below("self_attn", attention()), **below("mlp", gated_mlp()), **NORMS}
    for name in "qkv":
        layer[f"self_attn.{name}_proj.weight"] = (HIDDEN, inputs * HIDDEN)
    return {f"{prefix}.{name}": shape for name, shape in layer.items()}


def eagle() -> Checkpoint:
    """One layer without its first norm; embedding and head are the target's."""
    shapes = {**_eagle_layer("layers.0", 1), "fc.weight": (HIDDEN, 2 * HIDDEN)}
    del shapes["layers.0.input_layernorm.weight"]
    config = llama_config(num_hidden_layers=1)
    tensors = Recipe(config, shapes).tensors(2, torch.bfloat16)
    tensors["fc.weight"] = _hand_on(tensors["fc.weight"], (1, 0))
    return config, tensors


def eagle3(target: Checkpoint) -> Checkpoint:
    """One layer on three of the target's, with a head of its own for the commoner tokens."""
    shapes = {
        **_eagle_layer("midlayer", 2),
        "midlayer.hidden_norm.weight": (HIDDEN,),
        "norm.weight": (HIDDEN,),
        "fc.weight": (HIDDEN, TAPPED * HIDDEN),
    }
    config = llama_config(
        architectures=["LlamaForCausalLMEagle3"],
        num_hidden_layers=1,
        draft_vocab_size=DRAFT_VOCABULARY,
    )
    tensors = Recipe(config, shapes).tensors(3, torch.bfloat16)
    tensors["fc.weight"] = _hand_on(tensors["fc.weight"], (1 / 3, 1 / 3, 1 / 3))
    tensors[HEAD] = target[1][HEAD][SHIFT : SHIFT + DRAFT_VOCABULARY]
    tensors["d2t"] = torch.full((DRAFT_VOCABULARY,), SHIFT)
    return config, tensors


def mtp() -> Checkpoint:
    """A target whose own last layer drafts."""
    config, tensors = echo(deepseek_v3_mtp())
    layer = f"model.layers.{LAYERS}."
    tensors[f"{layer}eh_proj.weight"] = _hand_on(tensors[f"{layer}eh_proj.weight"], (4, 0))
    tensors[f"{layer}embed_tokens.weight"] = tensors[EMBEDDING].clone()
    tensors[f"{layer}shared_head.head.weight"] = tensors[HEAD].clone()
    return config, tensors


def deep_llama() -> Recipe:
    """As many layers as EAGLE-3 wants to look at."""
    return llama(DEEP)
