"""What can happen to a session: a closed union of frozen dataclasses.

Peer events are messages received, or `Violated` when the peer's bytes made no message; every
state has an answer to each of them. Local events are reported by the driver; one that has no row
in the present state is the driver's bug.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, get_args

from netloader.fsm.messages import Candidate, Message
from netloader.fsm.reasons import Reason


@dataclass(frozen=True, slots=True)
class Violated:
    """The peer sent bytes that are no message; `detail` is ours, never the peer's text."""

    detail: str


@dataclass(frozen=True, slots=True)
class Connected:
    """The control connection is up."""


@dataclass(frozen=True, slots=True)
class ConnectFailed:
    """The control connection could not be made."""

    detail: str


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """The control connection closed or was reset."""

    detail: str


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The present state lasted longer than it may."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The owner of this session ends it."""

    reason: Reason = Reason.STOPPED
    detail: str = ""


@dataclass(frozen=True, slots=True)
class OfferReady:
    """Server: a place is reserved, digests are known, the candidates wait for their peer."""

    candidates: tuple[Candidate, ...] = ()
    segment_digests: tuple[str, ...] = ()
    available: frozenset[int] | None = None
    """The segments available now; None: all, and no `MoreAvailable` will come."""
    other_sources: tuple[str, ...] = ()
    """`host:port` of others that may have the same weights."""
    left_out: tuple["TransportRefused", ...] = ()
    """Transports that both sides have, but that cannot be used now; for the log."""


@dataclass(frozen=True, slots=True)
class MoreAvailable:
    """Server: since its offer it has these segments too."""

    segments: frozenset[int]


@dataclass(frozen=True, slots=True)
class OfferRefused:
    """Server: no offer can be made now, or there is no room for the candidate that was answered."""

    reason: Reason
    detail: str
    retry_after_s: float = 0.0
    other_sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TransportReady:
    """Client: its end of the candidate is open, and has this to say to the server's."""

    transport: str
    answer: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TransportJoined:
    """What takes both ends of the candidate is done on this side."""

    transport: str


@dataclass(frozen=True, slots=True)
class TransportRefused:
    """The candidate cannot be opened or joined here. Nothing was moved: another one may do."""

    transport: str
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Ask:
    """Client: its owner wants these segments next, in ascending order.

    None of them was asked for before in this session. Only the first request may be empty.
    """

    segments: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """Client: its owner has all segments, verified, from whatever sources."""


@dataclass(frozen=True, slots=True)
class Transferred:
    """All segments of a request were sent (server), or received and verified (client)."""

    nbytes: int


@dataclass(frozen=True, slots=True)
class TransferFailed:
    """The transport failed, or something else that the session cannot go on without."""

    reason: Reason
    detail: str


PeerEvent: TypeAlias = Message | Violated
LocalEvent: TypeAlias = (
    Connected
    | ConnectFailed
    | ConnectionLost
    | DeadlinePassed
    | StopRequested
    | OfferReady
    | OfferRefused
    | MoreAvailable
    | TransportReady
    | TransportJoined
    | TransportRefused
    | Ask
    | Finish
    | Transferred
    | TransferFailed
)
Event: TypeAlias = PeerEvent | LocalEvent

PEER_EVENTS: tuple[type[PeerEvent], ...] = get_args(PeerEvent)
LOCAL_EVENTS: tuple[type[LocalEvent], ...] = get_args(LocalEvent)
EVENTS: tuple[type[Event], ...] = (*PEER_EVENTS, *LOCAL_EVENTS)
