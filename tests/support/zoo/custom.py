"""A model whose code lies in its folder: vLLM runs it through its transformers backend."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.support.zoo.checkpoint import HIDDEN, write
from tests.support.zoo.dense import llama

CODE = '''"""Llama, with a gain behind its last norm."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel


class GainConfig(LlamaConfig):
    model_type = "gain"


class GainModel(LlamaModel):
    config_class = GainConfig

    def __init__(self, config):
        super().__init__(config)
        self.gain = torch.nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, input_ids=None, inputs_embeds=None, position_ids=None, **more):
        given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        found = super().forward(**given, position_ids=position_ids, **more)
        if isinstance(found, tuple):
            return (found[0] * self.gain, *found[1:])
        found.last_hidden_state = found.last_hidden_state * self.gain
        return found


class GainForCausalLM(LlamaForCausalLM):
    config_class = GainConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = GainModel(config)
'''


def custom(folder: Path) -> Mapping[str, Any]:
    """modeling_gain.py beside the config that names it."""
    made = llama()
    tensors = made.tensors(1, torch.bfloat16)
    chance = torch.Generator().manual_seed(2)
    tensors["model.gain"] = 1 + torch.randn(HIDDEN, generator=chance).bfloat16() * 0.2
    config = {
        **made.config,
        "architectures": ["GainForCausalLM"],
        "model_type": "gain",
        "auto_map": {
            "AutoConfig": "modeling_gain.GainConfig",
            "AutoModel": "modeling_gain.GainModel",
            "AutoModelForCausalLM": "modeling_gain.GainForCausalLM",
        },
    }
    write(folder / "model", config, tensors)
    (folder / "model" / "modeling_gain.py").write_text(CODE)
    return {"trust_remote_code": True}
