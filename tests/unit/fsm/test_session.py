"""A session of any role: steps, deadlines, copies, and the ways to end that all roles share."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import pytest
from transitions import Machine

from netloader.config import Deadlines
from netloader.errors import LocalProtocolError
from netloader.fsm import client, server
from netloader.fsm.effects import AbortTransfer, Effect, Send, Settle, Verdict
from netloader.fsm.events import (
    Connected,
    ConnectFailed,
    ConnectionLost,
    DeadlinePassed,
    Event,
    OfferReady,
    StopRequested,
    TransferFailed,
    Violated,
)
from netloader.fsm.identity import Difference
from netloader.fsm.messages import Begin, Challenge, Reject
from netloader.fsm.reasons import Reason
from netloader.fsm.session import (
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
from netloader.fsm.table import Limit, Row, Table, build, check, complete, every, row

L, H, V, T, D, F = State
DEADLINES = Deadlines(connect_s=1.0, handshake_s=10.0, validate_s=100.0)


def _go(session: Session, event: Event) -> Iterable[Effect]:
    del session, event
    return ()


def _win(session: Session, event: Event) -> Iterable[Effect]:
    del session, event
    yield Settle(Verdict(D, Reason.VERIFIED))


def _stumble(session: Session, event: ConnectFailed) -> Iterable[Effect]:
    del session, event
    yield AbortTransfer()
    raise ZeroDivisionError


def _differ(session: Session, event: Challenge) -> Iterable[Effect]:
    differences = (Difference("dtype", "mine", "theirs", "fix it"),)
    return refuse(session, Reason.IDENTITY_MISMATCH, event.mac, differences, 2.5)


TABLE: Table[Session] = complete(
    (
        row(L, Connected, H, _go),
        row(L, ConnectFailed, F, _stumble),
        row(H, Begin, V, _go),
        row(H, OfferReady, H, _go),
        row(V, Begin, T, _go),
        row(T, Begin, D, _win),
        *every(LIVING, Challenge, F, _differ),
        *every(LIVING, Reject, F, rejected),
        *every(LIVING, ConnectionLost, F, lost),
        *every(LIVING, DeadlinePassed, F, expired),
        *every(LIVING, StopRequested, F, stopped),
        *every((V, T), TransferFailed, F, failed),
    ),
    violation,
)
LIMITS: Mapping[State, Limit] = {
    L: lambda deadlines, _: deadlines.connect_s,
    H: lambda deadlines, _: deadlines.handshake_s,
    V: lambda deadlines, _: deadlines.validate_s,
    T: lambda deadlines, nbytes: deadlines.transfer_s(nbytes),
}
check(TABLE, LIMITS)


class Toy(Session):
    """A role of an embedder's own: it adds nothing to what every session has."""

    __slots__ = ()

    role: ClassVar[str] = "toy"
    machine: ClassVar[Machine] = build(TABLE)
    limits: ClassVar[Mapping[State, Limit]] = LIMITS


PATH: Mapping[State, tuple[Event, ...]] = {
    L: (),
    H: (Connected(),),
    V: (Connected(), Begin()),
    T: (Connected(), Begin(), Begin()),
    D: (Connected(), Begin(), Begin(), Begin()),
    F: (Connected(), StopRequested()),
}


def toy(state: State = L, now: float = 0.0) -> Toy:
    session = Toy(DEADLINES, now)
    for event in PATH[state]:
        session.step(event, now)
    return session


def test_a_new_session_knows_nothing_and_waits() -> None:
    session = toy(now=5.0)

    assert (session.state, session.verdict, session.touched) == (L, None, False)
    assert (session.name, session.nbytes, session.frame_limit) == ("", 0, FRAME_BEFORE_TRUST)
    assert (session.entered, session.next_timeout()) == (5.0, 6.0)


def test_a_step_tells_what_happened_and_what_to_do() -> None:
    session = toy(T)

    step = session.step(Begin(), 3.0)

    assert (step.before, step.event, step.after) == (T, Begin(), D)
    assert step.effects == (Settle(Verdict(D, Reason.VERIFIED)),)
    assert step.row in TABLE
    assert session.verdict == Verdict(D, Reason.VERIFIED)


# -- time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "limit"), [(L, 1.0), (H, 10.0), (V, 100.0), (T, 60.0)])
def test_every_living_state_has_its_deadline(state: State, limit: float) -> None:
    session = toy(state, now=7.0)

    assert session.next_timeout() == 7.0 + limit
    assert session.handle_timeout(7.0 + limit - 0.001) is None
    assert session.state is state


def test_a_state_that_lasts_too_long_ends_the_session_and_says_where() -> None:
    session = toy(V)

    step = session.handle_timeout(100.0)

    assert step is not None
    assert (step.event, step.after) == (DeadlinePassed(), F)
    assert step.effects[0] == Send(Reject("deadline_passed", "in validate"))
    assert session.verdict == Verdict(F, Reason.DEADLINE_PASSED, "in validate")


def test_only_a_new_state_brings_a_new_deadline() -> None:
    session = toy(H)

    session.step(OfferReady(), 9.0)
    assert (session.entered, session.next_timeout()) == (0.0, 10.0)

    session.step(Begin(), 9.5)
    assert (session.entered, session.next_timeout()) == (9.5, 109.5)


@pytest.mark.parametrize("state", [D, F])
def test_when_it_is_over_there_is_no_deadline(state: State) -> None:
    session = toy(state)

    assert session.next_timeout() is None
    assert session.handle_timeout(1e12) is None


# -- misuse --------------------------------------------------------------------------------------


def test_a_local_event_that_cannot_happen_here_raises_and_changes_nothing() -> None:
    session = toy(V)

    with pytest.raises(LocalProtocolError, match="OfferReady cannot happen in VALIDATE"):
        session.step(OfferReady(), 50.0)

    assert (session.state, session.next_timeout(), session.verdict) == (V, 100.0, None)
    assert session.step(Begin(), 50.0).after is T


def test_an_action_that_raises_leaves_state_and_outbox_alone() -> None:
    session = toy()

    with pytest.raises(ZeroDivisionError):
        session.step(ConnectFailed("refused"), 0.5)

    assert (session.state, session.next_timeout(), session.verdict) == (L, 1.0, None)
    assert session.step(Connected(), 0.5).effects == ()


def test_a_session_class_that_drops_effects_raises() -> None:
    class Deaf(Toy):
        __slots__ = ()

        def collect(self, row: Row[Any], effects: tuple[Effect, ...]) -> None:
            del row, effects

    with pytest.raises(AssertionError, match="always collects"):
        Deaf(DEADLINES, 0.0).step(Connected(), 0.0)


# -- copies --------------------------------------------------------------------------------------


def test_a_copy_is_independent() -> None:
    session = toy(H)

    twin = copy.copy(session)
    twin.step(Begin(), 5.0)

    assert type(twin) is Toy
    assert (twin.state, session.state) == (V, H)
    assert (twin.next_timeout(), session.next_timeout()) == (105.0, 10.0)


def test_a_session_has_slots_and_the_machine_holds_no_reference() -> None:
    session = toy(H)

    assert not hasattr(session, "__dict__")
    assert not hasattr(session, "trigger")
    for machine in (Toy.machine, client.MACHINE, server.MACHINE):
        assert machine.models == []


# -- the ends that all roles share ---------------------------------------------------------------


@pytest.mark.parametrize("state", LIVING)
def test_a_lost_connection_ends_it_without_a_word(state: State) -> None:
    session = toy(state)

    step = session.step(ConnectionLost("reset"), 0.0)

    stop = [AbortTransfer()] if state in (V, T) else []
    verdict = Verdict(F, Reason.CONNECTION_LOST, "reset")
    assert list(step.effects) == [*stop, Settle(verdict)]


@pytest.mark.parametrize("state", LIVING)
def test_a_stop_is_told_to_the_peer_with_its_reason(state: State) -> None:
    step = toy(state).step(StopRequested(Reason.NOT_SERVING, "asleep"), 0.0)

    assert step.effects[0] == Send(Reject("not_serving", "asleep"))
    assert step.effects[-1] == Settle(Verdict(F, Reason.NOT_SERVING, "asleep"))
    assert (AbortTransfer() in step.effects) == (state in (V, T))


def test_a_failed_transfer_is_told_to_the_peer_with_its_reason() -> None:
    step = toy(T).step(TransferFailed(Reason.TRANSFER_STALLED, "silence"), 0.0)

    verdict = Verdict(F, Reason.TRANSFER_STALLED, "silence")
    told = Send(Reject("transfer_stalled", "silence"))
    assert step.effects == (told, AbortTransfer(), Settle(verdict))


def test_a_refusal_by_the_peer_is_believed_as_it_stands() -> None:
    difference = Difference("model", "a", "b")

    step = toy(V).step(Reject("busy", "full", (difference,), 2.5), 0.0)

    verdict = Verdict(
        *(F, Reason.BUSY, "full"), by_peer=True, differences=(difference,), retry_after_s=2.5
    )
    assert step.effects == (AbortTransfer(), Settle(verdict))
    unknown = toy(H).step(Reject("sulking"), 0.0)
    assert unknown.effects == (Settle(Verdict(F, Reason.REFUSED, by_peer=True)),)


def test_a_refusal_shows_each_side_its_own_value_as_its_own() -> None:
    step = toy(H).step(Challenge("", "differing: dtype"), 0.0)

    theirs = Difference("dtype", "theirs", "mine", "fix it")
    reject = Reject("identity_mismatch", "differing: dtype", (theirs,), 2.5)
    assert step.effects[0] == Send(reject)
    assert isinstance(step.effects[-1], Settle)
    assert step.effects[-1].verdict.differences == (theirs.swapped(),)
    assert step.effects[-1].verdict.retry_after_s == 2.5


@pytest.mark.parametrize(
    ("event", "detail"),
    [
        (Violated("a frame that is no message"), "a frame that is no message in handshake"),
        (Reject("x"), None),
    ],
)
def test_a_violation_says_what_was_wrong_and_where(
    event: Violated | Reject, detail: str | None
) -> None:
    session = toy(H)

    effects = list(violation(session, event))

    expected = detail or "reject in handshake"
    assert effects == [
        Send(Reject("protocol_violation", expected)),
        Settle(Verdict(F, Reason.PROTOCOL_VIOLATION, expected)),
    ]


def test_weights_are_dirty_after_a_transfer_with_any_end() -> None:
    session = toy(T)
    session.touched = True

    assert failure(session, Reason.STOPPED).weights_dirty
    *_, settled = rejected(session, Reject("busy"))
    assert isinstance(settled, Settle)
    assert settled.verdict.weights_dirty
    assert next(iter(part(session, failure(session, Reason.STOPPED)))) == AbortTransfer()
