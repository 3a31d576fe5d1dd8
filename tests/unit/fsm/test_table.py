"""The table: a wrong one is refused whole, a right one runs and leaves nothing behind."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from netloader.errors import LocalProtocolError, TableError
from netloader.fsm import client, server
from netloader.fsm.effects import AbortTransfer, Effect, Settle, Verdict
from netloader.fsm.events import EVENTS, PEER_EVENTS, Connected, DeadlinePassed, Event, OfferReady
from netloader.fsm.messages import Begin, Lane, Reject
from netloader.fsm.reasons import Reason
from netloader.fsm.states import ENDS, LIVING, State
from netloader.fsm.table import Limit, Row, Table, absorb, build, check, complete, every, fire, row


class Toy:
    """The least that a table can run on."""

    def __init__(self, state: State = State.LISTEN) -> None:
        self.state = state
        self.open = True
        self.taken: list[tuple[str, tuple[Effect, ...]]] = []

    def collect(self, row: Row[Any], effects: tuple[Effect, ...]) -> None:
        self.taken.append((row.action, effects))


def _go(session: Toy, event: Event) -> Iterable[Effect]:
    del session, event
    yield AbortTransfer()


def _stumble(session: Toy, event: DeadlinePassed) -> Iterable[Effect]:
    del session, event
    yield AbortTransfer()
    raise ZeroDivisionError


def _end(session: Toy, event: Any) -> Iterable[Effect]:
    del event
    yield Settle(Verdict(State.FALLBACK, Reason.STOPPED, session.state.value))


def _open(session: Toy, event: Begin) -> bool:
    del event
    return session.open


def _shut(session: Toy, event: Begin) -> bool:
    return not _open(session, event)


L, H, V, T, D, F = State
HAND: Table[Toy] = (
    row(L, Connected, H, _go),
    row(H, Begin, V, _go, when=_open),
    row(V, Begin, T, _go),
    row(T, Begin, D, _go),
    row(L, DeadlinePassed, L, _stumble),
)
GOOD: Table[Toy] = complete(HAND, _end)
LIMITS: Mapping[State, Limit] = dict.fromkeys(LIVING, lambda deadlines, _: deadlines.connect_s)


def problems(table: Table[Toy], limits: Mapping[State, Limit] = LIMITS) -> str:
    """What `check` says; empty when it has nothing to say."""
    try:
        check(table, limits)
    except TableError as error:
        return str(error)
    return ""


def without(table: Table[Toy], source: State, on: type[Event]) -> Table[Toy]:
    return tuple(r for r in table if (r.source, r.on) != (source, on))


# -- what is refused -----------------------------------------------------------------------------


def test_a_good_table_passes() -> None:
    assert problems(GOOD) == ""


def test_an_unknown_event_is_refused() -> None:
    alien: Row[Toy] = Row(L, Lane, L, absorb)

    assert problems((*GOOD, alien)) == "Lane is not an event"


@pytest.mark.parametrize("guarded", [False, True])
def test_the_same_answer_twice_is_refused(guarded: bool) -> None:
    twin = HAND[1] if guarded else HAND[2]
    told = f"{twin.source.name} answers Begin twice the same way"

    assert problems(complete((*HAND, twin), _end)) == told


def test_a_guard_without_a_last_word_is_refused() -> None:
    bare = (r for r in GOOD if (r.source, r.on, r.when) != (H, Begin, None))

    assert problems(tuple(bare)) == "HANDSHAKE has no last word on Begin"


def test_a_row_after_its_last_word_is_refused() -> None:
    late = row(V, Begin, F, _end, when=_shut)

    assert (
        problems(complete((*HAND, late), _end)) == "VALIDATE has a row after its last word on Begin"
    )


def test_a_state_that_nothing_leads_to_is_refused() -> None:
    cut: Table[Toy] = tuple(r for r in HAND if r.dest is not D)

    assert problems(complete(cut, _end)) == "DONE cannot be reached"


def test_states_that_only_reach_each_other_are_not_reachable() -> None:
    island: Table[Toy] = (*HAND[:1], *HAND[2:], row(H, Reject, D, _go))

    told = problems(complete(island, _end))

    assert told == "VALIDATE cannot be reached; TRANSFER cannot be reached"


@pytest.mark.parametrize("state", LIVING)
def test_a_living_state_without_a_deadline_is_refused(state: State) -> None:
    limits = {s: limit for s, limit in LIMITS.items() if s is not state}

    assert problems(GOOD, limits) == f"{state.name} has no deadline"


@pytest.mark.parametrize("state", ENDS)
def test_a_terminal_state_with_a_deadline_is_refused(state: State) -> None:
    limits = {**LIMITS, state: LIMITS[L]}

    assert problems(GOOD, limits) == f"{state.name} is terminal but has a deadline"


@pytest.mark.parametrize("state", ENDS)
def test_a_terminal_state_that_leaves_or_speaks_is_refused(state: State) -> None:
    rest = without(GOOD, state, Reject)

    leaves, speaks = row(state, Reject, L, absorb), row(state, Reject, state, _go)

    for wrong in (leaves, speaks):
        assert problems((*rest, wrong)) == f"{state.name} must absorb Reject"


@pytest.mark.parametrize("state", ENDS)
def test_a_terminal_state_with_no_answer_is_refused(state: State) -> None:
    """Without its absorbing row the event raises after the verdict; it should be dropped."""
    assert f"{state.name} " in problems(without(GOOD, state, Reject))


@pytest.mark.parametrize("state", LIVING)
def test_a_peer_event_with_no_answer_is_refused(state: State) -> None:
    assert problems(without(GOOD, state, Reject)) == f"{state.name} has no answer to Reject"


def test_every_mistake_in_a_table_is_in_one_error() -> None:
    told = problems(complete((*HAND, HAND[2]), _end), {**LIMITS, D: LIMITS[L]})

    assert told.count("; ") == 1
    assert "twice" in told
    assert "DONE is terminal" in told


@pytest.mark.parametrize("role", [client, server])
def test_both_tables_of_the_product_pass(role: Any) -> None:
    check(role.TABLE, role.LIMITS)


# -- what is added -------------------------------------------------------------------------------


def test_complete_answers_every_peer_event_and_lets_the_ends_absorb() -> None:
    added = GOOD[len(HAND) :]
    violations = [r for r in added if r.do is not absorb]
    absorbing = [(r.source, r.on, r.dest) for r in added if r.do is absorb]

    assert GOOD[: len(HAND)] == HAND
    assert {(r.dest, r.do, r.when) for r in violations} == {(F, _end, None)}
    answered = {(r.source, r.on) for r in HAND if r.when is None}
    peer = [(state, on) for state in LIVING for on in PEER_EVENTS]
    assert {(r.source, r.on) for r in violations} == {p for p in peer if p not in answered}
    assert absorbing == [(state, on, state) for state in ENDS for on in EVENTS]


def test_every_writes_the_same_row_in_several_states() -> None:
    assert every((H, V), Reject, F, _end) == (row(H, Reject, F, _end), row(V, Reject, F, _end))


def test_a_row_names_its_action_and_its_guard() -> None:
    guarded = HAND[1]

    assert (guarded.action, guarded.guard) == ("go", "open")
    assert HAND[0].guard == ""


# -- what runs -----------------------------------------------------------------------------------

MACHINE = build(GOOD)


def test_an_event_collects_effects_and_moves_the_state() -> None:
    toy = Toy()

    fire(MACHINE, toy, Connected())

    assert toy.state is H
    assert toy.taken == [("go", (AbortTransfer(),))]


def test_the_first_row_whose_guard_holds_answers() -> None:
    willing, unwilling = Toy(H), Toy(H)
    unwilling.open = False

    fire(MACHINE, willing, Begin())
    fire(MACHINE, unwilling, Begin())

    assert (willing.state, unwilling.state) == (V, F)


def test_an_action_sees_the_state_it_happens_in() -> None:
    toy = Toy(T)

    fire(MACHINE, toy, Reject("busy"))

    ((_, (effect,)),) = toy.taken
    assert effect == Settle(Verdict(F, Reason.STOPPED, "transfer"))


def test_an_action_that_raises_leaves_state_and_outbox_alone() -> None:
    toy = Toy()

    with pytest.raises(ZeroDivisionError):
        fire(MACHINE, toy, DeadlinePassed())

    assert (toy.state, toy.taken) == (L, [])
    fire(MACHINE, toy, Connected())
    assert toy.state is H


@pytest.mark.parametrize("state", ENDS)
@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_an_end_absorbs(state: State, kind: type[Event]) -> None:
    toy = Toy(state)

    fire(MACHINE, toy, object.__new__(kind))

    assert (toy.state, toy.taken) == (state, [("absorb", ())])


def test_a_local_event_without_a_row_is_the_drivers_bug() -> None:
    toy = Toy(V)

    with pytest.raises(LocalProtocolError, match="OfferReady cannot happen in VALIDATE"):
        fire(MACHINE, toy, OfferReady())

    assert (toy.state, toy.taken) == (V, [])


def test_an_object_that_is_no_event_raises() -> None:
    @dataclass
    class Surprise:
        pass

    with pytest.raises(LocalProtocolError, match="Surprise cannot happen in LISTEN"):
        fire(MACHINE, Toy(), Surprise())  # the bug of this test


def test_an_event_that_no_guard_lets_through_is_the_drivers_bug() -> None:
    leaky = build((row(H, Begin, V, _go, when=_shut),))
    toy = Toy(H)

    with pytest.raises(LocalProtocolError, match="Begin cannot happen in HANDSHAKE"):
        fire(leaky, toy, Begin())

    assert (toy.state, toy.taken) == (H, [])


def test_a_machine_holds_no_session() -> None:
    for machine in (MACHINE, client.MACHINE, server.MACHINE):
        assert machine.models == []

    toy = Toy()
    fire(MACHINE, toy, Connected())

    assert MACHINE.models == []
    assert not hasattr(toy, "trigger")


def test_two_sessions_on_one_machine_do_not_touch_each_other() -> None:
    one, other = Toy(), Toy()

    fire(MACHINE, one, Connected())

    assert (other.state, other.taken) == (L, [])


def test_a_row_is_data() -> None:
    assert HAND[0] == replace(HAND[0])
    assert len({*GOOD}) == len(GOOD)
