"""States, events and effects of a published model: closed unions of frozen dataclasses."""

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias, get_args

from netloader.fsm.reasons import Reason


class ModelState(Enum):
    """Where a published model is in its life."""

    PREPARING = "preparing"
    """Digests are not known yet; clients wait for them."""
    RECEIVING = "receiving"
    """A relay: digests are known, segments become available one by one."""
    OFFERED = "offered"
    """Clients are served."""
    FENCED = "fenced"
    """Weights change in place: nothing is offered, and nobody begins to read."""
    AUDITING = "auditing"
    """Weights are compared with their digests; offers wait for the result."""
    LOST = "lost"
    """Weights are not what was published, or were withdrawn; nothing is offered any more."""
    RETIRED = "retired"
    """Nothing is offered any more; memory is released when the last session has ended."""


class Cause(Enum):
    """Why offers wait for an audit."""

    DOUBT = "doubt"
    """A client received other bytes than were published."""
    RESUME = "resume"
    """A fence ended with the statement that the weights are what they were."""


class Renewal(Enum):
    """What the owner has said about newer weights, of a model that was found to be changed."""

    NONE = "none"
    """It was not asked: nothing was found to be changed."""
    ASKED = "asked"
    PROMISED = "promised"
    REFUSED = "refused"


class Work(Enum):
    """What reads all weights in the background; there is at most one at a time."""

    DIGESTS = "digests"
    AUDIT = "audit"


# -- what each state knows -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Preparing:
    """Nothing: digests are asked for, or being computed."""


@dataclass(frozen=True, slots=True)
class Receiving:
    """All digests, and the indices of the segments that are verified."""

    digests: tuple[str, ...]
    available: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Offered:
    """The digest of every segment."""

    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fenced:
    """`depth` fences are open. `lost` is why nothing is offered after the last one, if so."""

    why: str
    depth: int = 1
    digests: tuple[str, ...] = ()
    lost: str = ""


@dataclass(frozen=True, slots=True)
class Auditing:
    """`again`: what reads the weights now began before the doubt; another audit follows."""

    digests: tuple[str, ...]
    cause: Cause
    begun: float
    again: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """`digests` are those of what was published; empty while they were not known."""

    why: str
    digests: tuple[str, ...] = ()
    renewal: Renewal = Renewal.NONE


@dataclass(frozen=True, slots=True)
class Retired:
    """Clients are told `reason`. `released`: the last reader has ended, and memory was freed."""

    why: str
    reason: Reason = Reason.NOT_SERVING
    released: bool = False


Data: TypeAlias = Preparing | Receiving | Offered | Fenced | Auditing | Lost | Retired

# -- what can happen -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DigestsAsked:
    """The owner wants the digests to be computed."""


@dataclass(frozen=True, slots=True)
class DigestsKnown:
    """The owner knows the digests: a client has verified these bytes."""

    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DigestsReady:
    """The digests were computed."""

    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AuditAsked:
    """The owner wants the weights to be compared with their digests, while they are offered."""


@dataclass(frozen=True, slots=True)
class AuditEnded:
    """An audit is over; `why` names what it found changed, or is empty."""

    why: str = ""


@dataclass(frozen=True, slots=True)
class WorkFailed:
    """Digests could not be computed or compared."""

    why: str


@dataclass(frozen=True, slots=True)
class WorkStopped:
    """Digests or an audit were given up, or could not be begun; nothing was found."""


@dataclass(frozen=True, slots=True)
class ReceivingBegan:
    """A relay knows the digests and has no segment yet."""

    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SegmentsAvailable:
    """These segments of a relay are verified."""

    segments: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ClientArrived:
    """A session wants a place. Answered with `Admit` or `Deny`."""


@dataclass(frozen=True, slots=True)
class ClientLeft:
    """A session gives its place back."""


@dataclass(frozen=True, slots=True)
class ReaderArrived:
    """A thread wants to read the weights. Answered with `Admit` or `Deny`."""


@dataclass(frozen=True, slots=True)
class ReaderLeft:
    """A thread reads no more."""


@dataclass(frozen=True, slots=True)
class Doubted:
    """A client received other bytes than were published. It may be wrong, or lie."""


@dataclass(frozen=True, slots=True)
class ChangeFound:
    """The weights are not what was published, and nobody announced it."""

    why: str


@dataclass(frozen=True, slots=True)
class FenceRaised:
    """The owner is going to write to the weights."""

    why: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """A fence ended; the weights are what they were before it."""


@dataclass(frozen=True, slots=True)
class RenewalPromised:
    """The owner of lost weights prepares newer ones."""


@dataclass(frozen=True, slots=True)
class RenewalRefused:
    """The owner of lost weights has no newer ones."""


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The owner offers these weights no more. Sessions go on to their end."""

    why: str


@dataclass(frozen=True, slots=True)
class ModelGone:
    """The model, or its server, is gone for good, or other weights have taken its place."""

    why: str
    reason: Reason = Reason.NOT_SERVING
    """What sessions are told; NOT_READY when it is worth to ask again."""


@dataclass(frozen=True, slots=True)
class Quiet:
    """No session has a place, and nothing reads. `step` itself says so."""


Event: TypeAlias = (
    DigestsAsked | DigestsKnown | DigestsReady | AuditAsked | AuditEnded | WorkFailed | WorkStopped
    | ReceivingBegan | SegmentsAvailable | ClientArrived | ClientLeft | ReaderArrived | ReaderLeft
    | Doubted | ChangeFound | FenceRaised | Resumed | RenewalPromised | RenewalRefused
    | Withdrawn | ModelGone | Quiet
)  # fmt: skip
EVENTS: tuple[type[Event], ...] = get_args(Event)
ANY_TIME: tuple[type[Event], ...] = (
    DigestsAsked, DigestsKnown, AuditAsked, ClientArrived, ClientLeft, ReaderArrived, ReaderLeft,
    Doubted, ChangeFound, FenceRaised, Withdrawn, ModelGone,
)  # fmt: skip
"""Events that may come in every state; another one that has no row is the driver's bug."""

# -- what is to be done ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Admit:
    """Whoever arrived has a place, or may read."""


@dataclass(frozen=True, slots=True)
class Deny:
    """Whoever arrived has no place, or may not read; `why` is empty when all places are taken."""

    why: str = ""


@dataclass(frozen=True, slots=True)
class ComputeDigests:
    """Compute the digest of every segment; report DigestsReady, WorkFailed or WorkStopped."""


@dataclass(frozen=True, slots=True)
class Audit:
    """Compare all weights with `digests`; report AuditEnded, WorkFailed or WorkStopped."""

    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EvictSessions:
    """End every session that has a place, with this reason."""

    why: str
    reason: Reason = Reason.NOT_SERVING


@dataclass(frozen=True, slots=True)
class TellOfMore:
    """Tell every session that has a place of segments that are available since."""

    segments: frozenset[int]


@dataclass(frozen=True, slots=True)
class AskOwner:
    """Tell the owner that its weights were changed; report RenewalPromised or RenewalRefused."""

    why: str


@dataclass(frozen=True, slots=True)
class Release:
    """Give up the memory and all that refers to the owner; once, and nothing reads any more."""


Effect: TypeAlias = (
    Admit | Deny | ComputeDigests | Audit | EvictSessions | TellOfMore | AskOwner | Release
)  # fmt: skip
