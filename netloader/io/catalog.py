"""The published models of one server. Each role and part of a model has at most one on offer.

Replaced models are kept while sessions use them, because a fence must end those sessions too.
"""

import threading
import weakref
from collections.abc import Iterable

from netloader.errors import LocalProtocolError
from netloader.io.published import PublishedModel
from netloader.io.snapshot import ModelSnapshot


class Catalog:
    """What one listener offers: a model for each role and part. All ask for a token, or none.

    A client of a role that is not here is refused with the differences from the first one. A role
    is fenced, withdrawn and renewed with all parts of it that are here.

    Raises ValueError where some ask for a token and others for none.
    """

    def __init__(self, published_models: Iterable[PublishedModel] = ()) -> None:
        self.published_models = _by_kind(published_models)
        self._known = weakref.WeakSet(self.published_models)
        self._lock = threading.Lock()

    def put(self, published: PublishedModel) -> None:
        """Publish a model in place of that of its role and part; sessions of the old one go on.

        Raises:
            LocalProtocolError: a fence of its role is open.
            ValueError: it asks for a token and the others do not, or the reverse.
        """
        role = published.entry.role
        with self._lock:
            if self._fences(role):
                raise LocalProtocolError(f"role {role!r} is fenced; publish it after the fence")
            self._put(published)

    def _put(self, published: PublishedModel) -> None:
        before = self.published_models
        self.published_models = _by_kind((*before, published))
        self._known.add(published)
        for old in before:
            if old.entry.kind == published.entry.kind:
                published.tally = old.tally

    def remove(self, published: PublishedModel) -> None:
        """Name a model no more that has ended; clients of its role are told that it is not here."""
        with self._lock:
            self.published_models = tuple(p for p in self.published_models if p is not published)

    def replace(self, old: PublishedModel, new: PublishedModel) -> bool:
        """Offer `new` in the place of `old`.

        Returns:
            False when `old` is no longer on offer, or its role is fenced or withdrawn.
        """
        with self._lock:
            if old not in self.published_models:
                return False
            if not old.renewable:
                return False
            self._put(new)
            return True

    def fence(self, role: str | None, why: str) -> tuple[PublishedModel, ...]:
        """End the sessions of a role, and put nothing in its place until the fence has ended.

        Each fence ends once, with `unfence` or `abandon`, or all together with `renew`.

        Returns:
            All that was published in this role and may be read still.

        Raises:
            ValueError: nothing was published in this role.
        """
        with self._lock:
            self._on_offer(role)
            known = self._of(role)
            for published in known:
                published.fence(why)
            return known

    def unfence(self, role: str | None) -> bool:
        """End one fence of a role if it is not the last one: then `renew` what was fenced."""
        with self._lock:
            if self._fences(role) == 1:
                return False
            for published in self._of(role):
                published.unfence()
            return True

    def renew(self, role: str | None, newer: Iterable[PublishedModel]) -> None:
        """End all fences of a role with newer weights, once no session reads what was fenced."""
        with self._lock:
            for fenced in self._of(role):
                if fenced.fences:
                    fenced.retire("newer weights have taken its place")
            for published in newer:
                self._put(published)

    def abandon(self, role: str | None) -> None:
        """End one fence of a role, after which what was fenced is not offered."""
        with self._lock:
            for published in self._of(role):
                if published.fences:
                    published.withdraw(published.withdrawn)
                    published.unfence()

    def withdraw_role(self, role: str | None, why: str) -> tuple[PublishedModel, ...]:
        """Offer nothing in a role until something is put there.

        Returns:
            All that was published in this role and may be read still.

        Raises:
            ValueError: nothing was published in this role.
        """
        with self._lock:
            self._on_offer(role)
            known = self._of(role)
            for published in known:
                published.withdraw(why)
            return known

    def snapshots(self) -> tuple[ModelSnapshot, ...]:
        """One of each published model."""
        return tuple(published.snapshot() for published in self.published_models)

    def _of(self, role: str | None) -> tuple[PublishedModel, ...]:
        return tuple(known for known in self._known if known.entry.role == role)

    def _fences(self, role: str | None) -> int:
        return max((published.fences for published in self._of(role)), default=0)

    def _on_offer(self, role: str | None) -> PublishedModel:
        for published in self.published_models:
            if published.entry.role == role:
                return published
        served = ", ".join(repr(published.entry.role) for published in self.published_models)
        raise ValueError(f"role is {role!r}, which is not served; give one of: {served or 'none'}")

    def retire(self, why: str) -> None:
        """End all that is here, and all that was here and has sessions or digests to do."""
        with self._lock:
            for published in tuple(self._known):
                published.retire(why)


def _by_kind(published_models: Iterable[PublishedModel]) -> tuple[PublishedModel, ...]:
    """The last published model of each role and part."""
    found = {published.entry.kind: published for published in published_models}
    if len({bool(published.entry.tokens) for published in found.values()}) > 1:
        raise ValueError("published models on one port must all ask for a token, or none of them")
    return tuple(found.values())
