"""Where vLLM 0.23.0 to 0.33.0 differ: no other file uses a name that one of them lacks.

Told by what is there, not by version numbers: vendors carry single changes back and forth.
"""

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:  # processes that only start engines use this, and need no vLLM of their own
    from vllm.config import ModelConfig, VllmConfig

UNTIED = "word_embeddings_untied_by_checkpoint"
SUBSTITUTED = "_expert_substitutions"
"""The attribute by which model classes know experts that constants stand for, from 0.33 on."""
REBUILT = ("UnquantizedLinearMethod", "UnquantizedEmbeddingMethod", "KVCacheMethod")
"""Ends of the names of methods whose kernels a reload in place rebuilds on a CPU (tried with 0.23,
0.28 and 0.32)."""
PACKED = "cpu_linear"
"""The attribute by which layers on a CPU hold a packed copy of their weight, and its kernel."""


def untied_by_checkpoint(model_config: "ModelConfig") -> bool:
    """Whether vLLM untied the embeddings because the checkpoint holds an `lm_head`.

    Releases up to 0.28.0 never do: a tied config stays tied, and an `lm_head` is not read.
    """
    return bool(getattr(model_config, UNTIED, False))


def untie(model_config: "ModelConfig") -> bool:
    """Do as `ModelConfig.maybe_untie_word_embeddings` when it meets an `lm_head` in the files.

    Returns:
        False where this vLLM does not have that; then nothing is changed.
    """
    if not hasattr(model_config, UNTIED):
        return False
    config = model_config.hf_config
    config.tie_word_embeddings = False
    config.get_text_config().tie_word_embeddings = False
    setattr(model_config, UNTIED, True)
    return True


def has_substituted_experts(model: nn.Module) -> bool:
    """Whether constants stand for experts of a model (`expert_substitution`, from 0.33 on)."""
    return bool(vars(model).get(SUBSTITUTED))


def draft_lm_head_quantization(vllm_config: "VllmConfig") -> str:
    """How a draft keeps its copy of the target's head, which it may have from vLLM 0.33 on."""
    draft = getattr(vllm_config, "speculative_config", None)
    return str(getattr(draft, "draft_lm_head_quantization", None))


def reset_weights(worker: Any) -> bool:
    """Set the target's weights to zero; False where this vLLM cannot (up to 0.30)."""
    if not hasattr(worker, "reset_weights"):
        return False
    worker.reset_weights()
    return True


def reload_of(worker: Any) -> Any:
    """The reload in place of a worker, or of its runner where it has none (vllm-ascend 0.23)."""
    return getattr(worker, "reload_weights", None) or worker.model_runner.reload_weights


def pooling_task(llm: Any) -> str | None:
    """The task of a pooling engine, where this vLLM names it."""
    task: str | None = getattr(llm, "pooling_task", None)
    return task


def reload_rebuilds(method: type) -> bool:
    """Whether vLLM's reload in place rebuilds on a CPU what a layer's `quant_method` has made."""
    return method.__name__.endswith(REBUILT)


def is_packed(layer: nn.Module) -> bool:
    """Whether a layer on a CPU holds a packed weight."""
    return PACKED in vars(layer)


def drop_packed(layer: nn.Module) -> None:
    """Have a layer on a CPU let go of its packed weight, which post-processing makes anew.

    Else vLLM frees it only when it has made the new one, in memory that is new to the process.
    """
    vars(layer).pop(PACKED, None)
