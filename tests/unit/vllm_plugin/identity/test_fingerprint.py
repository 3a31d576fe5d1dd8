"""What weight files are known by: every format, every sub-folder, all of them or none."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from netloader.vllm_plugin.identity.fingerprint import fingerprints


def weights(file: Path, value: float = 1.0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"weight": torch.full((64, 64), value), "bias": torch.full((4,), value)}
    if file.suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save(tensors, file)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("model.safetensors", "checkpoint"),
        ("pytorch_model.bin", "checkpoint_bin"),
        ("model.pt", "checkpoint_pt"),
        ("consolidated.00.pth", "checkpoint_pt"),
        ("model.gguf", "checkpoint_gguf"),
        ("adapter_model.safetensors", "checkpoint"),
        ("2_Dense/model.safetensors", "checkpoint.2_Dense"),
        ("2_Dense/pytorch_model.bin", "checkpoint_bin.2_Dense"),
        ("lora/adapter_model.safetensors", "checkpoint.lora"),
    ],
)
def test_each_weight_file_counts(tmp_path: Path, name: str, field: str) -> None:
    weights(tmp_path / "model.safetensors")
    before = fingerprints(tmp_path)
    weights(tmp_path / name, 2.0)
    two = fingerprints(tmp_path)
    weights(tmp_path / name, 3.0)
    three = fingerprints(tmp_path)
    assert two.keys() - before.keys() <= {field}
    assert {n for n in three if three[n] != two[n]} == {field}


@pytest.mark.parametrize("name", ["optimizer.pt", "training_args.bin", "onnx/m.bin", ".x/m.bin"])
def test_what_is_no_weight_of_the_model_does_not_count(tmp_path: Path, name: str) -> None:
    weights(tmp_path / "model.safetensors")
    before = fingerprints(tmp_path)
    weights(tmp_path / name)
    assert fingerprints(tmp_path) == before


def test_shards_count_once_all_of_them_are_there(tmp_path: Path) -> None:
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = {"weight_map": {"a": shards[0], "b": shards[1], "c": shards[1]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert fingerprints(tmp_path) == {}
    weights(tmp_path / shards[0])
    assert fingerprints(tmp_path) == {}  # a download that has not ended
    weights(tmp_path / shards[1])
    whole = fingerprints(tmp_path)
    assert whole.keys() == {"checkpoint"}
    weights(tmp_path / "consolidated.safetensors")  # the same weights once more, and not read
    assert fingerprints(tmp_path) == whole
    weights(tmp_path / shards[1], 2.0)
    assert fingerprints(tmp_path) != whole


def test_one_file_and_no_folder_at_all(tmp_path: Path) -> None:
    weights(tmp_path / "m.gguf")
    assert fingerprints(tmp_path / "m.gguf").keys() == {"checkpoint_gguf"}
    assert fingerprints(tmp_path / "nothing") == {}


def test_an_index_that_says_nothing_is_the_loaders_problem(tmp_path: Path) -> None:
    weights(tmp_path / "model.safetensors")
    before = fingerprints(tmp_path)
    for text in ("{", "[]", '{"weight_map": 5}', "\udcff"):
        (tmp_path / "model.safetensors.index.json").write_text(text, errors="surrogateescape")
        assert fingerprints(tmp_path) == before
