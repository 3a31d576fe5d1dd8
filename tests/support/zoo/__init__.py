"""Tiny random checkpoints, made in a moment: real architectures, hidden size 256."""

from tests.support.zoo.checkpoint import VOCABULARY, Config, Recipe, write
from tests.support.zoo.dense import llama, llama_config, llama_tensors

__all__ = ["VOCABULARY", "Config", "Recipe", "llama", "llama_config", "llama_tensors", "write"]
