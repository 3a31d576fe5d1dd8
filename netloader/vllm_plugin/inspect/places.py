"""Where an engine has its tensors registered, found without reading a byte of them.

Rebinding (`p.data = ...`) shows in the address, writing in place in torch's version counter. What
is written through `p.data` shows in neither: for that bytes have to be compared.
"""

import weakref
from collections.abc import Callable, Container
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from netloader.io.memory import version_of

Key: TypeAlias = tuple[int, torch.Size, tuple[int, ...], torch.dtype]
"""Where a tensor is, and its geometry."""


def key_of(tensor: Tensor) -> Key:
    """Where a tensor is, and its geometry."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def storage_of(tensor: Tensor) -> int:
    """Where the memory begins that a tensor is a part of."""
    return tensor.untyped_storage().data_ptr()


def revived(storage: StorageWeakRef) -> torch.UntypedStorage | None:
    """A storage, if it is still alive."""
    revive: Any = torch.UntypedStorage._new_with_weak_ptr  # noqa: SLF001 - torch's only way
    found: torch.UntypedStorage | None = revive(storage.cdata)
    return found


@dataclass(slots=True)
class Place:
    """A parameter or buffer of the engine: where it is registered, and what was found there.

    A `table` follows from the configuration. An engine may move it to another device, or to another
    dtype, when it is first used; where it is says nothing, its bytes do.
    """

    name: str
    module: "weakref.ref[nn.Module]"
    attribute: str
    key: Key
    version: int
    table: bool = False

    def find(self) -> Tensor | None:
        """The tensor that is registered there now."""
        module = self.module()
        if module is None:
            return None
        own = module._parameters.get(self.attribute)  # noqa: SLF001 - of this module alone
        return own if own is not None else module._buffers.get(self.attribute)  # noqa: SLF001

    def change(self, moved: "Moved") -> str:
        """What happened to the tensor, or ''; `moved` decides about a table that was replaced."""
        tensor = self.find()
        if tensor is None:
            return f"{self.name} is no longer part of the model"
        if self.table and key_of(tensor) != self.key:
            return moved(self, tensor)
        if key_of(tensor) != self.key:
            return f"{self.name} was put into other memory"
        if version_of(tensor) != self.version:
            return f"{self.name} was written in place"
        return ""

    def adopt(self, tensor: Tensor) -> None:
        """Take the tensor that is registered now for the right one."""
        self.key, self.version = key_of(tensor), version_of(tensor)

    def forgive(self) -> None:
        """Take writes as they are: the bytes are compared instead."""
        tensor = self.find()
        if tensor is not None:
            self.version = version_of(tensor)


Moved: TypeAlias = Callable[[Place, Tensor], str]
"""Compares the tensor that took the place of a table; '' or one sentence that names a change."""


@dataclass(frozen=True, slots=True)
class Link:
    """A module and where it hangs; an adapter may have been wrapped around it."""

    name: str
    parent: "weakref.ref[nn.Module]"
    attribute: str
    child: "weakref.ref[nn.Module]"

    def change(self, _: Moved) -> str:
        """What happened to the module, or ''."""
        parent, child = self.parent(), self.child()
        now = None if parent is None else parent._modules.get(self.attribute)  # noqa: SLF001
        if child is None or (now is not child and getattr(now, "base_layer", None) is not child):
            return f"the module {self.name} was replaced"
        return ""


@dataclass(frozen=True, slots=True)
class Places:
    """All of one model."""

    links: list[Link]
    places: list[Place]

    def change(self, moved: Moved) -> str:
        """What happened to one of them, or ''; `moved` decides about tables that were replaced."""
        for check in chain[Link | Place](self.links, self.places):
            try:
                if why := check.change(moved):
                    return why
            except RuntimeError:  # it has no memory any more
                return f"{check.name} cannot be looked at any more"
        return ""

    def forgive(self) -> None:
        """Take writes as they are."""
        for place in self.places:
            place.forgive()


def registered(model: nn.Module, tables: Container[str] = ()) -> Places:
    """The modules, parameters and buffers of a model now; `tables` are names of buffers."""
    found = Places([], [])
    for name, module in model.named_modules():
        at, dot = weakref.ref(module), f"{name}." if name else ""
        found.links.extend(
            Link(dot + key, at, key, weakref.ref(child))
            for key, child in module._modules.items()  # noqa: SLF001 - of this module alone
            if child is not None
        )
        own = {**module._parameters, **module._buffers}  # noqa: SLF001 - as above
        found.places.extend(
            Place(dot + key, at, key, key_of(tensor), version_of(tensor), dot + key in tables)
            for key, tensor in own.items()
            if tensor is not None
        )
    return found
