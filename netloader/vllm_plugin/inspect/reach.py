"""How a walk over a model treats an object: enters it, compares it, or names it as a handle.

A model may carry any object: of vLLM, of a plugin, of code that came with a checkpoint. Objects of
Python are entered by their attributes. Those of C keep memory that has no name here. A few
families are neither: settings, process groups, loggers and tokenizers refer to everything and hold
no weights, so they are left alone. What classes and Python modules hold, as opposed to what hangs
on the model, is not looked at.
"""

import functools
import re
import types
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from enum import Enum, auto
from pathlib import PurePath
from typing import Any

import numpy as np
import regex
import torch

from netloader.io.hidden import carried_by

ELSEWHERE = (
    "vllm.config.",
    "vllm.distributed.",
    "vllm.logger.",
    "vllm.platforms.",
    "vllm.transformers_utils.",
    "vllm.tokenizers.",
    "vllm.v1.core.",
    "vllm.v1.engine.",
    "vllm.v1.executor.",
    "vllm.v1.worker.",
    "transformers.feature_extraction_utils.",
    "transformers.image_processing_base.",
    "transformers.processing_utils.",
    "transformers.tokenization_utils_base.",
    "tokenizers.",
    "torch._C._distributed_c10d.",
    "torch._dynamo.",
    "torch._inductor.",
    "torch._ops.",
    "torch.cuda.",
    "torch.distributed.",
    "torch.fx.",
    "torch.npu.",
    "torch_npu.npu.",
    "triton.",
    "_thread.",
    "asyncio.",
    "concurrent.futures.",
    "importlib.",
    "logging.",
    "multiprocessing.",
    "structlog.",
    "subprocess.",
    "tempfile.",
    "threading.",
    "tqdm.",
    "zmq.",
)
"""Modules of classes that refer to everything and hold no weights. A subclass belongs to its base:
vllm-ascend's communicator groups are vLLM's, wherever their class is written."""

SETTINGS = "Config"
"""How classes of settings end. One of vLLM's holds the scales of experts (`FusedMoEQuantConfig`),
so tensors are looked for there; scalars are no state of kernels: paths, measured times."""

_INERT = (
    type,
    types.ModuleType,
    types.CodeType,
    types.GenericAlias,
    types.UnionType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
    type(None),
    type(...),
    type(NotImplemented),
    Enum,
    PurePath,
    re.Pattern,
    regex.Pattern,
    bool,
    int,
    float,
    str,
    bytes,
    complex,
    property,
    range,
    slice,
    np.dtype,
    np.generic,
    torch.device,
    torch.dtype,
    torch.layout,
    torch.memory_format,
    torch.finfo,
    torch.iinfo,
    torch.Stream,
    torch.Event,
)
_CALLABLE = (
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    types.MethodWrapperType,
    functools.partial,
    staticmethod,
    classmethod,
    weakref.ref,
)
TORCH_C = "torch._C"
"""The module of torch's own functions in C: they hold on to no tensor."""
_READABLE = frozenset({"builtins", "collections", "functools", "types"})
"""Modules whose classes of C have a content that is read here."""
_HEAP_TYPE = 1 << 9
"""Of `type.__flags__`: made by a `class` statement (or, rarely, by C while it ran)."""


class Kind(Enum):
    """What there is to do with an object that is no tensor and no module."""

    INERT = auto()
    """A value that cannot change, and nothing hangs on it."""
    ITEMS = auto()
    SET = auto()
    CALLABLE = auto()
    OBJECT = auto()
    HANDLE = auto()
    """Memory without a name: of C, of numpy; vLLM's own handles free theirs in `__del__`."""
    ELSEWHERE = auto()


def kind_of(family: type) -> Kind:
    """The kind of the objects of a class."""
    if issubclass(family, _INERT):
        return Kind.INERT
    if issubclass(family, (Mapping, list, tuple, deque)):
        return Kind.ITEMS
    if issubclass(family, (set, frozenset)):
        return Kind.SET
    if issubclass(family, _CALLABLE):
        return Kind.CALLABLE
    bases = [base for base in family.__mro__ if base is not object]
    if any(is_elsewhere(base.__module__) for base in bases):
        return Kind.ELSEWHERE
    return Kind.HANDLE if _has_memory_of_c(family, bases) else Kind.OBJECT


def is_elsewhere(module: str | None) -> bool:
    """Whether what a module defines is left alone."""
    return f"{module}.".startswith(ELSEWHERE)


def _has_memory_of_c(family: type, bases: list[type]) -> bool:
    if hasattr(family, "__del__") or type(family).__name__ == "pybind11_type":
        return True
    ours = [base for base in bases if base.__module__ not in _READABLE]
    if any(not base.__flags__ & _HEAP_TYPE for base in ours):
        return True
    named = family.__dictoffset__ or any(vars(base).get("__slots__") for base in bases)
    return not named and family.__basicsize__ > object.__basicsize__


def type_of(value: object) -> str:
    """The name of a value's class, with its module."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def items_of(value: object) -> Iterator[tuple[str, object]]:
    """What a container holds, by key, or by position where a key is more than a word or number."""
    if not isinstance(value, Mapping):
        rows: Any = value
        yield from ((str(at), held) for at, held in enumerate(rows))
        return
    for at, (key, held) in enumerate(list(value.items())):
        if isinstance(key, (str, int, float, Enum, torch.dtype, torch.device, type(None))):
            yield str(key), held
        else:
            yield f"#{at}", held
            yield f"#{at} key", key


def held_by(function: object) -> Iterator[tuple[str, object]]:
    """What hangs on something that can be called, or on a weak reference."""
    match function:
        case functools.partial() | types.MethodType() | types.FunctionType():
            yield from carried_by(function)
        case staticmethod() | classmethod():
            yield "func", function.__func__
        case weakref.ref():
            yield "target", function()
        case types.BuiltinFunctionType() if str(function.__module__).startswith(TORCH_C):
            return  # what torch.compile's wrapper asks; its `__self__` is a record of pybind11
        case _:
            yield "self", getattr(function, "__self__", None)


def is_plain(value: object) -> bool:
    """Whether a value is plain data, as JSON has it."""
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return type(value) in (bool, int, float, str, type(None))
