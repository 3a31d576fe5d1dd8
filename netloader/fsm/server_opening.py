"""How a server opens a transport. It takes part in one candidate at a time.

A client answers the candidates of the offer in order, each at most once, and none after its first
request. An answer that comes while an earlier candidate is being joined waits for the end of that;
what became of the earlier one is then of no interest to the client.
"""

from collections.abc import Iterable

from netloader.fsm import auth
from netloader.fsm.effects import Effect, JoinTransport, Send
from netloader.fsm.events import TransportJoined, TransportRefused
from netloader.fsm.messages import Answer, Opened, Unopened
from netloader.fsm.reasons import Reason
from netloader.fsm.server_session import ServerSession
from netloader.fsm.session import refuse
from netloader.fsm.states import State
from netloader.fsm.table import Table, row
from netloader.fsm.terms import is_rendezvous

# -- guards --------------------------------------------------------------------------------------


def _forged(session: ServerSession, event: Answer) -> bool:
    token, hello = session.token, session.hello
    if token is None or hello is None:
        return False
    return not auth.proves(event, token, hello, session.nonce)


def _in_turn(session: ServerSession, event: Answer) -> bool:
    return event.transport in session.later_candidates and is_rendezvous(event.rendezvous)


def _too_soon(session: ServerSession, event: Answer) -> bool:
    """Whether it is in turn, but an earlier candidate is being joined."""
    return _in_turn(session, event) and session.joining


def _taken_back(session: ServerSession, event: TransportJoined | TransportRefused) -> bool:
    """Whether the client has answered a later candidate meanwhile."""
    del event
    return session.held is not None


def _none_left(session: ServerSession, event: TransportRefused) -> bool:
    """Whether the client has no later candidate to answer."""
    del event
    return not session.later_candidates


# -- actions -------------------------------------------------------------------------------------


def _refuse_answer(session: ServerSession, event: Answer) -> Iterable[Effect]:
    del event
    detail = "the answer was changed on its way, or the client has another token"
    return refuse(session, Reason.AUTH_FAILED, detail)


def _hold(session: ServerSession, event: Answer) -> Iterable[Effect]:
    session.transport, session.held = event.transport, event
    return ()


def _join(session: ServerSession, event: Answer) -> Iterable[Effect]:
    session.transport, session.held = event.transport, None
    session.joining, session.opened = True, False
    yield JoinTransport(event.transport, event.rendezvous)


def _join_held(
    session: ServerSession, event: TransportJoined | TransportRefused
) -> Iterable[Effect]:
    del event
    if session.held is None:
        raise AssertionError("guarded by _taken_back")
    return _join(session, session.held)


def _say_opened(session: ServerSession, event: TransportJoined) -> Iterable[Effect]:
    session.joining, session.opened = False, True
    yield Send(Opened(event.transport))


def _say_unopened(session: ServerSession, event: TransportRefused) -> Iterable[Effect]:
    session.joining = False
    yield Send(Unopened(event.transport, event.detail))


def _refuse_last(session: ServerSession, event: TransportRefused) -> Iterable[Effect]:
    """End at once: the client may be stuck in a library that joins, and say nothing for long."""
    session.joining = False
    return refuse(session, event.reason, event.detail)


# -- rows ----------------------------------------------------------------------------------------

V, F = State.VALIDATE, State.FALLBACK

OPENING: Table[ServerSession] = (
    #   in  on               to  do              when
    row(V, Answer,           F, _refuse_answer,  when=_forged),
    row(V, Answer,           V, _hold,           when=_too_soon),
    row(V, Answer,           V, _join,           when=_in_turn),
    row(V, TransportJoined,  V, _join_held,      when=_taken_back),
    row(V, TransportJoined,  V, _say_opened),
    row(V, TransportRefused, V, _join_held,      when=_taken_back),
    row(V, TransportRefused, F, _refuse_last,    when=_none_left),
    row(V, TransportRefused, V, _say_unopened),
)  # fmt: skip
