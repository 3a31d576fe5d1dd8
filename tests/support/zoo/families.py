"""More families of decoders, each with something that the others do not have."""

from tests.support.zoo.checkpoint import (
    HEAD,
    HEADS,
    HIDDEN,
    INNER,
    LAYERS,
    VOCABULARY,
    Recipe,
    Shapes,
    at_each,
    attention,
    below,
    config_of,
    edges,
    gated_mlp,
)
from tests.support.zoo.dense import LLAMA_LAYER, NORMS, with_biases
from tests.support.zoo.experts import CHOSEN, ENDS, EXPERT_INNER, EXPERTS

QUERY_BIASES: Shapes = {f"self_attn.{name}_proj.bias": (HIDDEN,) for name in "qkv"}
NORM_BIASES = {name.replace("weight", "bias"): shape for name, shape in NORMS.items()}
TAIL_BIAS: Shapes = {"model.norm.bias": (HIDDEN,)}
LOW_RANK, PER_LAYER, STREAMS = 16, 64, 4
"""Gemma 3n: its low-rank path, its embeddings for each layer, its parallel streams."""


def qwen2() -> Recipe:
    """Biases at queries, keys and values."""
    layers = at_each("model.layers", LAYERS, {**LLAMA_LAYER, **QUERY_BIASES})
    return Recipe(config_of("Qwen2ForCausalLM", "qwen2"), {**ENDS, **layers})


def stablelm() -> Recipe:
    """Part of each head is rotated; norms have biases."""
    layers = at_each("model.layers", LAYERS, {**LLAMA_LAYER, **NORM_BIASES})
    config = config_of(
        "StableLmForCausalLM", "stablelm", layer_norm_eps=1e-5, partial_rotary_factor=0.25,
        use_qkv_bias=False, use_parallel_residual=False, qk_layernorm=False,
    )  # fmt: skip
    return Recipe(config, {**ENDS, **TAIL_BIAS, **layers})


def cohere() -> Recipe:
    """Attention and MLP side by side behind one norm; tied, and the logits are scaled."""
    layer = {name: shape for name, shape in LLAMA_LAYER.items() if "post_attention" not in name}
    ends = edges("model.embed_tokens.weight", "model.norm.weight", "")
    config = config_of(
        "CohereForCausalLM", "cohere", layer_norm_eps=1e-5, logit_scale=0.0625,
        use_qk_norm=False, tie_word_embeddings=True,
    )  # fmt: skip
    return Recipe(config, {**ends, **at_each("model.layers", LAYERS, layer)})


def glm4() -> Recipe:
    """Norms before and behind; gate and up are one tensor."""
    layer = {
        **below("self_attn", attention()),
        **QUERY_BIASES,
        "mlp.gate_up_proj.weight": (2 * INNER, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, INNER),
        **NORMS,
        "post_self_attn_layernorm.weight": (HIDDEN,),
        "post_mlp_layernorm.weight": (HIDDEN,),
    }
    config = config_of("Glm4ForCausalLM", "glm4", attention_bias=True, partial_rotary_factor=0.5)
    return Recipe(config, {**ENDS, **at_each("model.layers", LAYERS, layer)})


def starcoder2() -> Recipe:
    """Biases everywhere, an MLP without a gate, a tied head."""
    layer = {
        **below("self_attn", attention()),
        "mlp.c_fc.weight": (INNER, HIDDEN),
        "mlp.c_proj.weight": (HIDDEN, INNER),
        **NORMS,
    }
    ends = edges("model.embed_tokens.weight", "model.norm.weight", "")
    config = config_of(
        "Starcoder2ForCausalLM", "starcoder2", hidden_act="gelu_pytorch_tanh", norm_epsilon=1e-5,
        use_bias=True, sliding_window=None, tie_word_embeddings=True,
    )  # fmt: skip
    layers = at_each("model.layers", LAYERS, with_biases(layer, 0))
    return Recipe(config, {**ends, **TAIL_BIAS, **layers})


def _fused(attended: str) -> Shapes:
    """GPT-NeoX and BLOOM: queries, keys and values are one tensor, by head."""
    return with_biases(
        {
            f"{attended}.query_key_value.weight": (3 * HIDDEN, HIDDEN),
            f"{attended}.dense.weight": (HIDDEN, HIDDEN),
            "mlp.dense_h_to_4h.weight": (4 * HIDDEN, HIDDEN),
            "mlp.dense_4h_to_h.weight": (HIDDEN, 4 * HIDDEN),
            **NORMS,
        },
        0,
    )


def gpt_neox() -> Recipe:
    ends = {
        "gpt_neox.embed_in.weight": (VOCABULARY, HIDDEN),
        "embed_out.weight": (VOCABULARY, HIDDEN),
        **with_biases({"gpt_neox.final_layer_norm.weight": (HIDDEN,)}, 0),
    }
    config = config_of(
        "GPTNeoXForCausalLM", "gpt_neox", hidden_act="gelu", intermediate_size=4 * HIDDEN,
        layer_norm_eps=1e-5, rotary_pct=0.25, rotary_emb_base=10000, use_parallel_residual=True,
    )  # fmt: skip
    layers = at_each("gpt_neox.layers", LAYERS, _fused("attention"))
    return Recipe(config, {**ends, **layers})


def bloom() -> Recipe:
    """Positions are slopes (ALiBi), made from nothing but the number of heads."""
    norms = {
        "transformer.word_embeddings_layernorm.weight": (HIDDEN,),
        "transformer.ln_f.weight": (HIDDEN,),
    }
    shapes = {
        "transformer.word_embeddings.weight": (VOCABULARY, HIDDEN),
        **with_biases(norms, 0),
        **at_each("transformer.h", LAYERS, _fused("self_attention")),
    }
    config = config_of(
        "BloomForCausalLM", "bloom", n_layer=LAYERS, n_head=HEADS, layer_norm_epsilon=1e-5,
        tie_word_embeddings=True,
    )  # fmt: skip
    return Recipe(config, shapes)


def gemma3n() -> Recipe:
    """Streams that predict and correct each other, a low-rank path, embeddings for each layer."""
    norms = ("post_attention", "pre_feedforward", "post_feedforward")
    layer = {
        **below("self_attn", attention()),
        "self_attn.q_norm.weight": (HEAD,),
        "self_attn.k_norm.weight": (HEAD,),
        **below("mlp", gated_mlp()),
        "input_layernorm.weight": (HIDDEN,),
        **{f"{name}_layernorm.weight": (HIDDEN,) for name in norms},
        "altup.correct_output_scale": (HIDDEN,),
        "altup.correction_coefs.weight": (STREAMS, STREAMS),
        "altup.prediction_coefs.weight": (STREAMS * STREAMS, STREAMS),
        "altup.modality_router.weight": (STREAMS, HIDDEN),
        "altup.router_norm.weight": (HIDDEN,),
        "laurel.linear_left.weight": (LOW_RANK, HIDDEN),
        "laurel.linear_right.weight": (HIDDEN, LOW_RANK),
        "laurel.post_laurel_norm.weight": (HIDDEN,),
        "per_layer_input_gate.weight": (PER_LAYER, HIDDEN),
        "per_layer_projection.weight": (HIDDEN, PER_LAYER),
        "post_per_layer_input_norm.weight": (HIDDEN,),
    }
    square = {"weight": (HIDDEN, HIDDEN)}
    shapes = {
        **edges("model.embed_tokens.weight", "model.norm.weight", ""),
        "model.embed_tokens_per_layer.weight": (VOCABULARY, LAYERS * PER_LAYER),
        "model.per_layer_model_projection.weight": (LAYERS * PER_LAYER, HIDDEN),
        "model.per_layer_projection_norm.weight": (PER_LAYER,),
        **at_each("model.altup_projections", STREAMS - 1, square),
        **at_each("model.altup_unembed_projections", STREAMS - 1, square),
        **at_each("model.layers", LAYERS, layer),
    }
    config = config_of(
        "Gemma3nForCausalLM", "gemma3n_text", hidden_activation="gelu_pytorch_tanh",
        vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=PER_LAYER,
        laurel_rank=LOW_RANK, num_kv_shared_layers=0, layer_types=["full_attention"] * LAYERS,
        activation_sparsity_pattern=[0.0] * LAYERS, altup_num_inputs=STREAMS, altup_active_idx=0,
        altup_coef_clip=120.0, altup_correct_scale=True, rope_local_base_freq=10000.0,
        intermediate_size=[INNER] * LAYERS, final_logit_softcapping=30.0, sliding_window=64,
        tie_word_embeddings=True,
    )  # fmt: skip
    return Recipe(config, shapes)


def granite_moe() -> Recipe:
    """All experts of a layer are one tensor; four multipliers in the config."""
    layer = {
        **below("self_attn", attention()),
        **NORMS,
        "block_sparse_moe.router.layer.weight": (EXPERTS, HIDDEN),
        "block_sparse_moe.input_linear.weight": (EXPERTS, 2 * EXPERT_INNER, HIDDEN),
        "block_sparse_moe.output_linear.weight": (EXPERTS, HIDDEN, EXPERT_INNER),
    }
    config = config_of(
        "GraniteMoeForCausalLM", "granitemoe", intermediate_size=EXPERT_INNER,
        num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN, embedding_multiplier=2.0,
        attention_multiplier=0.125, residual_multiplier=0.5, logits_scaling=2.0,
        attention_bias=False,
    )  # fmt: skip
    return Recipe(config, {**ENDS, **at_each("model.layers", LAYERS, layer)})


def phi_moe() -> Recipe:
    """Experts as in Mixtral, chosen by another rule; biases at norms and head."""
    names = ("w1", "w2", "w3")
    inner = {"w2": (HIDDEN, EXPERT_INNER)}
    expert = {f"{name}.weight": inner.get(name, (EXPERT_INNER, HIDDEN)) for name in names}
    layer = {
        **with_biases(below("self_attn", attention()), 0),
        **with_biases(NORMS, 0),
        "block_sparse_moe.gate.weight": (EXPERTS, HIDDEN),
        **at_each("block_sparse_moe.experts", EXPERTS, expert),
    }
    config = config_of(
        "PhiMoEForCausalLM", "phimoe", intermediate_size=EXPERT_INNER, num_local_experts=EXPERTS,
        num_experts_per_tok=CHOSEN, attention_bias=True, lm_head_bias=True,
        router_jitter_noise=0.01, sliding_window=None,
    )  # fmt: skip
    head = {"lm_head.bias": (VOCABULARY,)}
    return Recipe(config, {**ENDS, **TAIL_BIAS, **head, **at_each("model.layers", LAYERS, layer)})


def gpt_oss() -> Recipe:
    """Sinks in the attention; experts input by output, with biases."""
    layer = {
        **with_biases(below("self_attn", attention()), 0),
        "self_attn.sinks": (HEADS,),
        **NORMS,
        **with_biases({"mlp.router.weight": (EXPERTS, HIDDEN)}, 0),
        "mlp.experts.gate_up_proj": (EXPERTS, HIDDEN, 2 * EXPERT_INNER),
        "mlp.experts.gate_up_proj_bias": (EXPERTS, 2 * EXPERT_INNER),
        "mlp.experts.down_proj": (EXPERTS, EXPERT_INNER, HIDDEN),
        "mlp.experts.down_proj_bias": (EXPERTS, HIDDEN),
    }
    config = config_of(
        "GptOssForCausalLM", "gpt_oss", intermediate_size=EXPERT_INNER,
        num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN, attention_bias=True,
        sliding_window=64, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    return Recipe(config, {**ENDS, **at_each("model.layers", LAYERS, layer)})
