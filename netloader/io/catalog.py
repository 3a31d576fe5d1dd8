"""The published models of one server. Each role has at most one on offer.

What was replaced is remembered as long as sessions hold it: a fence must end those too.
"""

import threading
import weakref
from collections.abc import Iterable
from dataclasses import replace

from netloader.errors import LocalProtocolError
from netloader.fsm.published_events import ModelState
from netloader.io.published import PublishedModel
from netloader.io.snapshot import ModelSnapshot


class Catalog:
    """What one listener offers: a published model for each role, all with one token.

    The first one's identity is what a client of a role that is not here is refused by.

    Raises ValueError for none at all, or for two tokens.
    """

    def __init__(self, published_models: Iterable[PublishedModel]) -> None:
        self.published_models = _by_role(published_models)
        self._known = weakref.WeakSet(self.published_models)
        self._lock = threading.Lock()
        self._fences: dict[str | None, int] = {}
        self._ended: set[str | None] = set()
        """The roles that their owner has withdrawn: no change found late offers them again."""

    def put(self, published: PublishedModel) -> None:
        """Offer this from now on, in the place of what had its role; sessions keep what they have.

        Raises:
            LocalProtocolError: a fence of its role is open.
            ValueError: its token is not that of the others.
        """
        role = published.entry.role
        with self._lock:
            if role in self._fences:
                raise LocalProtocolError(f"role {role!r} is fenced; publish it after the fence")
            before = self.published_models
            self.published_models = _by_role((*before, published))
            self._known.add(published)
            self._ended.discard(role)
            for old in before:
                if old.entry.role == role:
                    published.tally = old.tally

    def replace(self, old: PublishedModel, new: PublishedModel) -> bool:
        """Offer `new` in the place of `old`.

        Returns:
            False when something else has its place already, or its role is fenced or withdrawn.
        """
        with self._lock:
            if old not in self.published_models:
                return False
            if old.entry.role in self._ended or old.entry.role in self._fences:
                return False
            new.tally = old.tally
            rest = (published for published in self.published_models if published is not old)
            self.published_models = _by_role((*rest, new))
            self._known.add(new)
            return True

    def fence(self, role: str | None) -> tuple[PublishedModel, ...]:
        """Put nothing in the place of a role until `unfence` was called as often.

        Returns:
            All that was published in this role and may have sessions; the caller evicts them.

        Raises:
            ValueError: nothing was published in this role.
        """
        with self._lock:
            self._on_offer(role)
            self._fences[role] = self._fences.get(role, 0) + 1
            return self._known_in(role)

    def unfence(self, role: str | None) -> bool:
        """End one fence of a role; True when it was the last one."""
        with self._lock:
            self._fences[role] -= 1
            if self._fences[role]:
                return False
            del self._fences[role]
            return True

    def withdraw_role(self, role: str | None, why: str) -> tuple[PublishedModel, ...]:
        """Offer nothing in a role until something is put there.

        Returns:
            All that was published in this role and may have sessions.

        Raises:
            ValueError: nothing was published in this role.
        """
        with self._lock:
            self._ended.add(self._on_offer(role).entry.role)
            known = self._known_in(role)
            for published in known:
                published.withdraw(why)
            return known

    def snapshots(self) -> tuple[ModelSnapshot, ...]:
        """One of each published model."""
        with self._lock:
            models, fenced = self.published_models, set(self._fences)
        found = (published.snapshot() for published in models)
        return tuple(
            replace(one, state=ModelState.FENCED) if one.role in fenced else one for one in found
        )

    def _known_in(self, role: str | None) -> tuple[PublishedModel, ...]:
        return tuple(known for known in self._known if known.entry.role == role)

    def _on_offer(self, role: str | None) -> PublishedModel:
        for published in self.published_models:
            if published.entry.role == role:
                return published
        served = ", ".join(repr(published.entry.role) for published in self.published_models)
        raise ValueError(f"role is {role!r}, which is not served; give one of: {served}")

    def withdraw(self, why: str) -> None:
        """Withdraw all that is here, and all that was here and has sessions or digests to do."""
        with self._lock:
            for published in self._known:
                published.withdraw(why)


def _by_role(published_models: Iterable[PublishedModel]) -> tuple[PublishedModel, ...]:
    """The last published model of each role."""
    found = {published.entry.role: published for published in published_models}
    if not found:
        raise ValueError("a catalog offers at least one published model")
    if len({published.entry.token for published in found.values()}) > 1:
        raise ValueError("published models on one port must have the same token")
    return tuple(found.values())
