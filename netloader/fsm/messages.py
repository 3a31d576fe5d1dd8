"""The messages of the protocol, as plain data. `wire.frames` encodes them.

A message received is an event of the machine that receives it, so these classes appear in the
tables. docs/protocol/conversation.md describes the conversation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from netloader.fsm.identity import Difference, Identity
from netloader.fsm.manifest import Manifest
from netloader.fsm.ranges import Ranges

PROTOCOL_VERSION = 2


class Purpose(Enum):
    """What a client came for."""

    WEIGHTS = "weights"
    DESCRIBE = "describe"
    STATUS = "status"

    @property
    def is_question(self) -> bool:
        """Whether a description answers it, so that no weights move."""
        return self is not Purpose.WEIGHTS


@dataclass(frozen=True, slots=True)
class Start:
    """Client with a token: it asks the server to prove itself first, and says nothing else."""

    versions: tuple[int, ...]
    nonce: str


@dataclass(frozen=True, slots=True)
class Hello:
    """Client: its identity and abilities, each list in order of preference.

    The first message of a client without a token; a client with one says it to a server that has
    proven itself.
    """

    versions: tuple[int, ...]
    purpose: Purpose
    identity: Identity
    layouts: tuple[str, ...] = ()
    transports: tuple[str, ...] = ()
    digest_algorithms: tuple[str, ...] = ()
    manifest_digest: str = ""
    """That of the client's manifest: one that is the same need not be sent."""
    serves_at: str = ""
    """`host:port` where the client will serve what it receives; empty: nowhere."""
    mac: str = ""
    """The client's proof of it; empty without a token."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """Server: its proof over the client's start and its own nonce; asks for the client's."""

    nonce: str
    mac: str = ""
    macs: tuple[str, ...] = ()
    """Its proofs with its other tokens, while tokens are changed."""


@dataclass(frozen=True, slots=True)
class Status:
    """What a server does with one of its models at the moment when a client connects.

    `state` is a value of `ModelState`. `clients` have one of `max_clients` places now; `sessions`
    and `sent_bytes` count from when the role was first published. `segments` of `segment_bytes`
    make `nbytes`, and `available` of them can be sent. `root` is empty while it is not known.
    """

    state: str
    roles: tuple[str, ...]
    """Of all models of the server; empty text: the model without a role."""
    nbytes: int
    clients: int
    max_clients: int
    sessions: int
    sent_bytes: int
    segment_bytes: int
    segments: int
    available: int
    layouts: tuple[str, ...]
    transports: tuple[str, ...]
    digest_algorithm: str
    root: str = ""
    withdrawn: str = ""
    """Why nothing is offered; empty while something is, or soon will be."""
    ports: tuple[int, ...] = ()
    """Of the other ranks of the instance on this host, as far as they serve."""
    kinds: tuple[Mapping[str, str], ...] = ()
    """The role and the part (`Identity.kind`) of each model of the server: a question that names
    them is answered for that model. Empty: the server is older, and has one of each role."""


@dataclass(frozen=True, slots=True)
class Description:
    """Server: its identity, and what it resolved when it loaded the model."""

    identity: Identity
    facts: Mapping[str, str] = field(default_factory=dict)
    status: Status | None = None
    """None: it was not asked for."""
    manifest: Manifest | None = None
    """None: the status was not asked for, or the manifest has the digest that the hello names."""
    mac: str = ""
    """The server's proof of it; empty without a token."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A transport that a session may use, and what a client must know to open its end of it."""

    transport: str
    rendezvous: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Offer:
    """Server: the tensors, segments and digests of a transfer, and its transports in order."""

    session: str
    identity: Identity
    layout: str
    candidates: tuple[Candidate, ...]
    """In the order in which the client is to try them; no transport twice."""
    digest_algorithm: str
    manifest: Manifest | None
    """None: it has the digest that the hello names."""
    segment_bytes: int
    segment_digests: tuple[str, ...]
    root: str
    """The digest over the segment digests: see `root_digest`."""
    availability: Ranges | None = None
    """The segments that the server has; None: all."""
    other_sources: tuple[str, ...] = ()
    """`host:port` of others that may have the same weights; nothing is proven of them."""
    mac: str = ""
    """The server's proof of it; empty without a token."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Client: its end of this candidate is open, and this is what the server's must know of it.

    The candidates are answered in the order of the offer, each at most once, and none after the
    first request. An answer takes back the one before.
    """

    transport: str
    rendezvous: Mapping[str, str] = field(default_factory=dict)
    mac: str = ""
    """The client's proof of it; empty without a token."""


@dataclass(frozen=True, slots=True)
class Opened:
    """Server: its end of this candidate is open too; requests go over it."""

    transport: str


@dataclass(frozen=True, slots=True)
class Unopened:
    """Server: its end of this candidate cannot be opened, and why; the next one may do."""

    transport: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Have:
    """Server: it has these segments too, besides those announced before."""

    segments: Ranges


@dataclass(frozen=True, slots=True)
class Request:
    """Client: both ends of a transport are open; it asks for these segments.

    Requests of a session are numbered from 1. The next one may follow when this one is complete. No
    segment is asked for twice, and only the first request may be empty.
    """

    segments: tuple[int, ...]
    lanes: int = 1
    number: int = 1


@dataclass(frozen=True, slots=True)
class Begin:
    """Server: the transfer of this request starts now."""

    number: int = 1


@dataclass(frozen=True, slots=True)
class Complete:
    """Server: everything that this request asked for has been sent."""

    nbytes: int
    number: int = 1


@dataclass(frozen=True, slots=True)
class Verified:
    """Client: all segments are verified; `root` is the offer's.

    `segments` and `nbytes` count what this session has brought: nothing, if other sources brought
    all of it.
    """

    segments: int
    nbytes: int
    root: str


@dataclass(frozen=True, slots=True)
class Reject:
    """Either side: a refusal. `reason` is a value of `Reason`; unknown ones are allowed."""

    reason: str
    detail: str = ""
    differences: tuple[Difference, ...] = ()
    retry_after_s: float = 0.0
    other_sources: tuple[str, ...] = ()
    """As in an offer."""
    ports: tuple[int, ...] = ()
    """Other ports of the server's host at which the same is served, or what was asked for."""


@dataclass(frozen=True, slots=True)
class Lane:
    """The first message of a data connection; the listener routes it, no machine sees it."""

    session: str
    index: int
    transport: str = ""
    """The candidate that it is for; empty: the first of the offer."""


Message: TypeAlias = (
    Start
    | Hello
    | Challenge
    | Description
    | Offer
    | Answer
    | Opened
    | Unopened
    | Have
    | Request
    | Begin
    | Complete
    | Verified
    | Reject
)
"""The messages that a machine may receive from its peer."""
