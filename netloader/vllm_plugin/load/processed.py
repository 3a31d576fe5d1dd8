"""The processed layout: weights as the kernels use them, received after post-processing.

A server offers every tensor its model holds after post-processing, wherever it hangs, and the
floating-point numbers beside them (vLLM turns a KV-cache scale into a Python float) as tensors of
no dimension. A client has vLLM post-process placeholders, so that it holds the same tensors, and
then receives into them. What cannot be read is not offered: a C++ handle, memory addresses in
a tensor, and anything at all on a CPU, where oneDNN packs weights out of sight.
"""

import hashlib
from collections.abc import Iterator
from functools import reduce

import torch
from torch import Tensor, nn

from netloader.fsm.identity import Identity
from netloader.io.store.module import Named, WeightsError
from netloader.vllm_plugin.inspect import inventory
from netloader.vllm_plugin.inspect.inventory import Inventory

EXCLUDED = frozenset({"cpu"})
"""Device types without this layout: vLLM's kernels for a CPU keep weights out of sight."""
MAX_TABLE = 1 << 20
"""Elements of an integer tensor that is looked through for addresses; those tables are small."""


def allowed(device_type: str) -> bool:
    """Whether the processed layout is possible on this type of device at all."""
    return device_type not in EXCLUDED


def collect(model: nn.Module) -> list[Named]:
    """Every tensor of a post-processed model, then its floating-point numbers (0-d, float64).

    Raises:
        WeightsError: some weights cannot be read; the message names where they are hidden.
    """
    found = inventory.take(model)
    if found.opaque:
        some = ", ".join(f"{path} ({kind})" for path, kind in list(found.opaque.items())[:5])
        raise WeightsError(f"kernels keep weights out of sight in {len(found.opaque)}: {some}")
    spans = _spans(found)
    for path, tensor in found.tensors.items():
        if _holds_addresses(tensor, spans):
            raise WeightsError(f"{path} holds memory addresses, which mean nothing elsewhere")
    return [*found.tensors.items(), *_numbers(found)]


def kernel_state(model: nn.Module) -> str:
    """SHA-256 (first 16 hex digits) over the flags and integers beside the tensors of a model."""
    scalars = inventory.take(model).scalars
    words = [f"{p}={v!r}" for p, v in scalars.items() if type(v) in (bool, int)]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def sharpened(identity: Identity, kernels: str) -> Identity:
    """An identity that also names the `kernel_state`."""
    return Identity({**identity.hard, "kernel_state": kernels}, identity.soft)


def adopt_numbers(model: nn.Module, named: list[Named]) -> None:
    """Put received numbers back where `collect` found them.

    Raises:
        WeightsError: one of them is where it cannot be set.
    """
    scalars = inventory.take(model).scalars
    for path, tensor in named:
        old, new = scalars.get(path), tensor.item() if not tensor.dim() else None
        if type(old) is not float or type(new) is not float or _equal(old, new):
            continue
        *holders, name = path.split(".")
        try:
            holder = reduce(getattr, holders, model)
            getattr(holder, name)  # an item of a container is no attribute, and could be made one
            setattr(holder, name, new)
        except AttributeError as error:
            raise WeightsError(f"{path} is a number that cannot be set") from error


def _equal(old: float, new: float) -> bool:
    return old == new or (old != old and new != new)  # both not a number


def _numbers(found: Inventory) -> Iterator[Named]:
    for path, value in found.scalars.items():
        if type(value) is float:
            yield path, torch.tensor(value, dtype=torch.float64)


def _spans(found: Inventory) -> list[tuple[int, int]]:
    """Where the memory of the tensors begins, and its bytes."""
    storages = (t.untyped_storage() for t in found.tensors.values() if not t.is_meta)
    return [(s.data_ptr(), s.nbytes()) for s in storages if s.nbytes()]


def _holds_addresses(tensor: Tensor, spans: list[tuple[int, int]]) -> bool:
    if tensor.dtype not in (torch.int64, torch.uint64) or not 0 < tensor.numel() <= MAX_TABLE:
        return False
    values = tensor.detach().cpu().view(torch.int64).flatten()
    low = min(start for start, _ in spans)
    high = max(start + nbytes for start, nbytes in spans)
    near = values[(values >= low) & (values < high)].tolist()
    return any(start <= v < start + n for v in near for start, n in spans)
