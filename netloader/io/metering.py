"""How fast bytes move now, as records: at most one a second for each server and each fill."""

import threading
from collections.abc import Iterable, Sized
from typing import Final

from netloader.io.clock import monotonic
from netloader.io.pacing import Pace
from netloader.io.store.ledger import Report
from netloader.log import Logger, emit

WINDOW_S: Final = 1.0
"""A rate is that of so many seconds. After as many without a byte, another window begins."""


class Meter:
    """Counts the bytes of one side, `client` or `server`. Thread-safe.

    What is over within a second leaves no record: its session has the rate in its last one.
    """

    def __init__(self, logger: Logger, side: str) -> None:
        self._logger = logger
        self._side = side
        self._lock = threading.Lock()
        self._nbytes = 0
        self._began = self._last = monotonic()

    def add(self, nbytes: int) -> None:
        """Count bytes that have moved."""
        now = monotonic()
        with self._lock:
            if now - self._last > WINDOW_S:
                self._began, self._nbytes = now, 0
            self._last = now
            self._nbytes += nbytes
            moved, passed = self._nbytes, now - self._began
            if passed < WINDOW_S:
                return
            self._began, self._nbytes = now, 0
        fields = {
            "netloader.side": self._side,
            "netloader.transfer.bytes": moved,
            "netloader.transfer.throughput_bytes_per_s": round(moved / passed),
        }
        emit(self._logger, "netloader.transfer.progress", fields)

    def watching(self, report: Report) -> Report:
        """A progress callback that counts what it is told, and calls `report`."""
        before = 0

        def call(done: int, total: int) -> None:
            nonlocal before
            self.add(max(0, done - before))  # less than before: another source began anew
            before = done
            report(done, total)

        return call

    def paced(self, pace: Pace) -> "MeteredPace":
        """The pace of one session, whose bytes are counted."""
        return MeteredPace(pace, self)


class MeteredPace:
    """A pace that counts what was sent with it."""

    def __init__(self, pace: Pace, meter: Meter) -> None:
        self._pace = pace
        self._meter = meter

    @property
    def limited(self) -> bool:
        """As `Pace.limited`."""
        return self._pace.limited

    def step(self, most: int) -> int:
        """As `Pace.step`."""
        return self._pace.step(most)

    def take(self, parts: Iterable[Sized]) -> None:
        """As `Pace.take`."""
        sent = tuple(parts)
        self._pace.take(sent)
        self._meter.add(sum(map(len, sent)))

    def abort(self) -> None:
        """As `Pace.abort`."""
        self._pace.abort()
