"""The requests of one session: one at a time, numbered from 1, no segment twice.

So a session makes at most one request more than there are segments, and ends in bounded time.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from netloader.fsm.messages import Request


@dataclass(frozen=True, slots=True)
class Requests:
    """What was asked for in a session so far."""

    count: int = 0
    asked: frozenset[int] = frozenset()
    at_hand: Request | None = None
    """The request that is not complete yet."""

    def allow(self, request: Request, segments: int) -> bool:
        """Whether this request, of some of so many segments, may come now.

        Its segments are in ascending order. Only the first request may be empty.
        """
        wanted = request.segments
        in_turn = self.at_hand is None and request.number == self.count + 1
        ascending = all(a < b for a, b in pairwise(wanted))
        in_range = not wanted or (wanted[0] >= 0 and wanted[-1] < segments)
        news = self.asked.isdisjoint(wanted) and (bool(wanted) or not self.count)
        return in_turn and ascending and in_range and news

    def with_next(self, request: Request) -> Self:
        """The requests once this one is made."""
        return type(self)(request.number, self.asked.union(request.segments), request)

    def completed(self) -> Self:
        """The requests after the current one is complete."""
        return type(self)(self.count, self.asked)
