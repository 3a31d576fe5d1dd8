"""How often weights are hashed again because a client reported other bytes: seldom."""

import threading
from collections.abc import Callable

from netloader.io.clock import monotonic

PAUSE_S = 60.0
"""The least time from the end of one such comparison to the next."""
SHARE = 20
"""The pause is at least so many times what the comparison took: 5% of one core at the most."""


class Doubts:
    """Whether weights may be compared again now, and whether they are being compared.

    Safe for any number of threads; `now` is a clock in seconds that only grows.
    """

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._begun: float | None = None
        self._not_before = -float("inf")
        self._change = threading.Condition()

    def begin(self) -> bool:
        """Begin a comparison, if none is under way and the last has rested; then call `end`."""
        with self._change:
            if self._begun is not None or self._now() < self._not_before:
                return False
            self._begun = self._now()
            return True

    def end(self) -> None:
        """The comparison is over, whatever it found."""
        with self._change:
            now = self._now()
            took = now - (now if self._begun is None else self._begun)
            self._begun, self._not_before = None, now + max(PAUSE_S, SHARE * took)
            self._change.notify_all()

    def settled(self, timeout_s: float) -> bool:
        """Wait until no comparison is under way; False when that takes longer."""
        with self._change:
            return self._change.wait_for(lambda: self._begun is None, timeout_s)
