"""A record of what the engine uses, compared later to see that the offer is still valid.

A client's verification covers the bytes it receives. It does not cover two things: that the engine
still reads its weights from the memory on offer (after `p.data = ...` the offer is the old
memory), and that what kernels made of the weights (packed copies, repacked experts, absorbed
projections) still belongs to the originals on offer. The usage record notes both.
"""

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from netloader.io.background import in_background
from netloader.io.store.module import Named
from netloader.log import emit, get_logger
from netloader.vllm_plugin.inspect import inventory
from netloader.vllm_plugin.inspect.look import Look, Part, Tables, bare
from netloader.vllm_plugin.inspect.places import Key, Place, Places, key_of, registered, storage_of
from netloader.vllm_plugin.log_base import LOG_BASE

INTERRUPTED = "the check was interrupted: the weights are being taken away"
TAKEN_AWAY = "the memory is being taken away"
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class UsageState:
    """What the engine used at one moment."""

    parts: Mapping[str, Part] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    tables: Mapping[str, str] = field(default_factory=dict)
    """Digests of what follows from the configuration, and is the same at every client."""
    casts: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Digests of the same tables in other dtypes: an engine may cast one when it is first used."""

    def other_tables(self, now: "UsageState") -> list[str]:
        """The tables that hold other values than then, or are gone."""
        other = [path for path, digest in self.tables.items() if now.tables.get(path) != digest]
        return [path for path in other if not self.has_table(path, now.tables.get(path, ""))]

    def has_table(self, path: str, digest: str) -> bool:
        """Whether a table had these values, at most in another dtype."""
        return digest == self.tables.get(path) or digest in self.casts.get(path, ())

    def change(self, now: "UsageState") -> str:
        """How the engine's own side differs from what it was, or ''."""
        for label, part in self.parts.items():
            if paths := part.changes(now.parts.get(label)):
                return f"{min(paths)}, which the kernels use, was changed"
        moved = [p for p, n in self.numbers.items() if not _same_number(now.numbers.get(p), n)]
        if moved:
            return f"the number {moved[0]} was changed"
        other = self.other_tables(now)
        return f"the table {other[0]} was changed" if other else ""


def _same_number(a: float | None, b: float) -> bool:
    return a == b or (a is not None and a != a and b != b)  # both not a number


class UsageRecord:
    """Knows whether a model still uses the weights on offer. Safe from any thread.

    `settle` when the engine has taken its final shape. Between the offer and that only the engine
    itself changes anything, and there is nothing to compare with yet. All digests are computed in
    the background then, not while the engine starts, or earlier when there is a need to `wait`.
    """

    def __init__(
        self,
        model: nn.Module,
        offered: Sequence[Named],
        detached: frozenset[str] = frozenset(),
        constants: Sequence[StorageWeakRef] = (),
    ) -> None:
        self._model = weakref.ref(model)  # what is on offer must not keep its model alive
        self._shared = {storage_of(t) for n, t in offered if n not in detached and t.numel()}
        self._tables = Tables(model, constants)
        self._places = Places([], [])
        self._shape: dict[str, Key] = {}
        self.noted = UsageState()
        """What the engine used when it was noted; empty until that is complete."""
        self._error = ""
        self._settled = False
        self._begun = self._latest = object()
        self._thread: threading.Thread | None = None
        self._complete = threading.Event()
        self._over = threading.Event()
        self._pauses = 0
        self._reading = threading.Lock()
        """Held while one tensor is read."""
        self._examining = threading.Lock()
        """Held from a look at the engine until what was seen is noted, or is not of use."""

    # -- noting ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Digest, in the background, what the kernels hold."""
        self._shape = {}
        self._begun = object()
        self._follow()

    @inventory.uncollected()
    def settle(self) -> None:
        """Note where everything is: from now on any change is one of the weights on offer."""
        model = self._model()
        if model is not None:
            self._places = registered(model, self._tables.names)
            self._settled = True
            self._follow()

    def accept(self, now: UsageState) -> None:
        """What the engine uses now is what is on offer from now on."""
        model = self._model()
        if model is not None:
            self._places = registered(model, self._tables.names)
            self._begun = self._latest = object()
            self.noted, self._error, self._settled = now, "", True
            self._complete.set()

    def _follow(self) -> None:
        self._complete.clear()
        self._over.clear()
        self._latest = object()
        note = partial(self._note, self._begun, self._latest, self._thread)
        thread = in_background("netloader-usage", note, self._failed)
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
        except Exception as problem:  # noqa: BLE001 - then the weights cannot be compared
            if not self._settled:  # the engine is still being put together, and will be noted then
                return
            error = _trouble(problem)
        if latest is self._latest:
            self._error = error
            self._complete.set()

    def _look_until_it_is_all(self, begun: object) -> None:
        """Look again if the engine has added something since: a draft, an adapter."""
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
        """Stop reading, and wait until nothing is read; `resume` allows it again."""
        self.stop()
        for busy in (self._examining, self._reading):
            with busy:
                pass
        if self._thread is not None:
            self._thread.join()

    def stop(self) -> None:
        """Stop reading; does not wait for a read that runs."""
        self._pauses += 1
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
        if self._thread is None and not self._complete.is_set():
            self.begin()  # the engine is not settled yet
        return self._complete.wait(timeout_s) and not self._error

    # -- comparing -------------------------------------------------------------------------------

    def quick(self) -> str:
        """Compare identities and version counters; '' or one sentence that names a change."""
        if not self._settled:
            return ""
        if self._error:
            return self._error
        return self._places.change(self._moved)

    def _moved(self, place: Place, tensor: Tensor) -> str:
        """Compare a table that the engine has put elsewhere, as it does when one is first used."""
        if not self._complete.is_set():
            return ""  # it is compared once it is known what it was
        try:
            digest = self._digest(tensor)
        except InterruptedError:
            return INTERRUPTED
        if not self.noted.has_table(bare(place.name), digest):
            return f"the table {place.name} was changed"
        place.adopt(tensor)
        return ""

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

    @contextmanager
    def examination(self) -> Iterator[UsageState]:
        """What the engine uses now. `pause` waits until the block ends: `accept` it in the block.

        Raises:
            InterruptedError: as `look` does.
        """
        with self._examining:
            yield self.look()

    def look(self) -> UsageState:
        """What the engine uses now. Raises InterruptedError when that is being taken away."""
        model = self._model()
        if model is None:
            raise InterruptedError("the model is gone")
        pauses = self._pauses
        state = self._look(inventory.take(model))
        if self._over.is_set() or pauses != self._pauses:  # perhaps nothing had bytes to digest
            raise InterruptedError(TAKEN_AWAY)
        return state

    def _look(self, found: inventory.Inventory) -> UsageState:
        model = self._model()
        if model is None:
            raise InterruptedError("the model is gone")
        look = Look(model, found, self._shared, self._digest)
        look.sort(self._tables)
        numbers = {bare(p): n for p, n in found.scalars.items() if type(n) is float}
        return UsageState(look.parts, numbers, look.tables, look.casts)

    def _digest(self, tensor: Tensor, dtype: torch.dtype | None = None) -> str:
        """The digest of a tensor, or of what it is in another dtype."""
        with self._reading:
            if self._over.is_set() or not threading.main_thread().is_alive():
                raise InterruptedError(TAKEN_AWAY)
            one = tensor if dtype is None else tensor.to(dtype)
            return inventory.digest_one(one)


def _trouble(error: Exception) -> str:
    emit(get_logger("server", LOG_BASE), "netloader.driver.error", exc_info=error)
    return f"what the engine uses cannot be examined: {type(error).__name__}"


def _shape_of(found: inventory.Inventory) -> dict[str, Key]:
    return {path: key_of(tensor) for path, tensor in found.tensors.items()}
