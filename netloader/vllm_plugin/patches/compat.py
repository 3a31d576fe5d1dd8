"""Where vLLM 0.23.0 to 0.33.0 differ. Law: no other file asks for a name that one of them lacks.

Told by what is there, not by version numbers: vendors carry single changes back and forth.
"""

from vllm.config import ModelConfig

UNTIED = "word_embeddings_untied_by_checkpoint"


def untied_by_checkpoint(model_config: ModelConfig) -> bool:
    """Whether vLLM untied the embeddings because the checkpoint holds an `lm_head`.

    Releases up to 0.28.0 never do: a tied config stays tied, and an `lm_head` is not read.
    """
    return bool(getattr(model_config, UNTIED, False))


def untie(model_config: ModelConfig) -> bool:
    """Do as `ModelConfig.maybe_untie_word_embeddings` when it meets an `lm_head` in the files.

    Returns:
        False where this vLLM knows nothing of that; then nothing is changed.
    """
    if not hasattr(model_config, UNTIED):
        return False
    config = model_config.hf_config
    config.tie_word_embeddings = False
    config.get_text_config().tie_word_embeddings = False
    setattr(model_config, UNTIED, True)
    return True
