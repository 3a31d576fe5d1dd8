"""Which configurations are interchangeable, read from vLLM's own config objects."""

import sys
from operator import attrgetter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import KVTransferConfig, VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms.cpu import CpuPlatform

from netloader.fsm.identity import Identity
from netloader.vllm_plugin.identity import identity as identities
from netloader.vllm_plugin.identity.fingerprint import fingerprint
from netloader.vllm_plugin.identity.identity import PROCESSED, RAW
from netloader.vllm_plugin.identity.local_model import Checkpoint, facts_of
from netloader.vllm_plugin.identity.reading import read_config
from netloader.vllm_plugin.load.load_state import NOTHING, digest
from tests.support import zoo


def config(folder: Path, **changes: Any) -> VllmConfig:
    options = {"enforce_eager": True, "skip_tokenizer_init": True, "max_model_len": 128}
    return EngineArgs(model=str(folder), **{**options, **changes}).create_engine_config()


def checkpoint(folder: Path, with_files: bool = True, **changes: Any) -> Path:
    tensors = zoo.llama_tensors(1, torch.bfloat16) if with_files else None
    return zoo.write(folder, zoo.llama_config(**changes), tensors)


def identity_of(config: VllmConfig, name: str | None = "tiny", layout: str = RAW) -> Identity:
    return read_config(config, config.model_config, name).identity(layout)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.1")


def test_the_same_model_under_another_path_is_the_same(tmp_path: Path) -> None:
    first = config(checkpoint(tmp_path / "a"))
    second = config(checkpoint(tmp_path / "b", with_files=False))
    mine = identity_of(first)
    theirs = identity_of(second)
    assert mine.differences(theirs) == ()
    assert mine.soft.keys() == {"checkpoint"}
    unnamed = identity_of(second, None)
    assert [d.field for d in mine.differences(unnamed)] == ["model"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rope_theta": 500000.0}, "config.rope_parameters"),
        ({"rms_norm_eps": 1e-6}, "config.rms_norm_eps"),
    ],
)
def test_another_setting_of_the_model_is_another_model(
    tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    first = config(checkpoint(tmp_path / "a"))
    second = config(checkpoint(tmp_path / "b", **change))
    mine = identity_of(first)
    theirs = identity_of(second)
    assert [d.field for d in mine.differences(theirs)] == [field]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/cache/hub/models--org--tiny-1.5/snapshots/0123abcd", "org/tiny-1.5"),
        ("/cache/hub/models--gpt2/snapshots/0123abcd/", "gpt2"),
        ("org/tiny", "org/tiny"),
        ("/models--org--tiny/mine", "/models--org--tiny/mine"),
    ],
)
def test_a_snapshot_of_the_hub_goes_by_the_name_it_was_asked_for_by(path: str, name: str) -> None:
    # With HF_HUB_OFFLINE vLLM puts the path of the snapshot in the place of --model.
    assert identities.model_name(path, None) == name
    assert identities.model_name(path, "tiny") == "tiny"


def test_the_hub_offline_really_says_the_path(tmp_path: Path, monkeypatch: Any) -> None:
    cache = tmp_path / "hub"
    checkpoint(cache / "models--org--tiny" / "snapshots" / ("a" * 40))
    (cache / "models--org--tiny" / "refs").mkdir()
    (cache / "models--org--tiny" / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    found = config("org/tiny")  # type: ignore[arg-type]
    assert str(found.model_config.model) != "org/tiny"
    assert identity_of(found, None).hard["model"] == "org/tiny"


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a")
    first, second = config(folder), config(folder, dtype="float16")
    mine = identity_of(first)
    theirs = identity_of(second)
    assert [d.field for d in mine.differences(theirs)] == ["dtype"]


def test_a_client_without_files_adopts_what_the_server_found(tmp_path: Path) -> None:
    server = config(checkpoint(tmp_path / "a", tie_word_embeddings=True))
    bare = config(checkpoint(tmp_path / "b", with_files=False, tie_word_embeddings=True))
    untied = read_config(server, server.model_config, None).checkpoint.untied
    facts = facts_of(RAW, "", (), untied=untied)
    assert facts["untied_by_checkpoint"] == "True"
    assert Checkpoint(bare.model_config).adopt(facts)
    mine = identity_of(server)
    theirs = identity_of(bare)
    assert mine.differences(theirs) == ()


def test_a_client_with_files_keeps_what_it_found_itself(tmp_path: Path) -> None:
    tied = config(checkpoint(tmp_path / "a", tie_word_embeddings=False))
    found = Checkpoint(tied.model_config)
    assert not found.adopt({"untied_by_checkpoint": "True"})
    assert found.has_weight_files()


def test_another_revision_at_the_same_place_is_told_apart(tmp_path: Path) -> None:
    # Every revision of a model has the same headers, so it takes a look at the bytes.
    first = config(checkpoint(tmp_path / "a"))
    mine = identity_of(first, None)
    zoo.write(tmp_path / "a", zoo.llama_config(), zoo.llama_tensors(2, torch.bfloat16))
    second = config(tmp_path / "a")
    theirs = identity_of(second, None)
    (found,) = mine.differences(theirs)
    assert found.field == "checkpoint"
    assert "revision" in found.remedy


def test_one_small_tensor_that_was_edited_is_noticed(tmp_path: Path) -> None:
    tensors = zoo.llama_tensors(1, torch.bfloat16)
    folder = zoo.write(tmp_path / "a", zoo.llama_config(), tensors)
    before = fingerprint(folder)
    tensors["model.layers.1.post_attention_layernorm.weight"] += 1
    zoo.write(folder, zoo.llama_config(), tensors)
    assert fingerprint(folder) != before


def test_a_damaged_checkpoint_file_is_left_to_the_loader(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 40)
    assert len(fingerprint(tmp_path)) == 16
    assert fingerprint(tmp_path / "nothing") == ""


def test_another_commit_of_a_hub_model_is_told_apart(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", with_files=False)
    first, second = config(folder), config(folder)
    first.model_config.hf_config._commit_hash = "1" * 40
    second.model_config.hf_config._commit_hash = "2" * 40
    mine = identity_of(first, None)
    theirs = identity_of(second, None)
    (found,) = mine.differences(theirs)
    assert (found.field, found.mine, found.theirs) == ("checkpoint_commit", "1" * 40, "2" * 40)


@pytest.mark.parametrize(
    ("attribute", "value", "field"),
    [
        ("tensor_parallel_size", 2, "tensor_parallel"),
        ("pipeline_parallel_size", 2, "pipeline_parallel"),
        ("data_parallel_size", 2, "data_parallel"),
        ("data_parallel_rank", 1, "data_parallel"),
        ("enable_expert_parallel", True, "expert_parallel"),
    ],
)
def test_another_partition_is_another_identity(
    tmp_path: Path, attribute: str, value: int, field: str
) -> None:
    folder = checkpoint(tmp_path / "a")
    first, second = config(folder), config(folder)
    setattr(second.parallel_config, attribute, value)
    mine = identity_of(first)
    theirs = identity_of(second)
    assert [d.field for d in mine.differences(theirs)] == [field]


@pytest.mark.parametrize(
    ("part", "attribute", "value", "field"),
    [
        ("parallel_config.eplb_config", "num_redundant_experts", 2, "redundant_experts"),
        ("cache_config", "cache_dtype", "fp8", "kv_cache_dtype"),
    ],
)
def test_what_changes_the_experts_or_the_cache_is_another_identity(
    tmp_path: Path, part: str, attribute: str, value: object, field: str
) -> None:
    folder = checkpoint(tmp_path / "a")
    first, second = config(folder), config(folder)
    setattr(attrgetter(part)(second), attribute, value)
    mine = identity_of(first)
    theirs = identity_of(second)
    assert [d.field for d in mine.differences(theirs)] == [field]


def test_another_map_of_the_experts_is_another_partition(tmp_path: Path) -> None:
    # vllm-ascend deals experts out as a file says: of the same shapes, under the same names.
    folder = checkpoint(tmp_path / "a")
    plain, first, copied, second = (config(folder) for _ in range(4))
    for name, settings, text in [
        ("first", first, '{"moe_layer_count": 1}'),
        ("copied", copied, '{"moe_layer_count": 1}'),
        ("second", second, '{"moe_layer_count": 2}'),
    ]:
        file = tmp_path / f"{name}.json"
        file.write_text(text)
        settings.additional_config = {"eplb_config": {"expert_map_path": str(file)}}
    mine = identity_of(first)
    assert mine.differences(identity_of(copied)) == ()
    for other in (second, plain):
        theirs = identity_of(other)
        assert [d.field for d in mine.differences(theirs)] == ["expert_map"]


@pytest.mark.parametrize(
    "told",
    [
        {"mix_placement": True},
        {"eplb_config": {"num_redundant_experts": 2}},
        {"finegrained_tp_config": {"lmhead_tensor_parallel_size": 2}},
    ],
    ids=str,
)
def test_what_vllm_ascend_is_told_of_where_weights_go_is_another_identity(
    tmp_path: Path, told: dict[str, Any]
) -> None:
    folder = checkpoint(tmp_path / "a")
    plain, off, other = (config(folder) for _ in range(3))
    off.additional_config = {
        "mix_placement": False,
        "eplb_config": {"num_redundant_experts": 0},
        "finegrained_tp_config": {"lmhead_tensor_parallel_size": 0},
    }
    other.additional_config = told
    mine = identity_of(plain)
    assert mine.differences(identity_of(off)) == ()
    assert [d.field for d in mine.differences(identity_of(other))] == ["ascend"]


def test_the_part_in_a_disaggregated_prefill_counts_where_kernels_have_been(
    tmp_path: Path,
) -> None:
    # vllm-ascend post-processes otherwise in an instance that only decodes.
    folder = checkpoint(tmp_path / "a")
    first, second = config(folder), config(folder)
    second.kv_transfer_config = KVTransferConfig(kv_role="kv_consumer", kv_connector="any")
    assert identity_of(first).differences(identity_of(second)) == ()
    mine, theirs = identity_of(first, layout=PROCESSED), identity_of(second, layout=PROCESSED)
    assert [d.field for d in mine.differences(theirs)] == ["kv_role"]


def test_how_a_draft_keeps_the_head_of_its_target_is_part_of_its_identity(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a")
    first, second = config(folder), config(folder)
    second.speculative_config = SimpleNamespace(draft_lm_head_quantization="nvfp4")  # vLLM 0.33
    assert identity_of(first).differences(identity_of(second)) == ()  # of the target it is not
    for side in (first, second):
        side.model_config.runner_type = "draft"
    mine, theirs = identity_of(first), identity_of(second)
    assert [d.field for d in mine.differences(theirs)] == ["draft_lm_head"]


def test_a_draft_model_is_never_taken_for_its_target(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a")
    target, draft = config(folder), config(folder)
    draft.model_config.runner_type = "draft"
    mine = identity_of(target)
    theirs = identity_of(draft)
    (found,) = mine.differences(theirs)
    assert (found.field, found.mine, found.theirs) == ("role", "target", "draft")


def test_what_load_weights_left_behind_is_part_of_the_identity(tmp_path: Path) -> None:
    one = config(checkpoint(tmp_path / "a"))
    model = read_config(one, one.model_config, None)
    mine, theirs = (model.identity(RAW, digest(s)) for s in (NOTHING, {"model.has_own": True}))
    (found,) = mine.differences(theirs)
    assert (found.field, found.mine) == ("load_state", "none")


def test_only_the_processed_layout_depends_on_versions_and_the_device(tmp_path: Path) -> None:
    one = config(checkpoint(tmp_path / "a"))
    raw, processed = identity_of(one), identity_of(one, layout=PROCESSED)
    assert processed.hard.keys() - raw.hard.keys() == {
        "vllm",
        "torch",
        "device_name",
        "platform",
        "kv_role",
    }


def test_the_version_of_another_platform_counts_where_its_kernels_have_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = type("NPUPlatform", (CpuPlatform,), {"__module__": "vllm_elsewhere.platform"})
    monkeypatch.setattr(identities, "current_platform", platform())
    one = config(checkpoint(tmp_path / "a"))

    def with_version(version: str, layout: str) -> Identity:
        package = ModuleType("vllm_elsewhere")
        package.__version__ = version  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "vllm_elsewhere", package)
        return identity_of(one, layout=layout)

    (found,) = with_version("1", PROCESSED).differences(with_version("1.post1", PROCESSED))
    assert (found.field, found.mine) == ("platform", "vllm_elsewhere 1")
    assert not with_version("1", RAW).differences(with_version("2", RAW))


def test_the_placement_of_experts_is_part_of_the_identity(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a")
    first, second = config(folder), config(folder)
    for one in (first, second):
        one.parallel_config.enable_expert_parallel = True
    second.parallel_config.expert_placement_strategy = "round_robin"
    (found,) = identity_of(first).differences(identity_of(second))
    assert (found.field, found.mine, found.theirs) == (
        "expert_parallel",
        "0 of 1, linear",
        "0 of 1, round_robin",
    )


def test_what_vllm_writes_into_a_config_while_it_builds_changes_no_identity(tmp_path: Path) -> None:
    one = config(checkpoint(tmp_path / "a"))
    model = read_config(one, one.model_config, "tiny")
    before = model.identity()
    one.model_config.hf_config.written_by_a_draft = "something"
    one.cache_config.cache_dtype = "fp8"
    after = model.identity()
    assert before == after
