"""Transformers with experts."""

from typing import Any

from tests.support.zoo.checkpoint import (
    HEAD,
    HEADS,
    HIDDEN,
    LAYERS,
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
from tests.support.zoo.dense import HEAD_NORMS, NORMS

EXPERTS, CHOSEN, EXPERT_INNER = 4, 2, 128
NOPE, ROPE, LATENT, QUERY_LATENT = 64, 64, 512, 128
"""MLA here wants LATENT + ROPE to be 576, and only that."""

ENDS = edges("model.embed_tokens.weight", "model.norm.weight")


def _experts(prefix: str) -> Shapes:
    gate = {f"{prefix}.gate.weight": (EXPERTS, HIDDEN)}
    return {**gate, **at_each(f"{prefix}.experts", EXPERTS, gated_mlp(EXPERT_INNER))}


def mixtral() -> Recipe:
    names = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
    mlp = _experts("block_sparse_moe")
    for old, new in names.items():
        mlp = {name.replace(old, new): shape for name, shape in mlp.items()}
    layer = {**below("self_attn", attention()), **NORMS, **mlp}
    config = config_of(
        "MixtralForCausalLM", "mixtral", intermediate_size=EXPERT_INNER,
        num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN,
    )  # fmt: skip
    return Recipe(config, {**ENDS, **at_each("model.layers", LAYERS, layer)})


def _of_experts(architecture: str, model_type: str, norms: Shapes) -> Recipe:
    layer = {**below("self_attn", attention()), **NORMS, **norms, **_experts("mlp")}
    config = config_of(
        architecture, model_type, intermediate_size=EXPERT_INNER,
        moe_intermediate_size=EXPERT_INNER, num_experts=EXPERTS, num_experts_per_tok=CHOSEN,
        norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
    )  # fmt: skip
    return Recipe(config, {**ENDS, **at_each("model.layers", LAYERS, layer)})


def qwen3_moe() -> Recipe:
    return _of_experts("Qwen3MoeForCausalLM", "qwen3_moe", HEAD_NORMS)


def olmoe() -> Recipe:
    norms = {f"self_attn.{name}_norm.weight": (HIDDEN,) for name in "qk"}
    return _of_experts("OlmoeForCausalLM", "olmoe", norms)


def _latent_attention(query: Shapes) -> Shapes:
    return {
        **query,
        "kv_a_proj_with_mqa.weight": (LATENT + ROPE, HIDDEN),
        "kv_a_layernorm.weight": (LATENT,),
        "kv_b_proj.weight": (HEADS * (NOPE + HEAD), LATENT),
        "o_proj.weight": (HIDDEN, HEADS * HEAD),
    }


def _deepseek(architecture: str, model_type: str, query: Shapes, **more: Any) -> Recipe:
    """The first layer is dense."""
    common = {**below("self_attn", _latent_attention(query)), **NORMS}
    sparse = {
        **common,
        **_experts("mlp"),
        **below("mlp.shared_experts", gated_mlp(EXPERT_INNER)),
    }
    if more["topk_method"] == "noaux_tc":
        sparse["mlp.gate.e_score_correction_bias"] = (EXPERTS,)
    shapes = {
        **ENDS,
        **at_each("model.layers", 1, {**common, **below("mlp", gated_mlp())}),
        **at_each("model.layers", range(1, LAYERS), sparse),
    }
    config: Config = config_of(
        architecture, model_type, moe_intermediate_size=EXPERT_INNER, n_routed_experts=EXPERTS,
        n_shared_experts=1, num_experts_per_tok=CHOSEN, first_k_dense_replace=1, moe_layer_freq=1,
        kv_lora_rank=LATENT, qk_nope_head_dim=NOPE, qk_rope_head_dim=ROPE, v_head_dim=HEAD,
        head_dim=ROPE, q_lora_rank=None, norm_topk_prob=True, routed_scaling_factor=1.0,
    )  # fmt: skip
    return Recipe({**config, **more}, shapes)


def deepseek_v2() -> Recipe:
    query = {"q_proj.weight": (HEADS * (NOPE + ROPE), HIDDEN)}
    return _deepseek(
        "DeepseekV2ForCausalLM", "deepseek_v2", query, n_group=1, topk_group=1,
        topk_method="group_limited_greedy",
    )  # fmt: skip


def deepseek_v3() -> Recipe:
    query = {
        "q_a_proj.weight": (QUERY_LATENT, HIDDEN),
        "q_a_layernorm.weight": (QUERY_LATENT,),
        "q_b_proj.weight": (HEADS * (NOPE + ROPE), QUERY_LATENT),
    }
    return _deepseek(
        "DeepseekV3ForCausalLM", "deepseek_v3", query, q_lora_rank=QUERY_LATENT, n_group=2,
        topk_group=1, topk_method="noaux_tc", scoring_func="sigmoid",
    )  # fmt: skip


def deepseek_v3_mtp() -> Recipe:
    """With a layer that predicts the token after the next one."""
    base = deepseek_v3()
    last = f"model.layers.{LAYERS - 1}."
    again = {
        name.removeprefix(last): shape
        for name, shape in base.shapes.items()
        if name.startswith(last)
    }
    extra = {
        **again,
        "enorm.weight": (HIDDEN,),
        "hnorm.weight": (HIDDEN,),
        "eh_proj.weight": (HIDDEN, 2 * HIDDEN),
        "shared_head.norm.weight": (HIDDEN,),
        "shared_head.head.weight": ENDS["lm_head.weight"],
        "embed_tokens.weight": ENDS["model.embed_tokens.weight"],
    }
    layer = at_each("model.layers", range(LAYERS, LAYERS + 1), extra)
    return Recipe({**base.config, "num_nextn_predict_layers": 1}, {**base.shapes, **layer})
