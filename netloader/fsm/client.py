"""The client's side of a session, as a table. Guards only read; actions return effects."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from netloader.errors import LocalProtocolError
from netloader.fsm import auth
from netloader.fsm.client_opening import OPENING, choice, open_next
from netloader.fsm.client_session import ClientSession
from netloader.fsm.effects import (
    Effect,
    NoteAvailable,
    Send,
    Settle,
    StartTransfer,
    Verdict,
)
from netloader.fsm.events import (
    Ask,
    Connected,
    ConnectFailed,
    ConnectionLost,
    DeadlinePassed,
    Finish,
    StopRequested,
    TransferFailed,
    Transferred,
)
from netloader.fsm.messages import (
    Begin,
    Challenge,
    Complete,
    Description,
    Have,
    Offer,
    Reject,
    Request,
    Verified,
)
from netloader.fsm.ranges import are_ranges, segments_in
from netloader.fsm.reasons import Reason
from netloader.fsm.session import (
    expired,
    failed,
    failure,
    idled,
    lost,
    part,
    refuse,
    rejected,
    stopped,
    violation,
)
from netloader.fsm.states import LIVING, State
from netloader.fsm.table import Limit, Program, Table, build, check, complete, every, row

# -- guards --------------------------------------------------------------------------------------


def _needless(session: ClientSession, event: Challenge) -> bool:
    """Whether this client has no token, or has had the server's proof."""
    del event
    return session.spec.token is None or session.proven


def _wrong_proof(session: ClientSession, event: Challenge) -> bool:
    token = session.spec.token
    return token is None or not auth.challenges(event, token, session.start)


def _unproven(session: ClientSession, event: Offer | Description) -> bool:
    token, challenge = session.spec.token, session.challenge
    if token is None:
        return False
    return challenge is None or not auth.proves(event, token, session.hello, challenge.nonce)


def _unwanted(session: ClientSession, event: Offer | Description) -> bool:
    return isinstance(event, Offer) is session.spec.purpose.is_question


def _other_identity(session: ClientSession, event: Offer) -> bool:
    return bool(session.spec.identity.differences(event.identity))


def _other_manifest(session: ClientSession, event: Offer) -> bool:
    theirs = event.manifest
    return theirs is not None and session.spec.manifest.difference(theirs) is not None


def _unusable(session: ClientSession, event: Offer) -> bool:
    return bool(session.spec.flaw(event))


def _news(session: ClientSession, event: Have) -> bool:
    """Whether a server that has not everything has more than it said, so it cannot go on for ever.

    One that has made no offer has nothing.
    """
    count = len(session.offer.segment_digests) if session.offer else 0
    return are_ranges(event.segments, count) and not session.available.issuperset(
        segments_in(event.segments)
    )


def _awaited(session: ClientSession, event: Begin) -> bool:
    asked = session.request is not None and not session.begun
    return asked and event.number == session.requests.count


def _unasked(session: ClientSession, event: Complete) -> bool:
    under_way = session.request is not None and session.begun and not session.completed
    return not under_way or event.number != session.requests.count


def _received_all(session: ClientSession, event: Complete) -> bool:
    del event
    return session.received


def _miscounted(session: ClientSession, event: Complete) -> bool:
    return event.nbytes != session.nbytes


def _told_complete(session: ClientSession, event: Transferred) -> bool:
    del event
    return session.completed


def _owes_nothing(session: ClientSession, event: ConnectionLost) -> bool:
    """Whether the server has sent everything that it was asked for, or all that is lacking."""
    del event
    return session.completed or (session.request is None and not session.lacking)


def _cut_short(session: ClientSession, event: Transferred) -> bool:
    """Whether a server that is gone has sent everything it was asked for, but not all."""
    brought = session.request.segments if session.request else ()
    gone = _told_complete(session, event) and session.cut is not None
    return gone and not set(session.lacking).issubset(brought)


def _cut_off(session: ClientSession, event: Ask) -> bool:
    del event
    return session.cut is not None


def _idle(session: ClientSession, event: DeadlinePassed) -> bool:
    del event
    return session.request is None


# -- actions -------------------------------------------------------------------------------------


def _greet(session: ClientSession, event: Connected) -> Iterable[Effect]:
    del event
    yield Send(session.hello if session.spec.token is None else session.start)


def _give_up(session: ClientSession, event: ConnectFailed) -> Iterable[Effect]:
    return part(session, failure(session, Reason.UNREACHABLE, event.detail))


def _unreachable(session: ClientSession, event: DeadlinePassed) -> Iterable[Effect]:
    del event
    return part(session, failure(session, Reason.UNREACHABLE, "no answer to connect"))


def _refuse_server(session: ClientSession, event: Challenge) -> Iterable[Effect]:
    del event
    detail = "the server has another token, or the start was changed on its way"
    return refuse(session, Reason.AUTH_FAILED, detail)


def _refuse_unproven(session: ClientSession, event: Offer | Description) -> Iterable[Effect]:
    kind = type(event).__name__.lower()
    detail = f"the {kind} was changed on its way, or the server has another token"
    if not session.proven:
        detail = "the server has not proven that it knows the token"
    return refuse(session, Reason.AUTH_FAILED, detail)


def _prove(session: ClientSession, event: Challenge) -> Iterable[Effect]:
    session.challenge = event
    yield Send(session.hello)


def _learn(session: ClientSession, event: Description) -> Iterable[Effect]:
    session.description = event
    yield Settle(Verdict(State.DONE, Reason.DESCRIBED))


def _refuse_identity(session: ClientSession, event: Offer) -> Iterable[Effect]:
    differences = session.spec.identity.differences(event.identity)
    names = ", ".join(d.field for d in differences)
    return refuse(session, Reason.IDENTITY_MISMATCH, f"differing: {names}", differences)


def _refuse_manifest(session: ClientSession, event: Offer) -> Iterable[Effect]:
    first = session.spec.manifest.difference(event.manifest or session.spec.manifest)
    found = () if first is None else (first,)
    return refuse(session, Reason.MANIFEST_MISMATCH, f"first difference: {first}", found)


def _refuse_offer(session: ClientSession, event: Offer) -> Iterable[Effect]:
    return refuse(session, Reason.PROTOCOL_VIOLATION, session.spec.flaw(event))


def _accept(session: ClientSession, event: Offer) -> Iterable[Effect]:
    session.offer = replace(event, manifest=event.manifest or session.spec.manifest)
    held = session.spec.progress.continued(
        event.digest_algorithm, event.segment_bytes, event.segment_digests
    )
    session.lacking = held.missing()
    everything = ((0, len(event.segment_digests)),)
    ranges = everything if event.availability is None else event.availability
    session.available = segments_in(ranges)
    return open_next(session)


def _learn_of_more(session: ClientSession, event: Have) -> Iterable[Effect]:
    more = segments_in(event.segments) - session.available
    session.available |= more
    yield NoteAvailable(more)


def _ask(session: ClientSession, event: Ask) -> Iterable[Effect]:
    offer = session.offer
    if offer is None:
        raise AssertionError("VALIDATE is only entered with an offer")
    request = Request(event.segments, session.spec.lanes, session.requests.count + 1)
    there = session.available.issuperset(event.segments)
    if not there or not session.requests.allow(request, len(offer.segment_digests)):
        raise LocalProtocolError(f"these segments cannot be asked for now: {event.segments[:8]}")
    session.requests = session.requests.with_next(request)
    yield Send(request)


def _start(session: ClientSession, event: Begin) -> Iterable[Effect]:
    del event
    request = session.request
    if request is None:
        raise AssertionError("guarded by _awaited")
    session.touched = session.begun = True
    yield StartTransfer(request.segments, request.lanes)


def _hold(session: ClientSession, event: Transferred) -> Iterable[Effect]:
    del event
    session.received = True
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
    session.cut = event.detail
    return ()


def _go_on(session: ClientSession, event: Complete | Transferred) -> Iterable[Effect]:
    """A request is over: everything was sent and has arrived."""
    del event
    if session.request is None:
        raise AssertionError("a transfer begins with a request")
    brought = session.request.segments
    session.lacking = tuple(sorted({*session.lacking}.difference(brought)))
    session.requests = session.requests.completed()
    session.begun = session.completed = session.received = False
    yield choice(session)


def _too_late(session: ClientSession, event: Ask | Transferred) -> Iterable[Effect]:
    del event
    return part(session, failure(session, Reason.CONNECTION_LOST, session.cut or ""))


def _confirm(session: ClientSession, event: Finish) -> Iterable[Effect]:
    return _finish(session, event, Reason.VERIFIED)


def _need_nothing(session: ClientSession, event: Finish) -> Iterable[Effect]:
    """Other sources have brought everything, so this one may go."""
    return _finish(session, event, Reason.NOT_NEEDED)


def _finish(session: ClientSession, event: Finish, reason: Reason) -> Iterable[Effect]:
    del event
    if session.request is not None:
        raise LocalProtocolError(f"request {session.request.number} is not complete")
    root = session.offer.root if session.offer else ""
    yield Send(Verified(len(session.requests.asked), session.asked_bytes, root))
    yield Settle(Verdict(State.DONE, reason, weights_dirty=session.touched))


# -- the table -----------------------------------------------------------------------------------

L, H, V, T, D, F = State

TABLE: Table[ClientSession] = complete(
    (
        #   in  on              to  do                when
        row(L, Connected,       H, _greet),
        row(L, ConnectFailed,   F, _give_up),
        row(H, Challenge,       F, violation,         when=_needless),
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
        *OPENING,
        row(V, TransferFailed,  F, failed),
        row(V, Have,            V, _learn_of_more,    when=_news),
        row(V, Ask,             V, _ask),
        row(V, Finish,          D, _need_nothing),
        row(V, Begin,           T, _start,            when=_awaited),
        row(T, Have,            T, _learn_of_more,    when=_news),
        row(T, Begin,           T, _start,            when=_awaited),
        row(T, Transferred,     F, _too_late,         when=_cut_short),
        row(T, Transferred,     T, _go_on,            when=_told_complete),
        row(T, Transferred,     T, _hold),
        row(T, Complete,        F, violation,         when=_unasked),
        row(T, Complete,        F, _disagree,         when=_miscounted),
        row(T, Complete,        T, _go_on,            when=_received_all),
        row(T, Complete,        T, _note_complete),
        row(T, Ask,             F, _too_late,         when=_cut_off),
        row(T, Ask,             T, _ask),
        row(T, Finish,          D, _confirm),
        row(T, TransferFailed,  F, failed),
        row(T, ConnectionLost,  T, _carry_on,         when=_owes_nothing),
        row(T, DeadlinePassed,  F, idled,             when=_idle),
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
