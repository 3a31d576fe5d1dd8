"""What one server publishes: weights, digests, places. Law: it offers only what it can prove.

Digests are computed once. An audit may compute them again later: when they differ, the weights
were changed under the server and the publication is withdrawn.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from netloader.errors import NetloaderError
from netloader.fsm.manifest import Segment, plan
from netloader.fsm.server import Offering
from netloader.io.digests import digests_of
from netloader.io.failure import TransferError
from netloader.io.weights import Weights

NICE = 10
"""Background hashing yields to the engine's threads."""
SHOWN_NAMES = 5
"""How many changed tensors a message names."""


class WithdrawnError(NetloaderError):
    """Nobody needs these digests any more."""


class Publication:
    """Weights on offer, shared by all sessions of one server."""

    def __init__(self, weights: Weights, offering: Offering, max_clients: int) -> None:
        self.weights = weights
        self.offering = offering
        self.segments: tuple[Segment, ...] = plan(offering.manifest, offering.segment_bytes)
        self.max_clients = max_clients
        self.withdrawn = ""
        self._places = threading.BoundedSemaphore(max_clients)
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
            self.withdraw(f"weights were changed after they were published, among: {some}")

    def withdraw(self, why: str) -> None:
        """Offer nothing any more; clients are told `why`."""
        self.withdrawn = why
        self._ready.set()

    def digests(self, timeout_s: float) -> tuple[str, ...] | None:
        """The digest of every segment, or None when they are not ready within `timeout_s`."""
        return self._digests if self._ready.wait(timeout_s) else None

    def admit(self) -> bool:
        """Take a place for one client; give it back with `leave`."""
        return self._places.acquire(blocking=False)

    def leave(self) -> None:
        """Give a place back."""
        self._places.release()

    @contextlib.contextmanager
    def _still_wanted(self) -> Iterator[None]:
        try:
            yield
        except WithdrawnError:
            pass
        except TransferError as error:
            self.withdraw(error.detail)

    def _compute(self, workers: int) -> tuple[str, ...]:
        readers = [partial(self._views, segment) for segment in self.segments]
        return digests_of(self.offering.digests[0], readers, workers)

    def _views(self, segment: Segment) -> list[memoryview]:
        if self.withdrawn:
            raise WithdrawnError(self.withdrawn)
        return self.weights.views(segment)


def segment_digests(
    weights: Weights, segments: Sequence[Segment], algorithm: str, workers: int
) -> tuple[str, ...]:
    """The digest of every segment of some weights, hashing `workers` segments at a time."""
    readers = [partial(weights.views, segment) for segment in segments]
    return digests_of(algorithm, readers, workers)


def in_background(name: str, work: Callable[[], None]) -> threading.Thread:
    """Run `work` on a thread that yields to everything else in the process."""

    def nicely() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        work()

    thread = threading.Thread(target=nicely, name=name, daemon=True)
    thread.start()
    return thread
