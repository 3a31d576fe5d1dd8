"""The inventory finds tensors wherever kernels put them, and says what it cannot read."""

import datetime as dt
import functools
from collections import OrderedDict
from enum import StrEnum
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from netloader.vllm_plugin.inventory import digest, sealed, take


class Impl:
    """Stands for an implementation object: anything whose class is vLLM's."""

    __module__ = "vllm.somewhere"

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def run(self) -> None:
        pass


class Slotted:
    __module__ = "compressed_tensors.somewhere"
    __slots__ = ("scale", "unset")


class Handle(Impl):
    """Stands for a C++ handle: a number that is an address, freed at the end."""

    __module__ = "vllm._custom_ops"

    def __del__(self) -> None:
        pass


class Settings(Impl):
    __module__ = "vllm.config.somewhere"


class ExpertConfig(Impl):
    """As `FusedMoEQuantConfig`: called a config, and holds the scales of the experts."""

    __module__ = "vllm.somewhere"


class Group(Impl):
    __module__ = "vllm.distributed.parallel_state"


class Foreign:
    def __init__(self) -> None:
        self.tensor = torch.zeros(1)


class Kind(StrEnum):
    ONE = "one"


def bare(**attributes: Any) -> nn.Module:
    module = nn.Module()
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def ones() -> Tensor:
    return torch.ones(2)


def test_parameters_buffers_and_attributes_each_under_their_path() -> None:
    model = bare(inner=nn.Linear(2, 2), plain=ones())
    model.register_buffer("kept", ones())
    model.register_buffer("passing", ones(), persistent=False)
    found = take(model)
    assert list(found.tensors) == ["kept", "passing", "inner.weight", "inner.bias", "plain"]
    assert found.tensors["inner.weight"] is model.get_parameter("inner.weight")
    assert not found.opaque


def test_containers_are_entered_whatever_they_hold() -> None:
    held = {"a": [ones(), (ones(), {"deep": ones()})], 3: OrderedDict(x=ones())}
    assert list(take(bare(held=held)).tensors) == [
        "held[a][0]",
        "held[a][1][0]",
        "held[a][1][1][deep]",
        "held[3][x]",
    ]


def test_implementation_objects_are_entered_and_cycles_end() -> None:
    impl = Impl(
        kernel=Impl(packed=ones(), config=ExpertConfig(scale=ones(), names=["x"])), flag=True
    )
    slotted = Slotted()
    slotted.scale = ones()  # type: ignore[attr-defined]
    model = bare(impl=impl, slotted=slotted, loop=[])
    impl.layer = model  # type: ignore[attr-defined]
    model.loop.append(model.loop)  # type: ignore[union-attr, operator]
    found = take(model)
    assert list(found.tensors) == [
        "impl.kernel.packed",
        "impl.kernel.config.scale",
        "slotted.scale",
    ]
    assert found.scalars == {"impl.flag": True}


def test_a_module_that_is_not_a_submodule_is_found_with_all_it_owns() -> None:
    model = bare(impl=Impl(gate=nn.Linear(2, 2, bias=False)))
    assert list(take(model).tensors) == ["impl.gate.weight"]


def test_settings_groups_the_cache_of_keys_and_strangers_are_left_alone() -> None:
    model = bare(
        config=Settings(tensor=ones()),
        group=Group(tensor=ones()),
        impl=Impl(kv_cache=ones()),
        kv_cache=[ones()],
        stranger=Foreign(),
        kind=Impl,
    )
    found = take(model)
    assert (found.tensors, found.scalars, found.opaque) == ({}, {}, {})


def test_tied_parameters_stand_under_each_name_and_other_second_finds_do_not() -> None:
    model = bare(first=nn.Linear(2, 2, bias=False), second=nn.Linear(2, 2, bias=False))
    model.get_submodule("second").weight = model.get_parameter("first.weight")
    model.again = Impl(weight=model.get_parameter("first.weight"))  # type: ignore[assignment]
    assert list(take(model).tensors) == ["first.weight", "second.weight"]


def test_a_shared_submodule_stands_under_each_name_but_is_entered_once() -> None:
    shared = bare(weight=nn.Parameter(ones()), extra=ones())
    found = take(bare(first=shared, second=shared))
    assert list(found.tensors) == ["first.weight", "second.weight", "first.extra"]


def test_scalars_of_every_kind_and_nothing_that_only_looks_like_one() -> None:
    model = bare(scale=0.5, flag=True, isa="vec", group=64, kind=Kind.ONE, nothing=None)
    model.floats = [1.0]  # type: ignore[assignment]
    assert take(model).scalars == {
        "scale": 0.5,
        "flag": True,
        "isa": "vec",
        "group": 64,
        "floats[0]": 1.0,
    }


def test_functions_are_searched_and_a_handle_inside_is_reported() -> None:
    packed, bias, default, bound = ones(), ones(), ones(), ones()
    handle = Handle(handler_tensor=torch.tensor(123456))

    def gemm(x: Tensor, extra: Tensor = default) -> Tensor:
        return x + packed + extra + (handle is None)

    model = bare(
        cpu_linear=gemm,
        part=functools.partial(torch.add, bound, other=bias),
        method=Impl(inner=ones()).run,  # a bound method keeps its object alive
    )
    found = take(model)
    assert list(found.tensors) == [
        "cpu_linear(packed)",
        "cpu_linear(defaults)[0]",
        "part(0)",
        "part(other)",
        "method(self).inner",
    ]
    assert found.opaque == {"cpu_linear(handle)": "vllm._custom_ops.Handle"}


def test_a_function_whose_variable_is_not_set_yet() -> None:
    def outer() -> Any:
        later = ones()

        def inner() -> Tensor:
            return later  # noqa: F821 - deleted on purpose

        del later
        return inner

    assert not take(bare(call=outer())).tensors


def test_a_handle_on_an_implementation_object_hides_its_address() -> None:
    scheme = Impl(kernel=Impl(dnnl_handler=Handle(handler_tensor=torch.tensor(1))))
    found = take(bare(scheme=scheme))
    assert found.opaque == {"scheme.kernel.dnnl_handler": "vllm._custom_ops.Handle"}
    assert not found.tensors


def test_a_handle_beside_a_readable_weight_is_not_sealed() -> None:
    embedding = bare(weight=nn.Parameter(ones()), bias=ones())
    linear = bare(weight=nn.Parameter(torch.empty(0)), bias=ones())
    for layer in (embedding, linear):
        layer.cpu_linear = functools.partial(torch.add, Handle())  # type: ignore[assignment]
    found = take(bare(embedding=embedding, linear=linear, kernel=Handle()))
    assert list(found.opaque) == ["kernel", "embedding.cpu_linear(0)", "linear.cpu_linear(0)"]
    assert list(sealed(found)) == ["kernel", "linear.cpu_linear(0)"]


def test_tensors_without_strides_or_of_unknown_order_are_opaque() -> None:
    model = bare(
        sparse=torch.eye(2).to_sparse(),
        pair=TwoTensor(ones(), ones()),  # type: ignore[no-untyped-call]
        bag={ones()},
        array=np.ones(2),
        capsule=dt.datetime_CAPI,
    )
    assert take(model).opaque == {
        "sparse": "torch.Tensor",
        "pair": "torch.testing._internal.two_tensor.TwoTensor",
        "bag": "builtins.set",
        "array": "numpy.ndarray",
        "capsule": "builtins.PyCapsule",
    }


def test_fused_experts_in_plain_parameters_leave_nothing_opaque() -> None:
    experts = bare(w13_weight=nn.Parameter(torch.ones(4, 6, 2)), w2_weight=nn.Parameter(ones()))
    found = take(bare(experts=experts))
    assert list(found.tensors) == ["experts.w13_weight", "experts.w2_weight"]
    assert not found.opaque


@pytest.mark.parametrize(
    "other",
    [
        torch.tensor([[1.0, 2.0], [3.0, 5.0]]),
        torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64),
        torch.tensor([[1.0, 3.0], [2.0, 4.0]]).t(),
        torch.tensor([1.0, 2.0, 3.0, 4.0]),
        torch.tensor([[1.0, 2.0], [3.0, 4.0]], device="meta"),
    ],
    ids=["bytes", "dtype", "stride", "shape", "no memory"],
)
def test_the_digest_tells_tensors_apart(other: Tensor) -> None:
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = digest(take(bare(a=tensor, b=tensor.clone(), c=other)))
    assert found["a"] == found["b"] != found["c"]


def test_the_digest_reads_what_a_tensor_means_not_the_memory_around_it() -> None:
    wide = torch.arange(6.0)
    digests = digest(take(bare(view=wide[::2], own=torch.empty(6)[::2].copy_(wide[::2]))))
    assert digests["view"] == digests["own"]


def test_scalars_empty_and_expanded_tensors_have_digests() -> None:
    found = digest(take(bare(a=torch.tensor(1), b=torch.empty(0, 3), c=torch.ones(1).expand(4))))
    assert len(set(found.values())) == 3


def test_the_walk_is_the_same_for_models_built_the_same_way() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return bare(layer=nn.Linear(2, 2), impl=Impl(a=ones(), b=[ones()]), rate=0.1)

    first, second = take(build()), take(build())
    assert list(first.tensors) == list(second.tensors)
    assert digest(first) == digest(second)
    assert first.scalars == second.scalars
