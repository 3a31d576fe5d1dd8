"""What of a loaded model is offered: the best form that can be proven, or none, and why."""

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from netloader.fsm.manifest import Progress
from netloader.io import fill
from netloader.io.store.module import ModuleStore
from netloader.log import capture
from netloader.vllm_plugin.config.settings import CachePolicy, LayoutChoice, Settings
from netloader.vllm_plugin.identity.identity import DRAFT, PROCESSED, RAW, TARGET
from netloader.vllm_plugin.load import loaded as loaded_models
from netloader.vllm_plugin.load import processed, provenance
from netloader.vllm_plugin.load.loaded import Loaded, read, reloadable, taken
from netloader.vllm_plugin.load.offer import offer
from netloader.vllm_plugin.serve.served_model import Changed
from tests.unit.io.helpers import asking, bytes_of, contents, module_of
from tests.unit.vllm_plugin.helpers import (
    Lines,
    Model,
    Packed,
    events,
    identity,
    line_of,
    live,
    plan,
    post_process,
    receive,
    serve,
    settings,
    where,
)

CONFIG: Any = SimpleNamespace()
"""Stands for vLLM's ModelConfig where nothing of it is read."""

pytestmark = pytest.mark.usefixtures("worker_process")


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow the processed layout on a CPU."""
    monkeypatch.setattr(processed, "EXCLUDED", frozenset())


def told(lines: Lines) -> tuple[str, str]:
    """Why nothing is offered, and the remedy."""
    (line,) = lines
    assert line["event"] == "netloader.server.refused"
    return line["netloader.detail"], line["netloader.remedy"]


class Sealed(Packed):
    """A layer whose kernels pack its weight behind a C++ handle."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        self.quant_method = Packing()


class Handle:
    __module__ = "vllm._custom_ops"

    def __del__(self) -> None:
        pass


class Packing:
    __module__ = "vllm.somewhere"

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        layer.register_parameter("weight", nn.Parameter(torch.empty(0), False))
        vars(layer)["handle"] = Handle()


# -- layouts -------------------------------------------------------------------------------------


def test_raw_is_preferred_where_it_can_be_had(on_cpu: None) -> None:
    model = Model(1)
    with capture() as lines:
        serve(model)
    assert line_of(lines, "netloader.server.offered")["netloader.layout"] == RAW
    twin = Model(9)
    assert receive(twin).ok
    assert contents(twin) == contents(Model(1))


def test_without_originals_the_processed_layout_serves_if_nothing_is_hidden(on_cpu: None) -> None:
    model, twin = Model(1), Model(9)
    with capture() as lines:
        serve(model, settings(weight_cache=CachePolicy.NO))
    offered = line_of(lines, "netloader.server.offered")
    assert (offered["netloader.layout"], offered["netloader.cached_bytes"]) == (PROCESSED, 0)
    post_process(twin)
    served = live().served
    assert served.facts["layout"] == PROCESSED
    assert receive_processed(twin)
    assert contents(twin) == contents(model)


def receive_processed(into: nn.Module) -> bool:
    mine = processed.sharpened(identity(layout=PROCESSED), processed.kernel_state(into))
    options = asking(layouts=(PROCESSED,))
    return fill(ModuleStore(processed.collect(into)), [where()], mine, options).ok


def test_a_client_of_the_other_layout_is_refused(on_cpu: None) -> None:
    model = Model(1)
    serve(model, settings(layout=LayoutChoice.PROCESSED))
    (attempt,) = receive(Model(9), layout=RAW).attempts
    assert {d.field for d in attempt.differences} >= {"layout"}


def test_what_kernels_hide_is_offered_in_no_layout(on_cpu: None) -> None:
    model = Model(1)
    model.up = Sealed(model.up.weight.detach())
    with capture() as lines:
        serve(model, settings(weight_cache=CachePolicy.NO))
    why, _ = told(lines)
    assert "out of sight" in why
    assert "up.handle" in why


def test_the_processed_layout_on_a_cpu_takes_a_switch() -> None:
    model = Model(1)
    with capture() as lines:
        serve(model, settings(layout=LayoutChoice.PROCESSED))
    assert told(lines) == (
        "the processed layout is not possible on this device",
        "this model cannot be served",
    )


def test_with_the_switch_the_processed_layout_is_offered_when_asked_for(on_cpu: None) -> None:
    model = Model(1)
    with capture() as lines:
        loaded = serve(model, settings(layout=LayoutChoice.PROCESSED))
    assert loaded.snapshot is None  # nothing is kept that is not wanted
    assert line_of(lines, "netloader.server.offered")["netloader.layout"] == PROCESSED


def test_raw_alone_was_asked_for(on_cpu: None) -> None:
    model = Model(1)
    with capture() as lines:
        serve(model, settings(layout=LayoutChoice.RAW, weight_cache=CachePolicy.NO))
    why, remedy = told(lines)
    assert "up.weight" in why
    assert "WEIGHT_CACHE" in remedy


def test_a_processed_model_that_is_zeroed_offers_zeros(on_cpu: None) -> None:
    model = Model(1)
    serve(model, settings(layout=LayoutChoice.PROCESSED))
    live().fence("zeroed")
    served = live().served
    for parameter in model.parameters():
        parameter.data.zero_()
    served.usage.resume()
    live().renew(served.renew(Changed()))
    twin = Model(9)
    post_process(twin)
    assert receive_processed(twin)
    assert not any(bytes_of(parameter).strip(b"\0") for parameter in twin.parameters())


# -- originals that were not kept ----------------------------------------------------------------


class Int8(nn.Module):
    """Two int8 layers and a plain one, all replaced by post-processing."""

    def __init__(self) -> None:
        super().__init__()
        self.q = Packed(torch.ones(8, 8, dtype=torch.int8))
        self.k = Packed(torch.ones(8, 8, dtype=torch.int8))
        self.plain = Packed(torch.ones(8, 8))


@pytest.mark.parametrize(
    ("changes", "lost", "remedy"),
    [
        ({"int8_cache": CachePolicy.NO}, ("q.weight", "k.weight"), "set INT8_CACHE to dram"),
        (
            {"int8_cache": CachePolicy.DRAM, "int8_cache_name": ("k.",)},
            ("q.weight",),
            "name them in INT8_CACHE_NAME, or leave it out",
        ),
        (
            {"int8_cache": CachePolicy.HBM, "weight_cache": CachePolicy.NO},
            ("plain.weight",),
            "set WEIGHT_CACHE to dram",
        ),
        (
            {"int8_cache": CachePolicy.NO, "weight_cache": CachePolicy.NO},
            ("q.weight", "k.weight", "plain.weight"),
            "set INT8_CACHE to dram and set WEIGHT_CACHE to dram",
        ),
    ],
)
def test_what_was_not_kept_is_named_with_the_setting_that_would_help(
    changes: dict[str, Any], lost: tuple[str, ...], remedy: str
) -> None:
    model = Int8()
    with capture() as lines:
        serve(model, settings(**changes))
    why, said = told(lines)
    assert why == f"{len(lost)} parameters were replaced, among: {', '.join(lost)}"
    assert said == remedy


@pytest.mark.parametrize("policy", [CachePolicy.DRAM, CachePolicy.HBM])
def test_what_was_kept_is_offered_as_it_was(policy: CachePolicy) -> None:
    model, twin = Int8(), Int8()
    with capture() as lines:
        serve(model, settings(int8_cache=policy))
    assert line_of(lines, "netloader.server.offered")["netloader.cached_bytes"] == 64 * 6
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert receive(twin).ok
    assert contents(twin) == contents(Int8())


# -- what the ordinary loader read ---------------------------------------------------------------


class Checkpoint:
    """Stands for an ordinary loader."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)

    def load_weights(self, model: Any, model_config: object) -> None:
        model.load_weights((name, torch.ones(4)) for name in self._names)


class Draft(nn.Module):
    """Fills what it is given, and says so, or says nothing."""

    def __init__(self, says: Callable[[set[str]], set[str] | None] = lambda names: names) -> None:
        super().__init__()
        self.says = says
        for name in ("embed", "up"):
            self.register_parameter(name, nn.Parameter(torch.zeros(4), requires_grad=False))

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str] | None:
        names = set()
        for name, tensor in weights:
            self.get_parameter(name).data.copy_(tensor)
            names.add(name)
        return self.says(names)


def loaded_from(
    model: nn.Module, *names: str, role: str = DRAFT, options: Settings | None = None
) -> Loaded:
    checkpoint: Any = Checkpoint(names)
    return read(checkpoint, plan(role), model, CONFIG, (options or settings()).keeping_at_load)


def travels(loaded: Loaded) -> list[str]:
    return [spec.name for spec in loaded.manifest.tensors]


def test_parameters_of_a_draft_that_no_checkpoint_fills_stay_behind() -> None:
    model = Draft()
    loaded = loaded_from(model, "up")
    assert loaded.unfilled == {"embed"}
    assert travels(loaded) == ["up"]
    offer(model, plan(DRAFT), loaded, settings())
    served = live(DRAFT).served
    assert served.facts["unfilled"] == '["embed"]'


@pytest.mark.parametrize("where", ["Built", "_unfilled", "RawSnapshot"])
def test_a_bug_of_ours_costs_the_offer_and_not_the_load(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    owner = provenance if where == "Built" else loaded_models
    monkeypatch.setattr(owner, where, lambda *_: 1 / 0)
    model = Draft()
    with capture() as lines:
        loaded = loaded_from(model, "up")
        offer(model, plan(DRAFT), loaded, settings())
    assert events(lines) == ["netloader.driver.error", "netloader.server.refused"]
    assert model.get_parameter("up").sum().item() == 4
    assert "load_weights" not in vars(model)


@pytest.mark.parametrize(
    ("model", "names", "role"),
    [
        (Draft(), ("embed", "up"), DRAFT),
        (Draft(lambda _: None), ("up",), DRAFT),  # it does not say what it filled
        (Draft(lambda names: names | {"embed"}), ("up",), DRAFT),
        (Draft(lambda _: set()), ("up", "embed"), DRAFT),  # not said, yet other bytes than before
        (Draft(), ("up",), TARGET),
    ],
    ids=["all were filled", "says nothing", "says so", "bytes tell", "a target"],
)
def test_in_doubt_every_parameter_travels(
    model: nn.Module, names: tuple[str, ...], role: str
) -> None:
    loaded = loaded_from(model, *names, role=role)
    assert loaded.unfilled == frozenset()
    assert travels(loaded) == ["embed", "up"]


def test_reading_leaves_the_model_as_it_was() -> None:
    model = Draft()
    loaded_from(model, "up")
    assert "load_weights" not in vars(model)

    def broken(_: set[str]) -> None:
        raise ZeroDivisionError

    model = Draft(broken)
    with pytest.raises(ZeroDivisionError):
        loaded_from(model, "up")
    assert "load_weights" not in vars(model)


def test_a_load_that_leaves_more_than_plain_values_is_refused_by_name() -> None:
    class Odd(Draft):
        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str] | None:
            self.extra = torch.ones(1)
            self.flag = True
            return super().load_weights(weights)

    model = Odd()
    with capture() as lines:
        loaded = loaded_from(model, "up", role=TARGET)
        offer(model, plan(), loaded, settings())
    why, _ = told(lines)
    assert why == "load_weights leaves behind more than tensors and plain values: extra"


def test_what_load_weights_left_behind_is_told_with_the_offer() -> None:
    class Owner(Draft):
        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str] | None:
            self.has_own_head = True
            return super().load_weights(weights)

    model = Owner()
    loaded = loaded_from(model, "up", role=TARGET)
    offer(model, plan(), loaded, settings())
    served = live().served
    assert served.facts["load_state"] == '{"has_own_head": true}'


def test_a_model_without_plain_memory_is_refused() -> None:
    model = module_of(w=torch.empty(4, device="meta"))
    with capture() as lines:
        serve(model, then=lambda: None)
    assert events(lines) == ["netloader.server.refused"]
    assert "w has no plain memory" in lines[0]["netloader.detail"]


# -- what can be reloaded from sources -----------------------------------------------------------


def test_which_models_a_reload_may_be_handed_to() -> None:
    plain, flagged, nothing = Model(1), Model(1), Model(1)
    assert reloadable(serve(plain), plain)
    loaded = serve(flagged, role=DRAFT)
    assert not reloadable(Loaded({"flag": True}, snapshot=loaded.snapshot), flagged)
    assert not reloadable(Loaded({}), nothing)
    online: Any = flagged.up.quant_method
    online.uses_meta_device = True
    assert not reloadable(loaded, flagged)


def test_a_rank_that_does_not_serve_keeps_no_originals_and_can_still_reload() -> None:
    model = Model()
    kept = taken(plan(), model, settings().keeping_at_load, Progress())
    free = taken(plan(serves=False), model, settings().keeping_at_load, Progress())
    assert kept.snapshot is not None
    assert free.snapshot is None
    assert free.manifest == kept.manifest
    assert reloadable(free, model)
