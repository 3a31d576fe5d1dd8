"""The zoo table as data: every model that is compared, and what netloader is expected to do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netloader.vllm_plugin.inspect.parity.run import Case
from tests.support.zoo import (
    custom,
    dense,
    drafts,
    encoders,
    experts,
    families,
    media,
    pooled,
    recurrent,
)
from tests.support.zoo.checkpoint import Config, Recipe, write
from tests.support.zoo.quantized import quantized_llama

Build = Callable[[Path], Mapping[str, Any]]
"""Writes `folder/model`, and whatever it needs beside it; returns arguments for `vllm.LLM`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A row to be: identical, or refused when there is a `refusal`, which says that."""

    name: str
    build: Build
    extra: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 4
    refusal: str = ""
    needs: tuple[str, ...] = ()
    """Packages that are in `requirements/media.txt`."""
    client: Callable[[Path], Path] | None = None
    """Makes the client's folder from the folder of the row, when it is no copy without weights."""

    @property
    def verdict(self) -> str:
        """The verdict that is right."""
        return "refused" if self.refusal else "identical"

    def case(self, folder: Path) -> Case:
        """Write the checkpoint, and say what is to be compared."""
        options = self.build(folder)
        client = self.client(folder) if self.client else None
        return Case(self.name, folder / "model", options, self.extra, self.tokens, client)


def _save(folder: Path, config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    write(folder / "model", config, tensors)
    return {}


def _plain(recipe: Callable[[], Recipe], folder: Path, **options: Any) -> Mapping[str, Any]:
    dtype = options.get("dtype", "bfloat16")
    made = recipe()
    _save(folder, {**made.config, "torch_dtype": dtype}, made.tensors(1, getattr(torch, dtype)))
    return options


def _tied_with_head(folder: Path, head: str) -> Mapping[str, Any]:
    """The config ties what the checkpoint holds twice."""
    made = dense.llama()
    tensors = made.tensors(1, torch.bfloat16)
    if head == "same":
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    return _save(folder, {**made.config, "tie_word_embeddings": True}, tensors)


def _dtype_in_files_only(folder: Path) -> Mapping[str, Any]:
    """vLLM finds the dtype out by looking into the files; without files it takes bfloat16."""
    made = dense.llama()
    config = {key: value for key, value in made.config.items() if key != "torch_dtype"}
    return _save(folder, config, made.tensors(1, torch.float16))


def _scheme(folder: Path, scheme: str, dtype: str = "bfloat16") -> Mapping[str, Any]:
    return {**_save(folder, *quantized_llama(scheme, dtype)), "dtype": dtype}


def _with_cache_scales(folder: Path) -> Mapping[str, Any]:
    """Scales of the KV cache: they end up in Python floats."""
    config, tensors = quantized_llama("fp8")
    scale = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True}
    config["quantization_config"] = {
        **config["quantization_config"],
        "kv_cache_scheme": {**scale, "dynamic": False},
    }
    for layer in range(config["num_hidden_layers"]):
        for name, value in (("k", 0.02), ("v", 0.03)):
            tensors[f"model.layers.{layer}.self_attn.{name}_scale"] = torch.tensor(value + layer)
    return _save(folder, config, tensors)


def _partly_quantized(folder: Path, layer: str) -> Mapping[str, Any]:
    """GPTQ with one layer as it was: vLLM finds out which by looking into the files."""
    config, tensors = quantized_llama("gptq")
    plain = dense.llama_tensors(1, torch.bfloat16)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(layer)}
    kept |= {name: tensor for name, tensor in plain.items() if name.startswith(layer)}
    return _save(folder, config, kept)


def _drafted(folder: Path, method: str) -> Mapping[str, Any]:
    """A target with a draft model beside it, or inside it."""
    speculative: dict[str, Any] = {"method": method, "num_speculative_tokens": 2}
    if method == "mtp":
        _save(folder, *drafts.mtp())
        return {"speculative_config": {**speculative, "num_speculative_tokens": 1}}
    target = drafts.echo(drafts.deep_llama() if method == "eagle3" else dense.llama())
    _save(folder, *target)
    made = {"draft_model": target, "eagle": drafts.eagle(), "eagle3": drafts.eagle3(target)}
    draft = write(folder / "draft", *made[method])
    return {"speculative_config": {**speculative, "model": str(draft)}}


def _recipe(recipe: Callable[[], Recipe], name: str = "", **options: Any) -> Plan:
    return Plan(name or recipe.__name__, partial(_plain, recipe, **options))


def _pooled(recipe: Callable[[], Recipe]) -> Plan:
    def build(folder: Path) -> Mapping[str, Any]:
        return {**_plain(recipe, folder), **pooled.pooling_options(folder)}

    return Plan(recipe.__name__, build)


def _dense(name: str, **more: Any) -> Plan:
    return Plan(name, partial(pooled.embedding, modules=("Pooling", "Dense")), **more)


def _quantized(scheme: str, name: str = "", **more: Any) -> Plan:
    return Plan(name or f"llama {scheme}", partial(_scheme, scheme=scheme), **more)


WIDE = "AVX512" in torch.backends.cpu.get_cpu_capability()
"""Without it there are no kernels for weights of four bits (they load), nor for a cache of fp8."""

TILES = torch.cpu._is_amx_tile_supported()
"""With them there is no kernel for weights of eight bits below activations in float32."""

FOUR_BITS = 4 if WIDE else 0
SEES = ("torchvision",)
KEPT = {"INT8_CACHE": "dram"}
NOT_KEPT = {"WEIGHT_CACHE": "no"}
GONE = "parameters were replaced"

PLANS = (
    _recipe(dense.llama),
    _recipe(dense.llama, dtype="float16"),
    _recipe(dense.llama, dtype="float32"),
    _recipe(partial(dense.llama, attention_bias=True, mlp_bias=True), "llama with biases"),
    _recipe(partial(dense.llama, tie_word_embeddings=True), "llama tied"),
    Plan("llama tied, same lm_head in files", partial(_tied_with_head, head="same")),
    Plan("llama tied, other lm_head in files", partial(_tied_with_head, head="other")),
    Plan("llama, dtype in files only", _dtype_in_files_only, refusal="differing: dtype"),
    _recipe(dense.qwen3),
    _recipe(dense.gemma2),
    _recipe(dense.gemma3),
    _recipe(dense.phi3),
    _recipe(dense.gpt2),
    _recipe(dense.opt),
    _recipe(experts.mixtral),
    _recipe(experts.qwen3_moe),
    _recipe(experts.olmoe),
    _recipe(experts.deepseek_v2),
    _recipe(experts.deepseek_v3),
    _recipe(experts.mixtral, dtype="float32"),
    Plan("mixtral, WEIGHT_CACHE no", partial(_plain, experts.mixtral), NOT_KEPT, refusal=GONE),
    _recipe(recurrent.mamba2),
    _recipe(recurrent.falcon_h1),
    _recipe(recurrent.qwen3_next),
    _quantized("w8a8", extra=KEPT),
    *(
        []
        if TILES
        else [Plan("llama w8a8", partial(_scheme, scheme="w8a8", dtype="float32"), KEPT)]
    ),
    _quantized("w8a8-tensor", extra=KEPT),
    _quantized("w8a8-static", extra=KEPT),
    _quantized("w8a8-asymmetric", extra=KEPT),
    _quantized("w8a8", "llama w8a8, INT8_CACHE no", refusal=GONE),
    _quantized("fp8"),
    *([Plan("llama fp8, cache scales", _with_cache_scales)] if WIDE else ()),
    _quantized("w4a16", tokens=FOUR_BITS),
    _quantized("w4a16-asymmetric", tokens=FOUR_BITS),
    _quantized("gptq", tokens=FOUR_BITS),
    Plan(
        "llama gptq, one layer in bfloat16",
        partial(_partly_quantized, layer="model.layers.1.self_attn.o_proj"),
        refusal="manifest_mismatch",
    ),
    Plan("llama awq", partial(_scheme, scheme="awq", dtype="float16"), tokens=FOUR_BITS),
    _recipe(dense.llama, "llama online fp8", quantization="fp8_per_channel"),
    Plan("draft_model", partial(_drafted, method="draft_model")),
    Plan("eagle", partial(_drafted, method="eagle")),
    Plan("eagle3", partial(_drafted, method="eagle3")),
    Plan("mtp", partial(_drafted, method="mtp")),
    _recipe(dense.llama, "llama TP 2", tensor_parallel_size=2),
    Plan(
        "llama w8a8 TP 2",
        lambda folder: {**_scheme(folder, "w8a8"), "tensor_parallel_size": 2},
        KEPT,
    ),
    _recipe(experts.mixtral, "mixtral TP 2", tensor_parallel_size=2),
    _recipe(families.qwen2),
    _recipe(families.stablelm),
    _recipe(families.cohere),
    _recipe(families.glm4),
    _recipe(families.starcoder2),
    _recipe(families.gpt_neox),
    _recipe(families.bloom),
    _recipe(families.gemma3n),
    _recipe(families.granite_moe),
    _recipe(families.phi_moe),
    _recipe(families.gpt_oss),
    _recipe(families.gpt_oss, dtype="float16"),
    Plan("custom code", custom.custom),
    _pooled(encoders.bert),
    _pooled(encoders.bert_classifier),
    _pooled(encoders.bert_tokens),
    _pooled(encoders.roberta_reranker),
    _pooled(encoders.modernbert),
    Plan("qwen3 embedding", pooled.embedding),
    Plan(
        "qwen3 embedding, Sentence-Transformers",
        partial(pooled.embedding, modules=("Pooling", "Normalize")),
    ),
    _dense("qwen3 embedding, Dense"),
    _dense(
        "qwen3 embedding, Dense, client has config and tokenizer",
        client=pooled.bare,
        refusal="2_Dense",
    ),
    _dense(
        "qwen3 embedding, Dense of another revision",
        client=pooled.other_dense,
        refusal="2_Dense",
    ),
    Plan(
        "qwen3 embedding, Sentence-Transformers, client has config and tokenizer",
        partial(pooled.embedding, modules=("Pooling", "Normalize")),
        client=pooled.bare,
        refusal="modules.json",
    ),
    Plan("qwen3 classifier", partial(pooled.classifier, bias="")),
    Plan(
        "qwen3 classifier, score.bias",
        partial(pooled.classifier, bias="yes"),
        refusal="score.bias",
    ),
    Plan("llama reranker", pooled.reranker, refusal="lm_head"),
    Plan("whisper", partial(media.media, build=media.whisper)),
    Plan("llava", partial(media.media, build=media.llava), needs=SEES),
    Plan("qwen2_vl", partial(media.media, build=media.qwen2_vl), needs=SEES),
)
