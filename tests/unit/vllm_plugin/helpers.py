"""A tiny model on its way through a worker: loaded, post-processed, on offer, changed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from netloader.config import Endpoint
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Progress
from netloader.io import Outcome, fill
from netloader.io.published import PublishedModel
from netloader.io.store.module import ModuleStore
from netloader.vllm_plugin.config.settings import Settings
from netloader.vllm_plugin.identity.identity import RAW, TARGET
from netloader.vllm_plugin.load.load_state import NOTHING
from netloader.vllm_plugin.load.loaded import Loaded, taken
from netloader.vllm_plugin.load.offer import offer
from netloader.vllm_plugin.load.plan import LoadPlan
from netloader.vllm_plugin.serve.live_model import LiveModel
from netloader.vllm_plugin.serve.server import RankServer
from netloader.vllm_plugin.serve.worker import this_worker
from tests.unit.io.helpers import asking

Lines = list[dict[str, Any]]


def settings(**changes: Any) -> Settings:
    """Settings that listen on this host only."""
    return replace(Settings.parse({"LISTEN_HOST": "127.0.0.1"}), **changes)


def identity(role: str = TARGET, layout: str = RAW) -> Identity:
    """Who the tiny model is."""
    return Identity({"model": "tiny", "role": role, "layout": layout})


def plan(role: str = TARGET, **changes: Any) -> LoadPlan:
    """One tiny model to load, without sources."""
    plain = LoadPlan(
        role=role,
        rank=0,
        ranks=(0,),
        sources=(),
        layout=RAW,
        state=NOTHING,
        unfilled=frozenset(),
        identify=lambda layout, _: identity(role, layout),
        serves=True,
        path="somewhere",
    )
    return replace(plain, **changes)


# -- a model with kernels ------------------------------------------------------------------------


class Kernels:
    """Turns a layer's weight into another form under the same name, as vLLM's methods do."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        raw = layer.get_parameter("weight").detach()
        layer.register_parameter("weight", nn.Parameter(raw.flip(0).contiguous(), False))


class Packed(nn.Module):
    """A layer whose kernels keep its weight in another form."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.quant_method: Any = Kernels()


class Model(nn.Module):
    """Two layers that post-processing replaces, and a tensor that it leaves alone."""

    def __init__(self, seed: int = 1, size: int = 64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.norm = nn.Parameter(torch.rand(size, generator=generator), requires_grad=False)
        self.up = Packed(torch.rand(size, size, generator=generator))
        self.down = Packed(torch.rand(size, size, generator=generator))


def post_process(model: nn.Module) -> None:
    """What vLLM does after loading."""
    for layer in model.modules():
        if method := getattr(layer, "quant_method", None):
            method.process_weights_after_loading(layer)


def reload(model: nn.Module, source: nn.Module) -> None:
    """What vLLM does in a reload in place: each layer anew, the result copied to the old place."""
    for name, fresh in source.named_parameters():
        layer = model.get_submodule(name.rpartition(".")[0])
        attribute = name.rpartition(".")[2]
        place = layer.get_parameter(attribute)
        method = getattr(layer, "quant_method", None)
        if method is not None:
            layer.register_parameter(attribute, nn.Parameter(fresh.detach().clone(), False))
            method.process_weights_after_loading(layer)
            fresh = layer.get_parameter(attribute)
            layer.register_parameter(attribute, place)
        place.data.copy_(fresh)


# -- on offer ------------------------------------------------------------------------------------


def serve(
    model: nn.Module,
    options: Settings | None = None,
    role: str = TARGET,
    then: Callable[[], object] | None = None,
) -> Loaded:
    """Remember a loaded model, post-process it (`then`, or as it wants), offer it."""
    options = options or settings()
    loaded = taken(plan(role), model, options.keeping_at_load, Progress())
    if then is None:
        post_process(model)
    else:
        then()
    offer(model, plan(role), loaded, options)
    return loaded


def newest_server() -> RankServer:
    """The newest server of this process."""
    return this_worker().servers[-1]


def where() -> Endpoint:
    """Where this process serves."""
    return endpoint_of(newest_server())


def endpoint_of(server: RankServer) -> Endpoint:
    """Where a rank serves."""
    assert server.port.server is not None
    return server.port.server.endpoint


def live(role: str = TARGET) -> LiveModel:
    """What the newest server of this process serves in a role."""
    (found,) = (live for live in newest_server().models if live.served.role == role)
    return found


def known() -> tuple[PublishedModel, ...]:
    """All that the newest server has published and something may still read."""
    server = newest_server().port.server
    assert server is not None
    returning = (live._returning for live in newest_server().models)
    _, catalog = server._opened()
    return (*catalog._known, *(one for one in returning if one is not None))


def receive(
    into: nn.Module | ModuleStore, role: str = TARGET, layout: str = RAW, **options: Any
) -> Outcome:
    """Be a client of this process."""
    chosen = asking(layouts=(layout,), **options)
    return fill(into, [where()], identity(role, layout), chosen)


def refusal(role: str = TARGET) -> tuple[str, str]:
    """What a client is told that is not served: the reason and the sentence."""
    (attempt,) = receive(Model(99), role).attempts
    return attempt.reason.value, attempt.detail


def events(lines: Lines) -> list[str]:
    """What was logged."""
    return [line["event"] for line in lines]


def line_of(lines: Lines, event: str) -> dict[str, Any]:
    """The one line of an event."""
    (found,) = [line for line in lines if line["event"] == event]
    return found
