"""Stages, events and effects of a fetch: the events and effects are closed unions of frozen data.

A fetch fills one store from several sources (see `fetch`). The driver reports to it what sources
and sessions do; sources are numbers here, given by the driver.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias, get_args

from netloader.fsm.reasons import Reason
from netloader.fsm.states import State


class Stage(Enum):
    """Where one source of a fetch is."""

    CANDIDATE = "candidate"
    """It may be asked."""
    DIALLED = "dialled"
    """A session with it begins."""
    READY = "ready"
    """It has offered the root that is fetched, and nothing is asked of it."""
    RECEIVING = "receiving"
    """Some segments are asked of it."""
    ENDING = "ending"
    """Its session is over, but may still write what it was asked for."""
    RESTING = "resting"
    """It was busy, and will be asked again."""
    ASIDE = "aside"
    """It has another root, or was slow: it is asked again when nothing else is left."""
    GONE = "gone"
    """It failed, and is not asked any more."""


@dataclass(frozen=True, slots=True)
class Root:
    """What an offer is about: which digests, over how many segments of which size in bytes.

    Two sources have the same bytes when all of it is equal.
    """

    digest_algorithm: str
    segment_bytes: int
    value: str
    """The root digest: the digest over the digests of all segments."""
    segments: int
    manifest: str = ""
    """The digest of the manifest, values included: what is beside the bytes."""


# -- what the driver reports of one source ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Offered:
    """The source has made an offer, which is sound; `available` are the segments it has."""

    source: int
    root: Root
    available: frozenset[int]
    held: frozenset[int] = frozenset()
    """Segments of the root that the store has already; they count if a fetch of it begins."""
    repeatable: bool = True
    """Whether its transport carries more than one request in a session."""


@dataclass(frozen=True, slots=True)
class Available:
    """The source has more segments."""

    source: int
    segments: frozenset[int]


@dataclass(frozen=True, slots=True)
class SegmentVerified:
    """A segment that the source was asked for has arrived and matches its digest."""

    source: int
    segment: int


@dataclass(frozen=True, slots=True)
class Completed:
    """All that was asked of the source is here, and the source has said so."""

    source: int
    moving_s: float | None = None
    """Seconds that the bytes took, without what the source did before it said so; None: unknown."""


@dataclass(frozen=True, slots=True)
class Busy:
    """The source has no place or is not ready, and may be asked again after some seconds."""

    source: int
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class SourceFailed:
    """The session failed; `another_transport` says whether one is left that can replace its own."""

    source: int
    reason: Reason
    another_transport: bool


@dataclass(frozen=True, slots=True)
class SourceEnded:
    """The session is over and its receiver has ended: it writes into the store no more."""

    source: int


# -- what the driver reports of the whole fetch ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class SourcesFound:
    """These sources may be asked, in the ascending order of their numbers; may be none.

    Those of `own` are of this process, such as a folder on a disk: they take no place at a server.
    """

    sources: tuple[int, ...]
    own: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """The fetch shall end: the caller wants it (STOPPED), or its time is over (DEADLINE_PASSED)."""

    reason: Reason


# -- what the fetch decides of a source ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chosen:
    """A session shall begin."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """The source shall be asked for these segments, in ascending order."""

    segments: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Dismissed:
    """The session is not needed any more."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """Nothing else is left to ask."""


@dataclass(frozen=True, slots=True)
class Due:
    """The deadline of the stage has passed."""


Reported: TypeAlias = (
    Offered | Available | SegmentVerified | Completed | Busy | SourceFailed | SourceEnded
)
Decided: TypeAlias = Chosen | Assigned | Dismissed | Recalled | Due
FetchEvent: TypeAlias = Reported | SourcesFound | CancelRequested
REPORTED: Final[tuple[type[Reported], ...]] = get_args(Reported)
DECIDED: Final[tuple[type[Decided], ...]] = get_args(Decided)


# -- what the driver is asked to do ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dial:
    """Begin a session; `stepped_down` over the transport that replaces the usual ones."""

    source: int
    stepped_down: bool


@dataclass(frozen=True, slots=True)
class Request:
    """Ask the source for these segments, and for no others until it reports `Completed`."""

    source: int
    segments: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """End the session, whatever it does; `SourceEnded` must follow."""

    source: int


@dataclass(frozen=True, slots=True)
class Conclude:
    """End the session well: all is verified, or its transport carries no second request.

    `SourceEnded` must follow.
    """

    source: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done before `until`; these sources will be asked again then."""

    sources: tuple[int, ...]
    until: float


@dataclass(frozen=True, slots=True)
class Spare:
    """A source is left alone while an own one is at least as fast; seconds for a segment of both.

    Nothing is to be done. It is said once of each source.
    """

    source: int
    pace_s: float
    own_pace_s: float


@dataclass(frozen=True, slots=True)
class Finish:
    """The fetch is over: DONE or FALLBACK. Always the last effect, exactly once."""

    state: State
    reason: Reason


FetchEffect: TypeAlias = Dial | Request | Drop | Conclude | Wait | Spare | Finish
