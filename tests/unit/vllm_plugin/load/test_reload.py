"""Received weights go into a reload in place as they are, and leave no trace in the model."""

import gc
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    get_layerwise_info,
    initialize_layerwise_reload,
    record_metadata_for_reloading,
)

from netloader.io.store.module import ModuleStore, Named, manifest_of, named_tensors
from netloader.vllm_plugin.load.reload import HandOver, obstacle
from netloader.vllm_plugin.load.room import Room, beside
from tests.unit.io.helpers import bytes_of, contents, module_of, places, zoo

CPU = torch.device("cpu")

DTYPES = (torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.float8_e4m3fn, torch.int64)


@st.composite
def tensors(draw: st.DrawFn) -> list[Named]:
    """Tensors as models have them: dense, turned, with holes, expanded; views and twins."""
    found: list[Tensor] = []
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(("new", "turned", "expanded", "view", "twin", "all")))
        if kind in ("view", "twin", "all") and found:
            found.append(_sharing(draw, kind, draw(st.sampled_from(found))))
            continue
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        tensor = torch.zeros(shape, dtype=draw(st.sampled_from(DTYPES)))
        if kind == "turned" and tensor.dim() > 1:
            tensor = tensor.transpose(0, 1)
        elif kind == "expanded":
            tensor = tensor.unsqueeze(0).expand(3, *tensor.shape)
        found.append(tensor)
    return [(f"t{i}", tensor) for i, tensor in enumerate(draw(st.permutations(found)))]


def _sharing(draw: st.DrawFn, kind: str, tensor: Tensor) -> Tensor:
    if kind == "twin":
        return tensor.detach()
    if kind == "all":  # whoever comes later may show more of the storage, before and behind
        flat = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
        return flat.view(draw(st.sampled_from((tensor.dtype, torch.uint8))))
    for dimension, size in enumerate(tensor.shape):
        start = draw(st.integers(0, size))
        step = draw(st.integers(1, 3))
        length = draw(st.integers(0, size - start))
        index = (slice(None),) * dimension + (slice(start, start + length, step),)
        tensor = tensor[index]
    return tensor


@given(tensors())
def test_what_a_manifest_describes_is_built(named: list[Named]) -> None:
    manifest = manifest_of(named)
    built = beside(manifest, CPU)
    assert manifest_of(built) == manifest
    assert [tensor.dtype for _, tensor in built] == [tensor.dtype for _, tensor in named]


@given(tensors())
def test_what_is_written_into_one_is_seen_in_the_others(named: list[Named]) -> None:
    built = beside(manifest_of(named), CPU)
    for number, (_, tensor) in enumerate(named):
        for target in (tensor, built[number][1]):
            if tensor.numel() and 0 not in tensor.stride():
                target.copy_(torch.full(tensor.shape, number + 1).to(tensor.dtype))
        copies = zip(named, built, strict=True)
        assert all(_same(mine, ours) for (_, mine), (_, ours) in copies if 0 not in mine.stride())


def _same(mine: Tensor, ours: Tensor) -> bool:
    """Equal where anything was written: fresh memory holds what it likes."""
    return all(a in (0, b) for a, b in zip(_plain(mine), _plain(ours), strict=True))


def _plain(tensor: Tensor) -> bytes:
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.reshape(-1))
    return bytes_of(flat)


def test_every_tensor_that_is_hard_to_copy_is_built() -> None:
    manifest = ModuleStore.of(zoo(1)).manifest
    assert ModuleStore(beside(manifest, CPU)).manifest == manifest


def test_it_costs_what_the_manifest_says_and_no_more() -> None:
    tied = torch.zeros(100, 10)
    named = [("row", tied[3]), ("embed", tied), ("head", tied), ("other", torch.zeros(7))]
    built = beside(manifest_of(named), CPU)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for _, t in built}
    assert sum(storages.values()) <= (1000 + 7) * 4


# -- handing over --------------------------------------------------------------------------------


class Model(nn.Module):
    """A layer with a loader of its own, one without, and a tied twin."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.Linear(4, 4, bias=False), nn.LayerNorm(4)
        self.sharded: Any = lambda param, loaded: param.data.copy_(loaded.narrow(0, 0, 4))
        weight: Any = self.up.weight
        weight.weight_loader = self.sharded
        for parameter in self.parameters():
            parameter.requires_grad = False

    def load_weights(self, weights: Any) -> str:
        return f"read {len(list(weights))}"


def received(model: nn.Module) -> list[Named]:
    return [(name, torch.full_like(t, i + 1.0)) for i, (name, t) in enumerate(named_tensors(model))]


def loaders(model: nn.Module) -> dict[str, Any]:
    return {name: getattr(p, "weight_loader", None) for name, p in model.named_parameters()}


def test_each_layer_takes_its_own_shard_as_it_is() -> None:
    model = Model()
    before = places(model)
    hand_over = HandOver(model, received(model))
    assert model.load_weights(hand_over) is None
    assert list(hand_over) == []
    assert contents(model) == {name: bytes_of(tensor) for name, tensor in received(model)}
    assert places(model) == before


def test_nothing_of_it_is_left_when_the_reload_is_over() -> None:
    model = Model()
    before = loaders(model)
    hand_over = HandOver(model, received(model))
    assert loaders(model) != before
    del hand_over
    gc.collect()
    assert loaders(model) == before
    assert model.load_weights([1, 2]) == "read 2"
    assert "load_weights" not in vars(model)


def test_a_reload_that_fails_leaves_nothing_either() -> None:
    model = Model()
    before = loaders(model)
    wrong = [(name, torch.zeros(99)) for name, _ in received(model)]

    def reload() -> None:
        hand_over = HandOver(model, wrong)
        model.load_weights(hand_over)

    with pytest.raises(ValueError, match="does not fit"):
        reload()
    gc.collect()
    assert loaders(model) == before
    assert model.load_weights([1]) == "read 1"


def test_the_layer_as_it_was_before_loading_takes_copies_too() -> None:
    # vLLM takes each layer back to the tensors it remembers from before loading.
    model = Model()
    raw: Any = nn.Parameter(torch.empty(4, 4, device="meta"), requires_grad=False)
    raw.weight_loader = model.sharded
    get_layerwise_info(model.up).restore_metadata = ({"weight": raw}, {})
    hand_over = HandOver(model, received(model))
    assert raw.weight_loader is not model.sharded
    del hand_over
    gc.collect()
    assert raw.weight_loader is model.sharded


def test_a_layer_inside_the_wrapper_of_an_adapter_is_found() -> None:
    model = Model()
    named = received(model)
    wrapper = nn.Module()
    wrapper.base_layer = model.up
    wrapper.weight = model.up.weight  # as vLLM's wrappers show it
    model.register_module("up", wrapper)
    hand_over = HandOver(model, named)
    model.load_weights(hand_over)
    assert bytes_of(model.get_submodule("up.base_layer").get_parameter("weight")) == bytes_of(
        named[0][1]
    )


# -- through vLLM's own reload -------------------------------------------------------------------


class Repacks(QuantizeMethodBase):  # type: ignore[misc]
    """Turns a weight into another form, and keeps a copy of it out of sight."""

    def __init__(self) -> None:
        self.fails = False

    def create_weights(self, layer: nn.Module, *_: Any, **__: Any) -> None:
        raise NotImplementedError

    def apply(self, layer: nn.Module, *_: Any, **__: Any) -> Tensor:
        return Tensor(vars(layer)["copy"])

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        if self.fails:
            raise RuntimeError("no kernel")
        raw = layer.get_parameter("weight").detach()
        vars(layer)["copy"] = raw.clone()
        layer.register_parameter("weight", nn.Parameter(torch.empty(0), requires_grad=False))


class Kernel(nn.Module):
    """Two layers that are repacked around one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.Linear(4, 4, bias=False), nn.LayerNorm(4)
        self.down = nn.Linear(4, 4, bias=False)
        self.methods = {"up": Repacks(), "down": Repacks()}
        for name, method in self.methods.items():
            vars(self.get_submodule(name))["quant_method"] = method
        for parameter in self.parameters():
            parameter.requires_grad = False
        record_metadata_for_reloading(self)

    def load_weights(self, weights: Any) -> None:
        raise NotImplementedError

    def post_process(self) -> None:
        for name, method in self.methods.items():
            method.process_weights_after_loading(self.get_submodule(name))

    def reload(self, named: list[Named], prepare: Any = lambda _: None) -> None:
        hand_over = HandOver(self, named, prepare)
        initialize_layerwise_reload(self)
        self.load_weights(hand_over)
        config: Any = SimpleNamespace(dtype=torch.float32)
        finalize_layerwise_reload(self, config)


def test_what_was_received_in_place_is_post_processed_and_copied_nowhere() -> None:
    model = Kernel()
    room = Room(named_tensors(model), manifest_of(named_tensors(model)))
    room.reserve()
    model.post_process()
    live, raw = places(model), room.tensors(CPU)
    where = {name: tensor.data_ptr() for name, tensor in raw}
    for number, (_, tensor) in enumerate(raw):
        tensor.fill_(number + 1.0)
    prepared: list[nn.Module] = []
    model.reload(raw, prepared.append)
    assert places(model) == live
    assert model.norm.weight.tolist() == [2.0] * 4
    assert vars(model.up)["copy"].tolist() == [[1.0] * 4] * 4
    assert vars(model.down)["copy"].tolist() == [[4.0] * 4] * 4
    assert {n: (t.data_ptr(), t.flatten()[0].item()) for n, t in raw} == {
        name: (where[name], number + 1.0) for number, (name, _) in enumerate(raw)
    }
    assert {*prepared} == {model.up, model.norm, model.down}


@pytest.mark.parametrize("broken", ["up", "down"])
def test_a_reload_that_fails_at_a_layer_can_be_done_again(broken: str) -> None:
    model = Kernel()
    named = received(model)
    model.post_process()
    live = places(model)
    method = model.methods[broken]
    method.fails = True
    with pytest.raises(RuntimeError, match="no kernel"):
        model.reload(named)
    method.fails = False
    again = [(name, tensor + 10) for name, tensor in named]
    model.reload(again)
    assert places(model) == live
    kept = {"norm.weight": model.norm.weight, "norm.bias": model.norm.bias}
    copies = {f"{n}.weight": vars(model.get_submodule(n))["copy"] for n in ("up", "down")}
    assert {n: bytes_of(t) for n, t in {**kept, **copies}.items()} == {
        name: bytes_of(tensor) for name, tensor in again
    }


# -- what vLLM cannot reload ---------------------------------------------------------------------


def method_named(name: str) -> Any:
    return type(name, (), {})()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), ""),
        (("UnquantizedLinearMethod", "CPUUnquantizedEmbeddingMethod"), ""),
        (("Fp8KVCacheMethod",), ""),
        (("UnquantizedLinearMethod", "UnquantizedFusedMoEMethod"), "UnquantizedFusedMoEMethod"),
        (("CompressedTensorsLinearMethod",), "CompressedTensorsLinearMethod"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_stands_in_the_way_on_a_cpu_alone(
    names: tuple[str, ...], said: str, device: str
) -> None:
    model = module_of(w=torch.zeros(1, device=device))
    for number, name in enumerate(names):
        layer = nn.Module()
        vars(layer)["quant_method"] = method_named(name)
        model.register_module(str(number), layer)
    problem = obstacle(model)
    assert bool(problem) is bool(said and device == "cpu")
    assert not problem or f"cannot reload {said} in place" in problem
