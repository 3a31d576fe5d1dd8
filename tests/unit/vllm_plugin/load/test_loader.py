"""The load format as vLLM meets it, short of an engine (tests/e2e has those)."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.config.load import LoadConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader import get_model_loader

from netloader.config import Endpoint
from netloader.errors import ConfigError
from netloader.fsm.manifest import Manifest
from netloader.log import capture
from netloader.vllm_plugin import register
from netloader.vllm_plugin.load.loader import NetLoader, NoWeightsError
from netloader.vllm_plugin.load.reload import Reloadable, remember
from tests.support import zoo
from tests.support.relay import Fault, Relay
from tests.unit.io.helpers import MIB, contents, serving
from tests.unit.vllm_plugin.helpers import identity, plan


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.1")
    register()


def load_config(**extra: Any) -> LoadConfig:
    return LoadConfig(
        load_format="netloader", model_loader_extra_config=extra, use_tqdm_on_load=False
    )


class Sink(nn.Module):
    """A model that records which checkpoint tensors it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.weight = nn.Parameter(torch.zeros(1))

    def load_weights(self, weights: Any) -> set[str]:
        self.seen = {name for name, _ in weights}
        return {"weight"}


def config_of(folder: Path) -> VllmConfig:
    """A minimal vLLM configuration of a model folder."""
    options = {"enforce_eager": True, "skip_tokenizer_init": True, "max_model_len": 128}
    return EngineArgs(model=str(folder), **options).create_engine_config()


def test_the_constructor_opens_nothing_and_leaves_the_config_alone(tmp_path: Path) -> None:
    before = threading.active_count()
    extra = {"OUTPUT_PREFIX": f"{tmp_path}/r-", "LOG_JSON": f"{tmp_path}/log"}
    shared = load_config(**extra)
    for _ in range(3):
        assert isinstance(get_model_loader(shared), NetLoader)
    assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []
    assert shared.model_loader_extra_config == extra


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"SORCE": []}, "did you mean SOURCE"),
        ({"TRANSPORT": "pigeon"}, "there are: gloo, hccl, mooncake, nccl, nixl, shm, tcp"),
    ],
)
def test_a_wrong_setting_is_refused_with_the_remedy(extra: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        get_model_loader(load_config(**extra))


def test_in_place_reload_really_loads_from_the_checkpoint(tmp_path: Path) -> None:
    tensors = zoo.llama_tensors(1, torch.bfloat16)
    folder = zoo.write(tmp_path / "m", zoo.llama_config(), tensors)
    config = config_of(folder)
    loader = get_model_loader(load_config())
    assert isinstance(loader, NetLoader)
    sink = Sink()
    with set_current_vllm_config(config):
        loader.load_weights(sink, config.model_config)
        assert sink.seen == set(tensors)
        assert {name for name, _ in loader.get_all_weights(config.model_config, sink)} == set(
            tensors
        )
    loader.download_model(config.model_config)


def test_fallback_never_raises_instead_of_loading(tmp_path: Path) -> None:
    folder = zoo.write(tmp_path / "m", zoo.llama_config(), None)
    config = config_of(folder)
    loader = get_model_loader(load_config(FALLBACK="never"))
    with pytest.raises(NoWeightsError, match="never"):
        loader.load_weights(Sink(), config.model_config)


@pytest.mark.parametrize("load_format", ["dummy", "sharded_state"])
def test_an_in_place_reload_that_the_fallback_cannot_do_raises(
    tmp_path: Path, load_format: str
) -> None:
    config = config_of(zoo.write(tmp_path / "m", zoo.llama_config(), None))
    loader = get_model_loader(load_config(FALLBACK=load_format))
    assert isinstance(loader, NetLoader)
    with pytest.raises(NotImplementedError, match="cannot reload weights"):
        list(loader.get_all_weights(config.model_config, Sink()))


class WithoutLoad(nn.Module):
    """A layer for adapters around another, as in vLLM 0.23."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(1, 1)


class WithLoad(WithoutLoad):
    """The same in later releases."""

    def load_weights(self, weights: Any) -> None:
        raise AssertionError("what the reload does with it is vLLM's affair")


@pytest.mark.parametrize("layer", [WithLoad(), WithoutLoad()], ids=["0.28", "0.23"])
def test_a_checkpoint_is_not_read_into_layers_that_would_not_pass_it_on(
    tmp_path: Path, layer: WithoutLoad
) -> None:
    """vLLM has not begun with its reload yet: what is refused here costs the engine nothing."""
    tensors = zoo.llama_tensors(1, torch.bfloat16)
    config = config_of(zoo.write(tmp_path / "m", zoo.llama_config(), tensors))
    loader = get_model_loader(load_config())
    model = Sink()
    model.adapted = layer
    with set_current_vllm_config(config):
        if isinstance(layer, WithLoad):
            named = loader.get_all_weights(config.model_config, model)
            assert {name for name, _ in named} == set(tensors)
        else:
            with pytest.raises(NotImplementedError, match=r"with adapters \(WithoutLoad\)"):
                loader.get_all_weights(config.model_config, model)


# -- a source that breaks, a source that delivers ------------------------------------------------


class Tiny(nn.Module):
    """The tensors of a checkpoint as parameters, and what a loader did to them."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.written: list[str] = []
        for name, tensor in tensors.items():
            copy = nn.Parameter(tensor.clone(), requires_grad=False)
            self.register_parameter(name.replace(".", "/"), copy)

    def load_weights(self, weights: Any) -> set[str]:
        for name, tensor in weights:
            self.get_parameter(name.replace(".", "/")).data.copy_(tensor)
            self.written.append(name)
        return {name.replace(".", "/") for name in self.written}


def load_from(model: nn.Module, config: VllmConfig, *sources: Endpoint, **extra: Any) -> None:
    """What `load_model` does between creating a model and post-processing it."""
    loader = get_model_loader(load_config(**extra))
    assert isinstance(loader, NetLoader)
    loader._plan = plan(sources=sources)
    with set_current_vllm_config(config):
        loader.load_weights(model, config.model_config)


@pytest.mark.parametrize("fallback", ["auto", "safetensors"])
def test_after_a_failure_in_the_middle_every_parameter_is_written_again(
    tmp_path: Path, fallback: str
) -> None:
    # The source holds other weights, so one tensor that the fallback left alone would be seen.
    tensors, others = (zoo.llama_tensors(seed, torch.bfloat16) for seed in (1, 2))
    config = config_of(zoo.write(tmp_path / "m", zoo.llama_config(), tensors))
    model = Tiny({name: torch.zeros_like(tensor) for name, tensor in tensors.items()})
    with (
        capture() as lines,
        serving(Tiny(others), identity()) as server,
        Relay(server.endpoint, Fault.GARBLE, 2 * MIB) as relay,
    ):
        load_from(model, config, relay.endpoint, FALLBACK=fallback, LANES=1, TRANSPORT="tcp")

    (line,) = [line for line in lines if line["event"] == "netloader.fallback.engaged"]
    assert "digest_mismatch" in line["netloader.detail"]
    assert line["netloader.weights_dirty"] is True
    assert sorted(model.written) == sorted(tensors)
    assert contents(model) == contents(Tiny(tensors))


def test_after_a_success_no_checkpoint_is_read(tmp_path: Path) -> None:
    tensors, others = (zoo.llama_tensors(seed, torch.bfloat16) for seed in (1, 2))
    folder = zoo.write(tmp_path / "m", zoo.llama_config(), tensors)
    config = config_of(folder)
    (folder / "model.safetensors").write_bytes(b"whoever reads this fails")
    model = Tiny(others)
    with serving(Tiny(tensors), identity()) as server:
        load_from(model, config, server.endpoint)

    assert model.written == []
    assert contents(model) == contents(Tiny(tensors))


def test_never_after_a_failure_in_the_middle_raises_with_the_whole_history(tmp_path: Path) -> None:
    tensors = zoo.llama_tensors(1, torch.bfloat16)
    config = config_of(zoo.write(tmp_path / "m", zoo.llama_config(), tensors))
    with (
        serving(Tiny(tensors), identity()) as server,
        Relay(server.endpoint, Fault.GARBLE, 2 * MIB) as relay,
        pytest.raises(NoWeightsError, match=f"{relay.endpoint}: digest_mismatch"),
    ):
        load_from(Tiny(tensors), config, relay.endpoint, FALLBACK="never", LANES=1, TRANSPORT="tcp")


def test_a_checkpoint_that_a_reload_names_is_read_even_with_fallback_never(tmp_path: Path) -> None:
    tensors = zoo.llama_tensors(1, torch.bfloat16)
    config = config_of(zoo.write(tmp_path / "m", zoo.llama_config(), tensors))
    loader = get_model_loader(load_config(FALLBACK="never"))
    model = Sink()
    remember(model, Reloadable(plan(path="elsewhere"), Manifest(())))
    with set_current_vllm_config(config):
        names = {name for name, _ in loader.get_all_weights(config.model_config, model)}
    assert names == set(tensors)
