"""A real session with a hostile peer: what it hears is any bytes, what it does is held to account.

The driver's part is played here: effects become local work that is reported when the input says
so. Laws of one step are those of tests/support/world.py; the others need the whole conversation.
"""

from collections import deque
from dataclasses import replace
from itertools import pairwise
from typing import Final, assert_never

from netloader.fsm import auth
from netloader.fsm.client_session import ClientSession
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
    Verdict,
)
from netloader.fsm.events import (
    Connected,
    ConnectionLost,
    Event,
    OfferRefused,
    StopRequested,
    TransferFailed,
    Transferred,
    TransportJoined,
    TransportReady,
    Violated,
)
from netloader.fsm.manifest import segments_of
from netloader.fsm.messages import (
    Challenge,
    Description,
    Hello,
    Lane,
    Message,
    Offer,
    Purpose,
    Reject,
)
from netloader.fsm.reasons import Reason
from netloader.fsm.server_session import ServerSession
from netloader.fsm.session import FRAME_AFTER_TRUST, Step
from netloader.fsm.states import TERMINAL, State
from netloader.fsm.terms import MAX_CANDIDATES, MAX_LANES
from netloader.testing import lawful
from netloader.testing.fabric import ALL_SEGMENTS, next_request
from netloader.wire.frames import HEADER, MAGIC, PREFIX, Decoder, encode
from tests.support.histories import LIVES
from tests.support.messages import (
    IDENTITY,
    MANIFEST,
    OFFERING,
    PROVEN_DESCRIPTION,
    PROVEN_OFFER,
    READY,
    SEGMENT_BYTES,
    TOKEN,
)

NAMES: Final = tuple(LIVES)
SEGMENTS: Final = segments_of(MANIFEST, SEGMENT_BYTES)
MOST_EFFECTS: Final = 4
OWN_BYTES: Final = 8 * 1024
"""An answer that echoes nothing of the peer's, with room to spare."""
ECHO: Final = 32
"""Bytes an answer may have for each byte heard. A refusal names every field that differs, with a
remedy: a field that costs the peer 8 bytes to invent makes 95 bytes of answer."""


def document_of(kind: bytes, body: bytes) -> bytes:
    """A document of these two parts, whether they are JSON or not."""
    return b'{"kind":"%s","body":%s}' % (kind, body)


def framed(document: bytes) -> bytes:
    """A well-made frame around any document."""
    return HEADER.pack(MAGIC, PREFIX[-1], len(document)) + document


class Conversation:
    """One session, its decoder and its local work; `life` names where it starts (world.LIVES)."""

    def __init__(self, life: bytes) -> None:
        name = life.decode(errors="replace")
        make, events = LIVES[name if name in LIVES else NAMES[sum(life) % len(NAMES)]]
        self.session = make()
        self.decoder = Decoder(self.session.frame_limit)
        self.now = 0.0
        self.heard_bytes = 0
        self.gone = False
        self.work: deque[Event] = deque([Connected()])
        self.said: list[Message] = []
        self.started = 0
        self.moved: set[int] = set()
        self.choice: ChooseSegments | None = None
        """What the owner of a client is to decide; it does so at once."""
        self.trusted = False
        self.reported: Transferred | None = None
        self.reached: set[str] = set()
        for event in events:
            if self.work and type(self.work[0]) is type(event):
                self.work.popleft()
            self.choice = None
            self._step(event)
        self._choose()

    # -- what may happen -------------------------------------------------------------------------

    def take(self, line: bytes) -> None:
        """One line of the input."""
        word, _, rest = line.partition(b" ")
        match word:
            case b"works":
                if self.work:
                    self._step(self.work.popleft())
            case b"fails":
                self._fail()
            case b"late":
                self._wait()
            case b"stop":
                self._step(StopRequested())
            case b"lost":
                if not self.gone:
                    self.gone = True
                    self._step(ConnectionLost("reset"))
            case _:
                self._hear(framed(document_of(word, rest)))
        self._choose()

    def _choose(self) -> None:
        choice, self.choice = self.choice, None
        if choice is None or self.session.state in TERMINAL:
            return
        answer = next_request(choice, ALL_SEGMENTS)
        if answer is None:
            self.choice = choice
        else:
            self._step(answer)

    def end(self) -> None:
        """Whatever was said, one deadline later it is over."""
        self._wait()
        assert self.session.state in TERMINAL, "time settles"
        assert self.session.verdict is not None

    def _fail(self) -> None:
        if self.work and not isinstance(self.work[0], Connected):
            asked = self.work.popleft()
            if asked in READY:
                self._step(OfferRefused(Reason.BUSY, "all places are taken", 2.0))
            else:
                self._step(TransferFailed(Reason.TRANSFER_FAILED, "cut"))

    def _wait(self) -> None:
        due = self.session.next_timeout()
        if due is not None:
            self.now = max(self.now, due)
            step = self.session.handle_timeout(self.now)
            assert step is not None, "a deadline that is due has passed"
            self._judge(step, None)

    def _hear(self, frame: bytes) -> None:
        if self.gone:
            return
        self.heard_bytes += len(frame)
        for item in self.decoder.feed(frame):
            if not isinstance(item, Lane):
                self._step(item)
            elif isinstance(self.session, ServerSession) and self.session.state is State.HANDSHAKE:
                self.gone = True  # the listener takes the connection away: it is a data lane
            else:
                self._step(Violated("a lane where none belongs"))

    def _step(self, event: Event) -> None:
        if isinstance(event, Transferred) and self.session.state is State.TRANSFER:
            self.reported = event
        verdict = self.session.verdict
        step = self.session.step(event, self.now)
        self.decoder.limit = self.session.frame_limit
        self._judge(step, verdict)

    # -- what must hold --------------------------------------------------------------------------

    def _judge(self, step: Step, verdict: Verdict | None) -> None:
        lawful(self.session, step, self.now)
        assert verdict is None or self.session.verdict is verdict, "one verdict"
        row = step.row
        self.reached.add(f"{self.session.side} {row.source.name} {row.on.__name__} {row.guard}")
        assert len(step.effects) <= MOST_EFFECTS, "a bounded answer"
        self.trusted = self.trusted or self._proves(step.event)
        for effect in step.effects:
            self._perform(effect, step)

    def _perform(self, effect: Effect, step: Step) -> None:  # noqa: C901 - a case for each
        match effect:
            case Send():
                self._check_words(effect.message, step)
            case PrepareOffer():
                assert self.trusted, "nothing is prepared for a stranger"
                assert set(effect.transports) <= set(OFFERING.transports)
                assert effect.digest_algorithm in OFFERING.digest_algorithms
                self.work.append(READY[effect.entry])
            case OpenTransport():
                self._check_offer(effect.offer)
                self.work.append(TransportReady(effect.transport))
            case JoinTransport():
                assert self.trusted, "nothing is joined with a stranger"
                self.work.append(TransportJoined(effect.transport))
            case ChooseSegments():
                self.choice = effect
            case NoteAvailable():
                if self.choice is not None:
                    more = self.choice.available | effect.segments
                    self.choice = replace(self.choice, available=more)
            case StartTransfer():
                self._check_start(effect)
                self.work.append(Transferred(self._nbytes(effect)))
            case AuditWeights():
                assert isinstance(self.session, ServerSession), "a client has published nothing"
                assert self.started, "who was sent nothing has nothing to doubt"
            case AbortTransfer():
                if self.work:
                    self.work = deque([TransferFailed(Reason.TRANSFER_FAILED, "aborted")])
            case Settle():
                self._check_verdict(effect.verdict, step)
            case _:
                assert_never(effect)

    def _check_words(self, message: Message, step: Step) -> None:
        said = encode(message)
        assert Decoder(FRAME_AFTER_TRUST).feed(said) == [message], "our words can be heard"
        assert len(said) <= OWN_BYTES + ECHO * self.heard_bytes, "no flood in answer to a drop"
        if isinstance(message, Reject):
            settled = step.effects[-1]
            assert isinstance(settled, Settle), "a refusal ends the session"
            assert message.reason == settled.verdict.reason.value, "same words"
        hello = isinstance(message, Hello) and isinstance(self.session, ClientSession)
        tells = hello or isinstance(message, Description | Offer)
        names = isinstance(message, Reject) and message.differences
        assert self.trusted or not (tells or names), "a stranger learns nothing"
        assert not isinstance(message, Reject) or not any(
            isinstance(word, Reject) for word in self.said
        ), "one refusal"
        assert not isinstance(message, Challenge) or Challenge not in map(type, self.said)
        self.said.append(message)

    def _check_offer(self, offer: Offer) -> None:
        session = self.session
        assert isinstance(session, ClientSession)
        assert self.trusted, "no stranger is dialled"
        if session.spec.token is not None:
            assert offer == PROVEN_OFFER, "what the server offered, all of it"
        assert offer.manifest == MANIFEST, "the same tensors"
        assert not IDENTITY.differences(offer.identity), "the same model"
        names = [candidate.transport for candidate in offer.candidates]
        assert set(names) <= set(session.spec.transports)
        assert len(names) == len(set(names)) <= MAX_CANDIDATES
        assert offer.digest_algorithm in session.spec.digest_algorithms
        assert offer.layout in session.spec.layouts
        cut = segments_of(MANIFEST, offer.segment_bytes)
        assert len(cut) == len(offer.segment_digests) <= len(SEGMENTS), "no millions of segments"

    def _check_start(self, effect: StartTransfer) -> None:
        self.started += 1
        assert all(a < b for a, b in pairwise(effect.segments)), "in order"
        assert self.moved.isdisjoint(effect.segments), "no segment twice"
        self.moved.update(effect.segments)
        assert set(effect.segments) <= set(range(len(SEGMENTS))), "only segments there are"
        assert 1 <= effect.lanes <= MAX_LANES

    def _nbytes(self, order: StartTransfer) -> int:
        """How many bytes that is, of the model that the conversation is about."""
        session = self.session
        manifest = session.entry.manifest if isinstance(session, ServerSession) else MANIFEST
        return sum(segments_of(manifest, SEGMENT_BYTES)[i].nbytes for i in order.segments)

    def _check_verdict(self, verdict: Verdict, step: Step) -> None:
        session = self.session
        assert verdict.weights_dirty == (self.started > 0 and isinstance(session, ClientSession))
        if verdict.state is not State.DONE:
            return
        assert self.trusted, "done with a stranger"
        if isinstance(session, ClientSession) and session.spec.token is not None:
            told = session.description in (None, PROVEN_DESCRIPTION)
            assert told, "what the server described, all of it"
        if isinstance(session, ClientSession) and session.spec.purpose is Purpose.WEIGHTS:
            unused = verdict.reason is Reason.NOT_NEEDED
            assert unused != (self.reported is not None), "never wrong: done means received"
            assert session.offer is not None
            assert session.offer.manifest == MANIFEST
            assert session.request is None
        elif isinstance(session, ServerSession) and verdict.reason is Reason.VERIFIED:
            assert self.reported is not None, "verified what was never sent"

    def _proves(self, event: Event) -> bool:
        """Whether the peer may be told anything: no token is asked of it, or it has shown it."""
        session = self.session
        if isinstance(session, ClientSession):
            if session.spec.token is None:
                return True
            return isinstance(event, Challenge) and auth.challenges(event, TOKEN, session.start)
        assert isinstance(session, ServerSession)
        if not session.entry.tokens:
            return True
        if not isinstance(event, Hello) or session.start is None:
            return False
        return auth.proves(event, TOKEN, session.start, session.nonce)
