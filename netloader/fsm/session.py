"""The state machine of one session. Events enter by `step`; effects leave in its Step.

A session has one owner, is fed one event at a time, and its effects are performed before the
next event. Time is an argument: seconds of any monotonic clock.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from netloader.config import Deadlines
from netloader.fsm.effects import AbortTransfer, AuditWeights, Effect, Send, Settle, Verdict
from netloader.fsm.events import (
    ConnectionLost,
    DeadlinePassed,
    Event,
    PeerEvent,
    StopRequested,
    TransferFailed,
    Violated,
)
from netloader.fsm.identity import Difference
from netloader.fsm.manifest import span
from netloader.fsm.messages import Reject, Request
from netloader.fsm.reasons import Reason
from netloader.fsm.requests import Requests
from netloader.fsm.states import INITIAL, TERMINAL, State
from netloader.fsm.table import Limit, Program, Row, fire
from netloader.fsm.terms import MAX_OTHER_SOURCES, places

FRAME_BEFORE_TRUST = 64 * 1024
"""Bytes of one frame from a peer that has proven nothing: a hello is below 4 KiB."""
FRAME_AFTER_TRUST = 64 * 1024 * 1024
"""Bytes of one frame from a server we chose: a manifest of 200,000 tensors fits."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one event did. The driver performs `effects` in order.

    `lasted_s` is how many seconds the session had been in `before`.
    """

    before: State
    event: Event
    after: State
    effects: tuple[Effect, ...]
    row: Row[Any]
    lasted_s: float


class Session:
    """What both sides share; `ClientSession` and `ServerSession` add table, limits and data."""

    __slots__ = (
        "_effects",
        "_row",
        "deadline",
        "deadlines",
        "entered",
        "requests",
        "state",
        "touched",
        "transport",
        "verdict",
    )

    side: ClassVar[str]
    machine: ClassVar[Program]
    limits: ClassVar[Mapping[State, Limit]]

    def __init__(self, deadlines: Deadlines, now: float) -> None:
        self.deadlines = deadlines
        self.state = INITIAL
        self.verdict: Verdict | None = None
        self.touched = False
        self.requests = Requests()
        self.transport = ""
        """The candidate that is opened, or is open; empty before there is one."""
        self._effects: tuple[Effect, ...] = ()
        self._row: Row[Any] | None = None
        self.entered = now
        self._arm(now)

    @property
    def name(self) -> str:
        """The session's id, as the server chose it; empty while unknown."""
        return ""

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of all segments, and of a full one."""
        return 0, 1

    @property
    def request(self) -> Request | None:
        """The current request; None before the first and between two."""
        return self.requests.at_hand

    @property
    def nbytes(self) -> int:
        """Bytes of the current request."""
        return 0 if self.request is None else span(*self.sizes, self.request.segments)

    @property
    def asked_bytes(self) -> int:
        """Bytes of all requests so far."""
        return span(*self.sizes, self.requests.asked)

    @property
    def deadline_bytes(self) -> int:
        """Bytes that the deadline of TRANSFER depends on: those of the request.

        Between two requests, all segments count: a client may hash them before it finishes.
        """
        idle = self.state is State.TRANSFER and self.request is None
        return self.sizes[0] if idle else self.nbytes

    @property
    def phase(self) -> object:
        """The deadline starts again when this value changes.

        In VALIDATE each candidate of the offer has a deadline of its own, and in TRANSFER each
        request and the time between two.
        """
        if self.state is not State.TRANSFER:
            return self.state, self.transport
        return self.requests.count, self.request is None

    @property
    def frame_limit(self) -> int:
        """Largest frame, in bytes, to accept from the peer at this point."""
        return FRAME_BEFORE_TRUST

    def step(self, event: Event, now: float) -> Step:
        """Take one event; perform every effect of the answer before the next call.

        Raises:
            LocalProtocolError: a local event that cannot happen here. Any exception out of
                `step` is a bug on this side: abandon the session.

        """
        before, phase, lasted_s = self.state, self.phase, now - self.entered
        fire(self.machine, self, event)
        if self._row is None:
            raise AssertionError("a fired row always collects")
        if self.state is not before:
            self.entered = now
        if self.phase != phase:
            self._arm(now)
        done = Step(before, event, self.state, self._effects, self._row, lasted_s)
        self._effects, self._row = (), None
        return done

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`, in seconds of the caller's clock; None when over."""
        return self.deadline

    def handle_timeout(self, now: float) -> Step | None:
        """Tell the session what time it is; answers with a step when its deadline has passed."""
        if self.deadline is None or now < self.deadline:
            return None
        return self.step(DeadlinePassed(), now)

    def collect(self, row: Row[Any], effects: tuple[Effect, ...]) -> None:
        """For the table only: take what the fired row yielded."""
        self._row, self._effects = row, effects
        for effect in effects:
            if isinstance(effect, Settle):
                self.verdict = effect.verdict

    def _arm(self, now: float) -> None:
        self.deadline: float | None = None
        if self.state not in TERMINAL:
            self.deadline = now + self.limits[self.state](self.deadlines, self.deadline_bytes)

    def __copy__(self) -> Self:
        twin = object.__new__(type(self))
        for kind in type(self).__mro__:
            for name in getattr(kind, "__slots__", ()):
                setattr(twin, name, getattr(self, name))
        return twin


def part(session: Session, verdict: Verdict) -> Iterable[Effect]:
    """End without a message to the peer: stop what was started, then the verdict."""
    if session.state in (State.VALIDATE, State.TRANSFER):
        yield AbortTransfer()
    yield Settle(verdict)


def refuse(
    session: Session,
    reason: Reason,
    detail: str = "",
    differences: tuple[Difference, ...] = (),
    retry_after_s: float = 0.0,
    other_sources: tuple[str, ...] = (),
    ports: tuple[int, ...] = (),
) -> Iterable[Effect]:
    """End and tell the peer why."""
    theirs = tuple(d.swapped() for d in differences)
    yield Send(Reject(reason.value, detail, theirs, retry_after_s, other_sources, ports))
    yield from part(session, failure(session, reason, detail, differences, retry_after_s))


def failure(
    session: Session,
    reason: Reason,
    detail: str = "",
    differences: tuple[Difference, ...] = (),
    retry_after_s: float = 0.0,
) -> Verdict:
    """The verdict of a session that this side ends in FALLBACK."""
    return Verdict(
        state=State.FALLBACK,
        reason=reason,
        detail=detail,
        weights_dirty=session.touched,
        differences=differences,
        retry_after_s=retry_after_s,
    )


def lost(session: Session, event: ConnectionLost) -> Iterable[Effect]:
    """The connection closed or was reset."""
    return part(session, failure(session, Reason.CONNECTION_LOST, event.detail))


def expired(session: Session, event: DeadlinePassed) -> Iterable[Effect]:
    """The deadline of the state has passed."""
    del event
    return refuse(session, Reason.DEADLINE_PASSED, f"in {session.state.value}")


def idled(session: Session, event: DeadlinePassed) -> Iterable[Effect]:
    """The client has asked for nothing more for as long as all of it may take."""
    del event
    return refuse(session, Reason.IDLE, "no further request, and no word that all is verified")


def stopped(session: Session, event: StopRequested) -> Iterable[Effect]:
    """The owner ended the session."""
    return refuse(session, event.reason, event.detail)


def failed(session: Session, event: TransferFailed) -> Iterable[Effect]:
    """The transport failed."""
    return refuse(session, event.reason, event.detail)


def rejected(session: Session, event: Reject) -> Iterable[Effect]:
    """The peer refused."""
    verdict = Verdict(
        state=State.FALLBACK,
        reason=Reason.of(event.reason),
        detail=event.detail,
        weights_dirty=session.touched,
        by_peer=True,
        differences=event.differences,
        retry_after_s=event.retry_after_s,
        other_sources=places(event.other_sources),
        ports=event.ports[:MAX_OTHER_SOURCES],
    )
    return part(session, verdict)


def doubts(session: Session, event: Reject) -> bool:
    """Whether the peer refuses because the bytes are not those that were published."""
    del session
    return event.reason == Reason.DIGEST_MISMATCH.value


def doubted(session: Session, event: Reject) -> Iterable[Effect]:
    """The peer refused the bytes: compare the weights again before the next client asks."""
    yield AuditWeights()
    yield from rejected(session, event)


def violation(session: Session, event: PeerEvent) -> Iterable[Effect]:
    """The peer broke the protocol."""
    said = event.detail if isinstance(event, Violated) else type(event).__name__.lower()
    detail = f"{said} in {session.state.value}"
    return refuse(session, Reason.PROTOCOL_VIOLATION, detail)
