"""Every state and every event of both sides: an answer, one verdict, no surprise."""

import copy

import pytest

from netloader.errors import LocalProtocolError
from netloader.fsm.effects import AbortTransfer, Settle
from netloader.fsm.events import (
    EVENTS,
    LOCAL_EVENTS,
    PEER_EVENTS,
    ConnectionLost,
    DeadlinePassed,
    Event,
    StopRequested,
)
from netloader.fsm.session import Session, Step
from netloader.fsm.states import LIVING, TERMINAL, State
from netloader.testing import lawful
from tests.property.samples import SAMPLES
from tests.support.histories import LIVES, lived

# -- what copies of a session answer to them -----------------------------------------------------

LATER = 1.0
ALWAYS_POSSIBLE = (ConnectionLost, DeadlinePassed, StopRequested)

SESSIONS = {name: lived(name) for name in LIVES}


def answers(name: str, kind: type[Event]) -> list[tuple[Session, Step]]:
    """What copies of a session with this life answer to each sample of an event."""
    found: list[tuple[Session, Step]] = []
    for event in SAMPLES[kind]:
        session = copy.copy(SESSIONS[name])
        found.append((session, session.step(event, LATER)))
    return found


def test_the_lives_cover_every_state_and_the_samples_every_event() -> None:
    for side in ("client", "server"):
        states = {s.state for name, s in SESSIONS.items() if name.startswith(side)}
        assert states == set(State)
    assert set(SAMPLES) == set(EVENTS)


@pytest.mark.parametrize("name", LIVES)
def test_every_event_is_answered_lawfully_or_raises_without_a_change(name: str) -> None:
    before = SESSIONS[name].state
    for event in (event for samples in SAMPLES.values() for event in samples):
        session = copy.copy(SESSIONS[name])
        try:
            step = session.step(event, LATER)
        except LocalProtocolError:
            # Whatever a peer says is answered; a local event may be impossible, without a trace.
            assert isinstance(event, LOCAL_EVENTS)
            assert before in LIVING
            assert (session.state, session.verdict) == (before, None)
            assert session.next_timeout() == SESSIONS[name].next_timeout()
        else:
            assert (step.before, step.event, step.after) == (before, event, session.state)
            lawful(session, step, LATER)


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n in LIVES for k in ALWAYS_POSSIBLE])
def test_time_loss_and_stop_may_come_at_any_moment(name: str, kind: type[Event]) -> None:
    for session, _ in answers(name, kind):
        carries_on = kind is ConnectionLost and session.state is State.TRANSFER
        assert session.state in TERMINAL or carries_on


@pytest.mark.parametrize("name", [n for n, s in SESSIONS.items() if s.state in TERMINAL])
def test_after_the_verdict_no_event_has_an_effect(name: str) -> None:
    session = SESSIONS[name]
    verdict = session.verdict
    assert verdict is not None
    for kind in EVENTS:
        for twin, step in answers(name, kind):
            assert (twin.state, twin.verdict) == (session.state, verdict)
            assert step.effects == ()
            assert twin.handle_timeout(1e9) is None


@pytest.mark.parametrize(
    "name", [n for n, s in SESSIONS.items() if s.state in (State.VALIDATE, State.TRANSFER)]
)
def test_what_was_started_is_stopped_once_before_the_verdict(name: str) -> None:
    fell_back = 0
    for kind in (*PEER_EVENTS, *ALWAYS_POSSIBLE):
        for session, step in answers(name, kind):
            if session.state is State.FALLBACK:
                fell_back += 1
                assert step.effects.count(AbortTransfer()) == 1
                assert isinstance(step.effects[-1], Settle)
                assert step.effects[-2] == AbortTransfer()
    assert fell_back


def test_every_state_of_both_sides_was_asked_about_every_event(figures: list[str]) -> None:
    pairs = {(s.side, s.state, kind) for s in SESSIONS.values() for kind in EVENTS}
    samples = sum(map(len, SAMPLES.values()))

    assert len(pairs) == 2 * len(State) * len(EVENTS)
    figures.append(
        f"pairs: 2 sides x {len(State)} states x {len(EVENTS)} events = {len(pairs)}; "
        f"{len(SESSIONS)} lives x {samples} samples = {len(SESSIONS) * samples} steps"
    )
