"""Tiny random checkpoints, made in a moment: real architectures, hidden size 256."""

from tests.e2e.zoo.checkpoint import VOCABULARY, Config, Recipe, write
from tests.e2e.zoo.dense import llama, llama_config, llama_tensors

__all__ = ["VOCABULARY", "Config", "Recipe", "llama", "llama_config", "llama_tensors", "write"]
