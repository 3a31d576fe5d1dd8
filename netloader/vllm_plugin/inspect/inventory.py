"""Everything an engine's model holds. What cannot be read is named instead of left out.

Kernels keep weights wherever they like: in parameters, in plain attributes, on implementation
objects, in the closure of a function, or packed behind a C++ pointer. A path says where:
`a.b` is an attribute, `a[k]` an item of a container, `f(x)` what the function `f` holds on to.
"""

import gc
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from netloader.fsm.digest_choice import STRONG
from netloader.io.hidden import attributes_of
from netloader.io.memory import memory_of
from netloader.io.store.digests import digest_of
from netloader.vllm_plugin.inspect.reach import (
    SETTINGS,
    Kind,
    held_by,
    is_elsewhere,
    is_plain,
    items_of,
    kind_of,
    type_of,
)

Scalar = bool | int | float | str

LIVE = frozenset({"kv_cache"})
"""Attributes an engine binds after loading: what it computes, not what it was given."""

LOADING = frozenset({"weight_loader", "_weight_loader"})
"""Attributes of vLLM's parameters that only `load_weights` calls; the layer behind such a function
may be one that the model does not use any more."""

INTERNAL = frozenset(vars(nn.Module()))
"""torch's own bookkeeping in a module; parameters, buffers and submodules are taken by name."""

HOOKS = ("_forward_pre_hooks", "_forward_hooks")
"""Of that, the functions that take part in a forward pass; torch numbers them by a counter."""

SIMPLE = frozenset({bool, int, float, str, type(None)})

MODULE = "(module)"
"""Ends the path of a place where a module is in the tree of modules."""

_new = tuple.__new__
"""Makes a named tuple in a third of the time that its class takes; a walk makes thousands."""

MAX_SCALARS = 4096
"""Elements of a plain container that are listed one by one; a vocabulary is not."""


class At(Enum):
    """How what is at a place hangs there."""

    ATTRIBUTE = auto()
    ITEM = auto()
    FIXED = auto()
    """It cannot be set: in a closure, in a tuple, a module in the tree."""


@dataclass(frozen=True, slots=True)
class Alias:
    """Stands for a tensor: the path under which it is listed."""

    path: str


class Place(NamedTuple):
    """An attribute or item that a walk came by: its holder, its name there, and its value."""

    holder: object
    at: At
    key: object
    value: object
    """What is there now; a tensor is an `Alias`, so that a place keeps no weights alive."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a model holds, by path, in the order in which it was found."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[str, Scalar] = field(default_factory=dict)
    opaque: dict[str, str] = field(default_factory=dict)
    """Path to type of what may hold weights and cannot be read: C++ handles, odd tensors."""
    handles: dict[str, object] = field(default_factory=dict, repr=False)
    """The objects behind `opaque`, by the same paths."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """What torch calls state: parameters wherever they hang, and the persistent buffers of every
    module, in the tree of modules (tied ones under each of their names) or not."""
    places: dict[str, Place] = field(default_factory=dict)


@contextmanager
def uncollected() -> Iterator[None]:
    """Have Python's collector of cycles wait.

    A walk makes many objects and no cycles. In the process of an engine the collections that it
    would cause look at a million others, and take three times as long as the walk.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@uncollected()
def take(model: nn.Module) -> Inventory:
    """Walk a model; equal models built the same way give equal paths in equal order.

    A tensor is listed under its first path, a parameter or buffer under each of its names in the
    tree of modules.
    """
    walk = _Walk()
    walk.module("", model)
    return walk.found


def digest_one(tensor: Tensor) -> str:
    """The digest of one tensor, as `digest` makes it."""
    return digest(Inventory(tensors={"": tensor}))[""]


def digest(inventory: Inventory) -> dict[str, str]:
    """BLAKE3 over dtype, shape, stride and elements of every tensor, by path; one at a time.

    A tensor without memory (on the meta device) is digested by its description.
    """
    once = {id(tensor): tensor for tensor in inventory.tensors.values()}
    words = {known: _digest(tensor.detach()) for known, tensor in once.items()}
    return {path: words[id(tensor)] for path, tensor in inventory.tensors.items()}


def sealed(inventory: Inventory) -> dict[str, str]:
    """Those of `opaque` that are not mere packed copies: the weight beside them is gone.

    vLLM's `embed_tokens` keeps its weight for look-ups and packs a copy for products; an ordinary
    linear layer keeps the packed one only.
    """
    return {p: kind for p, kind in inventory.opaque.items() if not _has_weight(inventory, p)}


def _has_weight(inventory: Inventory, path: str) -> bool:
    owner, _, _ = path.partition("(")[0].rpartition(".")
    weight = inventory.tensors.get(dot(owner, "weight"))
    return weight is not None and weight.numel() > 0


def _digest(tensor: Tensor) -> str:
    head = f"{tensor.dtype} {tuple(tensor.shape)} {tensor.stride()}".encode()
    views = [memoryview(head)]
    if not tensor.is_meta and tensor.numel():
        dense = tensor.cpu().contiguous().reshape(-1)
        views.append(memory_of(dense))
    return digest_of(STRONG, views)


def word_of(data: bytes) -> str:
    """BLAKE3 of some bytes."""
    return digest_of(STRONG, [memoryview(data)])


class _Walk:
    """One walk over a model; every object is entered once, so cycles end."""

    def __init__(self) -> None:
        self.found = Inventory()
        self._seen: dict[int, object] = {}
        self._listed: dict[int, str] = {}
        self._kinds: dict[type, Kind] = {}
        self._in_settings = False

    def module(self, path: str, root: nn.Module) -> None:
        """A module: first what it and its submodules own, then what hangs on their attributes."""
        named = list(root.named_modules(prefix=path, remove_duplicate=False))
        again = frozenset(self._listed)
        for at, part in named:
            self._own(at, part, again)
        fresh = [(at, part) for at, part in named if id(part) not in self._seen]
        self._seen.update((id(part), part) for _, part in named)
        for at, part in fresh:
            own = list(vars(part).items())
            self._attributes(at, part, ((n, value) for n, value in own if n not in INTERNAL))
            for hooks in HOOKS:
                for number, hook in enumerate(vars(part)[hooks].values()):
                    self._visit(f"{dot(at, hooks)}[{number}]", part, At.FIXED, number, hook)

    def _own(self, path: str, part: nn.Module, again: Container[int]) -> None:
        """What a module itself owns; what is in `again` was listed, and is not listed once more."""
        self.found.places[dot(path, MODULE)] = Place(part, At.FIXED, MODULE, part)
        passing = part._non_persistent_buffers_set  # noqa: SLF001 - torch has no public name for it
        own = (*part._parameters.items(), *part._buffers.items())  # noqa: SLF001 - with duplicates
        for name, tensor in own:
            if tensor is not None and id(tensor) not in again:
                self._tensor(dot(path, name), tensor)
                if name not in passing:
                    self.found.state[dot(path, name)] = tensor

    def _tensor(self, path: str, tensor: Tensor) -> None:
        """List a tensor, and what hangs on it: some of vLLM's parameters carry others along."""
        fresh = id(tensor) not in self._seen
        self._seen[id(tensor)] = tensor
        self._listed.setdefault(id(tensor), path)
        wraps = bool(is_traceable_wrapper_subclass(tensor))  # strided to look at, inside it is not
        if wraps or is_lazy(tensor) or tensor.layout is not torch.strided:
            self._hidden(path, tensor)
        else:
            self.found.tensors[path] = tensor
        if fresh:
            own = attributes_of(tensor)
            self._attributes(path, tensor, ((n, value) for n, value in own if n not in LOADING))

    def _hidden(self, path: str, value: object) -> None:
        self.found.opaque[path] = type_of(value)
        self.found.handles[path] = value

    def _attributes(self, path: str, holder: object, named: Iterable[tuple[str, object]]) -> None:
        prefix = f"{path}." if path else ""
        scalars, places = self.found.scalars, self.found.places
        for name, value in named:
            if type(value) in SIMPLE and name not in LIVE:  # nearly all that there is
                if value is not None and not self._in_settings:
                    scalars[prefix + name] = value  # type: ignore[assignment]
                places[prefix + name] = _new(Place, (holder, At.ATTRIBUTE, name, value))
            elif name not in LIVE:
                self._visit(prefix + name, holder, At.ATTRIBUTE, name, value)

    def _visit(self, path: str, holder: object, at: At, key: object, value: object) -> None:
        """Anything that is not a module's own: plain data as often as met, others once."""
        if type(value) in SIMPLE:
            if value is not None and not self._in_settings:
                self.found.scalars[path] = value  # type: ignore[assignment]
            self.found.places[path] = Place(holder, at, key, value)
            return
        if _is_data(value):
            self._scalars(path, value)
        elif id(value) not in self._seen:
            self._seen[id(value)] = value
            try:
                self._enter(path, value)
            except Exception:  # noqa: BLE001 - foreign objects may raise anything when inspected
                self._hidden(path, value)
        shown = Alias(self._listed[id(value)]) if isinstance(value, Tensor) else value
        self.found.places[path] = _new(Place, (holder, at, key, shown))

    def _scalars(self, path: str, value: object) -> None:
        """Plain data, element by element, as far as it is not of settings."""
        if self._in_settings or value is None:
            return
        if isinstance(value, Scalar):
            self.found.scalars[path] = value
        elif len(value) <= MAX_SCALARS:  # type: ignore[arg-type]
            for key, held in items_of(value):
                self._scalars(f"{path}[{key}]", held)
        else:
            self.found.scalars[path] = word_of(repr(value).encode())

    def _enter(self, path: str, value: object) -> None:
        if isinstance(value, Tensor):
            self._seen.pop(id(value))
            self._tensor(path, value)
            if isinstance(value, nn.Parameter):
                self.found.state[path] = value
        elif isinstance(value, nn.Module):
            self._seen.pop(id(value))
            self.module(path, value)
        else:
            self._enter_object(path, value)

    def _enter_object(self, path: str, value: object) -> None:
        match self._kind(value):
            case Kind.ITEMS:
                at = At.ITEM if isinstance(value, (dict, list)) else At.FIXED
                for key, held in items_of(value):
                    place = int(key) if isinstance(value, list) else key
                    self._visit(f"{path}[{key}]", value, at, place, held)
                self._holder(path, value)
            case Kind.SET:
                if not all(map(self._is_inert, value)):  # type: ignore[call-overload]
                    self._hidden(path, value)
            case Kind.CALLABLE:
                if not is_elsewhere(getattr(value, "__module__", None)):
                    for name, held in held_by(value):
                        self._visit(f"{path}({name})", value, At.FIXED, name, held)
            case Kind.HANDLE:
                self._hidden(path, value)
            case Kind.OBJECT:
                self._holder(path, value)

    def _holder(self, path: str, value: object) -> None:
        outside = self._in_settings
        self._in_settings = outside or type(value).__name__.endswith(SETTINGS)
        self._attributes(path, value, attributes_of(value))
        self._in_settings = outside

    def _kind(self, value: object) -> Kind:
        family = type(value)
        if family not in self._kinds:
            self._kinds[family] = kind_of(family)
        return self._kinds[family]

    def _is_inert(self, value: object) -> bool:
        return not isinstance(value, (Tensor, nn.Module)) and self._kind(value) is Kind.INERT


def _is_data(value: object) -> bool:
    """Whether a value is plain data, or a number of a class of its own (numpy has some)."""
    try:
        return is_plain(value) or (isinstance(value, Scalar) and not isinstance(value, Enum))
    except RecursionError:  # a list that holds itself
        return False


def dot(path: str, name: str) -> str:
    """The path of an attribute."""
    return f"{path}.{name}" if path else name
