"""Rows, and the machine made of them. The only module that imports `transitions`.

One `transitions.Machine` per table is built at import and holds no sessions: a session is
any object with a `state`, passed to `events[name].trigger(session, event)`. Actions run as
`before` callbacks, so one that raises leaves neither half an outbox nor a new state.

States and events are those of an `Alphabet`. That of sessions is the default.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from transitions import EventData, Machine, MachineError

from netloader.config import Deadlines
from netloader.errors import LocalProtocolError, TableError
from netloader.fsm.events import EVENTS, PEER_EVENTS
from netloader.fsm.states import ENDS, INITIAL, LIVING, State

Program: TypeAlias = Machine
"""The machine that a table is built into. Only this module knows its class."""
Limit: TypeAlias = Callable[[Deadlines, int], float]
"""Seconds that a state may last, given the deadlines and the bytes to move."""


@dataclass(frozen=True, slots=True)
class Alphabet:
    """The states and events of one kind of machine, and what a table of it must contain.

    `answered` are the events that need a row in every state. `timed` are the states that need a
    deadline. States in `ends` absorb every event.
    """

    states: type[Enum]
    initial: Enum
    events: tuple[type[Any], ...]
    answered: tuple[type[Any], ...]
    timed: tuple[Enum, ...] = ()
    ends: tuple[Enum, ...] = ()


SESSIONS = Alphabet(State, INITIAL, EVENTS, PEER_EVENTS, LIVING, ENDS)


class Fired(Protocol):
    """What a session needs so that a table can run on it."""

    state: Any

    def collect(self, row: "Row[Any]", effects: tuple[Any, ...]) -> None:
        """Take the effects of the row that fired."""


S = TypeVar("S", bound=Fired)
S_contra = TypeVar("S_contra", bound=Fired, contravariant=True)
E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class Row(Generic[S_contra]):
    """In `source`, on `on`, if `when`, go to `dest` and `do`."""

    source: Enum
    on: type[Any]
    dest: Enum
    do: Callable[[S_contra, Any], Iterable[Any]]
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
    source: Enum,
    on: type[E],
    dest: Enum,
    do: Callable[[S, E], Iterable[Any]],
    when: Callable[[S, E], bool] | None = None,
) -> Row[S]:
    """One row; ties the event's type to its action and guard so that mypy sees a wrong pair."""
    return Row(source, on, dest, do, when)


def every(
    states: Iterable[Enum], on: type[E], dest: Enum, do: Callable[[S, E], Iterable[Any]]
) -> Table[S]:
    """The same row in several states."""
    return tuple(row(state, on, dest, do) for state in states)


def absorb(session: Fired, event: object) -> Iterable[Any]:
    """After the verdict: no change, no effect."""
    del session, event
    return ()


def complete(rows: Table[S], violation: Callable[[S, Any], Iterable[Any]]) -> Table[S]:
    """Make a table of sessions total.

    In a live state, a peer event without an unconditional row is a violation and ends the session;
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


def check(
    table: Table[S], limits: Mapping[Any, Callable[..., float]], of: Alphabet = SESSIONS
) -> None:
    """Refuse a wrong table at import. `limits` are the deadlines of its states.

    Raises:
        TableError: every structural mistake found, in one message.

    """
    problems = [
        *_bad_rows(table, of),
        *_bad_order(table, of),
        *(f"{s.name} cannot be reached" for s in of.states if s not in _reachable(table, of)),
        *(f"{s.name} has no deadline" for s in of.timed if s not in limits),
        *(f"{s.name} is terminal but has a deadline" for s in limits if s in of.ends),
    ]
    if problems:
        raise TableError("; ".join(problems))


def _bad_rows(table: Table[S], of: Alphabet) -> Iterable[str]:
    for r in table:
        if r.on not in of.events:
            yield f"{r.on.__name__} is not an event"
        if r.source in of.ends and (r.dest is not r.source or r.do is not absorb):
            yield f"{r.source.name} must absorb {r.on.__name__}"


def _bad_order(table: Table[S], of: Alphabet) -> Iterable[str]:
    groups: dict[tuple[Enum, type[Any]], list[Row[S]]] = {}
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
    for state in of.states:
        for on in of.events if state in of.ends else of.answered:
            if (state, on) not in groups:
                yield f"{state.name} has no answer to {on.__name__}"


def _reachable(table: Table[S], of: Alphabet) -> set[Enum]:
    seen, edge = {of.initial}, {of.initial}
    while edge:
        edge = {r.dest for r in table if r.source in edge} - seen
        seen |= edge
    return seen


def build(table: Table[S], of: Alphabet = SESSIONS) -> Program:
    """Make the `transitions` machine of one table; it holds no model and no queue."""
    return Machine(
        model=None,
        states=of.states,
        initial=of.initial,
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


def fire(machine: Program, session: Fired, event: object) -> None:
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
