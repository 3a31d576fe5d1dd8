"""What one vLLM has and another has not, with configs as both of them have it."""

from types import SimpleNamespace
from typing import Any

from netloader.vllm_plugin.patches import compat


def model_config(**more: bool) -> Any:
    """A model whose embeddings are tied; `more` is what newer vLLMs add to ModelConfig."""
    text = SimpleNamespace(tie_word_embeddings=True)
    hf_config = SimpleNamespace(tie_word_embeddings=True, get_text_config=lambda: text)
    return SimpleNamespace(hf_config=hf_config, **more)


def tied(config: Any) -> tuple[bool, bool]:
    hf_config = config.hf_config
    return hf_config.tie_word_embeddings, hf_config.get_text_config().tie_word_embeddings


def test_a_vllm_that_unties_is_told_to_and_says_so() -> None:
    config = model_config(word_embeddings_untied_by_checkpoint=False)

    assert not compat.untied_by_checkpoint(config)
    assert compat.untie(config)
    assert compat.untied_by_checkpoint(config)
    assert tied(config) == (False, False)


def test_a_vllm_that_never_unties_is_left_as_it_is() -> None:
    config = model_config()

    assert not compat.untied_by_checkpoint(config)
    assert not compat.untie(config)
    assert vars(config).keys() == {"hf_config"}
    assert tied(config) == (True, True)
