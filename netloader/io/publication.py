"""What one server publishes: weights, digests, places. Law: it offers only what it can prove.

Digests are computed once. An audit may compute them again later: when they differ, the weights
were changed under the server and the publication is withdrawn. Once withdrawn, nobody begins to
read the weights; `quiet` tells when the last one who did has ended.
"""

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Protocol, TypeAlias

from netloader.errors import LocalProtocolError
from netloader.fsm.manifest import Segment, plan
from netloader.fsm.reasons import Reason
from netloader.fsm.server import Offering
from netloader.io.digests import digests_of
from netloader.io.failure import TransferError
from netloader.io.weights import Weights

NICE = 10
"""Background hashing yields to the engine's threads."""
END_S = 5.0
"""How long a process that ends waits for background work: it stops at the next segment."""
SHOWN_NAMES = 5
"""How many changed tensors a message names."""

_background: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
_ending = threading.Event()


class WithdrawnError(TransferError):
    """Nobody may read these weights any more."""

    def __init__(self, why: str) -> None:
        super().__init__(Reason.NOT_SERVING, why)


class Usage(Protocol):
    """Whether weights on offer are still those that are used."""

    def quick(self) -> str:
        """Compare identities and version counters; '' or one sentence that names a change."""

    def thorough(self) -> str:
        """Compare also bytes that no client checks; '' or one sentence that names a change."""


class _InUse:
    """Of weights that are used from where they are offered, whatever happens."""

    def quick(self) -> str:
        """Never a change."""
        return ""

    def thorough(self) -> str:
        """Never a change."""
        return ""


OnChange: TypeAlias = Callable[["Publication", str], bool]


IN_USE: Usage = _InUse()


def no_successor(publication: "Publication", why: str) -> bool:
    """Say that nothing newer will be offered."""
    del publication, why
    return False


class Publication:
    """Weights on offer, shared by all sessions that want them."""

    def __init__(
        self,
        weights: Weights,
        offering: Offering,
        max_clients: int,
        usage: Usage = IN_USE,
        on_change: OnChange = no_successor,
    ) -> None:
        self._usage = usage
        self._on_change = on_change
        self._changed = False
        self.coming = False
        self.weights = weights
        self.offering = offering
        self.segments: tuple[Segment, ...] = plan(offering.manifest, offering.segment_bytes)
        self.max_clients = max_clients
        self.withdrawn = ""
        self._clients = 0
        self._readers = 0
        self._change = threading.Condition()
        self._digests: tuple[str, ...] = ()
        self._ready = threading.Event()

    def seal(self, known: tuple[str, ...] = ()) -> None:
        """Fix the digests: those `known` (just verified by a client), or computed on every core."""
        self._digests = known or self._compute(os.cpu_count() or 1)
        self._ready.set()

    def seal_quietly(self) -> threading.Thread:
        """Compute the digests in the background, without slowing anybody."""

        def work() -> None:
            with self._still_wanted():
                self._digests = self._compute(1)
                self._ready.set()

        return in_background("netloader-seal", work)

    def audit(self) -> None:
        """Hash again and compare with the sealed digests; withdraw if they differ."""
        if not self._digests:
            return
        self.check(self._usage.quick)
        now = self._digests
        with self._still_wanted():
            now = self._compute(1)
        changed = [i for i, digest in enumerate(now) if digest != self._digests[i]]
        names = {
            self.offering.manifest.tensors[piece.tensor].name: None
            for i in changed
            for piece in self.segments[i].pieces
        }
        if changed:
            some = ", ".join(list(names)[:SHOWN_NAMES])
            self.changed(f"weights were changed after they were published, among: {some}")

    def check(self, *questions: Callable[[], str]) -> str:
        """Ask whether the weights are still in use; withdraw and return why when they are not."""
        if not self.withdrawn and (why := next((w for q in questions if (w := q())), "")):
            self.changed(why)
        return self.withdrawn

    def quick(self) -> str:
        """Ask at little cost."""
        return self.check(self._usage.quick)

    def thorough(self) -> str:
        """Ask for everything."""
        return self.check(self._usage.quick, self._usage.thorough)

    def changed(self, why: str) -> None:
        """Withdraw, and say so to the owner once."""
        with self._change:
            if self.withdrawn:
                return
            self.withdrawn = why
            self._change.notify_all()
        self._ready.set()
        self.coming = self._on_change(self, why)

    def withdraw(self, why: str) -> None:
        """Offer nothing any more; clients are told `why`. Whoever reads already may go on."""
        with self._change:
            self.withdrawn = why
            self._change.notify_all()
        self._ready.set()

    def digests(self, timeout_s: float) -> tuple[str, ...] | None:
        """The digest of every segment, or None when they are not ready within `timeout_s`."""
        return self._digests if self._ready.wait(timeout_s) else None

    def over(self, timeout_s: float) -> bool:
        """Wait until it is withdrawn; False when that takes longer."""
        with self._change:
            return self._change.wait_for(lambda: bool(self.withdrawn), timeout_s)

    def admit(self) -> bool:
        """Take a place for one client, if there is one; give it back with `leave`."""
        with self._change:
            if self.withdrawn or self._clients == self.max_clients:
                return False
            self._clients += 1
            return True

    def leave(self) -> None:
        """Give a place back."""
        with self._change:
            if not self._clients:
                raise LocalProtocolError("a place that nobody has was given back")
            self._clients -= 1
            self._change.notify_all()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Where the weights are read, and nowhere else.

        Raises:
            WithdrawnError: nobody may begin to any more.
        """
        with self._change:
            if self.withdrawn:
                raise WithdrawnError(self.withdrawn)
            self._readers += 1
        try:
            yield
        finally:
            with self._change:
                self._readers -= 1
                self._change.notify_all()

    def quiet(self, timeout_s: float) -> bool:
        """Wait until no client has a place and nobody reads; False when that takes longer."""
        with self._change:
            return self._change.wait_for(lambda: not (self._clients or self._readers), timeout_s)

    @contextlib.contextmanager
    def _still_wanted(self) -> Iterator[None]:
        try:
            yield
        except WithdrawnError:
            pass
        except TransferError as error:
            self.withdraw(error.detail)

    def _compute(self, workers: int) -> tuple[str, ...]:
        with self.reading():
            readers = [partial(self._views, segment) for segment in self.segments]
            return digests_of(self.offering.digests[0], readers, self.weights.readers(workers))

    def _views(self, segment: Segment) -> Iterator[memoryview]:
        if self.withdrawn or _ending.is_set():
            raise WithdrawnError(self.withdrawn or "the process ends")
        return self.weights.views(segment)


class Shelf:
    """What one listener offers: a publication for each role, all with one token.

    The first one's identity is what a client of a role that is not here is refused by.

    Raises ValueError for none at all, or for two tokens.
    """

    def __init__(self, publications: Iterable[Publication]) -> None:
        self.publications = _by_role(publications)
        self._known = weakref.WeakSet(self.publications)
        self._lock = threading.Lock()

    def put(self, publication: Publication) -> None:
        """Offer this from now on, in the place of what had its role; sessions keep what they have.

        Raises:
            ValueError: its token is not that of the others.
        """
        with self._lock:
            self.publications = _by_role((*self.publications, publication))
            self._known.add(publication)

    def withdraw(self, why: str) -> None:
        """Withdraw all that is here, and all that was here and has sessions or digests to do."""
        with self._lock:
            for publication in self._known:
                publication.withdraw(why)


def _by_role(publications: Iterable[Publication]) -> tuple[Publication, ...]:
    """The last publication of each role."""
    found = {publication.offering.role: publication for publication in publications}
    if not found:
        raise ValueError("a shelf offers at least one publication")
    if len({publication.offering.token for publication in found.values()}) > 1:
        raise ValueError("publications on one port must have the same token")
    return tuple(found.values())


def segment_digests(
    weights: Weights, segments: Sequence[Segment], algorithm: str, workers: int
) -> tuple[str, ...]:
    """The digest of every segment of some weights, hashing `workers` segments at a time."""
    readers = [partial(weights.views, segment) for segment in segments]
    return digests_of(algorithm, readers, weights.readers(workers))


def in_background(name: str, work: Callable[[], None]) -> threading.Thread:
    """Run `work` on a thread that yields to everything else in the process."""

    def nicely() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        work()

    thread = threading.Thread(target=nicely, name=name, daemon=True)
    _background.add(thread)
    thread.start()
    return thread


@atexit.register
def _end_background() -> None:
    """Have nobody in the middle of a torch operation when the interpreter goes.

    A thread that asks a finalizing interpreter for its lock is unwound, and the C++ it is unwound
    through ends the process with SIGABRT (CPython 3.11, `PyEval_RestoreThread`).
    """
    _ending.set()
    for thread in list(_background):
        thread.join(END_S)
