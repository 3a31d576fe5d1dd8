"""How many bytes a second a server sends, over all its sessions and lanes together.

A token bucket: each session asks for the bytes that it is about to send, and waits for its turn.
Sessions take turns, whatever the number of their lanes, so each gets an equal share of the rate;
what a slow client does not use goes to the others.
"""

import threading
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Protocol

from netloader.fsm.reasons import Reason
from netloader.io.clock import monotonic
from netloader.io.failure import TransferError

BURST_S = 0.05
"""Seconds of unused rate that are made up for: a sender that was late catches up, and in any second
at most a 20th more than the rate is sent."""
STEP_S = 0.02
"""What is sent at once lasts so long at the full rate: short enough to be shared evenly."""
LEAST_STEP_BYTES = 64 << 10
"""But not less than this: a system call costs about as much as moving some 10 KiB."""


class Pace(Protocol):
    """What a sender asks before it sends. Its methods may be called from any thread."""

    @property
    def limited(self) -> bool:
        """Whether there is a limit: then `take` may wait."""

    def step(self, most: int) -> int:
        """How many bytes to send at once, of the `most` that a sender likes to."""

    def take(self, parts: Iterable[Sized]) -> None:
        """Wait until these parts, whose lengths are bytes, may be sent.

        Raises:
            TransferError: the session was aborted.
        """

    def abort(self) -> None:
        """Make `take` fail, now and later. Must not block."""


class Unpaced:
    """No limit. It has no state, so sessions may share it."""

    limited = False

    def step(self, most: int) -> int:
        """All of it."""
        return most

    def take(self, parts: Iterable[Sized]) -> None:
        """Do not wait."""

    def abort(self) -> None:
        """Do nothing: nothing waits."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes a second that a server may send: at any time, and while its owner is busy.

    None is no limit. While `is_busy` answers true, the lower one counts. It is called for each step
    that is sent, from any thread, so it must be quick and must not raise.
    """

    always: int | None
    busy: int | None = None
    is_busy: Callable[[], bool] = lambda: False

    @property
    def limited(self) -> bool:
        """Whether there is a limit at some time."""
        return self.always is not None or self.busy is not None

    @property
    def lowest(self) -> int | None:
        """The lower limit."""
        return min((rate for rate in (self.always, self.busy) if rate is not None), default=None)

    def now(self) -> int | None:
        """The limit at this moment."""
        return self.lowest if self.busy is not None and self.is_busy() else self.always


class Bandwidth:
    """The bucket of one server. Thread-safe."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._free_at = 0.0
        """When all that was allowed so far has been sent at the full rate."""
        self._lock = threading.Lock()

    def session(self) -> "SessionPace":
        """The share of one more session."""
        return SessionPace(self)

    def step(self, most: int) -> int:
        """As `Pace.step`."""
        rate = self._rates.now()
        if rate is None:
            return most
        return max(1, min(most, max(LEAST_STEP_BYTES, int(rate * STEP_S))))

    def reserve(self, nbytes: int, now: float) -> float:
        """Allow some bytes, after those that were allowed before; returns the seconds until then.

        `now` is in seconds of a monotonic clock.
        """
        rate = self._rates.now()
        if rate is None:
            return 0.0
        with self._lock:
            begin = max(self._free_at, now - BURST_S)
            self._free_at = begin + nbytes / rate
        return max(0.0, begin - now)

    def release(self, nbytes: int) -> None:
        """Take bytes back that were allowed and will not be sent."""
        if (rate := self._rates.now()) is not None:
            with self._lock:
                self._free_at -= nbytes / rate


class SessionPace:
    """The share of one session, for all its lanes."""

    limited = True

    def __init__(self, bandwidth: Bandwidth) -> None:
        self._bandwidth = bandwidth
        self._turn = threading.Lock()
        """Held by the lane that waits: a session waits for one step at a time, as every other."""
        self._stop = threading.Event()

    def step(self, most: int) -> int:
        """As `Pace.step`."""
        return self._bandwidth.step(most)

    def take(self, parts: Iterable[Sized]) -> None:
        """As `Pace.take`."""
        nbytes = sum(map(len, parts))
        with self._turn:
            if self._stop.wait(self._bandwidth.reserve(nbytes, monotonic())):
                self._bandwidth.release(nbytes)
                raise TransferError(Reason.TRANSFER_FAILED, "aborted")

    def abort(self) -> None:
        """As `Pace.abort`."""
        self._stop.set()


UNPACED = Unpaced()
