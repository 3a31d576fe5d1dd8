"""How an NPU stores a tensor. Only bytes that mean the same on both sides are sent.

An NPU may keep a matrix in a private storage format, for its matrix units: the elements are
permuted and padded, and shape and stride do not tell. Only the kernels of that device can
read its bytes, so such a tensor is converted on both sides with `npu_format_cast` of
torch_npu, or refused by name. The numbers are those of `torch_npu.Format`, CANN's `aclFormat`.
"""

from typing import Any

import torch
from torch import Tensor

from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError

ND, NZ = 2, 29
PLAIN = frozenset({0, 1, ND, 30})
"""NCHW, NHWC, ND, NCDHW: shape and stride say all. New tensors of 4 and 5 dimensions are 0 and 30.
These are never cast: that would rename the storage of the engine's tensor in place."""
NZ_NAME = "FRACTAL_NZ"
NZ_DTYPES = frozenset({torch.int8, torch.uint8, torch.float16, torch.bfloat16})
PACKED = torch.int32
"""vllm-ascend casts the int8 weights of W4A8 to FRACTAL_NZ and views them as this: the tiles are of
int8, and no cast of int32 fits them. Nothing tells them from int32 that was cast as such, and where
the tiles are full nothing has to: cast as int8 in both directions, all bytes come back in place."""
TILE_ROWS, TILE_BYTES = 16, 32


def format_of(tensor: Tensor) -> str:
    """The name of a private storage format; empty for a tensor that is stored as it looks."""
    if tensor.device.type != "npu":
        return ""
    try:
        number = int(_torch_npu().get_npu_format(tensor))
    except ValueError:  # torch_npu has no name for it
        return "an unknown NPU format"
    if number in PLAIN:
        return ""
    return NZ_NAME if number == NZ else f"NPU format {number}"


def can_travel(tensor: Tensor, name: str) -> bool:
    """Whether a tensor in a storage format can be sent and filled: a view of a part cannot."""
    whole = tensor.is_contiguous() and not tensor.storage_offset()
    known = tensor.dtype in NZ_DTYPES or (tensor.dtype == PACKED and _fills_its_tiles(tensor))
    return not name or (name == NZ_NAME and whole and known)


def _fills_its_tiles(tensor: Tensor) -> bool:
    """Whether FRACTAL_NZ of it, taken as int8, has no padding."""
    if tensor.dim() < 2:
        return False
    rows, columns = tensor.shape[-2:]
    return not rows % TILE_ROWS and not columns * tensor.element_size() % TILE_BYTES


def _tiled(tensor: Tensor) -> Tensor:
    """The same memory as elements of the dtype that its tiles are cut for."""
    return tensor.view(torch.int8) if tensor.dtype == PACKED else tensor


def plain(tensor: Tensor) -> Tensor:
    """The elements of a tensor in order: itself, or a copy that is contiguous and stored as ND."""
    if format_of(tensor):
        tensor = _torch_npu().npu_format_cast(_tiled(tensor), ND).view(tensor.dtype)
    return tensor.contiguous()


def assign(tensor: Tensor, elements: Tensor) -> None:
    """Write `elements` (same shape, dtype and device; plain) into a tensor's own storage.

    Copying plain elements into a private format would give the tensor another storage; copying
    between two of one format moves bytes.

    Raises:
        TransferError: this process may not use private formats.
    """
    if format_of(tensor):
        if tensor.dtype == PACKED:  # cloned: storage made for int32 is not cast as int8
            tensor, elements = _tiled(tensor), _tiled(elements).clone()
        elements = _torch_npu().npu_format_cast(elements, NZ)
        if not format_of(elements):  # torch_npu only warns
            detail = "allow it: torch.npu.config.allow_internal_format = True"
            raise TransferError(
                Reason.TRANSFER_FAILED, f"nothing can be cast to {NZ_NAME}; {detail}"
            )
    for dimension, stride in enumerate(tensor.stride()):
        if not stride:  # expanded: one element is stored, and shown many times
            tensor, elements = tensor.narrow(dimension, 0, 1), elements.narrow(dimension, 0, 1)
    with torch.no_grad():
        tensor.copy_(elements)


def _torch_npu() -> Any:
    import torch_npu

    return torch_npu
