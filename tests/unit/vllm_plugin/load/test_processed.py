"""The processed layout: everything a post-processed model holds travels, or it is not offered."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from netloader.io.store.module import ModuleStore, WeightsError
from netloader.vllm_plugin.load import processed
from tests.unit.io.helpers import bytes_of
from tests.unit.vllm_plugin.helpers import identity


class Impl:
    """Stands for an implementation object of vLLM's."""

    __module__ = "vllm.somewhere"

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Handle(Impl):
    """A C++ handle: freed at the end, never read."""

    __module__ = "vllm.somewhere"

    def __del__(self) -> None:
        pass


def processed_model(seed: int) -> nn.Module:
    """A model as kernels may leave one: tensors wherever they like."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    model, layer = nn.Module(), nn.Module()
    model.register_module("layer", layer)
    layer.register_parameter("weight", nn.Parameter(rand(16, 8).t(), requires_grad=False))
    layer.register_buffer("table", rand(5), persistent=False)
    base = rand(64)
    attributes: dict[str, Any] = {
        "plain": rand(3),
        "listed": [rand(2), (rand(1),)],
        "named": {"a": rand(2)},
        "base": base,
        "view": base[8:16].view(2, 4),
        "impl": Impl(scale=rand(1).item(), packed=rand(4), steps=3, fast=True),
        "_k_scale_float": rand(1).item(),
        "_alike": 2.5,
        "size": 16,
    }
    vars(layer).update(attributes)
    return model


def bytes_by_path(model: nn.Module) -> dict[str, bytes]:
    return {path: bytes_of(tensor) for path, tensor in processed.collect(model)}


def send(server: nn.Module, client: nn.Module) -> None:
    """What a transfer does, and what follows it."""
    named = processed.collect(client)
    for (path, into), (source, tensor) in zip(named, processed.collect(server), strict=True):
        assert path == source
        into.data.copy_(tensor)
    processed.adopt_numbers(client, named)


def with_attributes(**attributes: Any) -> nn.Module:
    model, layer = nn.Module(), nn.Module()
    model.register_module("layer", layer)
    layer.register_parameter("weight", nn.Parameter(torch.ones(2), requires_grad=False))
    vars(layer).update(attributes)
    return model


def test_everything_a_kernel_keeps_travels_and_is_set() -> None:
    server, client = processed_model(1), processed_model(2)
    assert bytes_by_path(server) != bytes_by_path(client)
    source: Any = server.get_submodule("layer")
    layer: Any = client.get_submodule("layer")
    view, impl = layer.view, layer.impl

    send(server, client)
    assert bytes_by_path(server) == bytes_by_path(client)
    assert layer.impl is impl
    assert (type(impl.scale), impl.scale) == (float, source.impl.scale)
    assert layer._k_scale_float == source._k_scale_float
    layer.base.fill_(7)
    assert view.eq(7).all()  # as it was made, a view stays a view
    assert list(bytes_by_path(server)) == list(bytes_by_path(client))  # it may serve others now


def test_all_of_it_is_named_by_where_it_hangs() -> None:
    paths = [path for path, _ in processed.collect(processed_model(1))]
    assert set(paths) == {
        "layer.weight",
        "layer.table",
        "layer.plain",
        "layer.listed[0]",
        "layer.listed[1][0]",
        "layer.named[a]",
        "layer.base",
        "layer.view",
        "layer.impl.packed",
        "layer.impl.scale",
        "layer._k_scale_float",
        "layer._alike",
    }
    assert len(paths) == len(set(paths))


def test_views_share_their_storage_with_what_they_are_views_of() -> None:
    manifest = ModuleStore(processed.collect(processed_model(1))).manifest
    specs = {spec.name: spec for spec in manifest.tensors}
    view = specs["layer.view"]
    assert manifest.tensors[view.shares].name == "layer.base"
    assert view.offset == 8 * 4


def test_a_number_on_the_model_itself_is_set_too() -> None:
    models = [with_attributes(), with_attributes()]
    for scale, model in zip((0.5, 1.0), models, strict=True):
        vars(model)["scale"] = scale
    send(*models)
    assert vars(models[1])["scale"] == 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.0])
def test_odd_numbers_arrive_as_they_are(value: float) -> None:
    client = with_attributes(scale=1.0)
    send(with_attributes(scale=value), client)
    assert repr(vars(client.get_submodule("layer"))["scale"]) == repr(value)


def test_a_number_that_is_not_a_number_on_both_sides_is_let_be() -> None:
    nan = with_attributes(scales=[float("nan")])
    send(nan, with_attributes(scales=[float("nan")]))


def test_a_number_that_cannot_be_set_is_named() -> None:
    client = with_attributes(scales=(1.0, 2.0))
    send(with_attributes(scales=(1.0, 2.0)), client)
    with pytest.raises(WeightsError, match=r"layer\.scales\[1\] is a number that cannot be set"):
        send(with_attributes(scales=(1.0, 3.0)), client)


def test_a_handle_is_named_and_nothing_is_collected() -> None:
    model = with_attributes(impl=Impl(handler=Handle()))
    with pytest.raises(WeightsError, match=r"out of sight in 1: layer\.impl\.handler .*Handle"):
        processed.collect(model)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint64])
@pytest.mark.parametrize("inside", [0, 12])
def test_a_table_of_addresses_is_refused(dtype: torch.dtype, inside: int) -> None:
    tensor = torch.zeros(16)
    table = torch.tensor([3, tensor.data_ptr() + inside], dtype=dtype)
    with pytest.raises(WeightsError, match=r"layer\.table holds memory addresses"):
        processed.collect(with_attributes(tensor=tensor, table=table))


@pytest.mark.parametrize(
    "table",
    [torch.arange(1000), torch.tensor([-1, 2**62]), torch.empty(0, dtype=torch.int64)],
    ids=["indices", "sentinels", "empty"],
)
def test_a_table_of_plain_integers_travels(table: Tensor) -> None:
    paths = dict(processed.collect(with_attributes(tensor=torch.zeros(16), table=table)))
    assert "layer.table" in paths


@pytest.mark.timeout(60)
def test_large_tables_are_looked_through_in_no_time() -> None:
    # Kernels leave empty tensors behind; those are nowhere, so that nothing lies in them.
    held = [torch.zeros(1) for _ in range(2000)]
    table = torch.arange(processed.MAX_TABLE)
    model = with_attributes(held=held, gone=torch.empty(0), table=table)
    assert len(processed.collect(model)) == len(held) + 3


# -- which models may talk to each other ---------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"scale": 0.25}, True),
        ({"steps": 4}, False),
        ({"fast": False}, False),
        ({"more": 1}, False),
    ],
)
def test_flags_and_integers_of_kernels_must_be_equal(change: dict[str, Any], same: bool) -> None:
    attributes: dict[str, Any] = {"scale": 0.5, "steps": 3, "fast": True}
    mine = processed.kernel_state(with_attributes(**attributes))
    theirs = processed.kernel_state(with_attributes(**{**attributes, **change}))
    differences = processed.sharpened(identity(), mine).differences(
        processed.sharpened(identity(), theirs)
    )
    assert [d.field for d in differences] == ([] if same else ["kernel_state"])


@pytest.mark.parametrize(("device", "answer"), [("cpu", False), ("npu", True), ("cuda", True)])
def test_where_it_is_allowed(device: str, answer: bool) -> None:
    assert processed.allowed(device) is answer
