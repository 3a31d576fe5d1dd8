"""The ends of one session, by transport. Each is ended exactly once."""

import threading
from typing import Generic, Protocol, TypeVar

from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError


class End(Protocol):
    """A sender or a receiver, as far as both are alike."""

    def abort(self) -> None:
        """As `Sender.abort`."""

    def end(self) -> None:
        """As `Sender.end`."""


E = TypeVar("E", bound=End)


class SessionEnds(Generic[E]):
    """The senders of a session, or its receivers: one for each candidate that is made ready.

    `get` and `abort` may be called from any thread, the other methods on the worker thread alone.
    """

    def __init__(self) -> None:
        self._ends: dict[str, E] = {}
        self._aborted = False
        self._failure: Exception | None = None
        self._lock = threading.Lock()

    def add(self, transport: str, end: E) -> None:
        """Keep an end.

        Raises:
            TransferError: the session was aborted. The end is kept, to be ended with the others.
        """
        with self._lock:
            self._ends[transport] = end
            aborted = self._aborted
        if aborted:  # nobody else aborts it any more
            end.abort()
            raise TransferError(Reason.TRANSFER_FAILED, "aborted")

    def get(self, transport: str) -> E | None:
        """The end of a transport; None if there is none, or it was ended."""
        with self._lock:
            return self._ends.get(transport)

    def abort(self) -> None:
        """Abort all of them, and those to come."""
        with self._lock:
            self._aborted = True
            ends = tuple(self._ends.values())
        for end in ends:
            end.abort()

    def keep(self, *transports: str) -> None:
        """End all but those of some transports.

        Raises:
            Exception: what an end raised; the others are ended all the same. `keep` raises it in
                every later call, too: memory may still be read or written.
        """
        with self._lock:
            names = [name for name in self._ends if name not in transports]
            leaving = [self._ends.pop(name) for name in names]
        for end in leaving:
            try:
                end.abort()
                end.end()
            except Exception as error:  # noqa: BLE001 - the others must be ended all the same
                self._failure = self._failure or error
        if self._failure is not None:
            raise self._failure
