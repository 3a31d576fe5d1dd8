"""The load format as vLLM meets it, short of an engine (tests/e2e has those)."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from vllm.config import set_current_vllm_config
from vllm.config.load import LoadConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader import get_model_loader

from netloader.errors import ConfigError
from netloader.vllm_plugin import register
from netloader.vllm_plugin.loader import NetLoader, NoWeightsError
from tests.e2e import zoo


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

    def load_weights(self, weights: Any) -> set[str]:
        self.seen = {name for name, _ in weights}
        return self.seen


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
    [({"SORCE": []}, "did you mean SOURCE"), ({"TRANSPORT": "pigeon"}, "there are: gloo, tcp")],
)
def test_a_wrong_setting_is_refused_with_the_remedy(extra: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        get_model_loader(load_config(**extra))


def test_in_place_reload_really_loads_from_the_checkpoint(tmp_path: Path) -> None:
    tensors = zoo.llama_tensors(1, torch.bfloat16)
    folder = zoo.write(tmp_path / "m", zoo.llama_config(), tensors)
    options = {"enforce_eager": True, "skip_tokenizer_init": True, "max_model_len": 128}
    config = EngineArgs(model=str(folder), **options).create_engine_config()
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
    options = {"enforce_eager": True, "skip_tokenizer_init": True, "max_model_len": 128}
    config = EngineArgs(model=str(folder), **options).create_engine_config()
    loader = get_model_loader(load_config(FALLBACK="never"))
    with pytest.raises(NoWeightsError, match="never"):
        loader.load_weights(Sink(), config.model_config)
