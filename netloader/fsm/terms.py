"""What a client wants and what a server has. Lists are in order of preference."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from netloader.config import Endpoint, Secret
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import (
    MIN_SEGMENT_BYTES,
    Manifest,
    Progress,
    root_digest,
    segment_count,
)
from netloader.fsm.messages import Candidate, Offer, Purpose, Status
from netloader.fsm.ranges import are_ranges

MAX_OTHER_SOURCES = 16
"""Sources that one message names. A source that names thousands wants us to dial them all."""
MAX_CANDIDATES = 8
"""Transports that one offer names."""
MAX_RENDEZVOUS_BYTES = 4096
"""Of all texts of one rendezvous or answer, in UTF-8; a few hundred is what transports need."""
MAX_LANES = 16
"""More connections than this only fight for the same link."""


@dataclass(frozen=True, slots=True)
class FetchSpec:
    """What a client wants of one source; lists in order of preference.

    `progress` is what it already holds from earlier sources. A spec for a description needs no
    manifest: the model may not be built yet.
    """

    purpose: Purpose
    identity: Identity
    manifest: Manifest = field(default_factory=lambda: Manifest(()))
    layouts: tuple[str, ...] = ()
    transports: tuple[str, ...] = ()
    digest_algorithms: tuple[str, ...] = ()
    lanes: int = 1
    token: Secret | None = None
    progress: Progress = field(default_factory=Progress)
    serves_at: str = ""

    def flaw(self, offer: Offer) -> str:
        """Why an offer for the right tensors cannot be used all the same, or ''."""
        choices = (
            ("layout", offer.layout, self.layouts),
            ("digest algorithm", offer.digest_algorithm, self.digest_algorithms),
            *(("transport", each.transport, self.transports) for each in offer.candidates),
        )
        for name, choice, able in choices:
            if choice not in able:
                return f"the server chose a {name} that was not asked for"
        if why := _flaw_of_candidates(offer.candidates):
            return why
        if offer.segment_bytes < MIN_SEGMENT_BYTES:
            return f"segments below {MIN_SEGMENT_BYTES} bytes"
        expected = segment_count(self.manifest.nbytes, offer.segment_bytes)
        if len(offer.segment_digests) != expected:
            return f"{len(offer.segment_digests)} segment digests for {expected} segments"
        if offer.root != root_digest(offer.segment_digests):
            return "the root is not that of the segment digests"
        if offer.availability is not None and not are_ranges(offer.availability, expected):
            return "the availability is no ascending list of ranges of segments"
        return ""


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """What a server publishes: everything its sessions need to know, in order of preference.

    Raises ValueError for a `segment_bytes` that no client would take.
    """

    identity: Identity
    manifest: Manifest
    segment_bytes: int
    layouts: tuple[str, ...]
    transports: tuple[str, ...]
    digest_algorithms: tuple[str, ...]
    facts: Mapping[str, str] = field(default_factory=dict)
    tokens: tuple[Secret, ...] = ()
    """A client must know one of them; none: no proof is asked for."""
    status: Status | None = None
    """As of when the session began."""

    def __post_init__(self) -> None:
        if self.segment_bytes < MIN_SEGMENT_BYTES:
            least, given = MIN_SEGMENT_BYTES, self.segment_bytes
            raise ValueError(f"segment_bytes is {given}; clients take no less than {least}")

    @property
    def role(self) -> str | None:
        """What the model is for, if its identity says so: see `Identity.role`."""
        return self.identity.role

    @property
    def kind(self) -> tuple[tuple[str, str], ...]:
        """The role and the part, of which a server has one model on offer each."""
        return tuple(self.identity.kind.items())


@dataclass(frozen=True, slots=True)
class Sibling:
    """A model of another server on the same host, to which clients are sent on."""

    fields: Mapping[str, str]
    """Hard fields of its identity: a client that has all of them wants this model."""
    port: int
    """Where it is served; 0: nowhere yet, because it is being loaded."""

    def suits(self, wanted: Identity) -> bool:
        """Whether a client with this identity is meant for it."""
        return self.fields.items() <= wanted.hard.items()


def _flaw_of_candidates(candidates: tuple[Candidate, ...]) -> str:
    names = [candidate.transport for candidate in candidates]
    if not 1 <= len(names) <= MAX_CANDIDATES:
        return f"{len(names)} transports; 1 to {MAX_CANDIDATES} are allowed"
    if len(set(names)) < len(names):
        return "a transport is offered twice"
    if not all(is_rendezvous(candidate.rendezvous) for candidate in candidates):
        return f"a rendezvous of more than {MAX_RENDEZVOUS_BYTES} bytes"
    return ""


def is_rendezvous(texts: Mapping[str, str]) -> bool:
    """Whether what one end of a transport says to the other is of a size that is allowed."""
    sizes = (len(text.encode(errors="surrogatepass")) for pair in texts.items() for text in pair)
    return sum(sizes) <= MAX_RENDEZVOUS_BYTES


def beside(source: Endpoint, ports: Iterable[int]) -> tuple[Endpoint, ...]:
    """The places at other ports of a source, by the host that the client dials.

    A name stays one, so that a certificate fits it. What is no port is left out.
    """
    found: dict[Endpoint, None] = {}
    for port in islice(ports, MAX_OTHER_SOURCES):
        with suppress(ValueError):
            found[Endpoint(source.host, port)] = None
    return tuple(found)


def places(texts: Iterable[str]) -> tuple[Endpoint, ...]:
    """The places among what a peer named as such, at most MAX_OTHER_SOURCES of them.

    What is no `host:port` is left out.
    """
    found: dict[Endpoint, None] = {}
    for text in islice(texts, MAX_OTHER_SOURCES):
        with suppress(ValueError):
            found[Endpoint.parse(text)] = None
    return tuple(found)
