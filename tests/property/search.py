"""Exhaustive search: one side against an adversary, and both sides with every fault, breadth first.

A control protocol is a small finite graph once time is taken as "a deadline may pass now" and
sessions that cannot be told apart are one node. Each edge is checked by the laws of a step, each
node by what must hold of both sides.
"""

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final, NamedTuple

from netloader.errors import LocalProtocolError
from netloader.fsm.client_session import ClientSession
from netloader.fsm.effects import (
    AbortTransfer,
    ChooseSegments,
    JoinTransport,
    OpenTransport,
    PrepareOffer,
    Send,
    StartTransfer,
)
from netloader.fsm.events import (
    LOCAL_EVENTS,
    PEER_EVENTS,
    Ask,
    Connected,
    ConnectFailed,
    ConnectionLost,
    DeadlinePassed,
    Event,
    Finish,
    MoreAvailable,
    OfferReady,
    OfferRefused,
    StopRequested,
    TransferFailed,
    Transferred,
    TransportJoined,
    TransportReady,
    TransportRefused,
)
from netloader.fsm.messages import Offer
from netloader.fsm.reasons import Reason
from netloader.fsm.server_session import ServerSession
from netloader.fsm.session import Session, Step
from netloader.fsm.states import INITIAL, TERMINAL, State
from netloader.testing.laws import lawful, must
from tests.property.samples import SAMPLES
from tests.support.messages import PROVEN_DESCRIPTION, PROVEN_OFFER
from tests.support.world import Choice, World

CONSTANT: Final = {"spec", "entries", "siblings", "nonce", "session_id"}
"""What no event changes."""
OF_TIME: Final = {"deadline", "deadlines", "entered"}
OF_A_STEP: Final = {"_effects", "_row"}

ENDINGS: Final[dict[type, tuple[type[Event], ...]]] = {
    PrepareOffer: (OfferReady, OfferRefused, TransferFailed),
    OpenTransport: (TransportReady, TransportRefused, TransferFailed),
    JoinTransport: (TransportJoined, TransportRefused, OfferRefused, TransferFailed),
    ChooseSegments: (Ask, Finish, TransferFailed),
    StartTransfer: (Transferred, TransferFailed),
}
"""What the driver may report of an order, once for each."""
ONCE: Final = ("always-a-deadline", "nothing a peer says moves it while a phase lasts")
LATER_S: Final = 1.0
ANY_TIME: Final = (ConnectionLost, DeadlinePassed, StopRequested)


def fingerprint(session: Session) -> tuple[str, ...]:
    """All that decides what a session will do, time left out."""
    names = {name for kind in type(session).__mro__ for name in getattr(kind, "__slots__", ())}
    lasting = sorted(names - CONSTANT - OF_TIME - OF_A_STEP)
    return (session.side, *(repr(getattr(session, name)) for name in lasting))


@dataclass
class Found:
    """What a search has seen."""

    nodes: int = 0
    edges: int = 0
    rows: set[int] = field(default_factory=set)
    """Identities of the rows that fired."""
    ends: set[tuple[str, ...]] = field(default_factory=set)
    """How it may end."""
    seconds: float = 0.0


# -- one side, and an adversary that says anything at any time -----------------------------------


class Alone(NamedTuple):
    """A session and the order its driver is busy with."""

    session: Session
    order: type | None
    transport: str = ""
    """The candidate that the last such order was about."""

    @property
    def key(self) -> tuple[object, ...]:
        """What a session that is over knows does not matter any more: it absorbs everything."""
        session = self.session
        if session.state in TERMINAL:
            return self.order, session.side, session.state, repr(session.verdict)
        return self.order, self.transport, *fingerprint(session)


def possible(at: Alone) -> Iterator[Event]:
    """Every event that may come now."""
    for kind in PEER_EVENTS:
        yield from SAMPLES[kind]
    if at.session.state in TERMINAL:
        locals_: tuple[type[Event], ...] = LOCAL_EVENTS
    elif at.session.state is INITIAL:
        dials = (ConnectFailed,) if at.session.side == "client" else ()
        locals_ = (Connected, *dials, *ANY_TIME)
    else:
        locals_ = (*ANY_TIME, *ENDINGS.get(at.order or object, ()))
        chosen = at.session.state in (State.VALIDATE, State.TRANSFER)
        if isinstance(at.session, ServerSession) and chosen:
            locals_ = (*locals_, MoreAvailable)
    for local in locals_:
        yield from (event for event in SAMPLES[local] if _may_come(at, event))


def _may_come(at: Alone, event: Event) -> bool:
    """Whether this side may report it: of the candidate at hand, and what its owner may want."""
    if isinstance(event, TransportReady | TransportJoined | TransportRefused):
        return at.session.state in TERMINAL or event.transport == at.transport
    if isinstance(event, OfferRefused) and at.session.state not in TERMINAL:
        return isinstance(at.session, ServerSession)
    return _may_be_asked(at.session, event)


def _may_be_asked(session: Session, event: Event) -> bool:
    """Whether an owner may want this: what is there, once, and nothing at first only."""
    if not isinstance(event, Ask) or not isinstance(session, ClientSession):
        return True
    if session.state in TERMINAL or not session.available.issuperset(event.segments):
        return session.state in TERMINAL
    asked = session.requests.asked
    return asked.isdisjoint(event.segments) and (bool(event.segments) or not session.requests.count)


def after(at: Alone, step: Step) -> type | None:
    """Which order the driver is busy with when a step is done."""
    order = None if isinstance(step.event, ENDINGS.get(at.order or object, ())) else at.order
    for effect in step.effects:
        if type(effect) in ENDINGS:
            must(order is None, "one-order", "the next one waits for the end of the last")
            order = type(effect)
        elif isinstance(effect, AbortTransfer):
            order = None
    return order


def search_alone(make: Callable[[], Session]) -> Found:
    """Everything one session can be brought to.

    Raises LawError, and LocalProtocolError for a local event that is possible and has no row.
    """
    found, begun = Found(), perf_counter()
    start = Alone(make(), None)
    seen, edge = {start.key}, deque([start])
    while edge:
        at = edge.popleft()
        found.nodes += 1
        for event in possible(at):
            found.edges += 1
            reached = _told(at, event, found)
            if reached.key not in seen:
                seen.add(reached.key)
                edge.append(reached)
    found.seconds = perf_counter() - begun
    return found


def _told(at: Alone, event: Event, found: Found) -> Alone:
    """What becomes of a session that is told something, and what must hold then."""
    twin, now = copy.copy(at.session), at.session.entered + LATER_S
    try:
        step = twin.step(event, now)
    except LocalProtocolError as error:
        error.add_note(f"after {fingerprint(at.session)}")
        raise
    found.rows.add(id(step.row))
    lawful(twin, step, now)
    must(twin.phase != at.session.phase or twin.deadline == at.session.deadline, *ONCE)
    must(_goes_on(at.session, twin), "once-each", "one request at a time, and no segment twice")
    if isinstance(twin, ServerSession):
        _server_holds(twin, step)
    if isinstance(twin, ClientSession) and twin.spec.token is not None:
        _believed(twin, step)
    _opens_in_order(at.session, step)
    about = [e.transport for e in step.effects if isinstance(e, OpenTransport | JoinTransport)]
    order = after(at, step)
    opening = order in (OpenTransport, JoinTransport)
    return Alone(twin, order, *(about or [at.transport] if opening else []))


def _opens_in_order(before: Session, step: Step) -> None:
    """A candidate is opened and joined at most once, in order, and none after the first request."""
    for effect in step.effects:
        if not isinstance(effect, OpenTransport | JoinTransport):
            continue
        must(not before.requests.count, "open-before-asked", "no candidate after a request")
        assert isinstance(before, ClientSession | ServerSession)
        held = isinstance(before, ServerSession) and before.held is not None
        opened = isinstance(before, ClientSession) and isinstance(effect, JoinTransport)
        at_hand = held or opened
        again = at_hand and effect.transport == before.transport
        offered = isinstance(before, ClientSession) and before.offer is None
        later = offered or again or effect.transport in before.later_candidates
        must(later, "each-candidate-once", f"{effect.transport} after {before.transport}")


def _goes_on(before: Session, after: Session) -> bool:
    """Whether requests follow each other, so that a session cannot go on for ever."""
    was, now = before.requests, after.requests
    if now.count == was.count:
        return now.asked == was.asked
    wanted = frozenset(now.at_hand.segments) if now.at_hand else frozenset()
    one = was.at_hand is None and now.count == was.count + 1
    new = was.asked.isdisjoint(wanted) and now.asked == was.asked | wanted
    return one and new and (bool(wanted) or not was.count)


def _believed(session: ClientSession, step: Step) -> None:
    """What a client with a token acts upon, it was told just so."""
    taken = [effect.offer for effect in step.effects if isinstance(effect, OpenTransport)]
    must(taken in ([], [PROVEN_OFFER]), "under-the-proof", "nothing but the server's own offer")
    learnt = session.description in (None, PROVEN_DESCRIPTION)
    must(learnt, "under-the-proof", "nor another description")


def _server_holds(session: ServerSession, step: Step) -> None:
    if session.state is State.DONE:
        described = session.verdict is not None and session.verdict.reason is Reason.DESCRIBED
        unused = not session.requests.count
        must(session.sent or described or unused, "agreement", "a server is done when it has sent")
    for effect in step.effects:
        if isinstance(effect, Send) and isinstance(effect.message, Offer):
            asked = session.hello is not None and session.hello.identity
            must(asked == effect.message.identity, "as-asked", f"{asked} is what was asked for")


# -- both sides, their channels, their work, and faults -------------------------------------------


class Node(NamedTuple):
    """A world and how it came about."""

    world: World
    faults: int
    path: tuple[Choice, ...]

    @property
    def key(self) -> tuple[object, ...]:
        """Two worlds with one key have one future."""
        sides = [
            (
                *(*fingerprint(p.session), repr(p.inbox), repr(p.work), repr(p.choosing)),
                *(p.moves, p.hangs, p.audits),
            )
            for p in self.world.parties.values()
        ]
        return (self.faults, self.world.wire, self.world.coming, *sides)


def search_pair(make: Callable[[], World], faults: int, holds: Callable[[World], None]) -> Found:
    """Every interleaving of two sides with at most so many faults; `holds` is asked at each node.

    Raises AssertionError with the path in a note.
    """
    found, begun = Found(), perf_counter()
    start = Node(make(), faults, ())
    seen, edge = {start.key}, deque([start])
    while edge:
        at = edge.popleft()
        found.nodes += 1
        try:
            honest = at.world.choices()
            if not honest:
                found.ends.add(tuple(p.session.state.name for p in at.world.parties.values()))
                no_dead_end(at.world)
            holds(at.world)
            at.world.fork().only_time_passes()
            for reached in _next(at, honest):
                found.edges += 1
                found.rows |= {id(s.row) for p in reached.world.parties.values() for s in p.steps}
                if reached.key not in seen:
                    seen.add(reached.key)
                    edge.append(reached)
        except (AssertionError, LocalProtocolError) as error:
            error.add_note("\n".join(f"{c.who} {c.what}" for c in at.path))
            raise
    found.seconds = perf_counter() - begun
    return found


def _next(at: Node, honest: Sequence[Choice]) -> Iterator[Node]:
    for choice in honest:
        world = at.world.fork()
        world.do(choice)
        yield Node(world, at.faults, (*at.path, choice))
    for fault in at.world.faults() if at.faults else ():
        world = at.world.fork()
        world.hurt(fault)
        yield Node(world, at.faults - 1, (*at.path, fault))


def no_dead_end(world: World) -> None:
    """Where nothing more can happen both have settled, unless work hangs for ever."""
    if not any(party.hangs for party in world.parties.values()):
        left = [who for who, party in world.parties.items() if not party.settled]
        assert not left, f"no-dead-end: {left} wait for nothing"
