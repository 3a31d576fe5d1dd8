"""What the engine uses, noted once and compared later: the offer must still stand for it.

A client's verification covers the bytes it receives. It does not cover two things: that the engine
still reads its weights from the memory on offer (`p.data = ...` leaves our handle on the old
memory), and that what kernels made of the weights (packed copies, repacked experts, absorbed
projections) still belongs to the originals on offer. The witness notes both.

A *part* is a module that holds tensors or handles of its kernels beside the weights on offer.
Post-processing is given that module and nothing else, so what it made follows from what can be
reached from there: the *sources* of the part.
"""

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from netloader.io.background import in_background
from netloader.io.weights import Named
from netloader.log import emit, get_logger
from netloader.vllm_plugin import LOG_BASE, inventory
from netloader.vllm_plugin.places import Key, Places, key_of, registered, storage_of

INTERRUPTED = "the check was interrupted: the weights are being taken away"
POLL_S = 0.1
COUNTERS = frozenset({torch.int16, torch.int32, torch.int64})
"""Kernels count in plain attributes of these types: locks, loads of experts, places in a ring."""


@dataclass(slots=True)
class Part:
    """What the kernels of one module hold beside the weights on offer, and what it follows from."""

    label: str
    owner: "weakref.ref[nn.Module]"
    derived: dict[str, str] = field(default_factory=dict)
    """Digest of each tensor of the kernels, by its path."""
    handles: dict[str, Callable[[], object]] = field(default_factory=dict)
    """What cannot be read: how to get hold of each object while it lives, by its path."""
    sources: dict[str, str] = field(default_factory=dict)
    """Digest of each tensor on offer that can be reached from the module, by its path."""

    def changes(self, now: "Part | None") -> list[str]:
        """The paths at which the kernels hold something else than then."""
        found = now or Part(self.label, self.owner)
        derived = {*self.derived, *found.derived}
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


@dataclass(frozen=True, slots=True)
class Noted:
    """What the engine used at one moment."""

    parts: Mapping[str, Part] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    tables: Mapping[str, str] = field(default_factory=dict)
    """Digests of what follows from the configuration, and is the same at every client."""

    def change(self, now: "Noted") -> str:
        """How the engine's own side differs from what it was, or ''."""
        for label, part in self.parts.items():
            if paths := part.changes(now.parts.get(label)):
                return f"{min(paths)}, which the kernels use, was changed"
        moved = [p for p, n in self.numbers.items() if not _same_number(now.numbers.get(p), n)]
        if moved:
            return f"the number {moved[0]} was changed"
        other = [path for path, digest in self.tables.items() if now.tables.get(path) != digest]
        return f"the table {other[0]} was changed" if other else ""


def _same_number(a: float | None, b: float) -> bool:
    return a == b or (a is not None and a != a and b != b)  # both not a number


class Witness:
    """Knows whether a model still uses the weights on offer. Safe from any thread.

    `begin` when the offer is made, `settle` when the engine has taken its final shape. Between them
    only the engine itself changes anything, and there is nothing to compare with yet.
    """

    def __init__(
        self,
        model: nn.Module,
        offered: Sequence[Named],
        detached: frozenset[str] = frozenset(),
        constants: frozenset[int] = frozenset(),
    ) -> None:
        self._model = weakref.ref(model)  # what is on offer must not keep its model alive
        self._shared = {storage_of(t) for n, t in offered if n not in detached and t.numel()}
        self._constants = constants
        self._places = Places([], [])
        self._shape: dict[str, Key] = {}
        self.noted = Noted()
        """What the engine used when it was noted; empty until that is complete."""
        self._error = ""
        self._settled = False
        self._begun = self._latest = object()
        self._thread: threading.Thread | None = None
        self._complete = threading.Event()
        self._over = threading.Event()
        self._reading = threading.Lock()

    # -- noting ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Digest, in the background, what the kernels hold."""
        self._shape = {}
        self._begun = object()
        self._follow()

    def settle(self) -> None:
        """Note where everything is: from now on any change is one of the weights on offer."""
        model = self._model()
        if model is not None:
            self._places = registered(model)
            self._settled = True
            self._follow()

    def accept(self, now: Noted) -> None:
        """What the engine uses now is what is on offer from now on."""
        model = self._model()
        if model is not None:
            self._over.clear()
            self._places = registered(model)
            self._begun = self._latest = object()
            self.noted, self._error, self._settled = now, "", True
            self._complete.set()

    def _follow(self) -> None:
        self._complete.clear()
        self._over.clear()
        self._latest = object()
        note = partial(self._note, self._begun, self._latest, self._thread)
        thread = in_background("netloader-witness", note, self._failed)
        self._thread = thread if thread.ident is not None else None  # it could not be started

    def _failed(self, problem: Exception) -> None:
        self._error = _trouble(problem)
        self._complete.set()

    def _note(self, begun: object, latest: object, before: threading.Thread | None) -> None:
        """Note what the kernels hold, on top of what the thread before has noted."""
        error = ""
        if before is not None:
            before.join()
        try:
            self._look_until_it_is_all(begun)
        except InterruptedError:
            return
        except Exception as problem:  # noqa: BLE001 - then nothing can be said of the weights
            if not self._settled:  # the engine is still being put together, and will be noted then
                return
            error = _trouble(problem)
        if latest is self._latest:
            self._error = error
            self._complete.set()

    def _look_until_it_is_all(self, begun: object) -> None:
        """Look again when the engine has put something in place since: a draft, an adapter."""
        while (model := self._model()) is not None:
            found = inventory.take(model)
            shape = _shape_of(found)
            if shape == self._shape:
                return
            noted = self._look(found)
            if begun is not self._begun:
                raise InterruptedError("this was begun anew")
            self.noted, self._shape = noted, shape
        raise InterruptedError("the model is gone")

    def pause(self) -> None:
        """Return when nothing is read any more; `resume` allows it again."""
        self._over.set()
        with self._reading:
            pass
        if self._thread is not None:
            self._thread.join()

    def stop(self) -> None:
        """Read nothing any more; does not wait for what is being read now."""
        self._over.set()

    def resume(self) -> None:
        """Allow reading again: the memory is there."""
        self._over.clear()

    @property
    def complete(self) -> bool:
        """Whether it is known what the kernels hold."""
        return self._complete.is_set() and not self._error

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is known what the kernels hold."""
        return self._complete.wait(timeout_s) and not self._error

    # -- comparing -------------------------------------------------------------------------------

    def quick(self) -> str:
        """Compare identities and version counters; '' or one sentence that names a change."""
        if not self._settled:
            return ""
        if self._error:
            return self._error
        return self._places.change()

    def thorough(self) -> str:
        """Compare the bytes that no client sees; '' or one sentence that names a change.

        Waits until those bytes have been digested once.
        """
        if not self._settled:
            return ""
        while not self._complete.wait(POLL_S):
            if self._over.is_set():
                return INTERRUPTED
        return self._error or self._compare()

    def awake(self) -> str:
        """Compare after a sleep, which may have restored the same bytes by writing them anew."""
        if self._thread is not None:  # one that was begun since; a pause has ended any other
            self._thread.join()
        if not self.complete:
            return "the weights were taken away before it was known what the kernels hold"
        self._places.forgive()
        return self.quick() or self._compare()

    def _compare(self) -> str:
        try:
            return self.noted.change(self.look())
        except InterruptedError:
            return INTERRUPTED
        except Exception as error:  # noqa: BLE001 - as above
            return _trouble(error)

    # -- looking ---------------------------------------------------------------------------------

    def look(self) -> Noted:
        """What the engine uses now. Raises InterruptedError when that is being taken away."""
        model = self._model()
        if model is None:
            raise InterruptedError("the model is gone")
        return self._look(inventory.take(model))

    def _look(self, found: inventory.Inventory) -> Noted:
        model = self._model()
        if model is None:
            raise InterruptedError("the model is gone")
        parts, tables = _Parts(model), dict[str, str]()
        own = {id(tensor) for tensor in chain(model.parameters(), model.buffers())}
        for path, tensor in found.tensors.items():
            counts = tensor.dtype in COUNTERS and id(tensor) not in own
            if counts or not _has_bytes(tensor) or parts.of_adapter(path):
                continue
            where = storage_of(tensor)
            if where in self._constants:
                tables[_bare(path)] = self._digest(tensor)
            elif where not in self._shared:
                parts.at(path).derived[_bare(path)] = self._digest(tensor)
        for path, held in found.handles.items():
            if not parts.of_adapter(path):
                parts.at(path).handles[_bare(path)] = _weakly(held)
        for part in parts.found.values():
            part.sources = self._sources(part)
        numbers = {_bare(p): n for p, n in found.scalars.items() if type(n) is float}
        return Noted(parts.found, numbers, tables)

    def _sources(self, part: Part) -> dict[str, str]:
        owner = part.owner()
        reached = {} if owner is None else inventory.take(owner).tensors
        return {
            _bare(path): self._digest(tensor)
            for path, tensor in reached.items()
            if _has_bytes(tensor) and storage_of(tensor) in self._shared
        }

    def _digest(self, tensor: Tensor) -> str:
        with self._reading:
            if self._over.is_set() or not threading.main_thread().is_alive():
                raise InterruptedError("the memory is being taken away")
            return inventory.digest(inventory.Inventory(tensors={"": tensor}))[""]


def _has_bytes(tensor: Tensor) -> bool:
    return not tensor.is_meta and tensor.numel() > 0


def _bare(path: str) -> str:
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
        label = _bare(self._first[owner])
        if label not in self.found:
            self.found[label] = Part(label, weakref.ref(owner))
        return self.found[label]


def _trouble(error: Exception) -> str:
    emit(get_logger("server", LOG_BASE), "netloader.driver.error", exc_info=error)
    return f"what the engine uses cannot be examined: {type(error).__name__}"


def _shape_of(found: inventory.Inventory) -> dict[str, Key]:
    return {path: key_of(tensor) for path, tensor in found.tensors.items()}


def _weakly(held: object) -> Callable[[], object]:
    try:
        return weakref.ref(held)
    except TypeError:  # a capsule: kept, so that its address is not used again
        return lambda: held
