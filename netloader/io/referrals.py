"""Other servers of the same weights, as clients announced them: a few, the newest first."""

import threading

from netloader.fsm.terms import MAX_OTHER_SOURCES


class Referrals:
    """Where clients said that they will serve what they received. Safe to use from any thread.

    Nothing proves that they do: a client checks such a source as it checks any other.
    """

    def __init__(self) -> None:
        self._places: dict[str, None] = {}
        self._lock = threading.Lock()

    def note(self, place: str) -> None:
        """Remember a place (`host:port`; empty: none) as the newest one."""
        if not place:
            return
        with self._lock:
            self._places.pop(place, None)
            self._places[place] = None
            if len(self._places) > MAX_OTHER_SOURCES:
                del self._places[next(iter(self._places))]

    def forget(self, place: str) -> None:
        """Name a place no more: whoever announced it is gone."""
        with self._lock:
            self._places.pop(place, None)

    def besides(self, place: str) -> tuple[str, ...]:
        """The other places, for a client that will itself serve at `place`."""
        with self._lock:
            return tuple(known for known in reversed(self._places) if known != place)
