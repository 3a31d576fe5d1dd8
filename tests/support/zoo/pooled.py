"""Decoders that pool: embeddings, Sentence-Transformers folders, rerankers."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from netloader.vllm_plugin.inspect.parity.run import without_weights
from tests.support.zoo.checkpoint import HIDDEN, Config, write
from tests.support.zoo.dense import llama, qwen3
from tests.support.zoo.encoders import LABELS, labels
from tests.support.zoo.tokenizer import write_tokenizer

NARROW = 64
"""What a Dense module makes of HIDDEN."""

YES, NO = "yes", "no"
SEED = 1


def pooling_options(folder: Path) -> dict[str, Any]:
    """A tokenizer beside the model, and the option that makes vLLM pool."""
    write_tokenizer(folder / "model")
    return {"runner": "pooling"}


def embedding(folder: Path, modules: Sequence[str] = ()) -> Mapping[str, Any]:
    """Qwen3 as an embedding model; `modules` are those of Sentence-Transformers behind it."""
    made = qwen3()
    write(folder / "model", made.config, made.tensors(SEED, torch.bfloat16))
    if modules:
        sentence_transformers(folder / "model", *modules)
    return pooling_options(folder)


def sentence_transformers(folder: Path, *modules: str) -> None:
    """modules.json and a folder for each module: `Pooling` (mean), `Dense`, `Normalize`."""
    home = "sentence_transformers.models"
    listed = [{"idx": 0, "name": "0", "path": "", "type": f"{home}.Transformer"}]
    for index, name in enumerate(modules, 1):
        path = f"{index}_{name}"
        listed.append({"idx": index, "name": str(index), "path": path, "type": f"{home}.{name}"})
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps(MODULES[name]))
        if name == "Dense":
            save_file(dense(SEED), folder / path / "model.safetensors")
    (folder / "modules.json").write_text(json.dumps(listed))


MODULES: Mapping[str, Config] = {
    "Pooling": {
        "word_embedding_dimension": HIDDEN,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_lasttoken": False,
    },
    "Dense": {
        "in_features": HIDDEN,
        "out_features": NARROW,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    },
    "Normalize": {},
}


def dense(seed: int) -> dict[str, Tensor]:
    """A Dense module's weights; another seed is another revision."""
    chance = torch.Generator().manual_seed(seed)
    return {
        "linear.weight": torch.randn(NARROW, HIDDEN, generator=chance) * 0.1,
        "linear.bias": torch.randn(NARROW, generator=chance),
    }


def bare(folder: Path) -> Path:
    """A client's folder with config and tokenizer, and nothing else."""
    client = folder / "client"
    client.mkdir()
    for file in (folder / "model").glob("*.json"):
        if file.name == "config.json" or file.name.startswith("tokenizer"):
            shutil.copy(file, client)
    return client


def other_dense(folder: Path) -> Path:
    """A client's folder whose Dense module is of another revision."""
    client = without_weights(folder / "model", folder / "client")
    (file,) = client.glob("*_Dense/model.safetensors")
    file.unlink()
    save_file(dense(SEED + 1), file)
    return client


def classifier(folder: Path, bias: str) -> Mapping[str, Any]:
    """Qwen3 with a `score` head, whose bias may be in the checkpoint."""
    made = qwen3()
    tensors = made.tensors(SEED, torch.bfloat16)
    del tensors["lm_head.weight"]
    chance = torch.Generator().manual_seed(SEED)
    tensors["score.weight"] = torch.randn(LABELS, HIDDEN, generator=chance).bfloat16() * 0.3
    if bias:
        tensors["score.bias"] = torch.randn(LABELS, generator=chance).bfloat16()
    config = {**made.config, "architectures": ["Qwen3ForSequenceClassification"], **labels(LABELS)}
    write(folder / "model", config, tensors)
    return pooling_options(folder)


def reranker(folder: Path) -> Mapping[str, Any]:
    """A generating model that says yes or no; vLLM makes one number of these two rows."""
    made = llama()
    write(folder / "model", made.config, made.tensors(SEED, torch.bfloat16))
    overrides = {
        "architectures": ["LlamaForSequenceClassification"],
        "classifier_from_token": [NO, YES],
        "method": "from_2_way_softmax",
        "num_labels": 1,
    }
    return {**pooling_options(folder), "hf_overrides": overrides}
