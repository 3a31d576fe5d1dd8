"""One source of a fetch, as the fetch sees it: a table of its own.

Two kinds of events: what the driver reports, and what the fetch decides. Transports write received
bytes in place, so the segments that a source was asked for stay its own until the driver reports
`SourceEnded`: only then nothing of the session writes any more, and another source may be asked for
what is missing.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from netloader.errors import LocalProtocolError
from netloader.fsm.fetch_events import (
    DECIDED,
    REPORTED,
    Assigned,
    Available,
    Busy,
    Chosen,
    Completed,
    Conclude,
    Decided,
    Dial,
    Dismissed,
    Drop,
    Due,
    FetchEffect,
    Offered,
    Recalled,
    Reported,
    Request,
    Root,
    SegmentVerified,
    SourceEnded,
    SourceFailed,
    Stage,
)
from netloader.fsm.reasons import Reason
from netloader.fsm.table import Alphabet, Program, Row, Table, absorb, build, check, fire, row

MAX_RETRY_AFTER_S: Final = 30.0
"""Longest pause a server may ask for between two tries."""
MIN_RETRY_AFTER_S: Final = 0.1


# -- a source, and what it shares with the others ------------------------------------------------


class Holding(Protocol):
    """The data that the sources of a fetch share."""

    now: float
    patience_end: float
    root: Root | None
    verified: set[int]
    filled: bool
    """Whether all is verified and a source has completed the fetch."""

    def missing(self) -> frozenset[int]:
        """Segments of the root that are not verified."""

    def kept_by(self, source: "Source") -> bool:
        """Whether another source has a session in which it offered the root that is fetched."""

    def starved_at(self) -> float:
        """When a source that has no missing segment is dropped."""

    def overdue_at(self, source: "Source") -> float:
        """When what a source was asked for is taken back; infinite while no other one waits."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Segments that only this source may write, since when, and how many are verified."""

    left: frozenset[int] = frozenset()
    since: float = 0.0
    verified: int = 0


class Source:
    """One source; `key` is the driver's number for it, and `own` says that it is no peer."""

    __slots__ = (
        "_effects",
        "_row",
        "assignment",
        "available",
        "delivered",
        "holding",
        "keeps_root",
        "key",
        "own",
        "pace_s",
        "repeatable",
        "spared",
        "state",
        "stepped_down",
        "then",
        "until",
    )

    def __init__(self, key: int, holding: Holding, *, own: bool = False) -> None:
        self.key = key
        self.own = own
        self.spared = False
        """Whether it was said that an own source is faster."""
        self.holding = holding
        self.state = Stage.CANDIDATE
        self.then = Stage.GONE
        """The stage that follows when its session has ended."""
        self.stepped_down = False
        self.until = 0.0
        """When it may be asked again."""
        self.pace_s = math.inf
        """Seconds for a segment, as its last request took; infinite while not known."""
        self._clear()
        self._effects: tuple[FetchEffect, ...] = ()
        self._row: Row[Any] | None = None

    def _clear(self) -> None:
        """Clear the data of a session."""
        self.available: frozenset[int] = frozenset()
        self.assignment = Assignment()
        self.delivered = 0
        self.keeps_root = False
        """Whether it has offered the root that is fetched: until its session ends, it may write."""
        self.repeatable = True
        """Whether the session may carry more than one request."""

    def step(self, event: Reported | Decided) -> tuple[Row[Any], tuple[FetchEffect, ...]]:
        """Take one event; answers with the row that fired and what is to be done.

        Raises:
            LocalProtocolError: an event that cannot happen here.
        """
        fire(MACHINE, self, event)
        if self._row is None:
            raise AssertionError("a fired row always collects")
        return self._row, self._effects

    def collect(self, row: Row[Any], effects: tuple[FetchEffect, ...]) -> None:
        """For the table only: take what the fired row yielded."""
        self._row, self._effects = row, effects

    def due(self) -> float:
        """When the deadline of its stage passes, in seconds of the fetch's clock."""
        limit = LIMITS.get(self.state)
        return math.inf if limit is None else limit(self)

    def pace_so_far(self, now: float) -> float:
        """Seconds for a segment, as the request at hand goes; infinite where there is none."""
        done = self.assignment.verified
        return (now - self.assignment.since) / max(done, 1) if self.assignment.left else math.inf

    def twin(self, holding: Holding) -> "Source":
        """A copy that shares `holding` with others."""
        twin = object.__new__(Source)
        for name in Source.__slots__:
            setattr(twin, name, getattr(self, name))
        twin.holding = holding
        return twin


# -- guards --------------------------------------------------------------------------------------


def _other_root(source: Source, event: Offered) -> bool:
    """Whether the bytes of two roots would be mixed."""
    return event.root != source.holding.root and source.holding.kept_by(source)


def _could_not_begin(source: Source, event: SourceFailed) -> bool:
    """Whether a transport that was open failed before a segment came, and another one is left.

    Its session is over: a request at hand cannot go on over another transport. Where a transport
    cannot be opened at all, the session itself goes on to the next one.
    """
    failed = event.reason is Reason.TRANSFER_FAILED and not source.delivered
    return failed and event.another_transport and not source.stepped_down


def _too_late(source: Source, event: Busy) -> bool:
    del event
    return source.holding.now >= source.holding.patience_end


def _spent(source: Source, event: Completed) -> bool:
    """Whether the session can carry nothing more, while something is missing."""
    del event
    return not source.repeatable and bool(source.holding.missing())


def _filled(source: Source, event: Dismissed) -> bool:
    del event
    return source.holding.filled


def _may_retry(source: Source, event: SourceEnded) -> bool:
    del event
    return source.then is Stage.CANDIDATE


def _was_busy(source: Source, event: SourceEnded) -> bool:
    del event
    return source.then is Stage.RESTING


def _is_spare(source: Source, event: SourceEnded) -> bool:
    del event
    return source.then is Stage.ASIDE


# -- actions -------------------------------------------------------------------------------------


def _dial(source: Source, event: Chosen) -> Iterable[FetchEffect]:
    del event
    yield Dial(source.key, source.stepped_down)


def _take_offer(source: Source, event: Offered) -> Iterable[FetchEffect]:
    """Take the root of the offer; if it is another one than before, the fetch starts over."""
    holding = source.holding
    if event.root != holding.root:
        holding.root = event.root
        holding.verified.clear()
        holding.verified.update(event.held)
    source.keeps_root = True
    source.repeatable = event.repeatable
    source.available = event.available
    return ()


def _set_aside(source: Source, event: Offered) -> Iterable[FetchEffect]:
    del event
    source.then = Stage.ASIDE
    yield Drop(source.key)


def _learn(source: Source, event: Available) -> Iterable[FetchEffect]:
    source.available |= event.segments
    return ()


def _ask(source: Source, event: Assigned) -> Iterable[FetchEffect]:
    source.assignment = Assignment(frozenset(event.segments), source.holding.now)
    yield Request(source.key, event.segments)


def _count(source: Source, event: SegmentVerified) -> Iterable[FetchEffect]:
    assignment = source.assignment
    if event.segment not in assignment.left:
        raise LocalProtocolError(f"segment {event.segment} was not asked of source {source.key}")
    source.assignment = Assignment(
        assignment.left - {event.segment}, assignment.since, assignment.verified + 1
    )
    source.delivered += 1
    source.holding.verified.add(event.segment)
    return ()


def _free(source: Source, event: Completed) -> Iterable[FetchEffect]:
    """Become ready for the next request, and note how long this one took for a segment."""
    assignment, holding = source.assignment, source.holding
    if assignment.left:
        raise LocalProtocolError(f"source {source.key} did not send all that it was asked for")
    if assignment.verified:
        whole_s = holding.now - assignment.since
        moving_s = whole_s if event.moving_s is None else event.moving_s
        source.pace_s = moving_s / assignment.verified
    source.assignment = Assignment()
    holding.filled = not holding.missing()
    return ()


def _renew(source: Source, event: Completed) -> Iterable[FetchEffect]:
    """Go on in a new session."""
    _free(source, event)
    source.then = Stage.CANDIDATE
    yield Conclude(source.key)


def _step_down(source: Source, event: SourceFailed) -> Iterable[FetchEffect]:
    del event
    source.stepped_down = True
    source.then = Stage.CANDIDATE
    return ()


def _give_up(source: Source, event: SourceFailed | Busy) -> Iterable[FetchEffect]:
    del event
    source.then = Stage.GONE
    return ()


def _rest(source: Source, event: Busy) -> Iterable[FetchEffect]:
    """Ask again after the pause that the source names, or at the latest when `queue_s` is over."""
    holding = source.holding
    source.until = min(holding.now + _sane(event.retry_after_s), holding.patience_end)
    source.then = Stage.RESTING
    return ()


def _drop(source: Source, event: Dismissed | Due) -> Iterable[FetchEffect]:
    del event
    source.then = Stage.GONE
    yield Drop(source.key)


def _take_back(source: Source, event: Due) -> Iterable[FetchEffect]:
    del event
    source.then = Stage.ASIDE
    yield Drop(source.key)


def _conclude(source: Source, event: Dismissed) -> Iterable[FetchEffect]:
    del event
    source.then = Stage.GONE
    yield Conclude(source.key)


def _release(source: Source, event: SourceEnded) -> Iterable[FetchEffect]:
    """End its assignment: other sources may be asked for what is missing of it."""
    del event
    source._clear()  # noqa: SLF001 - the table's own
    return ()


def _nothing(source: Source, event: object) -> Iterable[FetchEffect]:
    del source, event
    return ()


def _sane(seconds: float) -> float:
    """The pause that a peer asked for, within bounds."""
    if not math.isfinite(seconds):
        return MAX_RETRY_AFTER_S
    return min(max(seconds, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)


# -- the table -----------------------------------------------------------------------------------

C, D, Y, R, E, T, A, G = Stage
SESSIONS: Final = (D, Y, R, E)
"""Stages in which there is a session."""
LIVING: Final = (C, D, Y, R, E, T)
"""Stages in which a source may still bring something before all others have failed."""
OCCUPIED: Final = (D, R, E)
"""Stages in which a session counts against `parallel`: a source that is ready costs nothing."""

ROWS: Table[Source] = (
    #   in  on               to  do           when
    row(C, Chosen,           D, _dial),
    row(D, Offered,          E, _set_aside,  when=_other_root),
    row(D, Offered,          Y, _take_offer),
    row(Y, Available,        Y, _learn),
    row(R, Available,        R, _learn),
    row(Y, Assigned,         R, _ask),
    row(R, SegmentVerified,  R, _count),
    row(R, Completed,        E, _renew,      when=_spent),
    row(R, Completed,        Y, _free),
    *(each for stage in (D, Y, R) for each in (
    row(stage, Busy,         E, _give_up,    when=_too_late),
    row(stage, Busy,         E, _rest),
    row(stage, SourceFailed, E, _step_down,  when=_could_not_begin),
    row(stage, SourceFailed, E, _give_up),
    row(stage, SourceEnded,  G, _release),
    )),
    row(D, Dismissed,        E, _drop),
    row(Y, Dismissed,        E, _conclude,   when=_filled),
    row(Y, Dismissed,        E, _drop),
    row(Y, Due,              E, _drop),
    row(R, Dismissed,        E, _drop),
    row(R, Due,              E, _take_back),
    row(E, SegmentVerified,  E, _count),
    row(E, SourceEnded,      C, _release,    when=_may_retry),
    row(E, SourceEnded,      T, _release,    when=_was_busy),
    row(E, SourceEnded,      A, _release,    when=_is_spare),
    row(E, SourceEnded,      G, _release),
    *(row(E, late, E, _nothing) for late in (Offered, Available, Completed, Busy, SourceFailed)),
    row(T, Due,              C, _nothing),
    row(A, Recalled,         C, _nothing),
)  # fmt: skip
SOURCES: Final = Alphabet(Stage, C, (*REPORTED, *DECIDED), (), timed=(Y, R, T), ends=(G,))
"""The alphabet of this table."""
TABLE: Table[Source] = (*ROWS, *(Row(G, event, G, absorb) for event in SOURCES.events))

LIMITS: Mapping[Stage, Callable[[Source], float]] = {
    Stage.READY: lambda source: source.holding.starved_at(),
    Stage.RECEIVING: lambda source: source.holding.overdue_at(source),
    Stage.RESTING: lambda source: source.until,
}

check(TABLE, LIMITS, SOURCES)
MACHINE: Program = build(TABLE, SOURCES)
