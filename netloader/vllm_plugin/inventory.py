"""Everything an engine's model holds. Law: what cannot be read is named, never left out.

Kernels keep weights wherever they like: in parameters, in plain attributes, on implementation
objects, in the closure of a function, or packed behind a C++ pointer. A path says where:
`a.b` is an attribute, `a[k]` an item of a container, `f(x)` what the function `f` holds on to.
"""

import functools
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from netloader.io.digests import ALGORITHMS, digest_of
from netloader.io.memory import memory_of

Scalar = bool | int | float | str

HOLDERS = ("vllm.", "vllm_ascend.", "compressed_tensors.", "torch.nn.")
"""Where the classes of implementation objects live; objects of other packages are not entered."""

ELSEWHERE = (
    "vllm.config.",
    "vllm.distributed.",
    "vllm.logger.",
    "vllm.platforms.",
    "vllm.transformers_utils.",
)
"""Settings, groups, logging: they refer to everything and hold no weights."""

SETTINGS = "Config"
"""How classes of settings end. One of vLLM's holds the scales of experts (`FusedMoEQuantConfig`),
so tensors are looked for there; scalars are not: paths, measured times, sets in any order.
"""

LIVE = frozenset({"kv_cache"})
"""Attributes an engine binds after loading: what it computes, not what it was given."""

INTERNAL = frozenset(vars(nn.Module()))
"""torch's own bookkeeping in a module; parameters, buffers and submodules are taken by name."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a model holds, by path, in the order in which it was found."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[str, Scalar] = field(default_factory=dict)
    opaque: dict[str, str] = field(default_factory=dict)
    """Path to type of what may hold weights and cannot be read: C++ handles, odd tensors."""
    handles: dict[str, object] = field(default_factory=dict, repr=False)
    """The objects behind `opaque`, by the same paths."""


def take(model: nn.Module) -> Inventory:
    """Walk a model; equal models built the same way give equal paths in equal order.

    A tensor is listed under its first path, a parameter or buffer under each of its names.
    """
    walk = _Walk()
    walk.module("", model)
    return walk.found


def digest(inventory: Inventory) -> dict[str, str]:
    """BLAKE3 over dtype, shape, stride and elements of every tensor, by path; one at a time.

    A tensor without memory (on the meta device) is digested by its description.
    """
    return {path: _digest(tensor.detach()) for path, tensor in inventory.tensors.items()}


def sealed(inventory: Inventory) -> dict[str, str]:
    """Those of `opaque` that are not mere packed copies: the weight beside them is gone.

    vLLM's `embed_tokens` keeps its weight for look-ups and packs a copy for products; an ordinary
    linear layer keeps the packed one only.
    """
    return {p: kind for p, kind in inventory.opaque.items() if not _has_weight(inventory, p)}


def _has_weight(inventory: Inventory, path: str) -> bool:
    owner, _, _ = path.partition("(")[0].rpartition(".")
    weight = inventory.tensors.get(_dot(owner, "weight"))
    return weight is not None and weight.numel() > 0


def _digest(tensor: Tensor) -> str:
    head = f"{tensor.dtype} {tuple(tensor.shape)} {tensor.stride()}".encode()
    views = [memoryview(head)]
    if not tensor.is_meta and tensor.numel():
        dense = tensor.cpu().contiguous().reshape(-1)
        views.append(memory_of(dense))
    return digest_of(next(iter(ALGORITHMS)), views)


class _Walk:
    """One walk over a model; every object is entered once, so cycles end."""

    def __init__(self) -> None:
        self.found = Inventory()
        self._seen: set[int] = set()
        self._in_settings = False

    def module(self, path: str, root: nn.Module) -> None:
        """A module: first what it and its submodules own, then what hangs on their attributes."""
        named = list(root.named_modules(prefix=path, remove_duplicate=False))
        for at, part in named:
            for own in (part._parameters, part._buffers):  # noqa: SLF001 - ordered, with duplicates
                for name, tensor in own.items():
                    if tensor is not None:
                        self._tensor(_dot(at, name), tensor)
        fresh = [(at, part) for at, part in named if id(part) not in self._seen]
        self._seen.update(id(part) for _, part in named)
        for at, part in fresh:
            for name, value in vars(part).items():
                if name not in INTERNAL:
                    self._attribute(at, name, value)

    def _tensor(self, path: str, tensor: Tensor) -> None:
        self._seen.add(id(tensor))
        wraps = bool(is_traceable_wrapper_subclass(tensor))  # strided to look at, inside it is not
        if wraps or tensor.layout is not torch.strided:
            self._hidden(path, tensor)
        else:
            self.found.tensors[path] = tensor

    def _hidden(self, path: str, value: object) -> None:
        self.found.opaque[path] = _type_of(value)
        self.found.handles[path] = value

    def _attribute(self, path: str, name: str, value: object) -> None:
        if name not in LIVE:
            self._visit(_dot(path, name), value)

    def _visit(self, path: str, value: object) -> None:
        """Anything that is not a module's own: scalars as often as they are met, others once."""
        if isinstance(value, Scalar):
            if not self._in_settings and not isinstance(value, Enum):
                self.found.scalars[path] = value
        elif id(value) not in self._seen:
            self._seen.add(id(value))
            self._enter(path, value)

    def _enter(self, path: str, value: object) -> None:
        match value:
            case Tensor():
                self._tensor(path, value)
            case nn.Module():
                self.module(path, value)
            case Mapping():
                self._items(path, value)
            case list() | tuple():
                self._items(path, dict(enumerate(value)))
            case types.FunctionType() | types.MethodType() | functools.partial():
                for name, held in _held_by(value):
                    self._visit(f"{path}({name})", held)
            case _ if _is_handle(value):
                self._hidden(path, value)
            case _ if _is_holder(value):
                self._holder(path, value)

    def _holder(self, path: str, value: object) -> None:
        outside = self._in_settings
        self._in_settings = outside or type(value).__name__.endswith(SETTINGS)
        for name, held in _attributes_of(value):
            self._attribute(path, name, held)
        self._in_settings = outside

    def _items(self, path: str, items: Mapping[object, object]) -> None:
        for key, held in items.items():
            self._visit(f"{path}[{key}]", held)


def _dot(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _type_of(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _is_holder(value: object) -> bool:
    """Whether an object may hold weights in its attributes."""
    home = f"{type(value).__module__}."
    known = home.startswith(HOLDERS) and not home.startswith(ELSEWHERE)
    return known and not isinstance(value, (type, Enum))


def _is_handle(value: object) -> bool:
    """Whether an object holds memory that has no name here: of C++, of numpy, sets of tensors.

    vLLM's own handles free their memory in `__del__`; nothing else on a model has one.
    """
    if isinstance(value, torch.ScriptObject) or type(value).__name__ in {"PyCapsule", "ndarray"}:
        return True
    if isinstance(value, (set, frozenset)):
        return any(isinstance(held, Tensor) for held in value)
    return _is_holder(value) and hasattr(value, "__del__")


def _held_by(function: object) -> Iterator[tuple[str, object]]:
    """What a function carries along: closure cells, defaults, bound arguments, its object."""
    match function:
        case functools.partial():
            yield "func", function.func
            yield from ((str(i), held) for i, held in enumerate(function.args))
            yield from function.keywords.items()
        case types.MethodType():
            yield "self", function.__self__
            yield from _held_by(function.__func__)
        case types.FunctionType():
            cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
            yield from ((name, held) for name, cell in cells for held in _content(cell))
            yield "defaults", function.__defaults__
            yield "defaults", function.__kwdefaults__


def _content(cell: types.CellType) -> Iterator[object]:
    try:
        yield cell.cell_contents
    except ValueError:  # a cell not filled yet
        return


def _attributes_of(value: object) -> Iterator[tuple[str, object]]:
    """Instance attributes, in slots first, then as they were set."""
    for kind in reversed(type(value).__mro__):
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                yield name, getattr(value, name)
    yield from getattr(value, "__dict__", {}).items()
