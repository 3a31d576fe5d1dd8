"""The client's side of a session. Law: the table is the program; guards look, actions answer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from netloader.config import Deadlines, Secret
from netloader.fsm import auth
from netloader.fsm.effects import Effect, OpenTransport, Send, Settle, StartTransfer, Verdict
from netloader.fsm.events import (
    Connected,
    ConnectFailed,
    ConnectionLost,
    DeadlinePassed,
    StopRequested,
    TransferFailed,
    Transferred,
    TransportReady,
)
from netloader.fsm.identity import Difference, Identity
from netloader.fsm.manifest import (
    MIN_SEGMENT_BYTES,
    Manifest,
    Progress,
    root_digest,
    segment_count,
    span,
)
from netloader.fsm.messages import (
    PROTOCOL_VERSION,
    Begin,
    Challenge,
    Complete,
    Description,
    Hello,
    Offer,
    Proof,
    Purpose,
    Reject,
    Request,
    Verified,
)
from netloader.fsm.reasons import Reason
from netloader.fsm.session import (
    FRAME_AFTER_TRUST,
    FRAME_BEFORE_TRUST,
    Session,
    expired,
    failed,
    failure,
    lost,
    part,
    refuse,
    rejected,
    stopped,
    violation,
)
from netloader.fsm.states import LIVING, State
from netloader.fsm.table import Limit, Program, Table, build, check, complete, every, row


@dataclass(frozen=True, slots=True)
class FetchSpec:
    """What a client wants of one source; lists in order of preference.

    `progress` is what it holds from earlier sources. To be told a description takes no manifest.
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


class ClientSession(Session):
    """One source, seen from the client. `nonce` is the caller's randomness."""

    __slots__ = (
        "challenge",
        "completed",
        "description",
        "nonce",
        "offer",
        "received",
        "request",
        "spec",
    )

    side: ClassVar[str] = "client"

    def __init__(self, spec: FetchSpec, deadlines: Deadlines, nonce: str, now: float) -> None:
        self.spec = spec
        self.nonce = nonce
        self.challenge: Challenge | None = None
        self.offer: Offer | None = None
        self.request: Request | None = None
        self.description: Description | None = None
        self.received: Transferred | None = None
        self.completed = False
        super().__init__(deadlines, now)

    @property
    def name(self) -> str:
        """The id the offer named."""
        return self.offer.session if self.offer else ""

    @property
    def hello(self) -> Hello:
        """What this client says first; every proof of the session covers it."""
        spec = self.spec
        return Hello(
            versions=(PROTOCOL_VERSION,),
            purpose=spec.purpose,
            identity=spec.identity,
            layouts=spec.layouts,
            transports=spec.transports,
            digest_algorithms=spec.digest_algorithms,
            nonce=self.nonce,
        )

    @property
    def proven(self) -> bool:
        """Whether the server has shown that it knows the token."""
        return self.challenge is not None

    @property
    def nbytes(self) -> int:
        """Bytes asked of this source."""
        if self.offer is None or self.request is None:
            return 0
        total, size = self.spec.manifest.nbytes, self.offer.segment_bytes
        return span(total, size, self.request.segments)

    @property
    def frame_limit(self) -> int:
        """Small while a server that must prove itself has not."""
        trusted = self.spec.token is None or self.proven
        return FRAME_AFTER_TRUST if trusted else FRAME_BEFORE_TRUST


# -- guards --------------------------------------------------------------------------------------


def _tokenless(session: ClientSession, event: Challenge) -> bool:
    del event
    return session.spec.token is None


def _wrong_proof(session: ClientSession, event: Challenge) -> bool:
    token = session.spec.token
    return token is None or not auth.proves(event, token, session.hello, event.nonce)


def _asked_again(session: ClientSession, event: Challenge) -> bool:
    del event
    return session.proven


def _unproven(session: ClientSession, event: Offer | Description) -> bool:
    token, challenge = session.spec.token, session.challenge
    if token is None:
        return False
    return challenge is None or not auth.proves(event, token, session.hello, challenge.nonce)


def _unwanted(session: ClientSession, event: Offer | Description) -> bool:
    return isinstance(event, Offer) is (session.spec.purpose is Purpose.DESCRIBE)


def _other_identity(session: ClientSession, event: Offer) -> bool:
    return bool(session.spec.identity.differences(event.identity))


def _other_manifest(session: ClientSession, event: Offer) -> bool:
    return session.spec.manifest.difference(event.manifest) is not None


def _unusable(session: ClientSession, event: Offer) -> bool:
    return bool(_flaw(session.spec, event))


def _ready(session: ClientSession, event: Begin) -> bool:
    del event
    return session.request is not None


def _received_all(session: ClientSession, event: Complete) -> bool:
    del event
    return session.received is not None


def _miscounted(session: ClientSession, event: Complete) -> bool:
    return event.nbytes != session.nbytes


def _told_complete(session: ClientSession, event: Complete | Transferred | ConnectionLost) -> bool:
    del event
    return session.completed


def _flaw(spec: FetchSpec, offer: Offer) -> str:
    """Why an offer for the right tensors cannot be used all the same, or ''."""
    choices = (
        ("layout", offer.layout, spec.layouts),
        ("transport", offer.transport, spec.transports),
        ("digest algorithm", offer.digest_algorithm, spec.digest_algorithms),
    )
    for name, choice, able in choices:
        if choice not in able:
            return f"the server chose a {name} that was not asked for"
    if offer.segment_bytes < MIN_SEGMENT_BYTES:
        return f"segments below {MIN_SEGMENT_BYTES} bytes"
    expected = segment_count(spec.manifest.nbytes, offer.segment_bytes)
    if len(offer.segment_digests) != expected:
        return f"{len(offer.segment_digests)} segment digests for {expected} segments"
    if offer.root != root_digest(offer.segment_digests):
        return "the root is not that of the segment digests"
    return ""


# -- actions -------------------------------------------------------------------------------------


def _greet(session: ClientSession, event: Connected) -> Iterable[Effect]:
    del event
    yield Send(session.hello)


def _give_up(session: ClientSession, event: ConnectFailed) -> Iterable[Effect]:
    return part(session, failure(session, Reason.UNREACHABLE, event.detail))


def _unreachable(session: ClientSession, event: DeadlinePassed) -> Iterable[Effect]:
    del event
    return part(session, failure(session, Reason.UNREACHABLE, "no answer to connect"))


def _refuse_challenge(session: ClientSession, event: Challenge) -> Iterable[Effect]:
    del event
    return refuse(session, Reason.AUTH_REQUIRED, "the server asks for a token; set AUTH_TOKEN_FILE")


def _refuse_server(session: ClientSession, event: Challenge) -> Iterable[Effect]:
    del event
    detail = "the server has another token, or the hello was changed on its way"
    return refuse(session, Reason.AUTH_FAILED, detail)


def _refuse_unproven(session: ClientSession, event: Offer | Description) -> Iterable[Effect]:
    kind = type(event).__name__.lower()
    detail = f"the {kind} was changed on its way, or the server has another token"
    if not session.proven:
        detail = "the server has not proven that it knows the token"
    return refuse(session, Reason.AUTH_FAILED, detail)


def _prove(session: ClientSession, event: Challenge) -> Iterable[Effect]:
    token = session.spec.token
    if token is None:
        raise AssertionError("guarded by _tokenless")
    session.challenge = event
    yield Send(auth.proven(Proof(), token, session.hello, event.nonce))


def _learn(session: ClientSession, event: Description) -> Iterable[Effect]:
    session.description = event
    yield Settle(Verdict(State.DONE, Reason.DESCRIBED))


def _refuse_identity(session: ClientSession, event: Offer) -> Iterable[Effect]:
    differences = session.spec.identity.differences(event.identity)
    names = ", ".join(d.field for d in differences)
    return refuse(session, Reason.IDENTITY_MISMATCH, f"differing: {names}", differences)


def _refuse_manifest(session: ClientSession, event: Offer) -> Iterable[Effect]:
    first = session.spec.manifest.difference(event.manifest)
    found: tuple[Difference, ...] = (first,) if first else ()
    return refuse(session, Reason.MANIFEST_MISMATCH, f"first difference: {first}", found)


def _refuse_offer(session: ClientSession, event: Offer) -> Iterable[Effect]:
    return refuse(session, Reason.PROTOCOL_VIOLATION, _flaw(session.spec, event))


def _accept(session: ClientSession, event: Offer) -> Iterable[Effect]:
    session.offer = event
    yield OpenTransport(event)


def _ask(session: ClientSession, event: TransportReady) -> Iterable[Effect]:
    del event
    offer, spec = session.offer, session.spec
    if offer is None:
        raise AssertionError("VALIDATE is only entered with an offer")
    held = spec.progress.continued(
        offer.digest_algorithm, offer.segment_bytes, offer.segment_digests
    )
    session.request = Request(held.missing(), spec.lanes)
    yield Send(session.request)


def _start(session: ClientSession, event: Begin) -> Iterable[Effect]:
    del event
    request = session.request
    if request is None:
        raise AssertionError("guarded by _ready")
    session.touched = True
    yield StartTransfer(request.segments, request.lanes)


def _hold(session: ClientSession, event: Transferred) -> Iterable[Effect]:
    session.received = event
    return ()


def _disagree(session: ClientSession, event: Complete) -> Iterable[Effect]:
    detail = f"the server sent {event.nbytes} bytes, {session.nbytes} were asked for"
    return refuse(session, Reason.DISAGREEMENT, detail)


def _note_complete(session: ClientSession, event: Complete) -> Iterable[Effect]:
    del event
    session.completed = True
    return ()


def _carry_on(session: ClientSession, event: ConnectionLost) -> Iterable[Effect]:
    """Everything was sent before the connection went: what is in flight may still arrive."""
    del session, event
    return ()


def _confirm(session: ClientSession, event: Complete | Transferred) -> Iterable[Effect]:
    received = event if isinstance(event, Transferred) else session.received
    offer, request = session.offer, session.request
    if received is None or offer is None or request is None:
        raise AssertionError("TRANSFER is only entered with an offer and a request")
    yield Send(Verified(len(request.segments), received.nbytes, offer.root))
    yield Settle(Verdict(State.DONE, Reason.VERIFIED, weights_dirty=True))


# -- the table -----------------------------------------------------------------------------------

L, H, V, T, D, F = State

TABLE: Table[ClientSession] = complete(
    (
        #   in  on              to  do                when
        row(L, Connected,       H, _greet),
        row(L, ConnectFailed,   F, _give_up),
        row(H, Challenge,       F, _refuse_challenge, when=_tokenless),
        row(H, Challenge,       F, violation,         when=_asked_again),
        row(H, Challenge,       F, _refuse_server,    when=_wrong_proof),
        row(H, Challenge,       H, _prove),
        row(H, Description,     F, _refuse_unproven,  when=_unproven),
        row(H, Description,     F, violation,         when=_unwanted),
        row(H, Description,     D, _learn),
        row(H, Offer,           F, _refuse_unproven,  when=_unproven),
        row(H, Offer,           F, violation,         when=_unwanted),
        row(H, Offer,           F, _refuse_identity,  when=_other_identity),
        row(H, Offer,           F, _refuse_manifest,  when=_other_manifest),
        row(H, Offer,           F, _refuse_offer,     when=_unusable),
        row(H, Offer,           V, _accept),
        row(V, TransportReady,  V, _ask),
        row(V, TransferFailed,  F, failed),
        row(V, Begin,           T, _start,            when=_ready),
        row(T, Transferred,     D, _confirm,          when=_told_complete),
        row(T, Transferred,     T, _hold),
        row(T, Complete,        F, violation,         when=_told_complete),
        row(T, Complete,        F, _disagree,         when=_miscounted),
        row(T, Complete,        D, _confirm,          when=_received_all),
        row(T, Complete,        T, _note_complete),
        row(T, TransferFailed,  F, failed),
        row(T, ConnectionLost,  T, _carry_on,         when=_told_complete),
        row(L, DeadlinePassed,  F, _unreachable),
        *every(LIVING,    Reject,         F, rejected),
        *every(LIVING,    ConnectionLost, F, lost),
        *every((H, V, T), DeadlinePassed, F, expired),
        *every(LIVING,    StopRequested,  F, stopped),
    ),
    violation,
)  # fmt: skip

LIMITS: Mapping[State, Limit] = {
    State.LISTEN: lambda deadlines, _: deadlines.connect_s,
    State.HANDSHAKE: lambda deadlines, _: deadlines.handshake_s,
    State.VALIDATE: lambda deadlines, _: deadlines.validate_s,
    State.TRANSFER: lambda deadlines, nbytes: deadlines.transfer_s(nbytes),
}

check(TABLE, LIMITS)
MACHINE: Program = build(TABLE)
ClientSession.machine = MACHINE
ClientSession.limits = LIMITS
