"""What a session asks of its driver: a closed union of frozen dataclasses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from netloader.config import Endpoint
from netloader.fsm.identity import Difference
from netloader.fsm.messages import Message, Offer
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a session ended. `state` is DONE or FALLBACK."""

    state: State
    reason: Reason
    detail: str = ""
    weights_dirty: bool = False
    """Whether local parameters may hold bytes of this session."""
    by_peer: bool = False
    """Whether the peer ended it (its refusal) rather than this side."""
    differences: tuple[Difference, ...] = ()
    retry_after_s: float = 0.0
    other_sources: tuple[Endpoint, ...] = ()
    """Other sources that the peer named in its refusal, as `host:port`."""
    ports: tuple[int, ...] = ()
    """Other ports of the peer's host that it named in its refusal."""


@dataclass(frozen=True, slots=True)
class Send:
    """Put a message on the control connection."""

    message: Message


@dataclass(frozen=True, slots=True)
class PrepareOffer:
    """Server: reserve a place, have the digests ready, and a rendezvous of each transport.

    `transports` are those that both sides have, in the client's order. One that cannot be used is
    left out of the offer. `entry` is the place, among the session's entries, of the one the client
    asked for.
    """

    transports: tuple[str, ...]
    digest_algorithm: str
    entry: int
    serves_at: str = ""
    """Where the client will serve what it receives, `host:port`; empty: nowhere."""


@dataclass(frozen=True, slots=True)
class OpenTransport:
    """Client: open this end of a candidate of the offer; then report what it answers.

    An end that was opened for an earlier candidate of the session is ended first.
    """

    offer: Offer
    transport: str


@dataclass(frozen=True, slots=True)
class JoinTransport:
    """Do what takes both ends of a candidate, at the same time as the peer does.

    Client: its own end is open. Server: the client's end is open, and answers so; the ends of
    earlier candidates are ended first.
    """

    transport: str
    answer: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChooseSegments:
    """Client: decide what to ask this source for next; report `Ask`, or `Finish` if all is here.

    `missing` are the segments that this client lacks, as far as its session knows; the source has
    those in `available`, and perhaps more later (`NoteAvailable`). `number` is that of the request
    to come. The answer may wait for more segments, but the session has its deadline meanwhile.
    """

    missing: tuple[int, ...]
    number: int
    available: frozenset[int]


@dataclass(frozen=True, slots=True)
class NoteAvailable:
    """Client: the source has these segments too. No event comes of it."""

    segments: frozenset[int]


@dataclass(frozen=True, slots=True)
class StartTransfer:
    """Move these segments over `lanes` lanes; report when they are all through."""

    segments: tuple[int, ...]
    lanes: int


@dataclass(frozen=True, slots=True)
class AuditWeights:
    """Server: the client found other bytes than were published; compare the weights again.

    No event comes of it: what is found concerns the sessions that follow.
    """


@dataclass(frozen=True, slots=True)
class AbortTransfer:
    """Stop whatever transport work this session started, within a second."""


@dataclass(frozen=True, slots=True)
class Settle:
    """The session is over; always the last effect, exactly once."""

    verdict: Verdict


Effect: TypeAlias = (
    Send
    | PrepareOffer
    | OpenTransport
    | JoinTransport
    | ChooseSegments
    | NoteAvailable
    | StartTransfer
    | AuditWeights
    | AbortTransfer
    | Settle
)
