"""Look once at what an engine uses beside the weights on offer, digesting each tensor once.

A *part* is a module that holds tensors or handles of its kernels beside the weights on offer.
Post-processing is given that module and nothing else, so what it made follows from what can be
reached from there: the *sources* of the part.

A *table* follows from the configuration. A client has the same one, whatever weights it receives.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from netloader.vllm_plugin.inspect import inventory
from netloader.vllm_plugin.inspect.places import revived, storage_of

COUNTERS = frozenset({torch.int16, torch.int32, torch.int64})
"""Kernels count in plain attributes of these types: locks, loads of experts, places in a ring."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""Types into which an engine may put a table, or a copy of a weight, when it is first used."""


@dataclass(slots=True)
class Part:
    """What the kernels of one module hold beside the weights on offer, and what it follows from."""

    label: str
    owner: "weakref.ref[nn.Module]"
    derived: dict[str, str] = field(default_factory=dict)
    """Digest of each tensor of the kernels, by its path."""
    handles: dict[str, Callable[[], object]] = field(default_factory=dict)
    """Weak access to each object that cannot be read, by its path."""
    sources: dict[str, str] = field(default_factory=dict)
    """Digest of each tensor on offer that can be reached from the module, by its path."""
    copies: set[str] = field(default_factory=set)
    """Paths of `derived` at which a tensor equals one on offer, at most in another dtype."""

    def fresh(self, now: "Part") -> set[str]:
        """The paths at which the kernels hold a tensor that is there only now."""
        return {*now.derived} - {*self.derived}

    def follows_from_others(self, now: "Part") -> bool:
        """Whether what the kernels hold now follows from other weights than then.

        Where a copy took the place of a source, the source is still what it follows from.
        """
        within = f"{self.label}." if self.label else ""  # sources are named as the module does
        replaced = {path.removeprefix(within) for path in now.copies} - {*now.sources}
        return {p: d for p, d in self.sources.items() if p not in replaced} != now.sources

    def changes(self, now: "Part | None") -> list[str]:
        """The paths at which the kernels hold something else than then.

        A copy of a tensor on offer that is there only now is no change: kernels make some at their
        first use, also in the place of the tensor itself.
        """
        found = now or Part(self.label, self.owner)
        derived = {*self.derived, *found.derived} - (self.fresh(found) & found.copies)
        handles = {*self.handles, *found.handles}
        return [
            *(path for path in derived if found.derived.get(path) != self.derived.get(path)),
            *(path for path in handles if not _same_object(self.handles, found.handles, path)),
        ]


def _same_object(
    then: Mapping[str, Callable[[], object]], now: Mapping[str, Callable[[], object]], path: str
) -> bool:
    if path not in then or path not in now:
        return False
    held = then[path]()
    return held is not None and held is now[path]()


class Tables:
    """The tables of a model, known by their names: an engine may put them into other memory."""

    def __init__(self, model: nn.Module, storages: Iterable[StorageWeakRef]) -> None:
        self._storages = tuple(storages)
        places = self._where()
        named = model.named_buffers(remove_duplicate=False) if places else ()
        self.names = frozenset(name for name, buffer in named if storage_of(buffer) in places)

    def _where(self) -> set[int]:
        """Where those are that are still alive: the address of another may be used again."""
        storages = map(revived, self._storages)
        return {storage.data_ptr() for storage in storages if storage is not None}

    def among(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of the tensors that are tables, or views of one."""
        here = (tensor for path, tensor in tensors.items() if bare(path) in self.names)
        places = self._where() | {storage_of(tensor) for tensor in here}
        return {p: t for p, t in tensors.items() if has_bytes(t) and storage_of(t) in places}


class Digest(Protocol):
    """How a tensor is digested."""

    def __call__(self, tensor: Tensor, dtype: torch.dtype | None = None, /) -> str:
        """The digest of a tensor, or of what it is in another dtype.

        Raises:
            InterruptedError: its memory is being taken away.
        """


class Look:
    """What an engine uses now."""

    def __init__(
        self, model: nn.Module, found: inventory.Inventory, shared: set[int], digest: Digest
    ) -> None:
        self._found = found
        self._own = {id(tensor) for tensor in chain(model.parameters(), model.buffers())}
        self._shared = shared
        self._digest = digest
        self._parts = _Parts(model)
        self._known: dict[tuple[int, torch.dtype], tuple[Tensor, str]] = {}
        self.tables: dict[str, str] = {}
        self.casts: dict[str, frozenset[str]] = {}

    @property
    def parts(self) -> Mapping[str, Part]:
        """What kernels hold, by the first path of their module."""
        return self._parts.found

    def sort(self, tables: Tables) -> None:
        """Digest the tables, and what kernels hold with what that follows from."""
        found = tables.among(self._found.tensors)
        for path, tensor in found.items():
            if not self._passed_over(path, tensor):
                self._table(bare(path), tensor)
        self._sort_kernels({*found})
        for path, held in self._found.handles.items():
            if not self._parts.of_adapter(path):
                self._parts.at(path).handles[bare(path)] = _weakly(held)
        for part in self.parts.values():
            self._follow(part)

    def _sort_kernels(self, tables: set[str]) -> None:
        """Digest what only kernels hold, and note what of it are mere copies."""
        rest = (p for p in self._found.tensors.items() if p[0] not in tables)
        offered: dict[torch.Size, list[Tensor]] = {}
        kernels: list[tuple[str, Tensor]] = []
        for path, tensor in rest:
            if self._passed_over(path, tensor):
                continue
            if storage_of(tensor) in self._shared:
                offered.setdefault(tensor.shape, []).append(tensor)
            else:
                kernels.append((path, tensor))
        for path, tensor in kernels:
            part = self._parts.at(path)
            part.derived[bare(path)] = self._word(tensor)
            if any(self._copies(tensor, one) for one in offered.get(tensor.shape, ())):
                part.copies.add(bare(path))

    def _passed_over(self, path: str, tensor: Tensor) -> bool:
        counts = tensor.dtype in COUNTERS and id(tensor) not in self._own
        return counts or not has_bytes(tensor) or self._parts.of_adapter(path)

    def _table(self, path: str, tensor: Tensor) -> None:
        self.tables[path] = self._word(tensor)
        others = [d for d in FLOATS if tensor.dtype in FLOATS and d is not tensor.dtype]
        self.casts[path] = frozenset(self._word(tensor, dtype) for dtype in others)

    def _follow(self, part: Part) -> None:
        """Note the sources of a part."""
        owner = part.owner()
        reached = {} if owner is None else inventory.take(owner).tensors
        part.sources = {
            bare(path): self._word(tensor)
            for path, tensor in reached.items()
            if has_bytes(tensor) and storage_of(tensor) in self._shared
        }

    def _copies(self, tensor: Tensor, one: Tensor) -> bool:
        floats = {tensor.dtype, one.dtype} <= {*FLOATS}
        return floats and self._word(tensor) == self._word(one, tensor.dtype)

    def _word(self, tensor: Tensor, dtype: torch.dtype | None = None) -> str:
        key = id(tensor), dtype or tensor.dtype
        if key not in self._known:
            self._known[key] = tensor, self._digest(tensor, dtype)
        return self._known[key][1]


def has_bytes(tensor: Tensor) -> bool:
    """Whether a tensor has memory, and there is something in it."""
    return not tensor.is_meta and tensor.numel() > 0


def bare(path: str) -> str:
    """A path as it is without the wrapper of an adapter."""
    return path.replace(".base_layer", "")


class _Parts:
    """The parts of a model, by the first path of their module."""

    def __init__(self, model: nn.Module) -> None:
        self._modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
        self._first: dict[nn.Module, str] = {}
        for path, module in self._modules.items():
            self._first.setdefault(module, path)
        self.found: dict[str, Part] = {}

    def of_adapter(self, path: str) -> bool:
        """Whether a tensor is an adapter's own, which changes no base weights."""
        return isinstance(getattr(self._owner(path), "base_layer", None), nn.Module)

    def _owner(self, path: str) -> nn.Module:
        """The innermost module on a path of the inventory."""
        within = path.partition("(")[0].partition("[")[0]
        while within not in self._modules:
            within = within.rpartition(".")[0]
        return self._modules[within]

    def at(self, path: str) -> Part:
        """The part of the innermost module on a path of the inventory."""
        owner = self._owner(path)
        label = bare(self._first[owner])
        if label not in self.found:
            self.found[label] = Part(label, weakref.ref(owner))
        return self.found[label]


def _weakly(held: object) -> Callable[[], object]:
    try:
        return weakref.ref(held)
    except TypeError:  # a capsule: kept, so that its address is not used again
        return lambda: held
