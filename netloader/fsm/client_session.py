"""The state of a client's session. Only the actions of `client` change it."""

from typing import ClassVar

from netloader.config import Deadlines
from netloader.fsm import auth
from netloader.fsm.messages import (
    PROTOCOL_VERSION,
    Challenge,
    Description,
    Hello,
    Offer,
    Opened,
    Purpose,
    Start,
    Unopened,
)
from netloader.fsm.session import FRAME_AFTER_TRUST, FRAME_BEFORE_TRUST, Session
from netloader.fsm.terms import FetchSpec


class ClientSession(Session):
    """The session with one source. The caller makes `nonce`."""

    __slots__ = (
        "answered",
        "available",
        "begun",
        "challenge",
        "completed",
        "crossing",
        "cut",
        "description",
        "joined",
        "lacking",
        "nonce",
        "offer",
        "received",
        "reply",
        "spec",
    )

    side: ClassVar[str] = "client"

    def __init__(self, spec: FetchSpec, deadlines: Deadlines, nonce: str, now: float) -> None:
        self.spec = spec
        self.nonce = nonce
        self.challenge: Challenge | None = None
        self.offer: Offer | None = None
        self.answered = self.joined = False
        """What this side has done of the candidate at hand."""
        self.reply: Opened | Unopened | None = None
        """What the server has said of it."""
        self.crossing: frozenset[str] = frozenset()
        """Candidates that this side gave up before the server has said what became of them."""
        self.available: frozenset[int] = frozenset()
        """Segments that the source has said it has."""
        self.lacking: tuple[int, ...] = ()
        """Segments that neither earlier sources nor this one have delivered."""
        self.begun = self.completed = False
        """The server's last message about the current request."""
        self.received = False
        self.cut: str | None = None
        """Why the connection closed, if it did so after everything asked for was sent."""
        self.description: Description | None = None
        super().__init__(deadlines, now)

    @property
    def name(self) -> str:
        """The id the offer named."""
        return self.offer.session if self.offer else ""

    @property
    def start(self) -> Start:
        """The first message of a client with a token."""
        return Start((PROTOCOL_VERSION,), self.nonce)

    @property
    def hello(self) -> Hello:
        """What this client wants and is able to do, proven once the server has proven itself."""
        spec = self.spec
        plain = Hello(
            versions=(PROTOCOL_VERSION,),
            purpose=spec.purpose,
            identity=spec.identity,
            layouts=spec.layouts,
            transports=spec.transports,
            digest_algorithms=spec.digest_algorithms,
            serves_at=spec.serves_at,
            manifest_digest="" if spec.purpose is Purpose.DESCRIBE else spec.manifest.digest,
        )
        if self.challenge is None:
            return plain
        return auth.proven(plain, spec.token, self.start, self.challenge.nonce)

    @property
    def later_candidates(self) -> tuple[str, ...]:
        """The candidates after the one at hand; all, while there is none."""
        names = tuple(each.transport for each in self.offer.candidates) if self.offer else ()
        return names[names.index(self.transport) + 1 :] if self.transport else names

    @property
    def proven(self) -> bool:
        """Whether the server has shown that it knows the token."""
        return self.challenge is not None

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of all segments, and of a full one."""
        return self.spec.manifest.nbytes, self.offer.segment_bytes if self.offer else 1

    @property
    def frame_limit(self) -> int:
        """64 KiB before the server's proof, if a token is set; then room for a manifest."""
        trusted = self.spec.token is None or self.proven
        return FRAME_AFTER_TRUST if trusted else FRAME_BEFORE_TRUST
