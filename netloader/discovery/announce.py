"""Keep a server in a registry as long as it offers its weights.

A thread renews the lease. A process that is killed stops renewing, so the registry forgets it when
the lease ends. Nothing here disturbs the server: what fails is logged once, and tried again.
"""

import atexit
import threading
from collections.abc import Callable

from netloader.config import Endpoint
from netloader.discovery.base import Candidate, Key, Registry, why
from netloader.io.clock import monotonic
from netloader.io.forks import only_here
from netloader.log import Logger, emit

LEASE_S = 15
"""How long a registry names a server that was killed."""
RENEW_S = 5.0
"""Seconds between two renewals: two may fail before the lease ends."""
LOOK_S = 0.5
"""How often it is asked whether the weights are offered: a fence is seen so late."""
ANSWER_S = 5.0
"""How long the registry may take to answer."""
END_S = 2.0
"""How long the end waits until the server is taken away."""


class Announcement:
    """One server in one registry, from the construction to `end`. Safe to use from any thread.

    `offered` says what to put there now, or None while nothing is offered. It is called often, on
    the thread of this announcement, as is `listed` when the registry has begun to name the server.
    """

    def __init__(
        self,
        registry: Registry,
        key: Key,
        offered: Callable[[], Candidate | None],
        logger: Logger,
        listed: Callable[[], None] = lambda: None,
    ) -> None:
        self._registry = registry
        self._key = key
        self._offered = offered
        self._logger = logger
        self._on_listed = listed
        self._ending = threading.Event()
        self._listed: Endpoint | None = None
        self._renew_at = 0.0
        self._silent = False
        """Whether the registry has failed, and was told to have."""
        self._at_exit = only_here(self.end)
        atexit.register(self._at_exit)
        self._thread = threading.Thread(target=self._run, name="netloader-announce", daemon=True)
        self._thread.start()

    def end_soon(self) -> None:
        """Take the server away, and renew nothing any more; does not wait."""
        self._ending.set()

    def end(self) -> None:
        """As `end_soon`, and wait for that, END_S at the longest."""
        self._ending.set()
        self._thread.join(END_S)

    def _run(self) -> None:
        while not self._ending.is_set():
            self._step(self._offered())
            self._ending.wait(LOOK_S)
        self._step(None)
        atexit.unregister(self._at_exit)

    def _step(self, candidate: Candidate | None) -> None:
        """Make the registry say what is offered now."""
        gone = self._listed if candidate is None or candidate.endpoint != self._listed else None
        if gone is not None and self._try(lambda: self._remove(gone)):
            self._tell(gone, "is not named any more")
            self._listed = None
        if candidate is None or (self._listed is not None and monotonic() < self._renew_at):
            return
        self._renew_at = monotonic() + RENEW_S
        if self._try(lambda: self._put(candidate)) and self._listed is None:
            self._listed = candidate.endpoint
            self._on_listed()
            self._tell(candidate.endpoint, "is named to clients")

    def _put(self, candidate: Candidate) -> None:
        self._registry.put(self._key, candidate, LEASE_S, ANSWER_S)

    def _remove(self, endpoint: Endpoint) -> None:
        self._registry.remove(self._key, endpoint, ANSWER_S)

    def _try(self, call: Callable[[], None]) -> bool:
        """Whether the registry took it."""
        try:
            call()
        except Exception as error:  # noqa: BLE001 - libraries raise what they like
            if not self._silent:
                fields = {"netloader.finder": self._registry.name, "netloader.detail": why(error)}
                emit(self._logger, "netloader.publish.failed", fields)
            self._silent = True
            return False
        self._silent = False
        return True

    def _tell(self, endpoint: Endpoint, what: str) -> None:
        fields = {
            "netloader.finder": self._registry.name,
            "netloader.endpoint": str(endpoint),
            "netloader.detail": what,
        }
        emit(self._logger, "netloader.publish.changed", fields)
