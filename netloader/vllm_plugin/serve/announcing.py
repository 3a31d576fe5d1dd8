"""Announce what a rank serves, by role, in the registry that the operator has named."""

from collections.abc import Callable
from dataclasses import dataclass

from netloader.config import Endpoint
from netloader.discovery.announce import Announcement
from netloader.discovery.base import Candidate, Key, Registry
from netloader.discovery.claim import Claim
from netloader.fsm.published_events import ModelState
from netloader.fsm.states import State
from netloader.io.host import boot_id
from netloader.io.published import PublishedModel
from netloader.io.snapshot import SessionRecord
from netloader.log import Logger


@dataclass(frozen=True, slots=True)
class Place:
    """Where a registry names a model, and by what."""

    registry: Registry
    key: Key
    claim: Claim | None = None
    """Where other instances wait for this one to serve."""

    def listed(self) -> None:
        """The registry names this rank: nobody needs to wait for it any more."""
        if self.claim is not None:
            self.claim.lapse()


class Announcements:
    """The announcements of one rank. The caller has a lock, except for `end_all` and `note`."""

    def __init__(self, places: int, logger: Logger) -> None:
        self._places = places
        """How many clients the rank serves at once."""
        self._logger = logger
        self._running: dict[str, Announcement] = {}
        self._rates: dict[str | None, float] = {}

    @property
    def roles(self) -> frozenset[str]:
        """The roles that are announced while something is offered in them."""
        return frozenset(self._running)

    def begin(self, role: str, place: Place, offered: Callable[[], Candidate | None]) -> None:
        """Announce a role as long as something is offered, unless that is done already."""
        if role not in self._running:
            given = (place.registry, place.key, offered, self._logger, place.listed)
            self._running[role] = Announcement(*given)

    def end(self, role: str) -> None:
        """Announce a role no more; does not wait."""
        announcement = self._running.pop(role, None)
        if announcement is not None:
            announcement.end_soon()

    def end_all(self) -> None:
        """Announce nothing any more, and wait a moment until the registry knows."""
        running, self._running = self._running, {}
        for announcement in running.values():
            announcement.end_soon()
        for announcement in running.values():
            announcement.end()

    def note(self, record: SessionRecord) -> None:
        """Remember how fast the last transfer of a role was."""
        seconds = record.seconds.get(State.TRANSFER, 0.0)
        if record.sent_bytes and seconds > 0:
            self._rates[record.role] = record.sent_bytes / seconds

    def candidate(self, told: str, published: PublishedModel) -> Candidate | None:
        """What clients may know of a published model at an address; None while it is not served."""
        now = published.snapshot()
        if not told or now.state not in (ModelState.OFFERED, ModelState.RECEIVING):
            return None
        load = now.clients / self._places
        return Candidate(Endpoint.parse(told), boot_id(), load, self._rates.get(now.role, 0.0))
