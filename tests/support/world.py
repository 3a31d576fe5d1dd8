"""Two parties without a socket, and a world of choices.

The `World` owns two sessions, two ordered pipes and virtual time. Whatever may happen next (a
message is heard, a piece of local work is done) is a choice, so a test decides every interleaving.
`World.take` checks what must hold after any step at all.
"""

import copy
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, NamedTuple, Self, assert_never

from netloader.fsm.effects import (
    AbortTransfer,
    AuditWeights,
    ChooseSegments,
    Effect,
    JoinTransport,
    NoteAvailable,
    OpenTransport,
    PrepareOffer,
    Send,
    Settle,
    StartTransfer,
)
from netloader.fsm.events import (
    Ask,
    Connected,
    ConnectionLost,
    DeadlinePassed,
    Event,
    Finish,
    MoreAvailable,
    OfferReady,
    OfferRefused,
    PeerEvent,
    StopRequested,
    TransferFailed,
    Transferred,
    TransportJoined,
    TransportReady,
    TransportRefused,
    Violated,
)
from netloader.fsm.manifest import segments_of
from netloader.fsm.messages import Candidate, Message
from netloader.fsm.reasons import Reason
from netloader.fsm.session import Session, Step
from netloader.fsm.states import TERMINAL, State
from netloader.fsm.terms import CatalogEntry, FetchSpec
from netloader.testing import lawful
from netloader.testing.fabric import next_request
from tests.support.messages import (
    DEADLINES,
    DIGESTS,
    NBYTES,
    READY,
    SEGMENT_BYTES,
    WISH,
    client,
    server,
)

HUNG_UP: Final = None
OUT_OF_TIME: Final = (Reason.DEADLINE_PASSED, Reason.UNREACHABLE, Reason.IDLE)
WORK: Final = (OfferReady, TransportReady, TransportJoined, Ask, Finish, Transferred)
ALL: Final = len(DIGESTS)
FAILURES: Final[Mapping[str, Event]] = {
    "fails": TransferFailed(Reason.TRANSFER_FAILED, "cut"),
    "finds other bytes": TransferFailed(Reason.DIGEST_MISMATCH, "segment 1"),
    "refuses": OfferRefused(Reason.BUSY, "full", 2.0),
}


class Party:
    """One side: its session, what is on the way to it, and what its own work will report."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.inbox: deque[PeerEvent | None] = deque()
        self.work: deque[Event] = deque([Connected()])
        self.steps: list[Step] = []
        self.moves = False
        self.hangs = False
        self.audits = 0
        self.choosing: ChooseSegments | None = None
        """What the owner of a client cannot decide before its source has more."""

    @property
    def settled(self) -> bool:
        """Whether its verdict is out."""
        return self.session.state in TERMINAL

    def fork(self) -> Self:
        """A twin whose future is its own."""
        twin = copy.copy(self)
        twin.session = copy.copy(self.session)
        twin.inbox, twin.work, twin.steps = self.inbox.copy(), self.work.copy(), self.steps.copy()
        return twin


class Choice(NamedTuple):
    """One thing that may happen next."""

    who: str
    what: str


class World:
    """A client and a server, and all that may happen between them."""

    def __init__(self, spec: FetchSpec = WISH, *entries: CatalogEntry) -> None:
        self.now = 0.0
        self.client_session, self.server_session = client(spec), server(*entries)
        both: dict[str, Session] = {"client": self.client_session, "server": self.server_session}
        self.parties = {who: Party(session) for who, session in both.items()}
        self.wire = True
        self.coming: tuple[int, ...] = ()
        """Segments that the server gets after its offer, one by one."""
        self.portion = ALL
        """How many segments the client's owner asks for at a time; 0: it needs none of them."""

    def fork(self) -> Self:
        """A twin whose future is its own."""
        twin = copy.copy(self)
        twin.parties = {who: party.fork() for who, party in self.parties.items()}
        sessions = (party.session for party in twin.parties.values())
        twin.client_session, twin.server_session = sessions  # type: ignore[assignment]
        return twin

    # -- honest ----------------------------------------------------------------------------------

    def choices(self) -> list[Choice]:
        """Everything that can happen now without a fault and without a deadline passing."""
        found: list[Choice] = []
        for who, party in self.parties.items():
            first = party.work[0] if party.work else None
            if first is not None and (who == "server" or self._can_finish(first)):
                found.append(Choice(who, "works"))
            if party.inbox and not isinstance(first, Connected):
                found.append(Choice(who, "hears"))
        if self.coming and self.server_session.state in (State.VALIDATE, State.TRANSFER):
            found.append(Choice("server", "learns"))
        return found

    def _can_finish(self, work: Event) -> bool:
        """A client receives only while the server sends, or after it has sent everything."""
        sends = self.parties["server"].moves or self.server_session.sent
        return sends or not isinstance(work, Transferred)

    def do(self, choice: Choice, pause: float = 0.0) -> None:
        """Let it happen, `pause` seconds from now."""
        self.now += pause
        party = self.parties[choice.who]
        if choice.what == "works":
            self.take(choice.who, party.work.popleft())
        elif choice.what == "learns":
            self.coming, more = self.coming[1:], frozenset(self.coming[:1])
            self.take(choice.who, MoreAvailable(more))
        else:
            heard = party.inbox.popleft()
            self.take(choice.who, heard or ConnectionLost("closed by the peer"))

    def take(self, who: str, event: Event) -> None:
        """One event for one party, and what must hold after every step."""
        party = self.parties[who]
        party.moves &= not isinstance(event, Transferred)
        before = party.session.verdict
        step = party.session.step(event, self.now)
        party.steps.append(step)
        lawful(party.session, step, self.now)
        assert before is None or party.session.verdict is before
        for effect in step.effects:
            self._perform(who, party, effect)

    def _perform(self, who: str, party: Party, effect: Effect) -> None:  # noqa: C901 - a case for each
        match effect:
            case Send():
                self._post(who, effect.message)
            case PrepareOffer():
                ready = READY[effect.entry]
                there = frozenset(range(ALL)).difference(self.coming) if self.coming else None
                rendezvous = ready.candidates[0].rendezvous
                made = tuple(Candidate(name, rendezvous) for name in effect.transports)
                party.work.append(replace(ready, available=there, candidates=made))
            case OpenTransport():
                party.work.append(TransportReady(effect.transport, {"key": "1"}))
            case JoinTransport():
                party.work.append(TransportJoined(effect.transport))
            case ChooseSegments():
                self._choose(party, effect)
            case NoteAvailable():
                if party.choosing is not None:
                    more = party.choosing.available | effect.segments
                    self._choose(party, replace(party.choosing, available=more))
            case StartTransfer():
                segments = segments_of(self.server_session.entry.manifest, SEGMENT_BYTES)
                party.moves = True
                party.work.append(Transferred(sum(segments[i].nbytes for i in effect.segments)))
            case AuditWeights():
                party.audits += 1
            case AbortTransfer():
                party.moves, party.choosing = False, None
                if party.work:
                    party.work = deque([TransferFailed(Reason.TRANSFER_FAILED, "aborted")])
            case Settle():
                party.moves = False
                self._post(who, HUNG_UP)
            case _:
                assert_never(effect)

    def _choose(self, party: Party, order: ChooseSegments) -> None:
        answer = next_request(order, self.portion)
        party.choosing = order if answer is None else None
        party.work.extend([] if answer is None else [answer])

    def _post(self, who: str, item: Message | None) -> None:
        if self.wire:
            self.parties["server" if who == "client" else "client"].inbox.append(item)

    # -- faults ----------------------------------------------------------------------------------

    def faults(self) -> list[Choice]:
        """Everything that can go wrong now."""
        found = [Choice("both", "reset"), Choice("both", "closed")] if self.wire else []
        for who, party in self.parties.items():
            if party.settled:
                continue
            found += [Choice(who, "stopped"), Choice(who, "too late")]
            if party.work and isinstance(party.work[0], WORK):
                found += [Choice(who, "fails"), Choice(who, "hangs")]
                found += [Choice(who, "refuses")] * isinstance(party.work[0], OfferReady)
                opening = isinstance(party.work[0], TransportReady | TransportJoined)
                found += [Choice(who, "refuses the transport")] * opening
                if who == "client" and isinstance(party.work[0], Transferred):
                    found.append(Choice(who, "finds other bytes"))
            if party.inbox and party.inbox[0] is not HUNG_UP:
                found.append(Choice(who, "misreads"))
        return found

    def hurt(self, fault: Choice) -> None:
        """Let it go wrong."""
        if fault.who == "both":
            self.wire = False
            for party in self.parties.values():
                if fault.what == "reset":
                    party.inbox.clear()
                party.inbox.append(HUNG_UP)
        elif fault.what == "stopped":
            self.take(fault.who, StopRequested())
        elif fault.what == "refuses the transport":
            work = self.parties[fault.who].work.popleft()
            assert isinstance(work, TransportReady | TransportJoined)
            refused = TransportRefused(work.transport, Reason.TRANSFER_FAILED, "another user")
            self.take(fault.who, refused)
        elif fault.what in FAILURES:
            self.parties[fault.who].work.popleft()
            self.take(fault.who, FAILURES[fault.what])
        elif fault.what == "hangs":
            self.parties[fault.who].work.clear()
            self.parties[fault.who].hangs = True
        elif fault.what == "misreads":
            self.parties[fault.who].inbox[0] = Violated("bytes of another protocol")
        else:
            due = self.parties[fault.who].session.next_timeout()
            assert due is not None
            self.now = max(self.now, due)
            self.take(fault.who, DeadlinePassed())

    def only_time_passes(self) -> None:
        """Nothing is heard and no work ends any more; the deadlines alone must settle both."""
        begun = self.now
        left = [party for party in self.parties.values() if not party.settled]
        while not all(party.settled for party in self.parties.values()):
            dues = [party.session.next_timeout() for party in self.parties.values()]
            self.now = max(self.now, min(due for due in dues if due is not None))
            for who, party in self.parties.items():
                due = party.session.next_timeout()
                if due is not None and due <= self.now:
                    self.take(who, DeadlinePassed())
        whole = DEADLINES.connect_s + DEADLINES.handshake_s + DEADLINES.validate_s
        assert self.now - begun <= whole + DEADLINES.transfer_s(NBYTES), "time-settles"
        for party in left:
            assert party.session.verdict is not None
            assert party.session.verdict.reason in OUT_OF_TIME
