"""Models with a recurrence, alone or beside attention."""

from tests.support.zoo.checkpoint import (
    HEAD,
    HEADS,
    HIDDEN,
    INNER,
    LAYERS,
    Recipe,
    Shapes,
    at_each,
    attention,
    below,
    config_of,
    edges,
    gated_mlp,
)
from tests.support.zoo.dense import NORMS
from tests.support.zoo.experts import CHOSEN, EXPERT_INNER, EXPERTS

STATE, WIDTH = 64, 4
MIXER_HEADS = INNER // HEAD


def _mixer(inner: int, groups: int = 1) -> Shapes:
    channels = inner + 2 * groups * STATE
    return {
        "in_proj.weight": (inner + channels + MIXER_HEADS, HIDDEN),
        "conv1d.weight": (channels, 1, WIDTH),
        "conv1d.bias": (channels,),
        "dt_bias": (MIXER_HEADS,),
        "A_log": (MIXER_HEADS,),
        "D": (MIXER_HEADS,),
        "norm.weight": (inner,),
        "out_proj.weight": (HIDDEN, inner),
    }


def mamba2() -> Recipe:
    config = config_of(
        "Mamba2ForCausalLM", "mamba2", state_size=STATE, conv_kernel=WIDTH, expand=2,
        num_heads=MIXER_HEADS, head_dim=HEAD, n_groups=1, chunk_size=64, use_conv_bias=True,
        use_bias=False, layer_norm_epsilon=1e-5, rms_norm=True, tie_word_embeddings=False,
    )  # fmt: skip
    layer = {"norm.weight": (HIDDEN,), **below("mixer", _mixer(INNER))}
    ends = edges("backbone.embeddings.weight", "backbone.norm_f.weight")
    return Recipe(config, {**ends, **at_each("backbone.layers", LAYERS, layer)})


def falcon_h1() -> Recipe:
    config = config_of(
        "FalconH1ForCausalLM", "falcon_h1", mamba_d_state=STATE, mamba_d_conv=WIDTH,
        mamba_d_ssm=INNER, mamba_n_heads=MIXER_HEADS, mamba_d_head=HEAD, mamba_n_groups=1,
        mamba_chunk_size=64, mamba_conv_bias=True, mamba_proj_bias=False, mamba_rms_norm=True,
        mamba_norm_before_gate=False, ssm_multipliers=[0.5, 0.6, 0.7, 0.8, 0.9],
    )  # fmt: skip
    layer = {
        **below("mamba", _mixer(INNER)),
        **below("self_attn", attention()),
        **below("feed_forward", gated_mlp()),
        "input_layernorm.weight": (HIDDEN,),
        "pre_ff_layernorm.weight": (HIDDEN,),
    }
    ends = edges("model.embed_tokens.weight", "model.final_layernorm.weight")
    return Recipe(config, {**ends, **at_each("model.layers", LAYERS, layer)})


def qwen3_next() -> Recipe:
    """Three layers with a gated delta rule, then one with gated attention."""
    config = config_of(
        "Qwen3NextForCausalLM", "qwen3_next", num_hidden_layers=4,
        layer_types=["linear_attention"] * 3 + ["full_attention"], full_attention_interval=4,
        linear_num_key_heads=HEADS, linear_num_value_heads=HEADS, linear_key_head_dim=HEAD,
        linear_value_head_dim=HEAD, linear_conv_kernel_dim=WIDTH, partial_rotary_factor=0.5,
        num_experts=EXPERTS, num_experts_per_tok=CHOSEN, moe_intermediate_size=EXPERT_INNER,
        shared_expert_intermediate_size=EXPERT_INNER, norm_topk_prob=True, decoder_sparse_step=1,
        mlp_only_layers=[],
    )  # fmt: skip
    mlp = {
        "mlp.gate.weight": (EXPERTS, HIDDEN),
        **at_each("mlp.experts", EXPERTS, gated_mlp(EXPERT_INNER)),
        **below("mlp.shared_expert", gated_mlp(EXPERT_INNER)),
        "mlp.shared_expert_gate.weight": (1, HIDDEN),
    }
    linear = {
        "in_proj_qkvz.weight": (4 * HIDDEN, HIDDEN),
        "in_proj_ba.weight": (2 * HEADS, HIDDEN),
        "conv1d.weight": (3 * HIDDEN, 1, WIDTH),
        "dt_bias": (HEADS,),
        "A_log": (HEADS,),
        "norm.weight": (HEAD,),
        "out_proj.weight": (HIDDEN, HIDDEN),
    }
    full = {
        **attention(),
        "q_proj.weight": (2 * HIDDEN, HIDDEN),
        "q_norm.weight": (HEAD,),
        "k_norm.weight": (HEAD,),
    }
    return Recipe(
        config,
        {
            **edges("model.embed_tokens.weight", "model.norm.weight"),
            **at_each("model.layers", 3, {**below("linear_attn", linear), **mlp, **NORMS}),
            **at_each("model.layers", range(3, 4), {**below("self_attn", full), **mlp, **NORMS}),
        },
    )
