"""The server's side of a session, as a table. Guards only read; actions return effects."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from netloader.config import Secret
from netloader.fsm import auth
from netloader.fsm.effects import Effect, PrepareOffer, Send, Settle, StartTransfer, Verdict
from netloader.fsm.events import (
    Connected,
    ConnectionLost,
    DeadlinePassed,
    MoreAvailable,
    OfferReady,
    OfferRefused,
    StopRequested,
    TransferFailed,
    Transferred,
)
from netloader.fsm.identity import Difference
from netloader.fsm.manifest import root_digest
from netloader.fsm.messages import (
    PROTOCOL_VERSION,
    Begin,
    Complete,
    Description,
    Have,
    Hello,
    Offer,
    Purpose,
    Reject,
    Request,
    Start,
    Verified,
)
from netloader.fsm.ranges import ranges_of
from netloader.fsm.reasons import Reason
from netloader.fsm.server_opening import OPENING
from netloader.fsm.server_session import ServerSession
from netloader.fsm.session import (
    doubted,
    doubts,
    expired,
    failed,
    idled,
    lost,
    refuse,
    rejected,
    stopped,
    violation,
)
from netloader.fsm.states import LIVING, State
from netloader.fsm.table import Limit, Program, Table, build, check, complete, every, row
from netloader.fsm.terms import MAX_CANDIDATES, MAX_LANES, MAX_OTHER_SOURCES, places

LOADING_S = 2.0
"""When a client may come again that wants a model which is being loaded."""

# -- guards --------------------------------------------------------------------------------------


def _other_version(session: ServerSession, event: Start | Hello) -> bool:
    del session
    return PROTOCOL_VERSION not in event.versions


def _started_twice(session: ServerSession, event: Start) -> bool:
    del event
    return session.start is not None


def _tokenless(session: ServerSession, event: Start) -> bool:
    del event
    return not session.entry.tokens


def _without_proof(session: ServerSession, event: Hello) -> bool:
    """Whether this server asks for a token, and the client has none."""
    del event
    return bool(session.entry.tokens) and session.start is None


def _wrong_proof(session: ServerSession, event: Hello) -> bool:
    return bool(session.entry.tokens) and _known(session, event) is None


def _differs(session: ServerSession, event: Hello) -> bool:
    return bool(_differences(session, event))


def _meant_for_another(session: ServerSession, event: Hello) -> bool:
    """Whether what the client asks for is not here, but at another port of this host."""
    return _differs(session, event) and bool(session.elsewhere(event))


def _curious(session: ServerSession, event: Hello) -> bool:
    del session
    return event.purpose.is_question


def _nothing_shared(session: ServerSession, event: Hello) -> bool:
    return not all(_shared(session, event))


def _offered_and_valid(session: ServerSession, event: Request) -> bool:
    allowed = session.requests.allow(event, len(session.segment_digests))
    return session.opened and allowed and 1 <= event.lanes <= MAX_LANES


def _too_early(session: ServerSession, event: Request) -> bool:
    """Whether a request that is right in all else names a segment that is not here."""
    there = session.available.issuperset(event.segments)
    return _offered_and_valid(session, event) and not there


def _all_sent_and_right(session: ServerSession, event: Verified) -> bool:
    return session.sent and event == _finished(session)


def _never_asked(session: ServerSession, event: Verified) -> bool:
    return session.offered and event == _finished(session)


def _finished(session: ServerSession) -> Verified:
    """What a client says that has verified all that it asked for, and has the rest."""
    root = root_digest(session.segment_digests)
    return Verified(len(session.requests.asked), session.asked_bytes, root)


def _unoffered(session: ServerSession, event: MoreAvailable) -> bool:
    del event
    return not session.offered


def _idle(session: ServerSession, event: DeadlinePassed) -> bool:
    del event
    return session.request is None


def _known(session: ServerSession, event: Hello) -> Secret | None:
    """The token that a hello proves; None where none was asked for."""
    if session.start is None:
        return None
    return auth.known(event, session.entry.tokens, session.start, session.nonce)


def _differences(session: ServerSession, hello: Hello) -> tuple[Difference, ...]:
    mine = session.entries[session.chosen(hello)].identity
    if hello.purpose.is_question:
        return mine.disagreements(hello.identity)
    return mine.differences(hello.identity)


def _shared(session: ServerSession, hello: Hello) -> tuple[tuple[str, ...], ...]:
    """Layouts, transports, digest algorithms that are here too, in the client's order."""
    entry = session.entries[session.chosen(hello)]
    return tuple(
        tuple(name for name in dict.fromkeys(wanted) if name in able)
        for wanted, able in (
            (hello.layouts, entry.layouts),
            (hello.transports, entry.transports),
            (hello.digest_algorithms, entry.digest_algorithms),
        )
    )


# -- actions -------------------------------------------------------------------------------------


def _open(session: ServerSession, event: Connected) -> Iterable[Effect]:
    del session, event
    return ()


def _refuse_version(session: ServerSession, event: Start | Hello) -> Iterable[Effect]:
    theirs = ", ".join(map(str, event.versions[:8])) or "none"
    detail = f"the server speaks version {PROTOCOL_VERSION}, the client {theirs}"
    return refuse(session, Reason.UNSUPPORTED_VERSION, detail)


def _refuse_start(session: ServerSession, event: Start) -> Iterable[Effect]:
    del event
    detail = "the client has a token and the server has none; give both the same, or neither"
    return refuse(session, Reason.AUTH_FAILED, detail)


def _challenge(session: ServerSession, event: Start) -> Iterable[Effect]:
    session.start = event
    if not session.entry.tokens:
        raise AssertionError("guarded by _tokenless")
    yield Send(auth.challenge(session.entry.tokens, event, session.nonce))


def _ask_for_token(session: ServerSession, event: Hello) -> Iterable[Effect]:
    del event
    return refuse(session, Reason.AUTH_REQUIRED, "the server asks for a token; set AUTH_TOKEN_FILE")


def _refuse_proof(session: ServerSession, event: Hello) -> Iterable[Effect]:
    del event
    detail = "the client has another token (compare the two), or its hello was changed on its way"
    return refuse(session, Reason.AUTH_FAILED, detail)


def _refer(session: ServerSession, event: Hello) -> Iterable[Effect]:
    """Name the ports that serve it; have the client come again while it is being loaded."""
    if ports := _ports(session, event):
        shown = ", ".join(map(str, ports))
        return refuse(session, Reason.REFERRED, f"it is served at port {shown}", ports=ports)
    detail = "another rank of this host is loading what was asked for"
    return refuse(session, Reason.NOT_READY, detail, (), LOADING_S)


def _ports(session: ServerSession, hello: Hello) -> tuple[int, ...]:
    """Other ports of this host that serve what a hello asks for."""
    known = sorted({each.port for each in session.elsewhere(hello)} - {0})
    return tuple(known[:MAX_OTHER_SOURCES])


def _refuse_identity(session: ServerSession, event: Hello) -> Iterable[Effect]:
    differences = _differences(session, event)
    names = ", ".join(d.field for d in differences)
    return refuse(session, Reason.IDENTITY_MISMATCH, f"differing: {names}", differences)


def _refuse_abilities(session: ServerSession, event: Hello) -> Iterable[Effect]:
    mine = session.entries[session.chosen(event)]
    detail = "; ".join(
        f"{name}: server has {', '.join(able) or 'none'}, client has {', '.join(wanted) or 'none'}"
        for name, able, wanted, choice in zip(
            ("layouts", "transports", "digest algorithms"),
            (mine.layouts, mine.transports, mine.digest_algorithms),
            (event.layouts, event.transports, event.digest_algorithms),
            _shared(session, event),
            strict=True,
        )
        if not choice
    )
    return refuse(session, Reason.NOTHING_IN_COMMON, detail)


def _describe(session: ServerSession, event: Hello) -> Iterable[Effect]:
    mine = session.entries[session.chosen(event)]
    session.token, session.hello = _known(session, event), event
    description = Description(mine.identity, mine.facts)
    if event.purpose is Purpose.STATUS:
        known = event.manifest_digest == mine.manifest.digest
        manifest = None if known else mine.manifest
        description = replace(description, status=mine.status, manifest=manifest)
    yield Send(auth.proven(description, session.token, event, session.nonce))
    yield Settle(Verdict(State.DONE, Reason.DESCRIBED))


def _prepare(session: ServerSession, event: Hello) -> Iterable[Effect]:
    session.token, session.hello = _known(session, event), event
    _, transports, algorithms = _shared(session, event)
    announced = [str(place) for place in places((event.serves_at,))]
    serves_at = "".join(announced)
    entry = session.chosen(event)
    yield PrepareOffer(transports[:MAX_CANDIDATES], algorithms[0], entry, serves_at)


def _offer(session: ServerSession, event: OfferReady) -> Iterable[Effect]:
    if session.hello is None:
        raise AssertionError("an offer is only prepared after a hello")
    layouts, _, algorithms = _shared(session, session.hello)
    mine = session.entry
    session.offered, session.segment_digests = True, event.segment_digests
    session.candidates = tuple(candidate.transport for candidate in event.candidates)
    everything = frozenset(range(len(event.segment_digests)))
    there = everything if event.available is None else event.available | session.available
    session.available = there
    offer = Offer(
        session=session.session_id,
        identity=mine.identity,
        layout=layouts[0],
        candidates=event.candidates,
        digest_algorithm=algorithms[0],
        manifest=None if session.hello.manifest_digest == mine.manifest.digest else mine.manifest,
        segment_bytes=mine.segment_bytes,
        segment_digests=event.segment_digests,
        root=root_digest(event.segment_digests),
        other_sources=event.other_sources[:MAX_OTHER_SOURCES],
        availability=None if event.available is None else ranges_of(there),
    )
    yield Send(auth.proven(offer, session.token, session.hello, session.nonce))


def _note_more(session: ServerSession, event: MoreAvailable) -> Iterable[Effect]:
    """The offer will say it."""
    session.available |= event.segments
    return ()


def _tell_of_more(session: ServerSession, event: MoreAvailable) -> Iterable[Effect]:
    """Say it at once, but never twice."""
    more = event.segments - session.available
    session.available |= more
    if more:
        yield Send(Have(ranges_of(more)))


def _refuse_early(session: ServerSession, event: Request) -> Iterable[Effect]:
    first = min(segment for segment in event.segments if segment not in session.available)
    return refuse(session, Reason.NOT_AVAILABLE, f"segment {first} is not here yet")


def _turn_away(session: ServerSession, event: OfferRefused) -> Iterable[Effect]:
    others = event.other_sources[:MAX_OTHER_SOURCES]
    ports = _ports(session, session.hello) if session.hello else ()
    return refuse(session, event.reason, event.detail, (), event.retry_after_s, others, ports)


def _begin(session: ServerSession, event: Request) -> Iterable[Effect]:
    session.requests = session.requests.with_next(event)
    yield Send(Begin(event.number))
    yield StartTransfer(event.segments, event.lanes)


def _say_complete(session: ServerSession, event: Transferred) -> Iterable[Effect]:
    session.requests = session.requests.completed()
    yield Send(Complete(event.nbytes, session.requests.count))


def _succeed(session: ServerSession, event: Verified) -> Iterable[Effect]:
    del session, event
    yield Settle(Verdict(State.DONE, Reason.VERIFIED))


def _let_go(session: ServerSession, event: Verified) -> Iterable[Effect]:
    """Other sources have brought everything, and this one was asked for nothing."""
    del session, event
    yield Settle(Verdict(State.DONE, Reason.NOT_NEEDED))


def _disagree(session: ServerSession, event: Verified) -> Iterable[Effect]:
    detail = f"the client verified {event.segments} segments, {event.nbytes} bytes"
    return refuse(session, Reason.DISAGREEMENT, detail)


# -- the table -----------------------------------------------------------------------------------

L, H, V, T, D, F = State

TABLE: Table[ServerSession] = complete(
    (
        #   in  on            to  do                 when
        row(L, Connected,     H, _open),
        row(H, Start,         F, violation,          when=_started_twice),
        row(H, Start,         F, _refuse_version,    when=_other_version),
        row(H, Start,         F, _refuse_start,      when=_tokenless),
        row(H, Start,         H, _challenge),
        row(H, Hello,         F, _refuse_version,    when=_other_version),
        row(H, Hello,         F, _ask_for_token,     when=_without_proof),
        row(H, Hello,         F, _refuse_proof,      when=_wrong_proof),
        row(H, Hello,         F, _refer,             when=_meant_for_another),
        row(H, Hello,         F, _refuse_identity,   when=_differs),
        row(H, Hello,         D, _describe,          when=_curious),
        row(H, Hello,         F, _refuse_abilities,  when=_nothing_shared),
        row(H, Hello,         V, _prepare),
        row(V, OfferReady,    V, _offer),
        row(V, OfferRefused,  F, _turn_away),
        *OPENING,
        row(V, MoreAvailable, V, _note_more,         when=_unoffered),
        row(V, MoreAvailable, V, _tell_of_more),
        row(V, Request,       F, _refuse_early,      when=_too_early),
        row(V, Request,       T, _begin,             when=_offered_and_valid),
        row(V, Verified,      D, _let_go,            when=_never_asked),
        row(T, MoreAvailable, T, _tell_of_more),
        row(T, Request,       F, _refuse_early,      when=_too_early),
        row(T, Request,       T, _begin,             when=_offered_and_valid),
        row(T, Transferred,   T, _say_complete),
        row(T, Verified,      D, _succeed,           when=_all_sent_and_right),
        row(T, Verified,      F, _disagree),
        row(T, Reject,        F, doubted,            when=doubts),
        row(T, DeadlinePassed, F, idled,             when=_idle),
        *every((V, T), TransferFailed, F, failed),
        *every(LIVING, Reject,         F, rejected),
        *every(LIVING, ConnectionLost, F, lost),
        *every(LIVING, DeadlinePassed, F, expired),
        *every(LIVING, StopRequested,  F, stopped),
    ),
    violation,
)  # fmt: skip

LIMITS: Mapping[State, Limit] = {
    State.LISTEN: lambda deadlines, _: deadlines.handshake_s,
    State.HANDSHAKE: lambda deadlines, _: deadlines.handshake_s,
    State.VALIDATE: lambda deadlines, _: deadlines.validate_s,
    State.TRANSFER: lambda deadlines, nbytes: deadlines.transfer_s(nbytes),
}

check(TABLE, LIMITS)
MACHINE: Program = build(TABLE)
ServerSession.machine = MACHINE
ServerSession.limits = LIMITS
