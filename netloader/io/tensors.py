"""Tensors as the wire names them. One that cannot be sent is refused by name."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

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
STRIDED: Final = torch.strided
ON_HOST: Final = (None, "")
"""The device and the storage format of all tensors of the host."""


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


class Description(NamedTuple):
    """Tensors as the wire names them, and how they lie in memory."""

    manifest: Manifest
    flat: list[bool]
    """Whether the memory of a tensor is its elements, in one block (see `is_dense`)."""


class _Kind(NamedTuple):
    """What tensors of one dtype, geometry and format have in common, so it is found once."""

    fields: tuple[object, ...]
    """Those of a `TensorSpec` after the name."""
    nbytes: int
    flat: bool


def describe(named: Sequence[Named], values: tuple[tuple[str, str], ...] = ()) -> Description:
    """Describe tensors, and plain values beside them.

    Raises:
        WeightsError: a tensor's memory is not its elements (it is on the meta device, not strided,
            quantized by torch, a conjugate or negative view, a wrapper around other tensors), or is
            in a storage format that cannot travel.
    """
    specs: list[TensorSpec] = []
    flat: list[bool] = []
    rows: dict[torch.device | None, list[AddressRange]] = defaultdict(list)
    kinds: dict[Any, _Kind] = {}
    for index, (name, tensor) in enumerate(named):
        place, stored = ON_HOST if _is_plain(tensor) else _checked(name, tensor)
        seen = (tensor.dtype, tensor.shape, tensor.stride(), stored)
        kind = kinds.get(seen)
        if kind is None:
            kind = kinds[seen] = _kind_of(tensor, stored)
        fields, nbytes, is_flat = kind
        sent = name if name.isascii() else sendable(name)
        specs.append(TensorSpec._make((sent, *fields)))
        flat.append(is_flat)
        if is_flat and nbytes:
            begin = tensor.data_ptr()
            rows[place].append((begin, begin + nbytes, index))
        elif nbytes:
            rows[place].append(address_range_of(index, tensor, nbytes, dense=bool(stored)))
    tensors = [tensor for _, tensor in named]
    for index, first in first_of(rows.values(), tensors).items():
        if index != first:
            offset = tensors[index].data_ptr() - tensors[first].data_ptr()
            specs[index] = specs[index]._replace(shares=first, offset=offset)
    return Description(Manifest(tuple(specs), values), flat)


def manifest_of(named: Sequence[Named], values: tuple[tuple[str, str], ...] = ()) -> Manifest:
    """The manifest alone: as `describe`."""
    return describe(named, values).manifest


def _kind_of(tensor: Tensor, stored: str) -> _Kind:
    dtype = str(tensor.dtype).removeprefix("torch.")
    geometry = (tuple(tensor.shape), tensor.stride(), tensor.nbytes)
    return _Kind((dtype, *geometry, -1, 0, stored), tensor.nbytes, not stored and is_dense(tensor))


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is a tensor of the host without any oddity, as most are: the quick look."""
    return (
        type(tensor) in ORDINARY
        and tensor.is_cpu
        and tensor.layout is STRIDED
        and not (tensor.is_quantized or tensor.is_neg() or tensor.is_conj())
    )


def _checked(name: str, tensor: Tensor) -> tuple[torch.device | None, str]:
    """The device (None: the CPU) and the storage format of a tensor that can travel."""
    if odd := _oddity(tensor):
        raise WeightsError(f"{name} has no plain memory: it is {odd}")
    if tensor.is_cpu:
        return ON_HOST
    stored = format_of(tensor)
    if stored and not can_travel(tensor, stored):
        remedy = "cast it to ND with torch_npu.npu_format_cast"
        raise WeightsError(f"{name} is stored as {stored}, which cannot travel; {remedy}")
    return tensor.device, stored


def _oddity(tensor: Tensor) -> str:
    """What keeps a tensor's memory from being its elements; empty for nearly all tensors."""
    if type(tensor) not in ORDINARY and (odd := _odd_class(tensor)):
        return odd
    if tensor.is_meta:
        return "on the meta device"
    if tensor.layout is not STRIDED:
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
