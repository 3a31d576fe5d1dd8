"""One store filled from many sources: decides which source is asked for which segments.

The driver reports what happens (`step`) and what time it is (`handle_timeout`), and performs the
effects of each answer in order. What may happen to one source is a table, see `source`. This is
what concerns all of them:

* At most `parallel` sources are asked at a time. A source that fails is not asked again; one that
  answered busy is, until `queue_s` seconds after the fetch began.
* Each is asked only for what it has, is not verified, and was not asked of another. One source at a
  time is asked for all that is missing; several are asked for a share, and for the next one later.
  Where the transport carries one request in a session, the next share needs a new session.
* An own source (a folder on this host's disk) takes no place at a server, so it does not count as
  one of `parallel`. A peer that has shown, with its first request, to be no faster than an own
  source is asked for nothing more while that one is at work: its bytes are better spent on others.
* When one waits for work while another is slow, the slow one is dropped, and what is missing of its
  share is asked of the one that waits. No segment is asked of two sources at once, also not at the
  end: both would write to the same place.
* Bytes of two roots are never mixed. A source with another root than the one that is being fetched
  is set aside, and asked when nothing else is left; then all starts over with its root.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from netloader.errors import LocalProtocolError
from netloader.fsm.fetch_events import (
    Assigned,
    CancelRequested,
    Chosen,
    Decided,
    Dismissed,
    Due,
    FetchEffect,
    FetchEvent,
    Finish,
    Recalled,
    Reported,
    Root,
    SourcesFound,
    Spare,
    Stage,
    Wait,
)
from netloader.fsm.reasons import Reason
from netloader.fsm.roster import Roster, in_order
from netloader.fsm.source import LIVING, OCCUPIED, SESSIONS, Source
from netloader.fsm.states import State

SHARES: Final = 2
"""A source is asked for an even share of the segments that are left, divided by this number.
Requests get smaller towards the end, so fast and slow sources end at about the same time."""
MEASURING: Final = 4
"""Beside an own source, the first request to each is smaller by this factor: so it is known early
which of them are faster."""
SLOW: Final = 2.0
"""A source that needs this many times as long for a segment as one that waits for work is slow:
then asking the other one again for what is missing is faster, its loss in flight included."""
GRACE_S: Final = 0.25
"""Seconds that any request may take, so that a short one does not count as slow by chance."""
ROUND_S: Final = 0.5
"""Sources that are to be asked again within this time of each other are asked in one round."""
MOST_SOURCES: Final = 64
"""Sources that others name are taken up while fewer than this number are known that do not rest.
So peers that name more and more sources which fail cost a bounded number of sessions. Sources that
were busy do not count: among many instances that start at once, nearly all are."""
MOST_KNOWN: Final = 4096
"""Sources that others name are taken up while fewer than this number are known. Each takes some
hundred bytes."""


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """Options of a fetch; times in seconds."""

    parallel: int = 1
    """Sources that are asked at the same time."""
    queue_s: float = 120.0
    """How long sources that answered busy are asked again, from the beginning of the fetch."""
    stall_s: float = 15.0
    """How long the fetch waits for sources that have nothing (more) to give."""


class Fetch:
    """The decisions of one fetch. Not thread-safe: one event at a time."""

    def __init__(self, options: FetchOptions, now: float) -> None:
        self.options = options
        self.now = now
        self.patience_end = now + options.queue_s
        self.root: Root | None = None
        self.verified: set[int] = set()
        """Segments of the root."""
        self.filled = False
        """Whether all is verified and a source has completed the fetch."""
        self.outcome: Finish | None = None
        """How the fetch ends, as soon as that is decided."""
        self.over = False
        self._roster = Roster()
        self._own: tuple[int, ...] = ()
        """The numbers of own sources."""
        self.rows: list[object] = []
        """The rows of the table that the last step fired, for tests."""
        self._effects: list[FetchEffect] = []
        self._progressed_at = now
        self._waits: Wait | None = None

    def step(self, event: FetchEvent, now: float) -> tuple[FetchEffect, ...]:
        """Take one event; perform every effect of the answer before the next call.

        Raises:
            LocalProtocolError: an event that cannot happen here: the driver's bug.
        """
        self.now, self.rows = now, []
        match event:
            case SourcesFound():
                new = [key for key in event.sources if key not in self.sources]
                for key in new:
                    self._roster.add(Source(key, self, own=key in event.own))
                self._own += tuple(key for key in new if key in event.own)
            case CancelRequested():
                self._decide(State.FALLBACK, event.reason)
                self._dismiss(Stage.RECEIVING)
            case _:
                self._progressed_at = now
                self._tell(self._source(event), event)
        return self._answer()

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`, in seconds of the caller's clock; None for never."""
        timed = self._in(Stage.READY, Stage.RECEIVING)
        due = min((source.due() for source in timed), default=math.inf)
        due = min(due, self._roster.wakes_at())
        return None if self.over or self.outcome or due == math.inf else due

    def handle_timeout(self, now: float) -> tuple[FetchEffect, ...]:
        """Act on the deadlines that have passed; returns the effects."""
        self.now, self.rows = now, []
        wakes = self._roster.wakes_at() <= now
        waking = self._roster.waking(now + ROUND_S) if wakes else []
        for source in in_order(waking, self._in(Stage.READY, Stage.RECEIVING)):
            resting = source.state is Stage.RESTING
            if (resting or source.due() <= now) and self.outcome is None:
                self._no_faster(source, source.pace_so_far(now))
                self._tell(source, Due())
        return self._answer()

    @property
    def sources(self) -> Mapping[int, Source]:
        """All that are known, by their number."""
        return self._roster.sources

    def room(self) -> int:
        """How many more sources may be taken up of those that other sources name."""
        known = len(self.sources)
        active = known - self._roster.count(Stage.RESTING)
        return max(min(MOST_SOURCES - active, MOST_KNOWN - known), 0)

    # -- what a source may know of the others ----------------------------------------------------

    def missing(self) -> frozenset[int]:
        """Segments of the root that are not verified."""
        return frozenset(range(self.root.segments if self.root else 0)) - self.verified

    def kept_by(self, source: Source) -> bool:
        """Whether another source may write bytes of the present root, or may be asked to."""
        return any(other.keeps_root for other in self._in(*SESSIONS) if other is not source)

    def starved_at(self) -> float:
        """When a source with nothing to give is dropped: it must be all that the fetch has."""
        going_on = (Stage.CANDIDATE, *OCCUPIED)
        return math.inf if self._some(*going_on) else self._progressed_at + self.options.stall_s

    def overdue_at(self, source: Source) -> float:
        """When what a source was asked for is taken back; infinite while no other one waits."""
        assignment = source.assignment
        waiting = [o for o in self._in(Stage.READY) if o.available & assignment.left]
        pace_s = min((other.pace_s for other in waiting), default=math.inf)
        return assignment.since + SLOW * pace_s * max(assignment.verified, 1) + GRACE_S

    # -- the plan --------------------------------------------------------------------------------

    def _answer(self) -> tuple[FetchEffect, ...]:
        if not self.over:
            self._plan()
        effects, self._effects = tuple(self._effects), []
        return effects

    def _plan(self) -> None:
        if self.filled:
            self._decide(State.DONE, Reason.VERIFIED)
        if self.outcome is None:
            self._assign()
            self._choose()
            self._look_ahead()
        if self.outcome is not None:
            self._dismiss(Stage.DIALLED, Stage.READY)
            if self.filled and self._own:  # peers look through what was not asked of them, which
                self._dismiss(Stage.RECEIVING)  # may take longer than the disk did
            if not self._some(*SESSIONS):
                self._effects.append(self.outcome)
                self.over = True

    def _assign(self) -> None:
        """Ask sources that are ready, the fastest first."""
        for source in sorted(self._in(Stage.READY), key=lambda source: source.pace_s):
            if self._spared(source):
                continue
            share = self._share(source)
            if (share or self._unconfirmed()) and self._has_room(source):
                self._tell(source, Assigned(share))

    def _share(self, source: Source) -> tuple[int, ...]:
        unasked = self._unasked()
        own = len(self._own_in(*LIVING))
        parts = min(self.options.parallel + own, self._takers())
        if parts > 1 and source.repeatable:
            parts *= SHARES
            if own and source.pace_s == math.inf:
                parts *= MEASURING
        return tuple(sorted(unasked & source.available))[: math.ceil(len(unasked) / parts)]

    def _takers(self) -> int:
        """Among how many sources the rest may have to be divided."""
        if not self._peers_spared():
            return self._roster.count(*LIVING)
        at_work = self._in(Stage.READY, Stage.RECEIVING)
        return sum(not self._spared(source) for source in at_work)

    def _peers_spared(self) -> bool:
        """Whether a peer is left alone: then none is dialled either."""
        return bool(self._own) and any(map(self._spared, self._in(Stage.READY)))

    def _unasked(self) -> frozenset[int]:
        """Segments that are not verified, and that no source was asked for."""
        asked = (source.assignment.left for source in self._in(*SESSIONS))
        return self.missing().difference(*asked)

    def _choose(self) -> None:
        """Dial candidates while there are segments to ask them for."""
        if not self._some(Stage.CANDIDATE, *SESSIONS):
            for source in self._in(Stage.ASIDE):
                self._tell(source, Recalled())
        peers_spared = self._peers_spared()
        for source in self._in(Stage.CANDIDATE):
            if not self._has_room(source) or (peers_spared and not source.own):
                return
            if self.root is None or self._unasked() or self._unconfirmed():
                self._tell(source, Chosen())

    def _unconfirmed(self) -> bool:
        """Whether all is verified, but the source that was to complete the fetch failed."""
        return not self.missing() and not self._some(*OCCUPIED)

    def _has_room(self, source: Source) -> bool:
        asked = self._roster.count(*OCCUPIED) - len(self._own_in(*OCCUPIED))
        return source.own or asked < self.options.parallel

    def _own_in(self, *stages: Stage) -> list[Source]:
        """The own sources in these stages."""
        return [own for key in self._own if (own := self.sources[key]).state in stages]

    def _spared(self, source: Source) -> bool:
        """Whether a peer is left alone, because an own source at work is at least as fast."""
        return self._no_faster(source, source.pace_s)

    def _no_faster(self, source: Source, pace_s: float) -> bool:
        """Whether a peer with this pace is no faster than an own source; said the first time."""
        at_work = self._own_in(Stage.READY, Stage.RECEIVING)
        own_pace_s = min((own.pace_s for own in at_work), default=math.inf)
        no_faster = not source.own and own_pace_s <= pace_s < math.inf
        if no_faster and not source.spared:
            source.spared = True
            self._effects.append(Spare(source.key, pace_s, own_pace_s))
        return no_faster

    def _look_ahead(self) -> None:
        """Without a session, wait for sources that were busy, or finish."""
        if self._some(*SESSIONS):
            self._waits = None
            return
        resting = self._in(Stage.RESTING)
        if not resting:
            self._decide(State.FALLBACK, Reason.NO_SOURCE)
            return
        waits = Wait(tuple(source.key for source in resting), self._roster.wakes_at())
        if waits != self._waits:
            self._effects.append(waits)
        self._waits = waits

    def _decide(self, state: State, reason: Reason) -> None:
        self.outcome = self.outcome or Finish(state, reason)

    def _dismiss(self, *stages: Stage) -> None:
        for source in self._in(*stages):
            self._tell(source, Dismissed())

    def _in(self, *stages: Stage) -> list[Source]:
        return self._roster.within(*stages)

    def _some(self, *stages: Stage) -> bool:
        return self._roster.count(*stages) > 0

    def _tell(self, source: Source, event: Reported | Decided) -> None:
        before = source.state
        row, effects = source.step(event)
        self._roster.moved(source, before)
        self.rows.append(row)
        self._effects += effects

    def _source(self, event: Reported) -> Source:
        if event.source not in self.sources:
            raise LocalProtocolError(f"there is no source {event.source}")
        return self.sources[event.source]

    def __copy__(self) -> Self:
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        twin.verified, twin._effects = set(self.verified), []
        twin._roster = self._roster.twin(lambda source: source.twin(twin))
        return twin
