"""What else is in a model's folder: it is named when it is missing, or another one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from netloader.vllm_plugin.inspect.parity.engine import EngineError
from tests.e2e.engines import Engine, ForkServer
from tests.e2e.source_logs import only, serving
from tests.support import zoo
from tests.support.ports import free_port

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

POOLING: dict[str, Any] = {"runner": "pooling", "skip_tokenizer_init": False}
MODULES = ("Transformer", "Pooling", "Dense")
DENSE = {
    "in_features": 256,
    "out_features": 64,
    "bias": True,
    "activation_function": "torch.nn.modules.linear.Identity",
}


def tokenizer(folder: Path) -> None:
    """Write one: a pooling engine does not start without."""
    words = {f"word{n}": n for n in range(1, 300)}
    Tokenizer(WordLevel({"[UNK]": 0, **words}, "[UNK]")).save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def llama(folder: Path) -> Path:
    return zoo.write(folder, zoo.llama_config(), zoo.llama_tensors(1, torch.bfloat16))


def sentence_transformer(folder: Path, modules: int, seed: int = 1) -> Path:
    """A folder of Sentence-Transformers, with the first few of MODULES."""
    tokenizer(llama(folder))
    names = ["", *(f"{n}_{name}" for n, name in enumerate(MODULES) if n)]
    listed = [
        {"idx": n, "name": str(n), "path": names[n], "type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(MODULES[:modules])
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    mean = {"word_embedding_dimension": 256, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(mean))
    if modules > 2:
        (folder / "2_Dense").mkdir()
        (folder / "2_Dense" / "config.json").write_text(json.dumps(DENSE))
        random = torch.Generator().manual_seed(seed)
        dense = {
            "linear.weight": torch.randn(64, 256, generator=random),
            "linear.bias": torch.randn(64, generator=random),
        }
        save_file(dense, folder / "2_Dense" / "model.safetensors")
    return folder


def without(folder: Path, to: Path, *names: str) -> Path:
    """A copy without the model's weights, and without these."""
    shutil.copytree(folder, to)
    for name in ("model.safetensors", *names):
        path = to / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return to


def refused(fork_server: ForkServer, folder: Path, at: list[str], **options: Any) -> list[str]:
    """What a client says that is not filled; its table, row by row."""
    with pytest.raises(EngineError) as caught, fork_server.engine(folder, only(at), **options):
        pass
    return str(caught.value).splitlines()


def row_of(lines: list[str], field: str) -> str:
    found = [line for line in lines if line.startswith(f"'{field}'")]
    assert found, lines
    return found[0]


def test_a_generation_config_on_one_side_is_a_warning_with_its_name(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    full = llama(tmp_path / "full")
    (full / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 77]}))
    bare = without(full, tmp_path / "bare", "generation_config.json")
    with serving(fork_server, full, tmp_path) as (server, at):
        with fork_server.engine(bare, only(at)) as client:
            assert client.generate() == server.generate()
            said = warnings(client)
            assert len(said) == 1
            assert "default.eos_token_id" in said[0]
            assert "[2, 77]" in said[0]
            assert "copy generation_config.json" in said[0]
            assert "netloader.warnings=default.eos_token_id" in client.log()
        shutil.copy(full / "generation_config.json", bare)
        with fork_server.engine(bare, only(at)) as client:
            assert warnings(client) == []
            assert "netloader.warnings=none" in client.log()


def warnings(client: Engine) -> list[str]:
    return [line for line in client.log().splitlines() if "netloader.source.answers_differ" in line]


def test_a_folder_that_says_how_to_pool_is_needed(fork_server: ForkServer, tmp_path: Path) -> None:
    full = sentence_transformer(tmp_path / "full", modules=2)
    bare = without(full, tmp_path / "bare", "modules.json", "1_Pooling")
    whole = without(full, tmp_path / "whole")
    with serving(fork_server, full, tmp_path, **POOLING) as (server, at):
        lines = refused(fork_server, bare, at, **POOLING)
        row = row_of(lines, "pooling.seq_pooling_type")
        assert "LAST" in row
        assert "MEAN" in row
        assert "1_Pooling" in row
        assert "--pooler-config" in row
        assert "copy modules.json" in row_of(lines, "file.modules.json")
        with fork_server.engine(whole, only(at), **POOLING) as client:
            assert client.held() == server.held()


def test_weights_in_a_sub_folder_are_needed_and_must_be_the_same(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    """They hang outside of what is sent: vLLM reads them while it builds the model."""
    full = sentence_transformer(tmp_path / "full", modules=3)
    other = sentence_transformer(tmp_path / "other", modules=3, seed=2)
    lacking = without(full, tmp_path / "lacking", "2_Dense/model.safetensors")
    mixed = without(other, tmp_path / "mixed")
    field = "file.2_Dense/model.safetensors"
    with serving(fork_server, full, tmp_path, **POOLING) as (server, at):
        lines = refused(fork_server, lacking, at, **POOLING)
        assert "copy 2_Dense/model.safetensors" in row_of(lines, field)
        lines = refused(fork_server, mixed, at, **POOLING)
        assert "use the same revision" in row_of(lines, field)
        with fork_server.engine(without(full, tmp_path / "same"), only(at), **POOLING) as client:
            assert client.held() == server.held()


def test_an_override_on_one_side_is_named_with_both_values(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    full = llama(tmp_path / "full")
    bare = without(full, tmp_path / "bare")
    with serving(fork_server, full, tmp_path, hf_overrides={"rms_norm_eps": 0.25}) as (_, at):
        lines = refused(fork_server, bare, at)
        row = row_of(lines, "config.rms_norm_eps")
        assert "'0.25'" in row
        assert "--hf-overrides of the source" in row
        lines = refused(fork_server, bare, at, hf_overrides={"rms_norm_eps": 0.5})
        assert "this side and the source" in row_of(lines, "config.rms_norm_eps")
        same: dict[str, Any] = {"hf_overrides": {"rms_norm_eps": 0.25}, "max_model_len": 64}
        with fork_server.engine(bare, only(at), **same) as client:
            assert "netloader.loader.received" in client.log()


def test_a_source_of_another_model_does_not_keep_the_next_one_from_being_asked(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    full, bare = llama(tmp_path / "full"), without(llama(tmp_path / "x"), tmp_path / "bare")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with (
        serving(fork_server, full, tmp_path / "a", hf_overrides={"rms_norm_eps": 0.25}) as (_, one),
        serving(fork_server, full, tmp_path / "b") as (server, two),
    ):
        both = {"FALLBACK": "never", "SOURCE": [{"device_id": 0, "sources": [*one, *two]}]}
        with fork_server.engine(bare, both) as client:
            assert client.generate() == server.generate()
            assert "netloader.field='config.rms_norm_eps'" in client.log()


def test_a_fallback_that_is_not_there_is_told_at_start_though_the_source_lives(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    full = llama(tmp_path / "full")
    for fallback in (
        "no_such_format",
        {"load_format": "auto", "model_loader_extra_config": {"b": 1}},
    ):
        sources = [{"device_id": 0, "sources": [f"127.0.0.1:{free_port()}"]}]
        extra = {"FALLBACK": fallback, "SOURCE": sources, "MAX_CLIENTS": 0}
        with pytest.raises(EngineError) as caught, fork_server.engine(full, extra):
            pass
        assert "FALLBACK" in str(caught.value)
        assert "MAX_CLIENTS" in str(caught.value)
