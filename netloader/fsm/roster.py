"""The sources of a fetch, listed by their stage, so that a step costs the same with thousands."""

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable
from typing import Self

from netloader.fsm.fetch_events import Stage
from netloader.fsm.source import Source


class Roster:
    """Sources by their number, and the numbers of each stage in ascending order.

    Whoever steps a source calls `moved` afterwards.
    """

    def __init__(self) -> None:
        self.sources: dict[int, Source] = {}
        self._numbers: dict[Stage, list[int]] = {stage: [] for stage in Stage}
        self._waking: list[tuple[float, int]] = []
        """The sources that rest, in the order in which they may be asked again."""

    def add(self, source: Source) -> None:
        """Take up a source whose number is new."""
        self.sources[source.key] = source
        self._enter(source)

    def moved(self, source: Source, before: Stage) -> None:
        """Note that a source may have left the stage `before`."""
        if source.state is before:
            return
        numbers = self._numbers[before]
        del numbers[bisect_left(numbers, source.key)]
        if before is Stage.RESTING:
            del self._waking[bisect_left(self._waking, (source.until, source.key))]
        self._enter(source)

    def _enter(self, source: Source) -> None:
        insort(self._numbers[source.state], source.key)
        if source.state is Stage.RESTING:
            insort(self._waking, (source.until, source.key))

    def within(self, *stages: Stage) -> list[Source]:
        """The sources in these stages, by ascending number."""
        if len(stages) == 1:
            keys = self._numbers[stages[0]]
        else:
            keys = sorted(key for stage in stages for key in self._numbers[stage])
        return [self.sources[key] for key in keys]

    def count(self, *stages: Stage) -> int:
        """How many sources are in these stages."""
        return sum(len(self._numbers[stage]) for stage in stages)

    def wakes_at(self) -> float:
        """When the first source that rests may be asked again; infinite for never."""
        return self._waking[0][0] if self._waking else math.inf

    def waking(self, until: float) -> list[Source]:
        """The sources that rest until then at the latest, by ascending number."""
        end = bisect_right(self._waking, until, key=lambda pair: pair[0])
        return [self.sources[key] for key in sorted(key for _, key in self._waking[:end])]

    def twin(self, copied: Callable[[Source], Source]) -> Self:
        """The same with copied sources."""
        twin = type(self)()
        for source in self.sources.values():
            twin.add(copied(source))
        return twin


def in_order(*groups: Iterable[Source]) -> list[Source]:
    """All sources of these groups, by ascending number."""
    return sorted((source for group in groups for source in group), key=lambda s: s.key)
