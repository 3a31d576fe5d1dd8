"""What vLLM decided, as fields: from its own config objects, and from made up ones."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import PoolerConfig, VllmConfig
from vllm.config.multimodal import MultiModalConfig
from vllm.engine.arg_utils import EngineArgs

from netloader.fsm.identity import Identity
from netloader.fsm.messages import Hello, Purpose
from netloader.fsm.session import FRAME_BEFORE_TRUST
from netloader.vllm_plugin.identity import resolved
from netloader.wire.frames import encode
from tests.support import zoo


def config(folder: Path, **changes: Any) -> VllmConfig:
    options = {"enforce_eager": True, "skip_tokenizer_init": True, "max_model_len": 128}
    return EngineArgs(model=str(folder), **{**options, **changes}).create_engine_config()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.1")


def folder_with(folder: Path, **files: Any) -> Path:
    zoo.write(folder, zoo.llama_config(), zoo.llama_tensors(1, torch.bfloat16))
    for name, value in files.items():
        file = folder / name.replace("___", "/").replace("__", ".")
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(value))
    return folder


def unequal(one: dict[str, str], two: dict[str, str]) -> dict[str, tuple[Any, Any]]:
    names = one.keys() | two.keys()
    return {n: (one.get(n), two.get(n)) for n in names if one.get(n) != two.get(n)}


def test_an_override_is_the_field_that_it_overrides(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "m")
    plain = config(folder).model_config
    other = config(folder, hf_overrides={"rms_norm_eps": 0.5}).model_config
    assert unequal(resolved.hard(plain), resolved.hard(other)) == {
        "config.rms_norm_eps": (json.dumps(plain.hf_config.rms_norm_eps), "0.5")
    }
    keys = [resolved.overridden(model.hf_overrides) for model in (plain, other)]
    assert keys == [[], ["rms_norm_eps"]]
    assert resolved.overridden(lambda config: config) == ["*"]


@pytest.mark.parametrize("length", [64, 128])
def test_the_length_of_a_context_is_no_part_of_a_model(tmp_path: Path, length: int) -> None:
    folder = folder_with(tmp_path / "m")
    one, two = config(folder), config(folder, max_model_len=length)
    assert resolved.hard(one.model_config) == resolved.hard(two.model_config)


def test_configs_are_taken_apart_as_deep_as_it_helps() -> None:
    deep = {"text_config": {"rope": {"theta": 1, "kind": "x" * 80}, "size": 8}, "name": "2", "n": 2}
    entries = resolved.config_entries(deep)
    assert entries.keys() == {
        "config.text_config.rope.theta", "config.text_config.rope.kind",
        "config.text_config.size", "config.name", "config.n",
    }  # fmt: skip
    assert (entries["config.name"], entries["config.n"]) == ('"2"', "2")
    assert entries["config.text_config.rope.kind"].startswith("80 characters, sha256 ")


@pytest.mark.parametrize(
    ("one", "two"),
    [({"a": "2"}, {"a": 2}), ({"a": None}, {"a": "null"}), ({"a": None}, {}),
     ({"a": True}, {"a": "true"}), ({"a": {}}, {"a": []}), ({"a": {"b": 1}}, {"a": {"b": "1"}}),
     ({"a": list(range(900))}, {"a": list(range(899))})],
)  # fmt: skip
def test_no_two_configs_look_alike(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert resolved.config_entries(one) != resolved.config_entries(two)


@pytest.mark.parametrize(
    "config",
    [
        {"id2label": {str(n): f"label {n}" for n in range(20_000)}},
        {f"key_{n}": "x" * 60 for n in range(5_000)},
        {"a": {"b": {str(n): {str(m): [m] * 40 for m in range(40)} for n in range(40)}}},
        {"ignore": [f"model.layers.{n}.mlp" for n in range(10_000)]},
    ],
)
def test_a_hello_has_room_for_every_config(config: dict[str, Any]) -> None:
    identity = Identity({"model": "tiny", **resolved.config_entries(config)})
    hello = Hello((2,), Purpose.WEIGHTS, identity)
    assert len(encode(hello)) < FRAME_BEFORE_TRUST / 2
    changed = resolved.config_entries({**config, "more": 1})
    assert changed != identity.hard


def test_pooling_is_what_vllm_made_of_the_folder(tmp_path: Path) -> None:
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
    ]
    mean = {"word_embedding_dimension": 256, "pooling_mode_mean_tokens": True}
    full = folder_with(
        tmp_path / "full", modules__json=modules, **{"1_Pooling___config__json": mean}
    )
    bare = folder_with(tmp_path / "bare")
    one, two = (config(f, runner="pooling").model_config for f in (full, bare))
    assert unequal(resolved.hard(one), resolved.hard(two)) == {
        "pooling.seq_pooling_type": ("MEAN", "LAST"),
        "pooling.use_activation": ("false", None),
    }
    told = config(
        bare,
        runner="pooling",
        pooler_config=PoolerConfig(seq_pooling_type="MEAN", use_activation=False),
    )
    assert resolved.hard(told.model_config) == resolved.hard(one)


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"limit_per_prompt": {"image": 0, "video": 0}}, "multimodal.off", "image, video"),
        ({"language_model_only": True}, "multimodal.off", "all"),
        ({"limit_per_prompt": {"image": 3}}, None, None),
        (
            {"mm_processor_kwargs": {"max_pixels": 9}},
            "multimodal.mm_processor_kwargs",
            '{"max_pixels": 9}',
        ),
        ({"mm_encoder_tp_mode": "data"}, "multimodal.mm_encoder_tp_mode", "data"),
    ],
)
def test_limits_and_processing_of_images(
    changes: dict[str, Any], field: str | None, value: str | None
) -> None:
    model = SimpleNamespace(
        hf_config=SimpleNamespace(to_dict=dict), multimodal_config=MultiModalConfig(**changes)
    )
    assert resolved.hard(model) == ({} if field is None else {field: value})


def test_defaults_of_requests_are_resolved(tmp_path: Path) -> None:
    given = {"eos_token_id": [2, 7], "temperature": 0.6, "transformers_version": "5.0"}
    full = folder_with(tmp_path / "full", generation_config__json=given)
    bare = folder_with(tmp_path / "bare")
    one = resolved.defaults(config(full).model_config)
    assert one == {"eos_token_id": "[2, 7]", "temperature": "0.6"}
    same = config(bare, override_generation_config={"temperature": 0.6}).model_config
    found = unequal(one, resolved.defaults(same))
    assert found.keys() == {"eos_token_id"}
    neutral = resolved.defaults(config(full, generation_config="vllm").model_config)
    assert neutral == {"eos_token_id": "[2, 7]"}
