"""Finds every tensor that a module holds. One that cannot be listed is an error.

Modules keep weights in parameters and buffers, but also in attributes, lists, dictionaries,
objects, closures and hooks. A path says where: `a.b` is an attribute, `a[k]` an item of a
container, `f(x)` what the function `f` carries along. Equal modules give equal paths, in order.
"""

import functools
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor, nn

from netloader.errors import WeightsError
from netloader.io.tensors import Named

INTERNAL = frozenset(vars(nn.Module()))
"""torch's own bookkeeping in a module; parameters, buffers and submodules are taken by name."""
HOOKS = ("_forward_pre_hooks", "_forward_hooks")
"""The part of it that takes part in a forward pass."""
PLAIN = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes, bytearray, range, slice, type),
        *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
        *(types.ModuleType, weakref.ref, weakref.ProxyType, weakref.CallableProxyType),
    }
)
"""Types whose values hold no tensor, or do not own it."""
TOOLS = (
    *("torch.optim.", "torch.distributed.", "torch.utils.data.", "torch.utils.tensorboard."),
    *("torch.fx.", "torch.cuda.", "torch.profiler.", "torch.autograd.", "torch.jit.", "torch._"),
    *("logging.", "structlog.", "threading.", "_thread.", "asyncio.", "concurrent."),
    *("multiprocessing.", "socket.", "io.", "_io.", "pathlib.", "re.", "tokenizers."),
    *("lightning.", "pytorch_lightning.", "wandb."),
)
"""Where classes live whose objects work on a model and are no part of it: not entered."""
MAX_OBJECTS = 1_000_000
"""More objects than this on a module's attributes are not searched: the module is refused."""
MAX_DEPTH = 200
"""Nor are objects that hang on each other in a longer chain."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a walk found."""

    tensors: list[Named] = field(default_factory=list)
    """Parameters and buffers in model order, under each of their names; then others, by path."""
    registered: set[str] = field(default_factory=set)
    """The names of parameters and buffers."""
    roots: list[tuple[str, nn.Module]] = field(default_factory=list)
    """The module, and modules that hang on attributes and are no submodules of it."""


def look(root: nn.Module) -> Found:
    """Walk a module.

    Raises:
        WeightsError: something holds memory that cannot be read, or there is too much to search.
    """
    walk = _Walk()
    walk.module("", root, 0)
    return walk.found


class _Walk:
    """One walk; every container, object and module is entered once, so cycles end."""

    def __init__(self) -> None:
        self.found = Found()
        self._seen: set[int] = set()
        self._kept: list[object] = []
        """Objects made on the way: their `id` must not be taken by another one."""
        self._numpy = getattr(sys.modules.get("numpy"), "ndarray", ())

    def module(self, path: str, root: nn.Module, depth: int) -> None:
        """What a module and its submodules register, then what hangs on their attributes."""
        self.found.roots.append((path, root))
        named = list(root.named_modules(prefix=path, remove_duplicate=False))
        fresh = {id(part): (at, part) for at, part in reversed(named) if id(part) not in self._seen}
        self._seen.update(fresh)
        for at, part in named:
            before = f"{at}." if at else ""
            for own in (part._parameters, part._buffers):  # noqa: SLF001 - ordered, with duplicates
                for name, tensor in list(own.items()) if own else ():
                    if tensor is not None:
                        path_of_it = before + name
                        self.found.registered.add(path_of_it)
                        self._tensor(path_of_it, tensor, depth)
        for at, part in reversed(fresh.values()):
            self._attributes(at, part, depth)

    def _attributes(self, path: str, part: nn.Module, depth: int) -> None:
        hooked = part._forward_pre_hooks or part._forward_hooks  # noqa: SLF001
        for hooks in HOOKS if hooked else ():
            for number, hook in enumerate(list(getattr(part, hooks).values())):
                self._visit(f"{dotted(path, hooks)}[{number}]", hook, depth)
        if isinstance(part, torch.jit.ScriptModule):  # the rest is behind a C++ object
            return
        own = vars(part)
        for name in [name for name in own if name not in INTERNAL]:
            value = own.get(name)
            if type(value) not in PLAIN:
                self._visit(dotted(path, name), value, depth)

    def _tensor(self, path: str, tensor: Tensor, depth: int) -> None:
        self.found.tensors.append((path, tensor))
        if more := tensor.__dict__:
            for name, value in list(more.items()):
                self._visit(dotted(path, name), value, depth)

    def _visit(self, path: str, value: object, depth: int) -> None:
        """Anything that is not registered: tensors under each path, others once."""
        if type(value) in PLAIN or isinstance(value, (Enum, type)):
            return
        if isinstance(value, Tensor):
            self._tensor(path, value, depth)
            return
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        self._kept.append(value)
        if len(self._kept) > MAX_OBJECTS or depth > MAX_DEPTH:
            raise WeightsError(
                f"too many objects hang on attributes to be searched for tensors, among them "
                f"{path}; keep them outside the module"
            )
        self._enter(path, value, depth + 1)

    def _enter(self, path: str, value: object, depth: int) -> None:
        if isinstance(value, nn.Module):
            self.module(path, value, depth)
        elif isinstance(value, set | frozenset):
            self._set(path, value, depth)
        elif isinstance(value, self._numpy):
            self._array(path, value, depth)
        elif isinstance(value, torch.ScriptObject) or type(value).__name__ == "PyCapsule":
            _refuse(path, value, "keeps its memory behind a C++ object")
        else:
            for at, held in _parts(path, value):
                self._visit(at, held, depth)

    def _set(self, path: str, items: set[object] | frozenset[object], depth: int) -> None:
        """Items of a set come in another order in each process, so tensors have no path here."""
        before = len(self.found.tensors)
        for held in list(items):
            self._visit(f"{path}[...]", held, depth)
        if len(self.found.tensors) > before:
            _refuse(path, items, "holds tensors in no certain order")

    def _array(self, path: str, array: object, depth: int) -> None:
        """An array of numpy: its memory as a tensor, or strings and the like, which are plain."""
        kind = array.dtype.kind  # type: ignore[attr-defined]
        if kind == "O":
            for number, held in enumerate(array.flat):  # type: ignore[attr-defined]
                self._visit(f"{path}[{number}]", held, depth)
        elif kind in "biufcV":
            if not array.flags.writeable:  # type: ignore[attr-defined]
                _refuse(path, array, "is read-only")
            try:
                self.found.tensors.append((path, torch.from_numpy(array)))
            except (TypeError, ValueError):
                _refuse(path, array, "is no tensor to torch")


def dotted(path: str, name: str) -> str:
    """The path of an attribute."""
    return f"{path}.{name}" if path else name


def _parts(path: str, value: object) -> Iterator[tuple[str, object]]:
    """What hangs directly on a container, a function or an object, by path."""
    match value:
        case Mapping():
            yield from ((f"{path}[{key}]", held) for key, held in list(value.items()))
        case list() | tuple() | deque():
            yield from ((f"{path}[{n}]", held) for n, held in enumerate(list(value)))
        case types.FunctionType() | types.MethodType() | functools.partial():
            yield from ((f"{path}({name})", held) for name, held in carried_by(value))
        case types.BuiltinMethodType() | types.MethodWrapperType():
            yield f"{path}(self)", value.__self__
        case _ if _is_holder(value):
            yield from ((dotted(path, name), held) for name, held in attributes_of(value))


def _refuse(path: str, value: object, why: str) -> None:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    remedy = "keep its tensors in registered buffers, or in a list"
    raise WeightsError(f"{path}, a {kind}, {why}, so it cannot travel; {remedy}")


def _is_holder(value: object) -> bool:
    """Whether an object may hold weights in its attributes."""
    kinds = type(value).__mro__
    return not any(f"{kind.__module__}.".startswith(TOOLS) for kind in kinds)


def carried_by(function: Callable[..., object]) -> Iterator[tuple[str, object]]:
    """What a function carries along: closure cells, defaults, bound arguments, its object."""
    match function:
        case functools.partial():
            yield "func", function.func
            yield from ((str(i), held) for i, held in enumerate(function.args))
            yield from function.keywords.items()
        case types.MethodType():
            yield "self", function.__self__
            yield from carried_by(function.__func__)
        case types.FunctionType():
            cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
            yield from ((name, held) for name, cell in cells for held in content_of(cell))
            yield from (
                (f"default {n}", held) for n, held in enumerate(function.__defaults__ or ())
            )
            yield from (function.__kwdefaults__ or {}).items()
            yield from vars(function).items()


def content_of(cell: types.CellType) -> Iterator[object]:
    """What a closure's cell holds; nothing while it is not filled."""
    try:
        yield cell.cell_contents
    except ValueError:
        return


def attributes_of(value: object) -> Iterator[tuple[str, object]]:
    """Instance attributes, in slots first, then as they were set."""
    for kind in reversed(type(value).__mro__):
        slots = vars(kind).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            mangled = slot.startswith("__") and not slot.endswith("__")
            name = f"_{kind.__name__.lstrip('_')}{slot}" if mangled else slot
            if name not in {"__dict__", "__weakref__"} and hasattr(value, name):
                yield name, getattr(value, name)
    yield from list(getattr(value, "__dict__", {}).items())
