"""Tensors as the wire names them. One that cannot be sent is refused by name."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from netloader.errors import WeightsError
from netloader.fsm.manifest import Manifest, TensorSpec
from netloader.io.formats import can_travel, format_of
from netloader.io.sharing import AddressRange, address_range_of, first_of
from netloader.wire.frames import sendable

Named = tuple[str, Tensor]
ORDINARY = (Tensor, nn.Parameter)


def named_tensors(module: nn.Module) -> list[Named]:
    """Parameters and persistent buffers in model order, tied ones under each of their names."""
    return list(_walk(module))


def _walk(module: nn.Module) -> Iterator[Named]:
    for prefix, part in module.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        passing = part._non_persistent_buffers_set  # noqa: SLF001 - torch has no public name for it
        for name, parameter in part._parameters.items():  # noqa: SLF001 - ordered, with duplicates
            if parameter is not None:
                yield dot + name, parameter
        for name, buffer in part._buffers.items():  # noqa: SLF001 - as above
            if buffer is not None and name not in passing:
                yield dot + name, buffer


def manifest_of(named: Sequence[Named], values: tuple[tuple[str, str], ...] = ()) -> Manifest:
    """Describe tensors, and plain values beside them, as the wire does.

    Raises:
        WeightsError: a tensor's memory is not its elements (it is on the meta device, not strided,
            quantized by torch, a conjugate or negative view, a wrapper around other tensors), or is
            in a storage format that cannot travel.
    """
    specs: list[TensorSpec] = []
    ranges: list[AddressRange] = []
    kinds: dict[Any, _Kind] = {}
    for index, (name, tensor) in enumerate(named):
        stored = _checked(name, tensor)
        seen = (tensor.dtype, tensor.shape, tensor.stride())
        kind = kinds.get(seen)
        if kind is None:
            kind = kinds[seen] = _kind_of(tensor)
        sent = name if name.isascii() else sendable(name)
        specs.append(TensorSpec(sent, *kind.fields, -1, 0, stored))
        if kind.dense and kind.nbytes:
            begin = tensor.data_ptr()
            ranges.append((begin, begin + kind.nbytes, index))
        elif kind.nbytes:
            ranges.append(address_range_of(index, tensor, kind.nbytes, dense=bool(stored)))
    tensors = [tensor for _, tensor in named]
    for index, first in first_of(ranges, tensors).items():
        if index != first:
            offset = tensors[index].data_ptr() - tensors[first].data_ptr()
            specs[index] = specs[index]._replace(shares=first, offset=offset)
    return Manifest(tuple(specs), values)


class _Kind(NamedTuple):
    """What tensors of one dtype, shape and stride have in common, so it is found once."""

    fields: tuple[str, tuple[int, ...], tuple[int, ...], int]
    """`TensorSpec.dtype` to `TensorSpec.nbytes`."""
    nbytes: int
    dense: bool


def _kind_of(tensor: Tensor) -> _Kind:
    dtype = str(tensor.dtype).removeprefix("torch.")
    fields = (dtype, tuple(tensor.shape), tensor.stride(), tensor.nbytes)
    return _Kind(fields, tensor.nbytes, is_dense(tensor))


def _checked(name: str, tensor: Tensor) -> str:
    """The storage format of a tensor that can travel."""
    if odd := _oddity(tensor):
        raise WeightsError(f"{name} has no plain memory: it is {odd}")
    stored = "" if tensor.is_cpu else format_of(tensor)
    if stored and not can_travel(tensor, stored):
        remedy = "cast it to ND with torch_npu.npu_format_cast"
        raise WeightsError(f"{name} is stored as {stored}, which cannot travel; {remedy}")
    return stored


def _oddity(tensor: Tensor) -> str:
    """What keeps a tensor's memory from being its elements; empty for nearly all tensors."""
    if type(tensor) not in ORDINARY and (odd := _odd_class(tensor)):
        return odd
    if tensor.is_meta:
        return "on the meta device"
    if tensor.layout != torch.strided:
        return f"of layout {tensor.layout}"
    if tensor.is_quantized:
        return f"of dtype {tensor.dtype}, with scales beside its elements"
    if tensor.is_conj() or tensor.is_neg():
        return "a view that is conjugated or negated when it is read; clone it"
    return ""


def _odd_class(tensor: Tensor) -> str:
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
        return "not initialized; run the module once, so that it knows its shapes"
    if not bool(is_traceable_wrapper_subclass(tensor)):
        return ""
    kind: Any = type(tensor)
    inner = ", ".join(kind.__tensor_flatten__(tensor)[0])
    if hasattr(tensor, "to_local"):
        remedy = "serve and fill a module of the local parts, as tensor.to_local() gives them"
    else:
        remedy = "serve and fill a module that holds these as tensors of its own"
    return f"a {kind.__module__}.{kind.__qualname__}, which wraps other tensors ({inner}); {remedy}"


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one block of memory, in whatever order."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
