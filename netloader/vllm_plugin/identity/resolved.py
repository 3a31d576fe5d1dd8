"""What vLLM decided from a model's folder and its options, compared as text, key by key.

`ModelConfig` is made in another process than the worker and sent to it, so what was decided there
is read from it here. Each setting is a field of its own, so that a refusal names it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

VOLATILE = frozenset(
    {
        "_commit_hash",
        "_name_or_path",
        "dtype",
        "tie_word_embeddings",
        "torch_dtype",
        "transformers_version",
    }
)
"""Keys of a Hugging Face config that differ between equal models, or that are compared by field."""

CONFIG, POOLING, MULTIMODAL, SETTING = "config.", "pooling.", "multimodal.", "setting."
"""How the names of these fields begin."""

SHORT_CHARS = 72
"""A value of more characters is taken apart, or compared by its digest."""
DEPTH = 3
"""How deep the config is taken apart: that of a language model inside a multimodal one, and what
that holds."""
MAX_CHARS = 16 << 10
"""All entries of a config together: a hello has 64 KiB and is sent before there is any trust."""

_LITERALS = ("null", "true", "false", "NaN", "Infinity")

_NOT_POOLING = ("task", "pooling_type", "enable_flash_late_interaction", "max_embed_len",
                "enable_chunked_processing")  # fmt: skip
"""Fields of vLLM's PoolerConfig that change no number, or that others stand for."""

_MULTIMODAL = ("mm_processor_kwargs", "media_io_kwargs", "mm_encoder_only", "mm_encoder_tp_mode",
               "mm_encoder_attn_dtype", "mm_device_do_normalize", "video_pruning_rate",
               "video_pruning_method")  # fmt: skip
"""Fields of vLLM's MultiModalConfig that change what is built of a model, or what it is fed."""

_SETTINGS = ("disable_sliding_window", "quantization_config", "model_class_overrides")
"""Fields of vLLM's ModelConfig that change the numbers and are seen in no other field."""

_SAMPLING = ("repetition_penalty", "presence_penalty", "frequency_penalty", "temperature", "top_k",
             "top_p", "min_p", "max_new_tokens")  # fmt: skip
"""What vLLM takes from generation_config.json as defaults of a request, besides the end tokens."""


def hard(model_config: Any) -> dict[str, str]:
    """The settings that change numbers."""
    return {
        **config_entries(model_config.hf_config.to_dict()),
        **_pooling(model_config),
        **_multimodal(getattr(model_config, "multimodal_config", None)),
        **_some(SETTING, model_config, _SETTINGS),
    }


def config_entries(config: Mapping[str, Any]) -> dict[str, str]:
    """A normalised Hugging Face config as fields, in as much detail as there is room for."""
    plain = _normal(config)
    for depth in range(DEPTH, 0, -1):
        entries = {CONFIG + name: text for name, text in _entries(plain, "", depth)}
        if sum(len(name) + len(text) for name, text in entries.items()) <= MAX_CHARS:
            return entries
    return {CONFIG.rstrip("."): _short(_words(plain))}


def _entries(value: Mapping[str, Any], path: str, depth: int) -> Iterator[tuple[str, str]]:
    for name, item in value.items():
        key = name if name.isprintable() else json.dumps(name)
        text = _words(item)
        if isinstance(item, Mapping) and len(text) > SHORT_CHARS and depth > 1:
            yield from _entries(item, f"{path}{key}.", depth - 1)
        else:
            yield path + key, _short(text)


def _short(text: str) -> str:
    if len(text) <= SHORT_CHARS:
        return text
    return f"{len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _words(value: Any) -> str:
    """A value as JSON; text that cannot be taken for another value is left without quotes."""
    text = json.dumps(value, sort_keys=True, default=_plain)
    plain = isinstance(value, str) and value.replace("_", "").isalpha() and value not in _LITERALS
    return value if plain else text


def _plain(value: Any) -> Any:
    """What stands for an object that is no JSON; never an address in memory."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, type) or callable(value):
        return f"{value.__module__}.{getattr(value, '__qualname__', type(value).__name__)}"
    text = str(value)
    return type(value).__qualname__ if " at 0x" in text else text


def _normal(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _normal(v) for k, v in value.items() if k not in VOLATILE}
    if isinstance(value, (list, tuple)):
        return [_normal(v) for v in value]
    return value


def _some(prefix: str, holder: Any, names: tuple[str, ...]) -> dict[str, str]:
    """The fields of these names that are not vLLM's defaults, which differ between versions."""
    usual = {f.name: f.default for f in fields(holder)} if is_dataclass(holder) else {}
    values = {name: getattr(holder, name, None) for name in names}
    given = {n: v for n, v in values.items() if v not in (None, {}) and v != usual.get(n)}
    return {prefix + name: _short(_words(value)) for name, value in given.items()}


def _pooling(model_config: Any) -> dict[str, str]:
    pooler = getattr(model_config, "pooler_config", None)
    if pooler is None:
        return {}
    names = tuple(f.name for f in fields(pooler) if f.name not in _NOT_POOLING)
    convert = getattr(model_config, "convert_type", None)
    return {POOLING + "convert": str(convert), **_some(POOLING, pooler, names)}


def _multimodal(config: Any) -> dict[str, str]:
    if config is None:
        return {}
    values = _some(MULTIMODAL, config, _MULTIMODAL)
    limits = getattr(config, "limit_per_prompt", None) or {}
    off = sorted(name for name in limits if config.get_limit_per_prompt(name) == 0)
    if getattr(config, "language_model_only", False):
        off = ["all"]
    return {**values, MULTIMODAL + "off": ", ".join(off)} if off else values


# -- defaults of requests ------------------------------------------------------------------------


def defaults(model_config: Any) -> dict[str, str]:
    """The defaults of a request, and what else changes answers but no number of the model."""
    config: dict[str, Any] = model_config.try_get_generation_config()
    ends = config.get("eos_token_id")
    given = {} if model_config.generation_config == "vllm" else config
    given = {**given, **(model_config.override_generation_config or {})}
    values = {name: given[name] for name in _SAMPLING if given.get(name) is not None}
    if ends is not None:
        values["eos_token_id"] = ends if isinstance(ends, list) else [ends]
    processors = getattr(model_config, "logits_processors", None)
    if processors:
        values["logits_processors"] = list(processors)
    return {name: _short(_words(value)) for name, value in values.items()}


def overridden(given: Any) -> list[str]:
    """The keys of the config that `--hf-overrides` sets on this side; `*` for a function."""
    if isinstance(given, Mapping):
        return sorted(map(str, given))
    return ["*"] if callable(given) else []
