"""What vLLM keeps below its cache root, by names that two hosts have in common."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from torch._inductor import codecache
from vllm import envs
from vllm.config import CompilationMode, VllmConfig
from vllm.engine.arg_utils import EngineArgs

from netloader.vllm_plugin.patches import cache_root
from tests.support import zoo


def configured(folder: Path, **changes: Any) -> VllmConfig:
    """vLLM's configuration for a tiny model in a folder."""
    zoo.write(folder, zoo.llama_config(), None)
    options = {"skip_tokenizer_init": True, "max_model_len": 64, "kv_cache_memory_bytes": 1 << 25}
    return EngineArgs(model=str(folder), **{**options, **changes}).create_engine_config()


SECRETS = ("VLLM_API_KEY", "S3_ENDPOINT_URL", "HF_TOKEN", "VLLM_ASCEND_PASSWORD")


def with_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment with secrets, and a vLLM of which they are part of the keys, as 0.23."""
    factors = {**envs.compile_factors(), **dict.fromkeys(SECRETS)}
    monkeypatch.setattr(envs, "compile_factors", lambda: factors)
    for name in (*SECRETS, "VLLM_ASCEND_URL"):
        monkeypatch.setenv(name, "a secret")


def test_conditions_do_not_depend_on_where_the_model_lies_and_name_the_part_that_differs(
    tmp_path: Path,
) -> None:
    one = cache_root.conditions(configured(tmp_path / "one"))
    assert cache_root.conditions(configured(tmp_path / "two")) == one
    other = cache_root.conditions(configured(tmp_path / "three", max_model_len=32))
    assert {name for name in one if one[name] != other[name]} == {"vllm.model_config"}


def test_the_path_is_restored_in_the_configuration(tmp_path: Path) -> None:
    config = configured(tmp_path / "one")
    before = config.compute_hash()
    cache_root.conditions(config)
    assert config.model_config.model == str(tmp_path / "one")
    assert config.compute_hash() == before


def test_variables_that_enter_keys_are_conditions_by_their_names_and_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(value: str) -> str:
        monkeypatch.setenv("VLLM_USE_AOT_COMPILE", value)
        return cache_root.conditions(configured(tmp_path))["environment"]

    assert "VLLM_USE_AOT_COMPILE=" in told("0")
    assert told("0") == told("0") != told("1")


def test_secrets_of_the_environment_are_no_conditions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_secrets(monkeypatch)
    config = configured(tmp_path)
    told = str([cache_root.conditions(config), cache_root.sizing(config)])
    assert [name for name in SECRETS if name in told] == []
    assert "VLLM_ASCEND_URL" in told
    assert "a secret" not in told


def test_what_sizes_a_cache_is_named(tmp_path: Path) -> None:
    told = cache_root.sizing(configured(tmp_path, max_num_seqs=7, gpu_memory_utilization=0.5))
    assert (told["scheduler.max_num_seqs"], told["gpu_memory_utilization"]) == ("7", "0.5")


@pytest.mark.parametrize(
    ("changes", "differ"),
    [
        ({"max_num_batched_tokens": 96}, {"scheduler.max_num_batched_tokens"}),
        ({"enforce_eager": True}, {"enforce_eager"}),
        ({"additional_config": {"weight_prefetch": True}}, {"additional_config"}),
    ],
)
def test_an_option_that_takes_memory_is_a_condition_of_the_size(
    tmp_path: Path, changes: dict[str, Any], differ: set[str]
) -> None:
    one = cache_root.sizing(configured(tmp_path / "one"))
    other = cache_root.sizing(configured(tmp_path / "two", **changes))
    assert differ <= {name for name in one if one[name] != other[name]}


def test_every_option_of_some_parts_counts_and_hosts_may_differ(tmp_path: Path) -> None:
    def told(name: str, **options: Any) -> dict[str, str]:
        config = configured(tmp_path / name)
        draft = configured(tmp_path / name / "draft").model_config
        config.speculative_config = SimpleNamespace(
            **{
                "method": "draft_model",
                "num_speculative_tokens": 3,
                "draft_model_config": draft,
                "target_model_config": object(),
                **options,
            }
        )
        config.kv_transfer_config = SimpleNamespace(
            engine_id=name, kv_ip=name, kv_connector_extra_config={"password": "a secret"}
        )
        return cache_root.sizing(config)

    one = told("one")
    assert told("two") == one
    other = told("three", num_speculative_tokens=5)
    assert {n for n in one if one[n] != other[n]} == {"speculative.num_speculative_tokens"}
    assert "secret" not in str(one)
    assert str(tmp_path) not in str(one)


def test_variables_of_allocators_are_conditions_of_the_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cache_root.sizing(configured(tmp_path / "one"))
    monkeypatch.setenv("HCCL_BUFFSIZE", "800")
    other = cache_root.sizing(configured(tmp_path / "two"))
    assert {name for name in one if one[name] != other[name]} == {"allocating"}


def test_code_that_is_compiled_at_its_first_use_is_kept_for_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_AOT_COMPILE", "0")
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "of all models")
    for name in ("_HEADER_DIR", "_HEADER_LOCK_DIR"):
        monkeypatch.setattr(codecache, name, "of all models")
    config = configured(tmp_path / "model")
    folder = tmp_path / "root" / "torch_compile_cache" / "netloader" / "fingerprint"
    assert cache_root.compiled(nn.Linear(1, 1), config, "fingerprint") == {"inductor": folder}
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
    assert str(folder / "precompiled_headers") == codecache._HEADER_DIR
    assert str(folder / "precompiled_headers" / "locks") == codecache._HEADER_LOCK_DIR


def test_an_engine_that_compiles_nothing_has_no_such_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "of all models")
    eager = configured(tmp_path / "eager", enforce_eager=True)
    assert cache_root.compiled(nn.Linear(1, 1), eager, "x") == {}
    monkeypatch.setenv("VLLM_USE_AOT_COMPILE", "0")
    late = configured(tmp_path / "late")
    late.compilation_config.mode = CompilationMode.VLLM_COMPILE  # as on a GPU: named afterwards
    assert cache_root.compiled(nn.Linear(1, 1), late, "x") == {}
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "of all models"


def test_folders_of_other_ranks_are_known(tmp_path: Path) -> None:
    config = configured(tmp_path)
    assert [
        name
        for name in ("rank_0_0", "rank_1_0", "rank_0_1", "inductor_cache")
        if cache_root.of_another_rank(name, config)
    ] == ["rank_1_0", "rank_0_1"]


def test_the_file_of_the_model_s_class_is_found_if_vllm_wrote_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "root"))
    config = configured(tmp_path / "model")
    file = (
        tmp_path / "root" / "modelinfos" / "vllm-model_executor-models-llama-LlamaForCausalLM.json"
    )
    file.unlink(missing_ok=True)
    assert cache_root.inspections(config.model_config) == {}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}")
    assert cache_root.inspections(config.model_config) == {f"modelinfos/{file.name}": file}
