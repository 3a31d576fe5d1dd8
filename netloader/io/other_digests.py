"""Digests of published weights by other algorithms than the one they were published with.

A set is computed when the first client asks for it, once, and kept as long as the weights are on
offer. The same pass hashes with the first algorithm too, and the result must be the published
digests. So both sets are of the same bytes, and an audit by the first one covers both.
"""

import threading
from contextlib import AbstractContextManager
from typing import Protocol

from netloader.fsm.manifest import Segment
from netloader.fsm.terms import CatalogEntry
from netloader.io.background import BACKGROUND, in_background
from netloader.io.clock import monotonic
from netloader.io.comparing import WithdrawnError, difference
from netloader.io.failure import TransferError
from netloader.io.store.base import Store
from netloader.io.store.digests import digests_by
from netloader.log import Logger


class Published(Protocol):
    """What is needed of a published model."""

    weights: Store
    entry: CatalogEntry
    segments: tuple[Segment, ...]

    @property
    def withdrawn(self) -> str:
        """Why nothing is offered; empty while something is."""

    @property
    def available(self) -> frozenset[int] | None:
        """The segments that may be read; None: all."""

    def digests(self, timeout_s: float) -> tuple[str, ...] | None:
        """Those that it was published with; None if they are not ready within `timeout_s`."""

    def reading(self) -> AbstractContextManager[None]:
        """Where the weights are read."""

    def changed(self, why: str) -> None:
        """The weights are not what was published."""


class OtherDigests:
    """For one published model. Safe to use from any thread."""

    def __init__(self, logger: Logger | None) -> None:
        self._logger = logger
        self._known: dict[str, tuple[str, ...]] = {}
        self._running: set[str] = set()
        """Algorithms that are being computed."""
        self._change = threading.Condition()

    def of(self, published: Published, algorithm: str, timeout_s: float) -> tuple[str, ...] | None:
        """As `PublishedModel.digests`, by any algorithm of its entry.

        While it is received, only by the first.
        """
        end = monotonic() + timeout_s
        first = published.digests(timeout_s)
        if not first or algorithm == published.entry.digest_algorithms[0]:
            return first
        if published.available is not None:
            return None
        with self._change:
            if algorithm not in self._known and algorithm not in self._running:
                self._running.add(algorithm)
                self._begin(published, algorithm, first)
            left_s = max(0.0, end - monotonic())
            self._change.wait_for(lambda: algorithm not in self._running, left_s)
            return self._known.get(algorithm)

    def _begin(self, published: Published, algorithm: str, first: tuple[str, ...]) -> None:
        def work() -> None:
            found: tuple[str, ...] = ()
            try:
                found = _computed(published, algorithm, first)
            except TransferError:
                pass  # withdrawn, or its memory is gone: its clients are told so
            finally:
                self._end(algorithm, found)

        thread = in_background("netloader-digests", work, logger=self._logger)
        if thread.ident is None:  # no thread is to be had
            self._running.discard(algorithm)

    def _end(self, algorithm: str, found: tuple[str, ...]) -> None:
        with self._change:
            self._running.discard(algorithm)
            if found:
                self._known[algorithm] = found
            self._change.notify_all()


def _computed(published: Published, algorithm: str, first: tuple[str, ...]) -> tuple[str, ...]:
    """The digests by an algorithm; none if the weights were found to be changed.

    Raises:
        TransferError: they must not, or cannot, be read any more.
    """
    both = (published.entry.digest_algorithms[0], algorithm)
    pairs = list[tuple[str, ...]]()
    with published.reading():
        for segment in published.segments:
            if (why := published.withdrawn) or BACKGROUND.ending.is_set():
                raise WithdrawnError(why or "the process ends")
            pairs.append(digests_by(both, published.weights.views(segment)))
    now = [pair[0] for pair in pairs]
    if why := difference(published.entry.manifest, published.segments, first, now):
        published.changed(why)
        return ()
    return tuple(pair[1] for pair in pairs)
