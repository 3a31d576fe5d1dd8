"""A fetch that a test plays by hand: what each source does, and a clock."""

from netloader.fsm.fetch import Fetch, FetchOptions
from netloader.fsm.fetch_events import (
    Busy,
    Completed,
    FetchEffect,
    Finish,
    Offered,
    Root,
    SegmentVerified,
    SourceEnded,
    SourceFailed,
    SourcesFound,
)
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State

COUNT = 64
ALL = frozenset(range(COUNT))
ROOT = Root("blake3", 1 << 20, "one", COUNT)
OTHER = Root("blake3", 1 << 20, "two", COUNT)
DONE = Finish(State.DONE, Reason.VERIFIED)
NO_SOURCE = Finish(State.FALLBACK, Reason.NO_SOURCE)


class Play:
    """A fetch and a clock."""

    def __init__(
        self, sources: int = 1, parallel: int = 1, queue_s: float = 100.0, own: int = 0
    ) -> None:
        """A fetch from so many sources, of which the first `own` are folders of this host."""
        self.now = 0.0
        self.fetch = Fetch(FetchOptions(parallel, queue_s, stall_s=15.0), self.now)
        found = SourcesFound(tuple(range(sources)), frozenset(range(own)))
        self.first = self.fetch.step(found, self.now)

    def offers(self, key: int, root: Root = ROOT, has: frozenset[int] = ALL) -> list[FetchEffect]:
        return list(self.fetch.step(Offered(key, root, has), self.now))

    def delivers(self, key: int, segments: tuple[int, ...], pace_s: float) -> list[FetchEffect]:
        effects: list[FetchEffect] = []
        for segment in segments:
            self.now += pace_s
            effects += self.fetch.step(SegmentVerified(key, segment), self.now)
        return effects

    def completes(self, key: int, moving_s: float | None = None) -> list[FetchEffect]:
        return list(self.fetch.step(Completed(key, moving_s), self.now))

    def fails(self, key: int, reason: Reason = Reason.CONNECTION_LOST) -> list[FetchEffect]:
        failure = SourceFailed(key, reason, another_transport=True)
        return [*self.fetch.step(failure, self.now), *self.ends(key)]

    def busy(self, key: int, retry_after_s: float) -> list[FetchEffect]:
        return [*self.fetch.step(Busy(key, retry_after_s), self.now), *self.ends(key)]

    def ends(self, key: int) -> list[FetchEffect]:
        return list(self.fetch.step(SourceEnded(key), self.now))
