"""The raw tensors of a model after post-processing, and whether its layers still hold them."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from netloader.io.store.module import ModuleStore, Named


@dataclass(frozen=True, slots=True)
class Kept:
    """Raw tensors after post-processing, and the memory that keeping them takes."""

    named: tuple[Named, ...]
    weights: ModuleStore
    cached: frozenset[str] = frozenset()
    """Names of the tensors that only netloader keeps alive."""
    cached_bytes: int = 0
    detached: frozenset[str] = frozenset()
    """Names under which the model now has other memory, or nothing: `cached` and a few more."""
    constants: tuple[StorageWeakRef, ...] = ()
    """The storage of buffers that do not travel and were there before post-processing:
    tables that follow from the configuration."""


def layer_at(model: nn.Module, name: str) -> nn.Module | None:
    """The module in a tensor's name, if it is still there."""
    try:
        return model.get_submodule(name.rpartition(".")[0])
    except AttributeError:
        return None


def uses(layer: nn.Module | None, name: str, tensor: Tensor) -> bool:
    """Whether a layer has the memory of a tensor under its name."""
    if layer is None:
        return False
    attribute = name.rpartition(".")[2]
    own = {**layer._parameters, **layer._buffers}.get(attribute)  # noqa: SLF001 - of it alone
    if own is None or own.is_meta:
        return False
    return own.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
