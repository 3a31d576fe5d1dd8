"""Transformers without experts."""

from typing import Any

import torch
from torch import Tensor

from tests.support.zoo.checkpoint import (
    HEAD,
    HIDDEN,
    INNER,
    LAYERS,
    VOCABULARY,
    Config,
    Recipe,
    Shapes,
    at_each,
    attention,
    below,
    config_of,
    edges,
    gated_mlp,
)

NORMS: Shapes = {"input_layernorm.weight": (HIDDEN,), "post_attention_layernorm.weight": (HIDDEN,)}
LLAMA_LAYER: Shapes = {**below("self_attn", attention()), **below("mlp", gated_mlp()), **NORMS}
HEAD_NORMS: Shapes = {"self_attn.q_norm.weight": (HEAD,), "self_attn.k_norm.weight": (HEAD,)}


def llama_config(**changes: Any) -> Config:
    """config.json of a small Llama."""
    return config_of("LlamaForCausalLM", "llama", **changes)


def llama(layers: int = LAYERS, **changes: Any) -> Recipe:
    """Llama; tied when its config says so, with biases when it says so."""
    config = llama_config(num_hidden_layers=layers, **changes)
    head = "" if config["tie_word_embeddings"] else "lm_head.weight"
    layer = {**LLAMA_LAYER}
    for name, shape in LLAMA_LAYER.items():
        part = "attention" if name.startswith("self_attn") else "mlp"
        if len(shape) == 2 and config.get(f"{part}_bias"):
            layer[name.replace(".weight", ".bias")] = shape[:1]
    ends = edges("model.embed_tokens.weight", "model.norm.weight", head)
    return Recipe(config, {**ends, **at_each("model.layers", layers, layer)})


def llama_tensors(seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random weights under the names of a Llama checkpoint."""
    return llama().tensors(seed, dtype)


def qwen3() -> Recipe:
    ends = edges("model.embed_tokens.weight", "model.norm.weight")
    layers = at_each("model.layers", LAYERS, {**LLAMA_LAYER, **HEAD_NORMS})
    return Recipe(config_of("Qwen3ForCausalLM", "qwen3"), {**ends, **layers})


def _gemma(config: Config, more: Shapes) -> Recipe:
    norms = {f"{at}_feedforward_layernorm.weight": (HIDDEN,) for at in ("pre", "post")}
    ends = edges("model.embed_tokens.weight", "model.norm.weight", "")
    layers = at_each("model.layers", LAYERS, {**LLAMA_LAYER, **norms, **more})
    return Recipe(config, {**ends, **layers})


GEMMA: Config = {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": HEAD,
    "sliding_window": 64,
    "tie_word_embeddings": True,
    "layer_types": ["sliding_attention", "full_attention"],
}


def gemma2() -> Recipe:
    config = config_of("Gemma2ForCausalLM", "gemma2", **GEMMA)
    return _gemma({**config, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}, {})


def gemma3() -> Recipe:
    config = config_of("Gemma3ForCausalLM", "gemma3_text", **GEMMA)
    return _gemma({**config, "rope_local_base_freq": 10000.0}, HEAD_NORMS)


def phi3() -> Recipe:
    layer = {
        "self_attn.qkv_proj.weight": (3 * HIDDEN, HIDDEN),
        "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        "mlp.gate_up_proj.weight": (2 * INNER, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, INNER),
        **NORMS,
    }
    ends = edges("model.embed_tokens.weight", "model.norm.weight")
    config = config_of("Phi3ForCausalLM", "phi3", original_max_position_embeddings=512)
    return Recipe(config, {**ends, **at_each("model.layers", LAYERS, layer)})


def with_biases(shapes: Shapes, axis: int) -> Shapes:
    """Every weight of `shapes` with its bias; `axis` is the one that counts outputs."""
    biases = {name.replace(".weight", ".bias"): (shape[axis],) for name, shape in shapes.items()}
    return {**shapes, **biases}


def gpt2() -> Recipe:
    """Its linear layers are stored input by output."""
    layer = {
        "ln_1.weight": (HIDDEN,),
        "attn.c_attn.weight": (HIDDEN, 3 * HIDDEN),
        "attn.c_proj.weight": (HIDDEN, HIDDEN),
        "ln_2.weight": (HIDDEN,),
        "mlp.c_fc.weight": (HIDDEN, 4 * HIDDEN),
        "mlp.c_proj.weight": (4 * HIDDEN, HIDDEN),
    }
    ends = {
        "transformer.wte.weight": (VOCABULARY, HIDDEN),
        "transformer.wpe.weight": (512, HIDDEN),
        **with_biases({"transformer.ln_f.weight": (HIDDEN,)}, -1),
    }
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": HIDDEN,
        "n_layer": LAYERS,
        "n_head": HIDDEN // HEAD,
        "n_positions": 512,
        "activation_function": "gelu_new",
        "vocab_size": VOCABULARY,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return Recipe(config, {**ends, **at_each("transformer.h", LAYERS, with_biases(layer, -1))})


def opt() -> Recipe:
    layer = {
        **{f"self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "out")},
        "self_attn_layer_norm.weight": (HIDDEN,),
        "fc1.weight": (INNER, HIDDEN),
        "fc2.weight": (HIDDEN, INNER),
        "final_layer_norm.weight": (HIDDEN,),
    }
    ends = {
        "model.decoder.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.decoder.embed_positions.weight": (514, HIDDEN),
        **with_biases({"model.decoder.final_layer_norm.weight": (HIDDEN,)}, 0),
    }
    config = config_of(
        "OPTForCausalLM", "opt", ffn_dim=INNER, word_embed_proj_dim=HIDDEN,
        do_layer_norm_before=True, activation_function="relu", tie_word_embeddings=True,
    )  # fmt: skip
    layers = at_each("model.decoder.layers", LAYERS, with_biases(layer, 0))
    return Recipe(config, {**ends, **layers})
