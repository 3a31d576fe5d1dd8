"""The inventory finds tensors wherever kernels put them, and says what it cannot read."""

import datetime as dt
import functools
import logging
import re
import threading
from collections import OrderedDict, UserDict, deque
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from netloader.vllm_plugin.inspect.inventory import digest, sealed, take


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


class PatchedGroup(Group):
    """As vllm-ascend's: a communicator group whose class is written somewhere else."""

    __module__ = "vllm_ascend.patch.worker"


class Foreign:
    """Of code that came with a checkpoint, or of another package."""

    def __init__(self) -> None:
        self.tensor = torch.zeros(1)
        self.rate = 0.5


@dataclass
class Row:
    scale: Tensor


class Lazy(UserDict[str, Tensor]):
    pass


class Broken(Foreign):
    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("do not look at me")


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


def test_settings_groups_and_the_cache_of_keys_are_left_alone() -> None:
    model = bare(
        config=Settings(tensor=ones()),
        group=Group(tensor=ones()),
        impl=Impl(kv_cache=ones()),
        kv_cache=[ones()],
        patched=PatchedGroup(tensor=ones()),
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
        "cpu_linear(default 0)",
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


@pytest.mark.parametrize(
    ("hide", "path"),
    [
        (lambda t: _with(Foreign(), tensor=t), "odd.tensor"),
        (lambda t: Row(t), "odd.scale"),
        (lambda t: SimpleNamespace(a=t), "odd.a"),
        (lambda t: deque([t]), "odd[0]"),
        (lambda t: Lazy(a=t), "odd[a]"),
        (lambda t: MappingProxyType({"a": t}), "odd[a]"),
        (lambda t: {torch.zeros(0): t}, "odd[#0]"),
        (lambda t: {(1, 2): t}, "odd[#0]"),
        (lambda t: _with(nn.Parameter(torch.zeros(1)), extra=t), "odd.extra"),
        (lambda t: t.add_, "odd(self)"),
        (lambda t: staticmethod(functools.partial(torch.add, t)), "odd(func)(0)"),
        (lambda t: [[{"deep": Foreign(), "row": (Row(t),)}]], "odd[0][0][row][0].scale"),
    ],
)
def test_objects_of_any_package_are_entered(hide: Any, path: str) -> None:
    hidden = torch.full((3,), 7.0)
    found = take(bare(odd=hide(hidden)))
    assert found.tensors[path] is hidden


def _with(value: Any, **attributes: Any) -> Any:
    vars(value).update(attributes)
    return value


@pytest.mark.parametrize(
    ("odd", "kind"),
    [
        (np.ones(2), "numpy.ndarray"),
        (torch.Generator(), "torch._C.Generator"),
        (torch.ones(2).untyped_storage(), "torch.storage.UntypedStorage"),
        (memoryview(b"12"), "builtins.memoryview"),
        (bytearray(b"12"), "builtins.bytearray"),
        (iter([torch.ones(1)]), "builtins.list_iterator"),
        (Broken(), f"{__name__}.Broken"),
        (nn.parameter.UninitializedParameter(), "torch.nn.parameter.UninitializedParameter"),
        ({Foreign()}, "builtins.set"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_read_is_named(odd: Any, kind: str) -> None:
    assert take(bare(odd=odd)).opaque == {"odd": kind}


@pytest.mark.parametrize(
    "plain",
    [
        "text", None, 1.5, torch.float16, torch.device("cpu"), Kind.ONE, {1, 2}, (1, "a"), b"12",
        object(), ones, torch.add, re.compile("x"), Path("x"), threading.Lock(), torch.Size([1]),
        logging.getLogger("x"), Foreign,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_holds_no_weights_is_neither_a_tensor_nor_a_handle(plain: Any) -> None:
    found = take(bare(plain=plain))
    assert (found.tensors, found.opaque) == ({}, {})


def test_what_torch_compile_keeps_in_a_model_is_no_handle() -> None:
    model = bare()
    model.register_parameter("weight", nn.Parameter(torch.ones(2)))
    vars(model)["compiled"] = torch.compile(model.forward, fullgraph=True, dynamic=False)
    assert (take(model).opaque, [*take(model).tensors]) == ({}, ["weight"])


def test_hooks_that_take_part_in_a_forward_pass_are_searched() -> None:
    def build() -> nn.Module:
        scale = ones()
        model = bare(inner=nn.Linear(2, 2))
        model.get_submodule("inner").register_forward_hook(lambda m, x, y: y * scale)
        model.register_forward_pre_hook(lambda m, x: x)
        return model

    (first, second) = (take(build()), take(build()))  # torch numbers hooks by a counter
    assert "inner._forward_hooks[0](scale)" in first.tensors
    assert list(first.places) == list(second.places)


def test_state_is_what_torch_calls_so_wherever_its_module_hangs() -> None:
    head = nn.BatchNorm1d(2)
    head.register_buffer("passing", ones(), persistent=False)
    model = bare(inner=nn.Linear(2, 2), poolers={"embed": SimpleNamespace(head=head)})
    model.loose = [nn.Parameter(ones())]  # type: ignore[assignment]
    assert list(take(model).state) == [
        "inner.weight",
        "inner.bias",
        "poolers[embed].head.weight",
        "poolers[embed].head.bias",
        "poolers[embed].head.running_mean",
        "poolers[embed].head.running_var",
        "poolers[embed].head.num_batches_tracked",
        "loose[0]",
    ]


def test_the_functions_that_load_a_parameter_are_no_part_of_the_model() -> None:
    dropped = bare(weight=nn.Parameter(ones()))
    dropped.load = lambda self, tensor: None  # type: ignore[assignment]
    weight: Any = nn.Parameter(ones())
    weight.weight_loader = functools.partial(setattr, dropped)
    assert list(take(bare(weight=weight)).tensors) == ["weight"]


def test_a_vocabulary_is_one_scalar() -> None:
    words = {f"word {i}": i for i in range(5000)}
    first, second = (take(bare(words=held)).scalars for held in (words, {**words, "word 7": 0}))
    assert list(first) == ["words"]
    assert first != second


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


def test_the_walk_is_the_same_for_models_built_the_same_way() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return bare(layer=nn.Linear(2, 2), impl=Impl(a=ones(), b=[ones()]), rate=0.1)

    first, second = take(build()), take(build())
    assert list(first.tensors) == list(second.tensors)
    assert digest(first) == digest(second)
    assert first.scalars == second.scalars
