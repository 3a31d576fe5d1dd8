"""Whether the engine of a worker computes, as `ServerOptions.busy` wants to know it."""

from collections.abc import Iterator
from contextlib import contextmanager

from netloader.io.clock import monotonic

BUSY_S = 0.25
"""An engine is busy for so long after a step: between two steps of a request it schedules and
samples, which takes milliseconds."""


class Activity:
    """The steps of one engine. They come from one thread; any thread may ask."""

    def __init__(self) -> None:
        self._running = 0
        self._ended_at = -BUSY_S

    @contextmanager
    def step(self) -> Iterator[None]:
        """A block in which the engine computes."""
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            self._ended_at = monotonic()

    def busy(self) -> bool:
        """Whether it computes now, or did a moment ago."""
        return self._running > 0 or monotonic() - self._ended_at < BUSY_S
