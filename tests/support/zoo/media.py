"""Models that look and listen; a tokenizer and a processor are in their folders."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tests.support.zoo.checkpoint import (
    HEAD,
    HEADS,
    HIDDEN,
    LAYERS,
    VOCABULARY,
    Config,
    Recipe,
    Shapes,
    at_each,
    below,
    config_of,
    write,
)
from tests.support.zoo.dense import LLAMA_LAYER, with_biases
from tests.support.zoo.tokenizer import SPECIAL, write_tokenizer

SIGHT, SIGHT_INNER, SIGHT_HEADS = 128, 256, 2
PATCH, SIDE = 14, 56
"""Pixels: 16 patches an image."""

SOUND, SOUND_INNER = 128, 256
SECONDS, FRAMES, BANDS = 2, 100, 80
"""Whisper looks at SECONDS of audio as FRAMES positions, of BANDS frequencies each."""

Files = Mapping[str, Config]

CLIP_PICTURES: Config = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
}


def media(folder: Path, build: Callable[[], tuple[Recipe, Files]]) -> Mapping[str, Any]:
    """The model's folder, with its processor."""
    made, files = build()
    write(folder / "model", made.config, made.tensors(1, torch.bfloat16))
    write_tokenizer(folder / "model")
    for name, content in files.items():
        (folder / "model" / name).write_text(json.dumps(content))
    return {}


def _text(prefix: str, layer: Shapes) -> Shapes:
    ends = {"embed_tokens.weight": (VOCABULARY, HIDDEN), "norm.weight": (HIDDEN,)}
    return {
        **below(prefix, {**ends, **at_each("layers", LAYERS, layer)}),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }


def _clip(layers: int) -> Shapes:
    """CLIP's picture half."""
    square = {f"self_attn.{name}_proj.weight": (SIGHT, SIGHT) for name in ("q", "k", "v", "out")}
    layer = {
        **square,
        "layer_norm1.weight": (SIGHT,),
        "layer_norm2.weight": (SIGHT,),
        "mlp.fc1.weight": (SIGHT_INNER, SIGHT),
        "mlp.fc2.weight": (SIGHT, SIGHT_INNER),
    }
    norms = {"pre_layrnorm.weight": (SIGHT,), "post_layernorm.weight": (SIGHT,)}  # its name, so
    return {
        "embeddings.class_embedding": (SIGHT,),
        "embeddings.patch_embedding.weight": (SIGHT, 3, PATCH, PATCH),
        "embeddings.position_embedding.weight": ((SIDE // PATCH) ** 2 + 1, SIGHT),
        **with_biases(norms, 0),
        **at_each("encoder.layers", layers, with_biases(layer, 0)),
    }


def llava() -> tuple[Recipe, Files]:
    """CLIP, a projector, Llama; the last layer but one of CLIP is looked at."""
    projector = {"linear_1.weight": (HIDDEN, SIGHT), "linear_2.weight": (HIDDEN, HIDDEN)}
    shapes = {
        **below("model.vision_tower.vision_model", _clip(LAYERS + 1)),
        **below("model.multi_modal_projector", with_biases(projector, 0)),
        **_text("model.language_model", LLAMA_LAYER),
    }
    sight = {
        "model_type": "clip_vision_model", "hidden_size": SIGHT, "intermediate_size": SIGHT_INNER,
        "num_hidden_layers": LAYERS + 1, "num_attention_heads": SIGHT_HEADS, "image_size": SIDE,
        "patch_size": PATCH, "projection_dim": SIGHT,
    }  # fmt: skip
    config = {
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava",
        "text_config": config_of("LlamaForCausalLM", "llama"), "vision_config": sight,
        "image_token_index": SPECIAL["<image>"], "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default", "projector_hidden_act": "gelu",
        "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    }  # fmt: skip
    processor = {
        "processor_class": "LlavaProcessor", "patch_size": PATCH, "image_token": "<image>",
        "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
    }  # fmt: skip
    files = {"preprocessor_config.json": CLIP_PICTURES, "processor_config.json": processor}
    return Recipe(config, shapes), files


def qwen2_vl() -> tuple[Recipe, Files]:
    """Pictures of any size, and positions in three dimensions."""
    block = {
        "norm1.weight": (SIGHT,),
        "norm2.weight": (SIGHT,),
        "attn.qkv.weight": (3 * SIGHT, SIGHT),
        "attn.proj.weight": (SIGHT, SIGHT),
        "mlp.fc1.weight": (SIGHT_INNER, SIGHT),
        "mlp.fc2.weight": (SIGHT, SIGHT_INNER),
    }
    merger = {
        "ln_q.weight": (SIGHT,),
        "mlp.0.weight": (4 * SIGHT, 4 * SIGHT),
        "mlp.2.weight": (HIDDEN, 4 * SIGHT),
    }
    biases = {f"self_attn.{name}_proj.bias": (HIDDEN,) for name in "qkv"}
    shapes = {
        "visual.patch_embed.proj.weight": (SIGHT, 3, 2, PATCH, PATCH),
        **at_each("visual.blocks", LAYERS, with_biases(block, 0)),
        **below("visual.merger", with_biases(merger, 0)),
        **_text("model", {**LLAMA_LAYER, **biases}),
    }
    sight = {
        "model_type": "qwen2_vl", "depth": LAYERS, "embed_dim": SIGHT, "hidden_size": HIDDEN,
        "num_heads": SIGHT_HEADS, "mlp_ratio": SIGHT_INNER // SIGHT, "patch_size": PATCH,
        "in_channels": 3, "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    third = HEAD // 8
    config = config_of(
        "Qwen2VLForConditionalGeneration", "qwen2_vl", vision_config=sight,
        image_token_id=SPECIAL["<|image_pad|>"], video_token_id=SPECIAL["<|video_pad|>"],
        vision_start_token_id=SPECIAL["<|vision_start|>"],
        vision_end_token_id=SPECIAL["<|vision_end|>"],
        rope_scaling={"type": "mrope", "mrope_section": [2 * third, third, third]},
    )  # fmt: skip
    pictures = {
        "image_processor_type": "Qwen2VLImageProcessor", "min_pixels": SIDE * SIDE,
        "max_pixels": 4 * SIDE * SIDE, "patch_size": PATCH, "temporal_patch_size": 2,
        "merge_size": 2, "processor_class": "Qwen2VLProcessor",
    }  # fmt: skip
    return Recipe(config, shapes), {"preprocessor_config.json": pictures}


def whisper() -> tuple[Recipe, Files]:
    """Encoder and decoder; keys have no biases, and the head is the embedding."""

    def attended(name: str) -> Shapes:
        square = {f"{part}_proj.weight": (SOUND, SOUND) for part in ("q", "v", "out")}
        biased = {**with_biases(square, 0), "k_proj.weight": (SOUND, SOUND)}
        norm = {f"{name}_layer_norm.weight": (SOUND,)}
        return {**below(name, biased), **with_biases(norm, 0)}

    fed = {
        "fc1.weight": (SOUND_INNER, SOUND),
        "fc2.weight": (SOUND, SOUND_INNER),
        "final_layer_norm.weight": (SOUND,),
    }
    listens = {**attended("self_attn"), **with_biases(fed, 0)}
    norm = with_biases({"layer_norm.weight": (SOUND,)}, 0)
    convolutions = {"conv1.weight": (SOUND, BANDS, 3), "conv2.weight": (SOUND, SOUND, 3)}
    encoder = {
        **with_biases(convolutions, 0),
        "embed_positions.weight": (FRAMES, SOUND),
        **at_each("layers", LAYERS, listens),
        **norm,
    }
    decoder = {
        "embed_tokens.weight": (VOCABULARY, SOUND),
        "embed_positions.weight": (448, SOUND),
        **at_each("layers", LAYERS, {**listens, **attended("encoder_attn")}),
        **norm,
    }
    shapes = {**below("model.encoder", encoder), **below("model.decoder", decoder)}
    config: Config = {
        "architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper",
        "d_model": SOUND, "encoder_layers": LAYERS, "decoder_layers": LAYERS,
        "encoder_attention_heads": HEADS // 2, "decoder_attention_heads": HEADS // 2,
        "encoder_ffn_dim": SOUND_INNER, "decoder_ffn_dim": SOUND_INNER, "vocab_size": VOCABULARY,
        "num_mel_bins": BANDS, "max_source_positions": FRAMES, "max_target_positions": 448,
        "activation_function": "gelu", "torch_dtype": "bfloat16", "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 305,
        "tie_word_embeddings": True, "is_encoder_decoder": True,
    }  # fmt: skip
    hears = {
        "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": BANDS,
        "sampling_rate": 16000, "hop_length": 160, "chunk_length": SECONDS, "n_fft": 400,
        "processor_class": "WhisperProcessor",
    }  # fmt: skip
    return Recipe(config, shapes), {"preprocessor_config.json": hears}
