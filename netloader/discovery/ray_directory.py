"""What the actor of a Ray registry holds.

It runs in a process of its own, on a node that may have neither torch nor vLLM, so this module
imports nothing heavy. All that is passed is text, bytes and numbers: servers of another release
of netloader can use the same actor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from netloader.discovery.base import MOST_CANDIDATES, MOST_ENTRY_BYTES, MOST_OWNER_CHARS

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Leased(Generic[T]):
    """An entry, or the owner of a claim, and when its lease ends."""

    value: T
    until: float


class Directory:
    """Entries and claims by key, until their leases end. One call at a time.

    `now` gives monotonic seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._entries: dict[tuple[str, str], _Leased[bytes]] = {}
        """By key and endpoint."""
        self._claims: dict[str, _Leased[str]] = {}

    def find(self, key: str) -> list[bytes]:
        """The entries of a key, those with the newest leases first."""
        return self._newest({at: entry for at, entry in self._entries.items() if at[0] == key})

    def every(self) -> list[bytes]:
        """Those of all keys, in the same order."""
        return self._newest(self._entries)

    def put(self, key: str, endpoint: str, entry: bytes, lease_s: float) -> None:
        """Hold an entry for `lease_s` seconds; forget those whose lease has ended."""
        now = self._now()
        self._entries = {at: kept for at, kept in self._entries.items() if kept.until > now}
        self._entries[key, endpoint] = _Leased(entry, now + lease_s)

    def remove(self, key: str, endpoint: str) -> None:
        """Forget an entry."""
        self._entries.pop((key, endpoint), None)

    def claim(self, key: str, owner: str, lease_s: float) -> str:
        """Who holds the claim of a key: `owner`, for `lease_s` seconds, if nobody else does."""
        now = self._now()
        self._claims = {of: held for of, held in self._claims.items() if held.until > now}
        held = self._claims.get(key)
        if held is None or held.value == owner:
            self._claims[key] = _Leased(owner, now + lease_s)
            return owner
        return held.value[:MOST_OWNER_CHARS]

    def release(self, key: str, owner: str) -> None:
        """End the claim of a key, if `owner` holds it."""
        held = self._claims.get(key)
        if held is not None and held.value == owner:
            del self._claims[key]

    def _newest(self, entries: dict[tuple[str, str], _Leased[bytes]]) -> list[bytes]:
        now = self._now()
        live = [entry for entry in entries.values() if entry.until > now]
        live.sort(key=lambda entry: entry.until, reverse=True)
        values = [entry.value for entry in live[:MOST_CANDIDATES]]
        return [value if len(value) <= MOST_ENTRY_BYTES else b"" for value in values]
