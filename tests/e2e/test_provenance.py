"""Real engines: what hangs outside the tree of modules, and weights that mean nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from netloader.vllm_plugin.inspect.parity.engine import EngineError
from tests.e2e.engines import ForkServer
from tests.e2e.source_logs import held
from tests.support import zoo
from tests.support.ports import free_port
from tests.support.zoo import dense

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PROMPTS = ((5, 6, 7, 8), (9, 10, 11))
POOLING: dict[str, Any] = {"runner": "pooling", "skip_tokenizer_init": False}
"""vLLM's pooling engines want a tokenizer, whatever they are given."""


def source(endpoint: str, **more: Any) -> dict[str, Any]:
    return {"SOURCE": [{"device_id": 0, "sources": [endpoint]}], **more}


def with_tokenizer(folder: Path) -> Path:
    """Add a tokenizer of 320 words."""
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(320)}, unk_token="w0"))
    words.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    return folder


def sentence_transformer(folder: Path, seed: int, *, weights: bool = True) -> Path:
    """A language model with mean pooling and a Dense layer, which vLLM reads by itself."""
    made = dense.qwen3()
    zoo.write(folder, made.config, made.tensors(1, torch.bfloat16) if weights else None)
    kinds = ("Transformer", "Pooling", "Dense")
    paths = ("", "1_Pooling", "2_Dense")
    rows = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    pooling, projector = folder / "1_Pooling", folder / "2_Dense"
    pooling.mkdir()
    projector.mkdir()
    size = made.config["hidden_size"]
    kind = {"word_embedding_dimension": size, "pooling_mode_mean_tokens": True}
    (pooling / "config.json").write_text(json.dumps(kind))
    identity = "torch.nn.modules.linear.Identity"
    shape = {"in_features": size, "out_features": 64, "bias": True, "activation_function": identity}
    (projector / "config.json").write_text(json.dumps(shape))
    chance = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {
        "linear.weight": torch.randn(64, size, generator=chance) / 10,
        "linear.bias": torch.randn(64, generator=chance),
    }
    save_file(tensors, projector / "model.safetensors")
    return with_tokenizer(folder)


def embed(worker: Any) -> list[list[float]]:
    """Embeddings of PROMPTS by the engine that lives in this process."""
    import gc

    from vllm import LLM

    del worker
    gc.unfreeze()
    llm = next(thing for thing in gc.get_objects() if isinstance(thing, LLM))
    given = [{"prompt_token_ids": list(prompt)} for prompt in PROMPTS]
    return [list(out.outputs.embedding) for out in llm.embed(given, use_tqdm=False)]


def test_a_layer_that_vllm_reads_by_itself_is_its_servers(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    full = sentence_transformer(tmp_path / "full", 3)
    same = sentence_transformer(tmp_path / "same", 3, weights=False)
    other = sentence_transformer(tmp_path / "other", 4, weights=False)
    none = sentence_transformer(tmp_path / "none", 3, weights=False)
    (none / "2_Dense" / "model.safetensors").unlink()
    with fork_server.engine(full, {"OUTPUT_PREFIX": f"{tmp_path}/a-"}, **POOLING) as server:
        extra = source((tmp_path / "a-0.txt").read_text(), FALLBACK="never")
        (expected,) = server.rpc(embed)
        assert len(expected[0]) == 64
        limits: dict[str, Any] = {
            "max_model_len": 64,
            "max_num_seqs": 3,
        }
        with fork_server.engine(same, extra, **POOLING, **limits) as client:
            assert client.rpc(embed) == [expected]
        for folder in (other, none):  # found before a model is built
            with (
                pytest.raises(EngineError, match=r"file.2_Dense/model.safetensors"),
                fork_server.engine(folder, extra, **POOLING),
            ):
                pass


def test_a_classifier_whose_bias_is_made_while_it_loads_is_not_served(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    made = dense.qwen3()
    labels = {"num_labels": 3, "id2label": {str(i): str(i) for i in range(3)}}
    config = {**made.config, "architectures": ["Qwen3ForSequenceClassification"], **labels}
    tensors = {n: t for n, t in made.tensors(1, torch.bfloat16).items() if "lm_head" not in n}
    tensors["score.weight"] = torch.randn(3, config["hidden_size"]).bfloat16()
    for name, served in (("plain", True), ("biased", False)):
        folder = with_tokenizer(zoo.write(tmp_path / name, config, tensors))
        with fork_server.engine(
            folder, {"OUTPUT_PREFIX": f"{tmp_path}/{name}-"}, **POOLING
        ) as engine:
            said = "load_weights makes parameters that no client has: score.bias"
            assert (said in engine.log()) is not served
            assert (tmp_path / f"{name}-0.txt").exists() is served
        shutil.rmtree(folder)
        tensors["score.bias"] = torch.randn(3).bfloat16()


@pytest.mark.parametrize("fallback", ["dummy", {"load_format": "dummy"}])
def test_placeholders_are_not_offered_until_a_reload_has_made_them_real(
    fork_server: ForkServer, tmp_path: Path, fallback: Any
) -> None:
    config = zoo.llama_config()
    full = zoo.write(tmp_path / "full", config, zoo.llama_tensors(1, torch.bfloat16))
    bare = zoo.write(tmp_path / "bare", config, None)
    port = free_port()
    standby = source(f"127.0.0.1:{port}", FALLBACK=fallback, OUTPUT_PREFIX=f"{tmp_path}/b-")
    address = tmp_path / "b-0.txt"
    with fork_server.engine(bare, standby) as engine:
        assert "the weights are placeholders" in engine.log()
        assert "netloader.server.offered" not in engine.log()
        assert not address.exists()
        with fork_server.engine(full, {"LISTEN_PORT": port}) as server:
            engine.rpc("reload_weights")
            expected = server.generate()
            assert engine.generate() == expected
            assert held(engine) == held(server)
        with fork_server.engine(bare, source(address.read_text(), FALLBACK="never")) as client:
            assert client.generate() == expected
