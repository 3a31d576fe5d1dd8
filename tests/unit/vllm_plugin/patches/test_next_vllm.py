"""What vLLM 0.33 does that releases before it do not; with its own classes where it has them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from vllm.config import SpeculativeConfig
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import get_model_loader
from vllm.v1.worker.worker_base import WorkerWrapperBase

from netloader.io.store.module import ModuleStore
from netloader.vllm_plugin import register
from netloader.vllm_plugin.load.loader import NetLoader
from netloader.vllm_plugin.load.reload import obstacle
from netloader.vllm_plugin.patches import worker_methods
from netloader.vllm_plugin.serve.worker import this_worker
from tests.unit.vllm_plugin.helpers import Model, receive, refusal, serve

pytestmark = pytest.mark.usefixtures("worker_process")

NEW_IN_033 = pytest.mark.skipif(
    "draft_lm_head_quantization" not in {field.name for field in fields(SpeculativeConfig)},
    reason="this vLLM is older than 0.33",
)
AT_ONCE = 8


def test_threads_that_start_workers_may_register_at_once() -> None:
    """vLLM 0.33 starts the workers of a host from threads of one process."""

    def start(_: int) -> type:
        register()
        return type(get_model_loader(LoadConfig(load_format="netloader")))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert set(pool.map(start, range(AT_ONCE))) == {NetLoader}


# -- experts that constants stand for ------------------------------------------------------------

DECLARED = SimpleNamespace(
    hf_text_config=None,
    hf_config=SimpleNamespace(compression_config=None, approximate_experts={"0": [1]}),
)


def substituted(value: float) -> Any:
    """A model of the class that vLLM derives from its own, with one expert that is a constant."""
    layers: Any = pytest.importorskip("vllm.model_executor.layers.fused_moe.expert_substitution")
    models: Any = pytest.importorskip("vllm.model_executor.models.expert_substitution")

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = layers.ConstantExpertSubstitution(0, 4, (1,), 8, torch.bfloat16)

        def load_weights(self, weights: Any) -> set[str]:
            return {name for name, _ in weights}

    kind = models.as_expert_substitution_model(Plain, DECLARED)
    assert kind is not Plain
    model = kind()
    named = [("model.layers.0.mlp.experts.1.approx_value", torch.full((8,), value))]
    assert model.load_weights(named) == {"experts.values"}
    return model


@NEW_IN_033
def test_constants_that_stand_for_experts_are_received_like_any_weight() -> None:
    server, client = substituted(2.0), substituted(1.0)
    with torch.no_grad():
        client.experts.values.fill_(torch.nan)
    serve(server)
    assert receive(ModuleStore([("experts.values", client.experts.values)])).ok
    client.process_weights_after_loading()  # refuses what is still missing
    assert client.experts.values.unique().tolist() == [2.0]


@NEW_IN_033
def test_a_class_derived_for_them_is_fenced_as_its_base_is() -> None:
    model = substituted(2.0)
    worker_methods.install_on(model, this_worker())
    serve(model)
    told: list[tuple[str, str]] = []

    def weights() -> Any:
        told.append(refusal())
        yield "model.layers.0.mlp.experts.1.approx_value", torch.full((8,), 3.0)

    model.load_weights(weights())
    assert told == [("not_serving", "load_weights changes the weights")]


@NEW_IN_033
def test_a_reload_that_the_derived_class_refuses_is_refused_from_sources_as_well() -> None:
    assert "substituted experts" in obstacle(substituted(2.0))


def test_any_model_that_knows_such_experts_is_not_reloaded() -> None:
    """What the test above sees on vLLM 0.33, for the others."""
    model: Any = nn.Module()
    assert not obstacle(model)
    model._expert_substitutions = {}  # declared, and none in this stage
    assert not obstacle(model)
    model._expert_substitutions = {0: ("experts.values", nn.Module())}
    assert "substituted experts" in obstacle(model)


# -- worker extensions ---------------------------------------------------------------------------


class Extension:
    """A worker extension that frees what the worker holds, as vLLM's guide suggests."""

    seen: list[tuple[str, str]]

    def destroy_worker_extension(self) -> None:
        self.seen.append(refusal())


class Worker:
    """A worker with what the wrapper of vLLM calls at the end."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def shutdown(self) -> None:
        self.seen.append(refusal())


def test_nothing_is_offered_any_more_when_vllm_ends_a_worker() -> None:
    """Neither when it calls the extension (0.33) nor when it shuts the worker down (all)."""
    extension = type("Extension", (Extension,), {**vars(Extension)})
    worker_class = type("Worker", (Worker,), {**vars(Worker)})
    worker_methods.install(extension)
    worker_methods.install(worker_class)
    model = Model(1)
    serve(model)
    assert receive(Model(9)).ok
    wrapper = WorkerWrapperBase()
    wrapper.worker = worker_class()
    wrapper._worker_extension_cls = extension

    wrapper.shutdown()

    assert wrapper.worker.seen
    assert set(wrapper.worker.seen) == {("not_serving", "the instance shuts down")}
