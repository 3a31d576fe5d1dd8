"""What a server does at one moment, as plain data that keeps no weights alive."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from netloader.config import Endpoint
from netloader.fsm.published_events import ModelState
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State


@dataclass(frozen=True, slots=True)
class ModelSnapshot:
    """One published model.

    `nbytes` is the size of its weights. `clients` is the number of sessions that have a place now.
    `sessions` and `sent_bytes` count from when its role was first published: sessions that got a
    place, and the bytes of transfers that the server sent to the end. `withdrawn` is why nothing is
    offered; empty while something is, or soon will be.
    """

    role: str | None
    state: ModelState
    nbytes: int
    clients: int
    sessions: int
    sent_bytes: int
    withdrawn: str


@dataclass(frozen=True, slots=True)
class ServerSnapshot:
    """A server, and its published models in the order in which they were published."""

    endpoint: Endpoint
    models: tuple[ModelSnapshot, ...]


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """One session of a published model that is over.

    `state` is DONE when the client has verified every byte it asked for; `reason` and `detail` say
    how the session ended, and `detail` may be a text of the client. `sent_bytes` is 0 unless the
    transfer was sent to the end. `seconds` were spent in each state.
    """

    peer: Endpoint
    role: str | None
    state: State
    reason: Reason
    detail: str
    sent_bytes: int
    seconds: Mapping[State, float]


OnSession: TypeAlias = Callable[[SessionRecord], None]


class Tally:
    """Counts what was done for the clients of one role. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions = 0
        self._sent_bytes = 0

    def add(self, sessions: int = 0, sent_bytes: int = 0) -> None:
        """Count more sessions and bytes."""
        with self._lock:
            self._sessions += sessions
            self._sent_bytes += sent_bytes

    def read(self) -> tuple[int, int]:
        """The sessions and the bytes so far."""
        with self._lock:
            return self._sessions, self._sent_bytes
