"""Placeholders: what they are given besides bytes, and how they go when no bytes come."""

import gc
import weakref
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from vllm.config.load import LoadConfig

from netloader.config import Endpoint
from netloader.vllm_plugin.identity.identity import PROCESSED, RAW
from netloader.vllm_plugin.load.loader import NetLoader, NoWeightsError, RebuildError
from netloader.vllm_plugin.patches.registries import Traces
from tests.unit.vllm_plugin.helpers import plan

NOBODY = Endpoint("127.0.0.1", 1)
TAKEN = "model.layers.0.attn"


class Builder:
    """vLLM's side: builds models, and takes no layer name twice."""

    def __init__(self) -> None:
        self.registered = SimpleNamespace(static_forward_context={}, static_all_moe_layers=["old"])
        self.config: Any = SimpleNamespace(compilation_config=self.registered)
        self.built: list[weakref.ref[nn.Module]] = []
        self.layouts: list[str] = []

    def for_loader(self, loader: Any) -> Callable[[], nn.Module]:
        return partial(self.load_model, loader)

    def load_model(self, loader: Any) -> nn.Module:
        gc.collect()
        assert not any(model() for model in self.built), "two models in memory"
        assert TAKEN not in self.registered.static_forward_context, "Duplicate layer name"
        model = nn.Linear(4, 4)
        self.registered.static_forward_context[TAKEN] = model
        self.registered.static_all_moe_layers.append("new")
        self.built.append(weakref.ref(model))
        self.layouts.append(loader._plan.layout)
        return model


@pytest.fixture
def builder() -> Builder:
    return Builder()


def loader_with(fallback: str) -> NetLoader:
    extra = {"FALLBACK": fallback, "CONNECT_TIMEOUT_S": 1}
    return NetLoader(LoadConfig(load_format="netloader", model_loader_extra_config=extra))


def test_the_first_model_is_gone_before_the_second_is_built(builder: Builder) -> None:
    loader = loader_with("auto")
    spec = plan(layout=PROCESSED, sources=(NOBODY,))
    model = loader._build(spec, builder.for_loader(loader), Traces(builder.config))
    assert isinstance(model, nn.Linear)
    assert builder.layouts == [PROCESSED, RAW]
    assert builder.registered.static_all_moe_layers == ["old", "new"]


def test_with_fallback_never_no_second_model_is_built(builder: Builder) -> None:
    loader = loader_with("never")
    spec = plan(layout=PROCESSED, sources=(NOBODY,))
    with pytest.raises(NoWeightsError, match="unreachable"):
        loader._build(spec, builder.for_loader(loader), Traces(builder.config))
    assert len(builder.built) == 1


@pytest.mark.parametrize(("path", "fits"), [("ready", True), ("no.such.module", False)])
def test_what_load_weights_left_on_the_server_is_left_here_before_post_processing(
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    fits: bool,
) -> None:
    loader = loader_with("auto")
    monkeypatch.setattr(loader, "_placeholders", lambda *_: None)
    loader._plan = plan(layout=PROCESSED, sources=(NOBODY,), state={path: True})
    model: Any = nn.Linear(4, 4)
    model.ready = False
    config: Any = SimpleNamespace()
    if fits:
        loader.load_weights(model, config)
    else:
        with pytest.raises(RebuildError):
            loader.load_weights(model, config)
    assert model.ready is fits
