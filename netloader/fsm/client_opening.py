"""How a client opens a transport. Nothing is asked for before both ends are open.

The candidates of the offer are tried in order. A client opens its end and answers the server; then
both sides do at the same time what takes both. Where either side cannot, the client goes on to the
next candidate in the same session. It need not wait for the server's word on a candidate that it
gives up itself, so that word may cross the next answer.
"""

from collections.abc import Iterable

from netloader.fsm import auth
from netloader.fsm.client_session import ClientSession
from netloader.fsm.effects import ChooseSegments, Effect, JoinTransport, OpenTransport, Send
from netloader.fsm.events import TransportJoined, TransportReady, TransportRefused
from netloader.fsm.messages import Answer, Opened, Unopened
from netloader.fsm.reasons import Reason
from netloader.fsm.session import refuse
from netloader.fsm.states import State
from netloader.fsm.table import Table, row

# -- guards --------------------------------------------------------------------------------------


def _another_left(session: ClientSession, event: TransportRefused) -> bool:
    del event
    return bool(session.later_candidates)


def _refused_there(session: ClientSession, event: TransportJoined) -> bool:
    del event
    return isinstance(session.reply, Unopened)


def _refused_there_but_another_left(session: ClientSession, event: TransportJoined) -> bool:
    return _refused_there(session, event) and bool(session.later_candidates)


def _open_there(session: ClientSession, event: TransportJoined) -> bool:
    del event
    return isinstance(session.reply, Opened)


def _crossed(session: ClientSession, event: Opened | Unopened) -> bool:
    """Whether it is about a candidate that this side has given up meanwhile."""
    return event.transport in session.crossing


def _awaited(session: ClientSession, event: Opened | Unopened) -> bool:
    at_hand = session.answered and event.transport == session.transport
    return at_hand and session.reply is None


def _open_here(session: ClientSession, event: Opened) -> bool:
    return _awaited(session, event) and session.joined


def _joining(session: ClientSession, event: Unopened) -> bool:
    return _awaited(session, event) and not session.joined


def _awaited_and_another_left(session: ClientSession, event: Unopened) -> bool:
    return _awaited(session, event) and bool(session.later_candidates)


# -- actions -------------------------------------------------------------------------------------


def open_next(session: ClientSession) -> Iterable[Effect]:
    """Try the next candidate: at first, the first."""
    offer = session.offer
    if offer is None:
        raise AssertionError("candidates come with an offer")
    session.transport = session.later_candidates[0]
    session.answered = session.joined = False
    session.reply = None
    yield OpenTransport(offer, session.transport)


def choice(session: ClientSession) -> ChooseSegments:
    """What the owner is to decide next."""
    return ChooseSegments(session.lacking, session.requests.count + 1, session.available)


def _answer(session: ClientSession, event: TransportReady) -> Iterable[Effect]:
    session.answered = True
    nonce = session.challenge.nonce if session.challenge else ""
    answer = Answer(event.transport, event.answer)
    yield Send(auth.proven(answer, session.spec.token, session.hello, nonce))
    yield JoinTransport(event.transport)


def _note_joined(session: ClientSession, event: TransportJoined) -> Iterable[Effect]:
    del event
    session.joined = True
    return ()


def _note_reply(session: ClientSession, event: Opened | Unopened) -> Iterable[Effect]:
    session.reply = event
    return ()


def _forget(session: ClientSession, event: Opened | Unopened) -> Iterable[Effect]:
    session.crossing -= {event.transport}
    return ()


def _choose(session: ClientSession, event: TransportJoined | Opened) -> Iterable[Effect]:
    """Both ends are open."""
    del event
    session.joined, session.reply = True, Opened(session.transport)
    yield choice(session)


def _step_down(
    session: ClientSession, event: TransportJoined | TransportRefused | Unopened
) -> Iterable[Effect]:
    if session.answered and session.reply is None and not isinstance(event, Unopened):
        session.crossing |= {session.transport}
    return open_next(session)


def _give_up(session: ClientSession, event: TransportRefused) -> Iterable[Effect]:
    return refuse(session, event.reason, event.detail)


def _accept_refusal(session: ClientSession, event: TransportJoined | Unopened) -> Iterable[Effect]:
    said = event if isinstance(event, Unopened) else session.reply
    detail = said.detail if isinstance(said, Unopened) else ""
    return refuse(session, Reason.TRANSFER_FAILED, f"the server cannot open it: {detail}")


# -- rows ----------------------------------------------------------------------------------------

V, F = State.VALIDATE, State.FALLBACK

OPENING: Table[ClientSession] = (
    #   in  on                to  do               when
    row(V, TransportReady,    V, _answer),
    row(V, TransportJoined,   V, _step_down,       when=_refused_there_but_another_left),
    row(V, TransportJoined,   F, _accept_refusal,  when=_refused_there),
    row(V, TransportJoined,   V, _choose,          when=_open_there),
    row(V, TransportJoined,   V, _note_joined),
    row(V, TransportRefused,  V, _step_down,       when=_another_left),
    row(V, TransportRefused,  F, _give_up),
    row(V, Opened,            V, _forget,          when=_crossed),
    row(V, Opened,            V, _choose,          when=_open_here),
    row(V, Opened,            V, _note_reply,      when=_awaited),
    row(V, Unopened,          V, _forget,          when=_crossed),
    row(V, Unopened,          V, _note_reply,      when=_joining),
    row(V, Unopened,          V, _step_down,       when=_awaited_and_another_left),
    row(V, Unopened,          F, _accept_refusal,  when=_awaited),
)  # fmt: skip
