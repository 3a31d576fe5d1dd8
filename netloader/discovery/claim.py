"""Let one of the instances that start together load a model from disk, and the others wait for it.

The instance that takes the claim of a model in the registry is the first. It renews its lease until
the registry names it as a server. An instance that finds the claim taken looks again and again. It
stops when the claim ends or passes to another owner, so it never waits for two instances in turn.
"""

import threading
from collections.abc import Callable
from contextlib import suppress

from netloader.discovery.announce import ANSWER_S, LEASE_S, RENEW_S
from netloader.discovery.base import Key, Registry, why
from netloader.discovery.lookup import Looked
from netloader.io.clock import monotonic
from netloader.log import Logger, emit

AGAIN_S = 1.0
"""Seconds between two looks while another instance loads."""
TELL_S = 30.0
"""Seconds between two records of a wait."""


class Claim:
    """A claim that is held, and renewed until one of the two ends. Safe to use from any thread."""

    def __init__(self, registry: Registry, key: Key, owner: str) -> None:
        self._registry = registry
        self._key = key
        self._owner = owner
        self._over = threading.Event()
        threading.Thread(target=self._renew, name="netloader-claim", daemon=True).start()

    def lapse(self) -> None:
        """Renew it no more, so that it ends with its lease: other ranks may still need it."""
        self._over.set()

    def release(self) -> None:
        """End it now: nothing is to be served. Does not wait."""
        if not self._over.is_set():
            self._over.set()
            threading.Thread(target=self._give_back, name="netloader-claim", daemon=True).start()

    def _renew(self) -> None:
        while not self._over.wait(RENEW_S):
            with suppress(Exception):  # libraries raise what they like; the lease may end
                self._registry.claim(self._key, self._owner, LEASE_S, ANSWER_S)

    def _give_back(self) -> None:
        with suppress(Exception):  # as above
            self._registry.release(self._key, self._owner, ANSWER_S)


def wait_for_first(
    look: Callable[[], Looked], registry: Registry, key: Key, owner: str, wait_s: float, log: Logger
) -> tuple[Looked, Claim | None]:
    """What is found once nobody is waited for any more. Blocks for `wait_s`, and never raises.

    `look` finds servers, `key` is the same for all ranks of an instance, and so is `owner`.

    Returns:
        The last look, and the claim where this instance is the first.
    """
    end, first, tell_at = monotonic() + wait_s, "", 0.0
    while True:
        try:
            holder = registry.claim(key, owner, LEASE_S, ANSWER_S)
        except Exception as error:  # noqa: BLE001 - libraries raise what they like
            _tell(log, "netloader.discovery.failed", registry.name, why(error))
            return look(), None
        looked = look()
        if holder == owner:
            return looked, _kept(Claim(registry, key, owner), looked)
        now = monotonic()
        if looked.sources or now >= end or (first and holder != first):
            return looked, None
        if now >= tell_at:
            tell_at = now + TELL_S
            _tell(log, "netloader.discovery.waiting", holder, f"{end - now:.0f} s")
        first = holder
        threading.Event().wait(min(AGAIN_S, end - now))


def _kept(claim: Claim, looked: Looked) -> Claim | None:
    """The claim, unless there is a server by now."""
    if looked.sources:
        claim.release()
        return None
    return claim


def _tell(log: Logger, event: str, who: str, detail: str) -> None:
    emit(log, event, {"netloader.finder": who, "netloader.detail": detail})
