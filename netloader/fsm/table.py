"""Rows, and the machine made of them. Law: the only import of transitions; `Session.step` fires.

One `transitions.Machine` per role is built at import and never learns of a session: a session is
any object with a `state`, handed to `events[name].trigger(session, event)`. Actions run as
`before` callbacks, so one that raises leaves neither half an outbox nor a new state.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from transitions import EventData, Machine, MachineError

from netloader.config import Deadlines
from netloader.errors import LocalProtocolError, TableError
from netloader.fsm.effects import Effect
from netloader.fsm.events import EVENTS, PEER_EVENTS, Event
from netloader.fsm.states import ENDS, INITIAL, LIVING, TERMINAL, State

Program: TypeAlias = Machine
"""What a table becomes; nobody but this module needs to know whose class it is."""
Limit: TypeAlias = Callable[[Deadlines, int], float]
"""How many seconds a state may last, given the deadlines and the bytes to move."""


class Fired(Protocol):
    """What a session needs so that a table can run on it."""

    state: State

    def collect(self, row: "Row[Any]", effects: tuple[Effect, ...]) -> None:
        """Take the effects of the row that fired."""


S = TypeVar("S", bound=Fired)
S_contra = TypeVar("S_contra", bound=Fired, contravariant=True)
E = TypeVar("E", bound=Event)


@dataclass(frozen=True, slots=True)
class Row(Generic[S_contra]):
    """In `source`, on `on`, if `when`, go to `dest` and `do`."""

    source: State
    on: type[Any]
    dest: State
    do: Callable[[S_contra, Any], Iterable[Effect]]
    when: Callable[[S_contra, Any], bool] | None = None

    @property
    def action(self) -> str:
        """The name of the action, as docs show it."""
        return self.do.__name__.strip("_")

    @property
    def guard(self) -> str:
        """The name of the guard, or nothing."""
        return self.when.__name__.strip("_") if self.when else ""


Table: TypeAlias = tuple[Row[S], ...]


def row(
    source: State,
    on: type[E],
    dest: State,
    do: Callable[[S, E], Iterable[Effect]],
    when: Callable[[S, E], bool] | None = None,
) -> Row[S]:
    """One row; ties the event's type to its action and guard so that mypy sees a wrong pair."""
    return Row(source, on, dest, do, when)


def every(
    states: Iterable[State], on: type[E], dest: State, do: Callable[[S, E], Iterable[Effect]]
) -> Table[S]:
    """The same row in several states."""
    return tuple(row(state, on, dest, do) for state in states)


def absorb(session: Fired, event: Event) -> Iterable[Effect]:
    """The verdict is out: nothing changes, nothing is said."""
    del session, event
    return ()


def complete(rows: Table[S], violation: Callable[[S, Any], Iterable[Effect]]) -> Table[S]:
    """Make a table total.

    Any peer event without a last word in a living state is a violation and ends the session;
    terminal states absorb everything.
    """
    answered = {(r.source, r.on) for r in rows if r.when is None}
    violations: Table[S] = tuple(
        Row(state, event, State.FALLBACK, violation)
        for state in LIVING
        for event in PEER_EVENTS
        if (state, event) not in answered
    )
    absorbing = tuple(Row(state, event, state, absorb) for state in ENDS for event in EVENTS)
    return (*rows, *violations, *absorbing)


def check(table: Table[S], limits: Mapping[State, Limit]) -> None:
    """Refuse a wrong table at import.

    Raises:
        TableError: every structural mistake found, in one message.

    """
    problems = [
        *_bad_rows(table),
        *_bad_order(table),
        *(f"{s.name} cannot be reached" for s in State if s not in _reachable(table)),
        *(f"{s.name} has no deadline" for s in LIVING if s not in limits),
        *(f"{s.name} is terminal but has a deadline" for s in limits if s in TERMINAL),
    ]
    if problems:
        raise TableError("; ".join(problems))


def _bad_rows(table: Table[S]) -> Iterable[str]:
    for r in table:
        if r.on not in EVENTS:
            yield f"{r.on.__name__} is not an event"
        if r.source in TERMINAL and (r.dest is not r.source or r.do is not absorb):
            yield f"{r.source.name} must absorb {r.on.__name__}"


def _bad_order(table: Table[S]) -> Iterable[str]:
    groups: dict[tuple[State, type[Event]], list[Row[S]]] = {}
    for r in table:
        groups.setdefault((r.source, r.on), []).append(r)
    for (source, on), rows in groups.items():
        guards = [r.when for r in rows]
        if len(set(guards)) < len(guards):
            yield f"{source.name} answers {on.__name__} twice the same way"
        elif None in guards[:-1]:
            yield f"{source.name} has a row after its last word on {on.__name__}"
        elif guards[-1] is not None:
            yield f"{source.name} has no last word on {on.__name__}"
    for state in State:
        for on in EVENTS if state in TERMINAL else PEER_EVENTS:
            if (state, on) not in groups:
                yield f"{state.name} has no answer to {on.__name__}"


def _reachable(table: Table[S]) -> set[State]:
    seen, edge = {INITIAL}, {INITIAL}
    while edge:
        edge = {r.dest for r in table if r.source in edge} - seen
        seen |= edge
    return seen


def build(table: Table[S]) -> Program:
    """Make the `transitions` machine of one role; it holds no model and no queue."""
    return Machine(
        model=None,
        states=State,
        initial=INITIAL,
        auto_transitions=False,
        send_event=True,
        transitions=[_transition(r) for r in table],
    )


def _transition(r: Row[S]) -> dict[str, Any]:
    guard = r.when

    def before(data: EventData) -> None:
        session, event = _parts(data)
        session.collect(r, tuple(r.do(session, event)))

    def condition(data: EventData) -> bool:
        return guard is None or guard(*_parts(data))

    return {
        "trigger": r.on.__name__,
        "source": r.source,
        "dest": None if r.dest is r.source else r.dest,
        "before": before,
        "conditions": [condition] if guard else [],
    }


def _parts(data: EventData) -> tuple[Any, Any]:
    (event,) = data.args
    return data.model, event


def fire(machine: Program, session: Fired, event: Event) -> None:
    """Run one event on one session.

    Raises:
        LocalProtocolError: a local event that has no row in this state: the driver's bug.

    """
    trigger = machine.events.get(type(event).__name__)
    problem = f"{type(event).__name__} cannot happen in {session.state.name}"
    if trigger is None:
        raise LocalProtocolError(problem)
    try:
        fired = trigger.trigger(session, event)
    except MachineError as error:
        raise LocalProtocolError(problem) from error
    if not fired:
        raise LocalProtocolError(problem)
